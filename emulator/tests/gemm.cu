// A warp-specialised TMA/wgmma GEMM, C = A * B^T in bf16, one 128x128 tile per CTA. Run with the name
// of a fault to inject; the driver (CMakeLists.txt) knows what must be reported. `speed` as the last
// argument also asserts that a tile takes no more than 0.03 s of one core.
#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <string>
#include <vector>

#include "l4k_emulator.h"

enum Fault {
  kNone,
  kNoWait,
  kParity,
  kBytesLess,
  kBytesMore,
  kNoRelease,
  kEarlyRelease,
  kNoWgmmaFence,
  kNoCommit,
  kNoWgmmaWait,
  kNoProxyFence,
  kNoStoreWait,
  kNoInitBarrier,
  kFewArrivals,
  kFaultCount
};
const char* const kFaults[] = {
    "none",           "no-wait",       "parity",          "bytes-less",  "bytes-more",
    "no-release",     "early-release", "no-wgmma-fence",  "no-commit",   "no-wgmma-wait",
    "no-proxy-fence", "no-store-wait", "no-init-barrier", "few-arrivals"};
constexpr int kStages = 3, kTile = 128, kK = 64, kStageBytes = 2 * kTile * kK * 2;

__device__ uint32_t addr(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}
__device__ void wait(uint32_t bar, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred P1;\nLAB_WAIT:\nmbarrier.try_wait.parity.shared::cta.b64 P1, [%0], %1;\n"
      "@P1 bra DONE;\nbra LAB_WAIT;\nDONE:\n}" ::"r"(bar),
      "r"(parity)
      : "memory");
}
__device__ void load(uint32_t to, const CUtensorMap* map, uint32_t bar, int x, int y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, "
      "%4}], [%2];" ::"r"(to),
      "l"(map), "r"(bar), "r"(x), "r"(y)
      : "memory");
}
__device__ uint64_t descriptor(uint32_t at) {
  return uint64_t((at & 0x3ffff) >> 4) | uint64_t(1) << 16 | uint64_t(1024 >> 4) << 32 |
         uint64_t(1) << 62;
}
__device__ void mma(float (&d)[64], uint64_t a, uint64_t b) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
      "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
      "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,"
      "%39,%40,%41,%42,%43,"
      "%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, %64, %65, "
      "p, 1, 1, 0, 0;\n}\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),
        "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]),
        "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]),
        "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]),
        "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]),
        "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]),
        "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]),
        "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]),
        "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]),
        "+f"(d[63])
      : "l"(a), "l"(b));
}

template <int fault>
__global__ void __launch_bounds__(384, 1)
    gemm(const __grid_constant__ CUtensorMap ma, const __grid_constant__ CUtensorMap mb,
         const __grid_constant__ CUtensorMap mc, int k_tiles) {
  extern __shared__ __align__(1024) uint8_t smem[];
  __shared__ uint64_t full[kStages], empty[kStages];
  int group = threadIdx.x / 128, m = blockIdx.x * kTile, n = blockIdx.y * kTile;
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) {
      asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(addr(&full[s])), "r"(1));
      asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(addr(&empty[s])),
                   "r"(fault == kFewArrivals ? 3 : 2));
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  if (fault != kNoInitBarrier) __syncthreads();
  uint32_t base = addr(smem);
  if (group == 0) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (threadIdx.x == 0) {
      for (int k = 0; k < k_tiles; ++k) {
        int s = k % kStages, phase = k / kStages & 1;
        if (fault != kNoRelease || k < kStages) wait(addr(&empty[s]), phase ^ 1);
        int bytes = fault == kBytesLess   ? kStageBytes - 1024
                    : fault == kBytesMore ? kStageBytes + 1024
                                          : kStageBytes;
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(addr(&full[s])),
                     "r"(bytes)
                     : "memory");
        load(base + s * kStageBytes, &ma, addr(&full[s]), k * kK, m);
        load(base + s * kStageBytes + kStageBytes / 2, &mb, addr(&full[s]), k * kK, n);
      }
    }
    return;
  }
  asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
  float d[64] = {};
  for (int k = 0; k < k_tiles; ++k) {
    int s = k % kStages, phase = k / kStages & 1;
    if (fault != kNoWait) wait(addr(&full[s]), fault == kParity ? phase ^ 1 : phase);
    if (fault == kEarlyRelease && threadIdx.x % 128 == 0)
      asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(addr(&empty[s])) : "memory");
    if (fault != kNoWgmmaFence) asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
    uint32_t a = base + s * kStageBytes + (group - 1) * 64 * 128,
             b = base + s * kStageBytes + kStageBytes / 2;
    for (int i = 0; i < 4; ++i) mma(d, descriptor(a + i * 32), descriptor(b + i * 32));
    if (fault != kNoCommit) asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    if (fault != kNoWgmmaWait) asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    asm volatile("bar.sync %0, 128;" ::"r"(group) : "memory");
    if (fault != kEarlyRelease && threadIdx.x % 128 == 0)
      asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(addr(&empty[s])) : "memory");
  }
  // Both groups have read the last stages: the first 32 KB become the output tile.
  asm volatile("bar.sync 3, 256;" ::: "memory");
  auto* out = reinterpret_cast<__nv_bfloat16*>(smem);
  int warp = threadIdx.x % 128 / 32, lane = threadIdx.x % 32;
  for (int r = 0; r < 64; r += 2) {
    int row = (group - 1) * 64 + warp * 16 + lane / 4 + 8 * (r / 2 % 2),
        col = 8 * (r / 4) + lane % 4 * 2;
    *reinterpret_cast<__nv_bfloat162*>(out + row * kTile + col) =
        __floats2bfloat162_rn(d[r], d[r + 1]);
  }
  if (fault != kNoProxyFence) asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  asm volatile("bar.sync 3, 256;" ::: "memory");
  if (threadIdx.x == 128) {
    asm volatile(
        "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];" ::"l"(&mc),
        "r"(n), "r"(m), "r"(base)
        : "memory");
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
    if (fault != kNoStoreWait) asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
  }
}

