// Two dependent products by one configuration of the GEMM (its number: CONFIG), for the mutants: the
// second takes the result of the first as A and, in bf16, as the residual. In e4m3 the first makes
// SwiGLU, and the second takes codes and scales. The argument is how many clusters share the tiles.
// Exit status 1: wrong numbers.
#include <cmath>
#include <cstdlib>
#include <string>

#include "../kernels/host.h"
#include "kernels/gemm/launch.cuh"

namespace {

constexpr l4k::GemmConfig kConfig = l4k::kGemmConfigs[CONFIG];
constexpr int kM = 300, kN = 512, kK = 512;

template <typename T>
Buffer<T> operand(size_t size, size_t salt) {
  if constexpr (sizeof(T) == 1) return Buffer<T>(to_e4m3(small_floats(size, salt)));
  else return Buffer<T>(to_bf16(small_floats(size, salt)));
}

l4k::GemmParams product(const void* a, const void* b, void* d, const float* one, int k,
                        int clusters) {
  l4k::GemmParams p{};
  p.m = kM;
  p.n = kN;
  p.k = k;
  p.num_experts = 1;
  p.fp8 = kConfig.fp8;
  p.a = a;
  p.b = b;
  p.epilogue.d = d;
  p.a_stride = k;
  if (p.fp8) {
    p.scales.kind_a = p.scales.kind_b = l4k::GemmScale::kTensor;
    p.scales.a = p.scales.b = one;
  }
  p.ctas_per_tile = kConfig.swap ? 2 : kConfig.cluster();
  p.max_clusters = clusters > 0 ? clusters : 4 / p.ctas_per_tile;  // the test's SMs
  p.choice = {CONFIG, kConfig.swap || kConfig.split_k ? 2 : 1};
  return p;
}

std::vector<float> multiply(const std::vector<float>& a, const std::vector<float>& b, int k) {
  std::vector<float> d(size_t{kM} * kN);
  for (int m = 0; m < kM; ++m)
    for (int n = 0; n < kN; ++n) {
      float sum = 0;
      for (int i = 0; i < k; ++i) sum += a[size_t(m) * k + i] * b[size_t(n) * k + i];
      d[size_t(m) * kN + n] = sum;
    }
  return d;
}

}  // namespace

int main(int argc, char** argv) {
  const int clusters = argc > 1 ? std::atoi(argv[1]) : 0;
  using T = std::conditional_t<kConfig.fp8, uint8_t, uint16_t>;
  Buffer<T> a = operand<T>(size_t{kM} * kK, 0), b = operand<T>(size_t{kN} * kK, 7);
  Buffer<float> one(std::vector<float>(1, 1.f)), scale(size_t{kM} * kN / 256);
  Buffer<uint16_t> first(size_t{kM} * kN), second(size_t{kM} * kN);
  l4k::GemmParams p = product(a.data, b.data, first.data, one.data, kK, clusters);
  int k = kN;
  if constexpr (kConfig.fp8) {
    p.epilogue.activation = l4k::Activation::kSwiglu;
    p.d_scale = scale.data;
    p.choice.splits = 1;
    k = kN / 2;
  }
  CHECK(l4k::launch_gemm<CONFIG>(p, nullptr));
  l4k::GemmParams q = product(first.data, b.data, second.data, one.data, k, clusters);
  if constexpr (kConfig.fp8) {
    q.scales.a = scale.data;
    q.scales.kind_a = l4k::GemmScale::kBlock;
    q.scales.kind_b = l4k::GemmScale::kNone;
    q.epilogue.row_scale = scale.data;
  } else {
    q.epilogue.residual = first.data;
    q.epilogue.residual_stride = kN;
  }
  CHECK(l4k::launch_gemm<CONFIG>(q, nullptr));
  CHECK(cudaDeviceSynchronize());
  const std::vector<uint16_t> got = second.download();
  if constexpr (kConfig.fp8) {
    for (uint16_t value : got)
      if (!std::isfinite(from_bf16(value))) return 1;
  } else {
    const auto weights = small_floats(size_t{kN} * kK, 7);
    std::vector<float> middle = multiply(small_floats(size_t{kM} * kK), weights, kK);
    for (float& value : middle) value = rounded(value);
    std::vector<float> expected = multiply(middle, weights, kN);
    for (size_t i = 0; i < expected.size(); ++i) expected[i] += middle[i];
    for (size_t i = 0; i < got.size(); ++i)
      if (std::fabs(from_bf16(got[i]) - expected[i]) > 0.01f * std::fabs(expected[i]) + 1) return 1;
  }
  std::printf("PASS\n");
  return 0;
}
