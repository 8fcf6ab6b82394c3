#include <tuple>

#include "bindings/arguments.h"
#include "bindings/registry.h"
#include "kernels/sample/sample.h"

namespace l4k::binding {

std::tuple<Tensor, Tensor, Tensor, Tensor> sample(const Tensor& logits, const Tensor& temperature,
                                                  const Tensor& top_k, const Tensor& top_p,
                                                  const Tensor& min_p, const Tensor& seeds,
                                                  const Tensor& counters, int64_t top_logprobs) {
  const Call call("sample", {"logits", logits});
  const Logits in = check_logits(call, {"logits", logits});
  call.require(in.width >= 1 && in.width <= kSampleMaxVocab, "expected 1 to ", kSampleMaxVocab,
               " tokens to choose from, got logits ", logits);
  call.require(top_logprobs >= 0 && top_logprobs <= in.width, "expected top_logprobs in 0 to ",
               in.width, " (the vocabulary), got ", top_logprobs);
  const float* temperature_data = check_list<float>(call, {"temperature", temperature}, {in.rows});
  const int* top_k_data = check_list<int>(call, {"top_k", top_k}, {in.rows});
  const float* top_p_data = check_list<float>(call, {"top_p", top_p}, {in.rows});
  const float* min_p_data = check_list<float>(call, {"min_p", min_p}, {in.rows});
  const int64_t* seeds_data = check_list<int64_t>(call, {"seeds", seeds}, {in.rows});
  const int64_t* counters_data = check_list<int64_t>(call, {"counters", counters}, {in.rows});
  Tensor ids = call.empty({in.rows}, ScalarType::Long);
  Tensor logprobs = call.empty({in.rows}, ScalarType::Float);
  Tensor top_ids = call.empty({in.rows, top_logprobs}, ScalarType::Long);
  Tensor top = call.empty({in.rows, top_logprobs}, ScalarType::Float);
  const SampleParams params{.rows = in.rows,
                            .vocab = static_cast<int>(in.width),
                            .num_top = static_cast<int>(top_logprobs),
                            .logits = in.data,
                            .temperature = temperature_data,
                            .top_k = top_k_data,
                            .top_p = top_p_data,
                            .min_p = min_p_data,
                            .seeds = seeds_data,
                            .counters = counters_data,
                            .ids = pointer<int64_t>(ids),
                            .logprobs = pointer<float>(logprobs),
                            .top_ids = pointer<int64_t>(top_ids),
                            .top_logprobs = pointer<float>(top),
                            .logits_stride = in.stride,
                            .float32 = in.float32};
  call.launch(l4k::sample, params);
  return {ids, logprobs, top_ids, top};
}

}  // namespace l4k::binding

L4K_REGISTER(m) { l4k::bind<l4k::binding::sample>(m, "sample"); }