using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                            const cuuint64_t*, const cuuint32_t*, const cuuint32_t*,
                            CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion,
                            CUtensorMapFloatOOBfill);
CUtensorMap map(void* p, int rows, int cols, int box_cols, bool swizzle) {
  static Encode encode = [] {
    void* f = nullptr;
    cudaDriverEntryPointQueryResult r;
    cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &f, 12000, cudaEnableDefault, &r);
    return reinterpret_cast<Encode>(f);
  }();
  CUtensorMap m;
  cuuint64_t dims[] = {cuuint64_t(cols), cuuint64_t(rows)}, strides[] = {cuuint64_t(cols) * 2};
  cuuint32_t box[] = {cuuint32_t(box_cols), 128}, ones[] = {1, 1};
  if (encode(&m, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, p, dims, strides, box, ones,
             CU_TENSOR_MAP_INTERLEAVE_NONE,
             swizzle ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE,
             CU_TENSOR_MAP_L2_PROMOTION_NONE, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) != CUDA_SUCCESS)
    std::printf("encode refused: %s\n", l4k_emu_refusal()), std::exit(2);
  return m;
}

template <int fault>
void launch(int which, dim3 grid, const CUtensorMap& a, const CUtensorMap& b, const CUtensorMap& c,
            int k) {
  if constexpr (fault < kFaultCount) {
    if (which != fault) return launch<fault + 1>(which, grid, a, b, c, k);
    cudaFuncSetAttribute(gemm<fault>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                         kStages * kStageBytes);
    gemm<fault><<<grid, 384, kStages * kStageBytes>>>(a, b, c, k);
  }
}

int main(int argc, char** argv) {
  std::string fault = argc > 1 ? argv[1] : "none", expected = argc > 2 ? argv[2] : "";
  int m = argc > 3 ? std::atoi(argv[3]) : 256, n = argc > 4 ? std::atoi(argv[4]) : 128,
      k = argc > 5 ? std::atoi(argv[5]) : 512;
  int which = 0;
  while (which < kFaultCount && fault != kFaults[which]) ++which;
  if (which == kFaultCount) return std::printf("unknown fault %s\n", fault.c_str()), 2;
  std::vector<__nv_bfloat16> a(size_t(m) * k), b(size_t(n) * k), c(size_t(m) * n);
  for (size_t i = 0; i < a.size(); ++i) a[i] = __float2bfloat16(float(int(i * 7 % 13) - 6));
  for (size_t i = 0; i < b.size(); ++i) b[i] = __float2bfloat16(float(int(i * 5 % 11) - 5) / 8);
  void *da, *db, *dc;
  cudaMalloc(&da, a.size() * 2), cudaMalloc(&db, b.size() * 2), cudaMalloc(&dc, c.size() * 2);
  cudaMemcpy(da, a.data(), a.size() * 2, cudaMemcpyHostToDevice);
  cudaMemcpy(db, b.data(), b.size() * 2, cudaMemcpyHostToDevice);
  auto run = [&] {
    launch<0>(which, dim3(m / kTile, n / kTile), map(da, m, k, kK, true), map(db, n, k, kK, true),
              map(dc, m, n, kTile, false), k / kK);
    return cudaDeviceSynchronize();
  };
  auto begin = std::chrono::steady_clock::now();
  cudaError_t e = run();
  double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  std::string kind = l4k_emu_report_kind();
  std::printf("%s: %s in %.4f s\n%s\n", fault.c_str(), cudaGetErrorName(cudaGetLastError()),
              seconds, l4k_emu_report());
  if (!expected.empty()) return ("," + expected + ",").find("," + kind + ",") == std::string::npos;
  if (e != cudaSuccess) return 1;
  if (argc > 6 && !std::strcmp(argv[6], "speed")) {  // once more, now that the module is loaded
    std::clock_t start = std::clock();
    e = run();
    double tile = double(std::clock() - start) / CLOCKS_PER_SEC / (m / kTile * (n / kTile));
    std::printf("%.4f s of processor time per tile\n", tile);
    return e != cudaSuccess || tile > 0.03;
  }
  if (argc > 6) std::printf("%s", l4k_emu_counters());
  cudaMemcpy(c.data(), dc, c.size() * 2, cudaMemcpyDeviceToHost);
  int bad = 0;
  for (int i = 0; i < m; i += 3)
    for (int j = 0; j < n; ++j) {
      float want = 0;
      for (int p = 0; p < k; ++p)
        want += __bfloat162float(a[size_t(i) * k + p]) * __bfloat162float(b[size_t(j) * k + p]);
      bad += __bfloat162float(c[size_t(i) * n + j]) != __bfloat162float(__float2bfloat16(want));
    }
  std::printf("%d wrong\n", bad);
  return bad != 0;
}
