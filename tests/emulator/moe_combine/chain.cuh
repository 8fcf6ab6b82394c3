// One mutant's launches, included once for each in a namespace of its own: copies of rows and of their
// places, the sum with its norm, and the sum of the same rows and that one with its norm in e4m3. Every
// CTA has several tokens.
#include "../kernels/copy.cuh"

namespace l4k {

inline MoeCombineNormParams combination(const void* residual, void* out) {
  const World& w = world();
  return {.combine = {.tokens = kTokens,
                      .width = kWidth,
                      .top_k = kTopK,
                      .y = w.y.data,
                      .inverse = w.inverse.data,
                      .shared = nullptr,
                      .residual = residual,
                      .out = out,
                      .y_stride = kWidth,
                      .shared_stride = 0,
                      .residual_stride = kWidth,
                      .error = w.error.data},
          .weight = w.weight.data,
          .eps = kEps,
          .normed = w.normed.data,
          .q = w.q.data,
          .scale = w.scale.data};
}

template <bool kFp8>
bool combine_norm(const void* residual, void* out) {
  const LaunchConfig config{.grid = dim3(sm_count()), .block = dim3(norm_threads(kWidth / 8))};
  return launch(moe_combine_norm_kernel<kFp8>, config, nullptr, combination(residual, out)) ==
         cudaSuccess;
}

inline void run_chain(std::vector<float>& results, bool original) {
  const World& w = world();
  if (!poison(w.y) || !poison(w.inverse) || !poison(w.x) || !poison(w.normed) || !poison(w.last) ||
      !poison(w.q) || !poison(w.scale) || !copy(w.asked, w.y) || !copy(w.given, w.inverse) ||
      !combine_norm<false>(w.residual.data, w.x.data) ||
      !combine_norm<true>(w.x.data, w.last.data) || cudaDeviceSynchronize() != cudaSuccess)
    return;
  const std::vector<uint16_t> x = w.x.download(), normed = w.normed.download();
  for (const std::vector<uint16_t>& values : {x, normed, w.last.download()})
    for (uint16_t value : values) results.push_back(from_bf16(value));
  for (uint8_t code : w.q.download()) results.push_back(code);
  for (float value : w.scale.download()) results.push_back(value);
  if (original) check_results(x, normed);
}

}  // namespace l4k
