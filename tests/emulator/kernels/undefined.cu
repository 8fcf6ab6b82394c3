// What depends on shared memory that nobody wrote: one way for each mutant.
//
// mutant | report | what
// 1 | uninitialised-shared-read | decides a branch
// 2 | uninitialised-shared-read | is an address
// 3 | uninitialised-shared-read | is stored to global memory, through arithmetic
// 4 | uninitialised-shared-read | ... through a shuffle, from another lane
// 5 | uninitialised-shared-read | ... through shared memory
// 6 | uninitialised-shared-read | ... through local memory
// 7 | uninitialised-shared-read | ... through a function's parameters and result
// 8 | uninitialised-shared-read | ... through ldmatrix, mma and a row of A
// 9 | uninitialised-shared-read | ... through a column of B
// 10 | uninitialised-shared-read | ... through stmatrix
// 11 | uninitialised-shared-read | an atomic operation adds to it
// 12 | uninitialised-shared-read | a volatile load reads it
// 13 | uninitialised-shared-read | one element of a vector is used
// 14 | uninitialised-shared-read | printf shows it
// 15 | uninitialised-unused | a selection takes the other value
// 16 | uninitialised-unused | a false condition decides, whatever it is
// 17 | uninitialised-unused | ... in the other order
// 18 | uninitialised-unused | a mask takes it away
// 19 | uninitialised-unused | its row of the product is not used
// 20 | uninitialised-unused | another element of the vector is used
// 21 | uninitialised-unused | what it was copied to is overwritten
// 22 | uninitialised-unused | a shuffle gives it to lanes that do not use it
// 23 | uninitialised-unused | an exchange puts a value in its place
// 24 | uninitialised-shared-read | ... and what was there is used
#include "device.cuh"
#include "host.h"

__device__ __noinline__ float twice(float x) { return x + x; }

DEVICE float peek(const float* p) {
  float v;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(v) : "r"(smem_u32(p)) : "memory");
  return v;
}
// (p and v > 0) as a predicate, and whether p comes first.
DEVICE int both(float v, int p, bool first) {
  int r;
  if (first)
    asm volatile(
        "{\n.reg .pred p, q;\nsetp.ne.s32 p, %2, 0;\nsetp.gt.and.f32 q, %1, 0f00000000, p;\n"
        "mov.u32 %0, 0;\n@q mov.u32 %0, 1;\n}"
        : "=r"(r)
        : "f"(v), "r"(p));
  else
    asm volatile(
        "{\n.reg .pred p, q;\nsetp.gt.f32 q, %1, 0f00000000;\nsetp.ne.and.s32 p, %2, 0, q;\n"
        "mov.u32 %0, 0;\n@p mov.u32 %0, 1;\n}"
        : "=r"(r)
        : "f"(v), "r"(p));
  return r;
}

// The statement of mutant k, which the original has with data that is defined.
#define TRY(k) if constexpr (MUTANT == 0 || MUTANT == (k))

// Each of these adds 1 for every statement, where `s` holds 1.
template <int MUTANT>
DEVICE float in_registers(float* s, const float* x) {
  int lane = lane_id();
  float out = 0;
  TRY(1)
  if (peek(s + lane) > 0) out += 1;                       // @1
  TRY(2) out += x[static_cast<int>(peek(s + lane)) & 1];  // @2
  TRY(3) out += peek(s + lane) * 2 - 1;                   // @3
  TRY(4) {
    float v = lane == 3 ? peek(s) : 1;  // @4
    out += __shfl_xor_sync(0xffffffff, v, 1);
  }
  TRY(7) out += twice(peek(s + lane)) - 1;  // @7
  TRY(15) {
    float v = peek(s + lane), one = 1;  // @15
    asm volatile("{\n.reg .pred p;\nsetp.lt.s32 p, %2, 0;\nselp.f32 %0, %1, %0, p;\n}"
                 : "+f"(one)
                 : "f"(v), "r"(lane));
    out += one;
  }
  TRY(16) out += both(peek(s + lane), lane < 0, true) + 1;   // @16
  TRY(17) out += both(peek(s + lane), lane < 0, false) + 1;  // @17
  TRY(18) {
    uint32_t v = __float_as_uint(peek(s + lane)), mask = lane < 0 ? ~0u : 0;  // @18
    asm volatile("and.b32 %0, %0, %1;" : "+r"(v) : "r"(mask));
    out += static_cast<float>(v) + 1;
  }
  TRY(22) {
    float v = lane == 3 ? peek(s) : 1;  // @22
    v = __shfl_xor_sync(0xffffffff, v, 1);
    out += lane == 2 ? 1 : v;
  }
  return out;
}

