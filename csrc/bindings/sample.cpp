#include <tuple>

#include "bindings/arguments.h"
#include "kernels/sample/sample.h"

namespace l4k::binding {

std::tuple<Tensor, Tensor, Tensor, Tensor> sample(const Tensor& logits, const Tensor& temperature,
                                                  const Tensor& top_k, const Tensor& top_p,
                                                  const Tensor& min_p, const Tensor& seeds,
                                                  const Tensor& counters, int64_t top_logprobs) {
  const bool float32 = logits.scalar_type() == ScalarType::Float;
  if (!float32) L4K_CHECK_DTYPE(logits, BFloat16);
  L4K_CHECK_SHAPE(logits, -1, -1);
  const int64_t batch = logits.size(0), vocab = logits.size(1);
  L4K_REQUIRE(vocab >= 1 && vocab <= kSampleMaxVocab, "expected 1 to ", kSampleMaxVocab,
              " tokens to choose from, got ", describe(logits));
  L4K_REQUIRE(vocab == 1 || logits.stride(1) == 1,
              "expected the last dimension of logits to be contiguous, got ", describe(logits),
              "; call contiguous() first");
  L4K_REQUIRE(top_logprobs >= 0 && top_logprobs <= vocab, "expected top_logprobs in 0 to ", vocab,
              " (the vocabulary), got ", top_logprobs);
  L4K_CHECK_DTYPE(temperature, Float);
  L4K_CHECK_DTYPE(top_k, Int);
  L4K_CHECK_DTYPE(top_p, Float);
  L4K_CHECK_DTYPE(min_p, Float);
  L4K_CHECK_DTYPE(seeds, Long);
  L4K_CHECK_DTYPE(counters, Long);
  L4K_CHECK_SHAPE(temperature, batch);
  L4K_CHECK_SHAPE(top_k, batch);
  L4K_CHECK_SHAPE(top_p, batch);
  L4K_CHECK_SHAPE(min_p, batch);
  L4K_CHECK_SHAPE(seeds, batch);
  L4K_CHECK_SHAPE(counters, batch);
  L4K_CHECK_CONTIGUOUS(temperature);
  L4K_CHECK_CONTIGUOUS(top_k);
  L4K_CHECK_CONTIGUOUS(top_p);
  L4K_CHECK_CONTIGUOUS(min_p);
  L4K_CHECK_CONTIGUOUS(seeds);
  L4K_CHECK_CONTIGUOUS(counters);
  Device device(logits);
  Tensor ids = empty_like(logits, {batch}, ScalarType::Long);
  Tensor logprobs = empty_like(logits, {batch}, ScalarType::Float);
  Tensor top_ids = empty_like(logits, {batch, top_logprobs}, ScalarType::Long);
  Tensor top = empty_like(logits, {batch, top_logprobs}, ScalarType::Float);
  SampleParams params{.rows = batch,
                      .vocab = static_cast<int>(vocab),
                      .num_top = static_cast<int>(top_logprobs),
                      .logits = pointer(logits),
                      .temperature = pointer<float>(temperature),
                      .top_k = pointer<int>(top_k),
                      .top_p = pointer<float>(top_p),
                      .min_p = pointer<float>(min_p),
                      .seeds = pointer<int64_t>(seeds),
                      .counters = pointer<int64_t>(counters),
                      .ids = pointer<int64_t>(ids),
                      .logprobs = pointer<float>(logprobs),
                      .top_ids = pointer<int64_t>(top_ids),
                      .top_logprobs = pointer<float>(top),
                      .logits_stride = logits.stride(0),
                      .float32 = float32};
  L4K_LAUNCH(l4k::sample(params, device.stream()));
  return {ids, logprobs, top_ids, top};
}

}  // namespace l4k::binding

L4K_REGISTER(m) { L4K_IMPL(m, "sample", sample); }
