// What the hot paths cost: run it by hand before and after touching them.
#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>
#include <vector>

#include "tensor/mma.h"
#include "tensor/numeric.h"
#include "tensor/tensor_map.h"

using namespace l4k::emu;

namespace {

// Best of five, in seconds for one call.
double best(int calls, const std::function<void()>& fn) {
  double least = 1e9;
  for (int i = 0; i < 5; ++i) {
    auto start = std::chrono::steady_clock::now();
    for (int n = 0; n < calls; ++n) fn();
    std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    least = std::min(least, took.count() / calls);
  }
  return least;
}

}  // namespace

int main() {
  std::vector<uint8_t> a(64 * 32, 0x31), b(256 * 32, 0x32);
  std::vector<float> acc(64 * 256);
  const char* names[] = {"bf16", "f16", "tf32", "e4m3", "e5m2"};
  for (int n : {64, 128, 256})
    for (int t = 0; t < 5; ++t)
      for (int mode = 0; mode < (t > 2 ? 2 : 1); ++mode) {
        auto type = static_cast<MmaType>(t);
        double s = best(200, [&] {
          wgmma_tile(type, type, n, a.data(), b.data(), acc.data(), false, 1, 1,
                     static_cast<Fp8Accumulation>(mode));
        });
        std::printf("wgmma m64n%d %s%s: %.2f us, %.1f GFLOP/s\n", n, names[t],
                    mode ? " reduced precision" : "", s * 1e6,
                    2.0 * 64 * n * (32 / mma_bytes(type)) / s * 1e-9);
      }
  double s8 = best(200, [&] {
    wgmma_tile_s32(MmaType::s8, MmaType::s8, 128, a.data(), b.data(),
                   reinterpret_cast<int32_t*>(acc.data()), false, false);
  });
  std::printf("wgmma m64n128 s8: %.2f us\n", s8 * 1e6);

  // The whole 128 x 128 x 512 tile: gather both operands by descriptor, multiply, move registers.
  std::vector<uint8_t> smem(228 * 1024, 0x31);
  std::vector<uint32_t> words(4 * 64 * 32);
  std::vector<uint32_t*> regs;
  for (int i = 0; i < 4 * 64; ++i) regs.push_back(&words[static_cast<size_t>(i) * 32]);
  double tile = best(3, [&] {
    for (int step = 0; step < 32; ++step)
      for (uint32_t half = 0; half < 2; ++half) {
        uint32_t k = static_cast<uint32_t>(step) % 4 * 32;
        uint64_t da = encode_descriptor({half * 8192 + k, 16, 1024, 0, Swizzle::b128});
        uint64_t db = encode_descriptor({32768 + k, 16, 1024, 0, Swizzle::b128});
        gather_operand(smem.data(), 228 * 1024, da, 64, MmaType::bf16, false, a.data());
        gather_operand(smem.data(), 228 * 1024, db, 128, MmaType::bf16, false, b.data());
        wgmma_load_acc(128, regs.data(), reinterpret_cast<uint32_t*>(acc.data()));
        wgmma_tile(MmaType::bf16, MmaType::bf16, 128, a.data(), b.data(), acc.data(), step > 0, 1,
                   1, Fp8Accumulation::exact);
        wgmma_store_acc(128, reinterpret_cast<uint32_t*>(acc.data()), regs.data());
      }
  });
  std::printf("128 x 128 x 512 bf16, gather + multiply + registers: %.3f ms\n", tile * 1e3);
  double mn = best(200, [&] {
    uint64_t d = encode_descriptor({0, 8192, 1024, 0, Swizzle::b128});
    gather_operand(smem.data(), 228 * 1024, d, 128, MmaType::bf16, true, b.data());
  });
  std::printf("gather 128 rows MN-major: %.2f us\n", mn * 1e6);

  uint32_t* r = words.data();
  const uint32_t* in[] = {r, r + 32, r + 64, r + 96};
  uint32_t* out[] = {r + 128, r + 160, r + 192, r + 224};
  double sync =
      best(2000, [&] { mma_sync(MmaType::bf16, MmaType::bf16, MmaAcc::f32, 16, in, in, in, out); });
  std::printf("mma.sync m16n8k16 bf16: %.0f ns\n", sync * 1e9);

  alignas(64) uint8_t map[128];
  alignas(16) static uint8_t global[128 * 128];
  uint64_t dims[] = {64, 128}, strides[] = {128};
  uint32_t box[] = {64, 128}, ones[] = {1, 1};
  encode_tiled(map, 9, 2, global, dims, strides, box, ones, 0, 3, 0, 0);
  TensorMap m;
  read_tensor_map(map, &m);
  int32_t coords[] = {0, 0};
  double load = best(500, [&] { load_box(m, coords, smem.data(), 0); });
  std::printf("load_box 128 x 128 bytes, 128B swizzle: %.2f us\n", load * 1e6);

  float lanes[32], results[32];
  for (int i = 0; i < 32; ++i) lanes[i] = 0.37f * static_cast<float>(i) + 0.1f;
  const char* ops[] = {"ex2", "lg2", "rcp", "rsqrt", "sqrt", "sin", "cos", "tanh"};
  for (int i = 0; i < 8; ++i) {
    double t = best(2000, [&] { approx_n(static_cast<Approx>(i), lanes, results, 32, true, 1); });
    std::printf("%s.approx, one warp: %.0f ns\n", ops[i], t * 1e9);
  }
}
