#include "bindings/arguments.h"
#include "bindings/registry.h"
#include "kernels/advance_step/advance_step.h"
#include "kernels/process_logits/process_logits.h"

namespace l4k::binding {

namespace {

// Words of a bit mask over a vocabulary.
constexpr int64_t mask_words(int64_t vocab) { return ceil_div<int64_t>(vocab, 32); }

// A table that is read element by element, its rows wherever each begins.
template <typename T>
T* check_table(const Call& call, const Argument& t, const Shape& shape) {
  call.require_dtype(t, {kScalarType<T>});
  call.require_shape(t, shape);
  const int64_t last = t.rank() - 1;
  call.require(t.sizes[last] <= 1 || t.strides[last] == 1, "expected the last dimension of ",
               t.name, " to be contiguous, got ", t, "; call contiguous() first");
  return static_cast<T*>(call.address(t, sizeof(T)));
}

// A table that is written: two rows must not be one.
template <typename T>
T* check_written_table(const Call& call, const Argument& t, const Shape& shape) {
  T* data = check_table<T>(call, t, shape);
  call.require(t.sizes[0] <= 1 || t.strides[0] >= t.sizes[1], "expected the rows of ", t.name,
               ", which are written, to share no memory, got ", t);
  return data;
}

}  // namespace

Tensor process_logits(const Tensor& logits, const Tensor& tally, const Tensor& bias,
                      const Tensor& allowed, const Tensor& stop_bits, const Tensor& generated,
                      const Tensor& min_tokens, const Tensor& repetition_penalty,
                      const Tensor& frequency_penalty, const Tensor& presence_penalty,
                      const Tensor& active) {
  const Call call("process_logits", {"logits", logits});
  const Logits in = check_logits(call, {"logits", logits});
  const int64_t rows = in.rows, vocab = in.width, words = mask_words(vocab);
  call.require(vocab <= kProcessLogitsMaxVocab, "expected at most ", kProcessLogitsMaxVocab,
               " tokens, got logits ", logits);
  const int* tally_data = check_table<int>(call, {"tally", tally}, {rows, vocab});
  const float* bias_data = check_table<float>(call, {"bias", bias}, {rows, vocab});
  const int* allowed_data = check_table<int>(call, {"allowed", allowed}, {rows, words});
  const int* stop_data = check_table<int>(call, {"stop_bits", stop_bits}, {rows, words});
  const int64_t* generated_data = check_list<int64_t>(call, {"generated", generated}, {rows});
  const int64_t* minimum_data = check_list<int64_t>(call, {"min_tokens", min_tokens}, {rows});
  const float* repetition =
      check_list<float>(call, {"repetition_penalty", repetition_penalty}, {rows});
  const float* frequency =
      check_list<float>(call, {"frequency_penalty", frequency_penalty}, {rows});
  const float* presence = check_list<float>(call, {"presence_penalty", presence_penalty}, {rows});
  const int* active_data = check_list<int>(call, {"active", active}, {rows});
  Tensor out = call.empty({rows, vocab}, ScalarType::Float);
  const ProcessLogitsParams params{.rows = rows,
                                   .vocab = static_cast<int>(vocab),
                                   .float32 = in.float32,
                                   .logits = in.data,
                                   .tally = tally_data,
                                   .bias = bias_data,
                                   .allowed = allowed_data,
                                   .stop_bits = stop_data,
                                   .generated = generated_data,
                                   .min_tokens = minimum_data,
                                   .repetition_penalty = repetition,
                                   .frequency_penalty = frequency,
                                   .presence_penalty = presence,
                                   .active = active_data,
                                   .out = pointer<float>(out),
                                   .logits_stride = in.stride,
                                   .tally_stride = tally.stride(0),
                                   .bias_stride = bias.stride(0),
                                   .allowed_stride = allowed.stride(0),
                                   .stop_stride = stop_bits.stride(0)};
  call.launch(l4k::process_logits, params);
  return out;
}

void advance_step(const Tensor& sampled, Tensor ids, Tensor positions, Tensor seqlens_k,
                  Tensor generated, const Tensor& max_tokens, const Tensor& stop_bits, Tensor slots,
                  const Tensor& block_tables, Tensor results, int64_t page_size,
                  const OptionalTensor& tally, const OptionalTensor& feature_rows) {
  const Call call("advance_step", {"sampled", sampled});
  const int64_t* sampled_data = check_list<int64_t>(call, {"sampled", sampled}, {"B"});
  const int64_t rows = sampled.size(0);
  int64_t* ids_data = check_list<int64_t>(call, {"ids", ids}, {rows});
  int64_t* positions_data = check_list<int64_t>(call, {"positions", positions}, {rows});
  int* lengths_data = check_list<int>(call, {"seqlens_k", seqlens_k}, {rows});
  int64_t* generated_data = check_list<int64_t>(call, {"generated", generated}, {rows});
  const int64_t* limits_data = check_list<int64_t>(call, {"max_tokens", max_tokens}, {rows});
  const int* stop_data = check_table<int>(call, {"stop_bits", stop_bits}, {rows, "words"});
  int64_t* slots_data = check_written_table<int64_t>(call, {"slots", slots}, {"K", rows});
  const int64_t kinds = slots.size(0), words = stop_bits.size(1);
  const int* tables_data =
      check_table<int>(call, {"block_tables", block_tables}, {kinds, rows, "P"});
  const int64_t columns = block_tables.size(2);
  int64_t* results_data = check_written_table<int64_t>(call, {"results", results}, {2, rows});
  int* tally_data = nullptr;
  if (tally) {
    tally_data = check_written_table<int>(call, {"tally", *tally}, {rows, "V"});
    call.require(mask_words(tally->size(1)) == words,
                 "expected stop_bits to hold a bit for each "
                 "of the tokens of tally, got ",
                 stop_bits, " and ", *tally);
  }
  int* feature_data = check_optional_list<int>(call, {"feature_rows", feature_rows}, {rows});
  call.require(words >= 1, "expected at least one word of stop_bits, got ", stop_bits);
  call.require(columns >= 1 && columns < kIntLimit,
               "expected 1 to 2^31 - 1 columns of block_tables, got ", block_tables);
  call.require(kinds < kIntLimit, "expected fewer than 2^31 kinds of layers, got slots ", slots);
  call.require(page_size >= 1 && page_size < kIntLimit, "expected page_size in 1 to 2^31 - 1, got ",
               page_size);
  const AdvanceStepParams params{.rows = rows,
                                 .vocab = tally ? tally->size(1) : 32 * words,
                                 .columns = columns,
                                 .kinds = static_cast<int>(kinds),
                                 .page_size = static_cast<int>(page_size),
                                 .sampled = sampled_data,
                                 .ids = ids_data,
                                 .positions = positions_data,
                                 .seqlens_k = lengths_data,
                                 .generated = generated_data,
                                 .max_tokens = limits_data,
                                 .stop_bits = stop_data,
                                 .slots = slots_data,
                                 .block_tables = tables_data,
                                 .results = results_data,
                                 .tally = tally_data,
                                 .feature_rows = feature_data,
                                 .stop_stride = stop_bits.stride(0),
                                 .slots_stride = slots.stride(0),
                                 .table_stride = block_tables.stride(1),
                                 .kind_stride = block_tables.stride(0),
                                 .results_stride = results.stride(0),
                                 .tally_stride = tally ? tally->stride(0) : 0};
  call.launch(l4k::advance_step, params);
}

}  // namespace l4k::binding

L4K_REGISTER(m) {
  l4k::bind<l4k::binding::process_logits>(m, "process_logits");
  l4k::bind<l4k::binding::advance_step>(m, "advance_step");
}