template <int MUTANT>
DEVICE float in_memory(float* s, float* copy) {
  __shared__ alignas(16) uint16_t d[8][8];
  int lane = lane_id();
  float out = 0;
  TRY(5) copy[lane] = peek(s + lane), out += peek(copy + lane);  // @5
  TRY(6) {
    float local[4] = {1, 1, 1, 1};
    local[lane % 4] = peek(s + lane);  // @6
    asm volatile("" ::"l"(local) : "memory");
    out += local[lane % 4];
  }
  TRY(10) {
    uint32_t v = __float_as_uint(peek(s + lane));  // @10
    asm volatile(
        "stmatrix.sync.aligned.m8n8.x1.shared.b16 [%0], {%1};" ::"r"(smem_u32(d[lane % 8])), "r"(v)
        : "memory");
    __syncwarp();
    out += static_cast<float>(d[lane % 8][lane / 8] & 1) + 1;
  }
  TRY(11) atomicAdd(&s[32 + lane], 1.f), out += 1;       // @11
  TRY(12) out += static_cast<volatile float*>(s)[lane];  // @12
  TRY(23) atomicExch(&s[32 + lane], 1.f), out += 1;      // @23
  TRY(24) out += atomicExch(&s[32 + lane], 1.f);         // @24
  __syncwarp();
  if constexpr (MUTANT == 0 || MUTANT == 13 || MUTANT == 20) {
    if (lane % 4 == 0) copy[lane + PICK(13, 2, 1)] = 1;
    __syncwarp();
    float v[4];
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"  // @13 @20
                 : "=f"(v[0]), "=f"(v[1]), "=f"(v[2]), "=f"(v[3])
                 : "r"(smem_u32(copy + lane / 4 * 4))
                 : "memory");
    out += v[2];
  }
  ONLY(14) printf("%f\n", peek(s + lane));  // @14
  __syncwarp();
  TRY(21) {
    copy[lane] = peek(s + lane);  // @21
    asm volatile("" ::: "memory");
    copy[lane] = 1;
    out += peek(copy + lane);
  }
  return out;
}

// Ones times ones; mutant 19 uses the first eight rows of the product only.
template <int MUTANT>
DEVICE float in_product() {
  __shared__ alignas(16) uint16_t a[16][16], b[8][16];
  int lane = lane_id();
  for (int row = 0; row < 16; ++row)
    if (lane < 16 && !((MUTANT == 8 || MUTANT == 19) && row == 9)) a[row][lane] = 0x3f80;
  for (int row = 0; row < 8; ++row)
    if (lane < 16 && !(MUTANT == 9 && row == 2)) b[row][lane] = 0x3f80;
  __syncwarp();
  uint32_t fa[4], fb[2];
  float acc[4] = {};
  ldmatrix_x4(fa, &a[lane % 16][lane / 16 * 8]);    // @8 @19
  ldmatrix_x2(fb, &b[lane % 8][lane / 8 % 2 * 8]);  // @9
  mma_bf16(acc, fa, fb);
  return acc[0] + acc[1] - 32 + (MUTANT == 19 ? 0 : acc[2] + acc[3] - 32);
}

constexpr int kStatements = 19;

template <int MUTANT>
__global__ void depend(const float* x, float* y) {
  __shared__ alignas(16) float known[64], unknown[64], copy[64];
  int lane = lane_id();
  known[lane] = known[lane + 32] = x[lane];
  __syncwarp();
  float* s = MUTANT == 0 ? known : unknown;
  float out = in_registers<MUTANT>(s, x) + in_memory<MUTANT>(s, copy);
  if constexpr (MUTANT == 0 || MUTANT == 8 || MUTANT == 9 || MUTANT == 19)
    out += in_product<MUTANT>();
  y[lane] = out;
}

template <int MUTANT>
int run() {
  std::vector<float> x(32, 1), want(32, kStatements);
  Buffer<float> dx(x), dy(32);
  launch(depend<MUTANT>, {.grid = 1, .block = 32}, dx.data, dy.data);
  CHECK(cudaDeviceSynchronize());
  return verdict(dy.download(), want);
}
MAIN(24)
