#include "kernels/gemm/gemm.h"

#include "bindings/epilogue.h"
#include "bindings/gather.h"
#include "bindings/registry.h"
#include "host/nonce.h"
#include "kernels/gemm/configs.h"
#include "kernels/stream_gemm/stream_gemm.h"
#include "tile/schedule.h"

namespace l4k::binding {

namespace {

// The operands, their sizes and the experts; the rest of the parameters is zero.
GemmParams check_operands(const Call& call, const Argument& a, const Argument& b,
                          const OptionalTensor& expert_offsets, const GatherArguments& gather) {
  call.require_dtype(a, {ScalarType::BFloat16, ScalarType::Float8_e4m3fn});
  call.require(b.dtype == a.dtype, "expected b in the dtype of a, got ", b, " with a ", a);
  const Rows rows = check_rows(call, a, a.dtype, {"M", "K"});
  const int64_t m = rows_of_product(call, gather, rows.count, expert_offsets);
  const int64_t k = rows.width;
  const bool grouped = b.rank() == 3;
  call.require((b.rank() == 2 || grouped) && b.sizes[b.rank() - 1] == k, "expected b to be [N, ", k,
               "] or [E, N, ", k, "], got ", b);
  call.require_contiguous(b);
  call.require(grouped == expert_offsets.has_value(),
               "expected expert_offsets with b of three dimensions, and only then");
  const int64_t n = b.sizes[b.rank() - 2], experts = grouped ? b.sizes[0] : 1;
  call.require(experts >= 1 && experts <= kMaxExperts, "expected b to hold 1 to ", kMaxExperts,
               " experts, got ", b);
  call.require(m < kIntLimit && n < kIntLimit && k < kIntLimit,
               "expected sizes of a and b below 2^31, got ", a, " and ", b);
  call.require(k > 0, "expected K (columns of a and b) to be positive, got ", k);
  call.require(k * a.element_size() % 16 == 0,
               "expected the rows of a to be a multiple of 16 bytes, got ", a);
  call.require(rows.count <= 1 || rows.stride >= k, "expected the rows of a not to overlap, got ",
               a, " with stride ", rows.stride, "; call contiguous() first");
  GemmParams p{};
  p.m = static_cast<int>(m);
  p.n = static_cast<int>(n);
  p.k = static_cast<int>(k);
  p.num_experts = static_cast<int>(experts);
  p.fp8 = a.dtype == ScalarType::Float8_e4m3fn;
  p.a = rows.data;
  p.a_stride = rows.count > 1 ? rows.stride : k;
  call.require(!gather.permutation || !p.fp8, "expected permutation with an a of bfloat16, got ",
               a);
  p.b = check_vectors(call, b);
  p.expert_offsets =
      check_optional_list<int>(call, {"expert_offsets", expert_offsets}, {experts + 1});
  p.error = error_word();
  return p;
}

// Reads the scalings of A and B off the shapes of their scales.
void check_scales(const Call& call, const Argument& sfa, const Argument& sfb, GemmParams& p) {
  for (const Argument* scales : {&sfa, &sfb}) {
    call.require_dtype(*scales, {ScalarType::Float});
    call.require_contiguous(*scales);
  }
  const int64_t blocks = ceil_div(p.k, 128), rows = ceil_div(p.n, 128), experts = p.num_experts;
  const bool grouped = p.expert_offsets != nullptr;
  if (fits(sfa.sizes, {p.m, blocks}) && p.k % 128 == 0) p.scales.kind_a = GemmScale::kBlock;
  if (fits(sfa.sizes, {p.m})) p.scales.kind_a = GemmScale::kRow;
  if (fits(sfa.sizes, {1})) p.scales.kind_a = GemmScale::kTensor;
  const auto fits_b = [&](Shape dense, Shape per_expert) {
    return fits(sfb.sizes, grouped ? per_expert : dense);
  };
  const bool per_block = fits_b({rows, blocks}, {experts, rows, blocks});
  const bool per_channel = fits_b({p.n}, {experts, p.n});
  const bool per_tensor = fits_b({1}, {experts, 1});
  // The legal pairs; with M = 1 a scale [1] of A may be both per tensor and per row.
  if (p.scales.kind_a == GemmScale::kBlock && per_block) {
    p.scales.kind_b = GemmScale::kBlock;
  } else if (per_channel && p.scales.kind_a != GemmScale::kNone &&
             (p.scales.kind_a != GemmScale::kTensor || p.m == 1)) {
    p.scales.kind_b = GemmScale::kRow;
  } else if (p.scales.kind_a == GemmScale::kTensor && per_tensor) {
    p.scales.kind_b = GemmScale::kTensor;
  } else {
    call.fail("expected scales per tensor, per row and channel, 1x128 and 128x128, 1x128 and ",
              "channel, got sfa ", sfa, ", sfb ", sfb);
  }
  p.scales.a = static_cast<const float*>(call.address(sfa, sizeof(float)));
  // By channel they are read in vectors.
  const void* factors = p.scales.kind_b == GemmScale::kRow
                            ? call.address({"sfb of channels", sfb.tensor}, 16)
                            : call.address(sfb, sizeof(float));
  p.scales.b = static_cast<const float*>(factors);
}

void check_optional_scales(const Call& call, const OptionalTensor& sfa, const OptionalTensor& sfb,
                           GemmParams& p) {
  call.require(p.fp8 == sfa.has_value() && p.fp8 == sfb.has_value(),
               "expected sfa and sfb with float8 operands, and only then");
  if (p.fp8) check_scales(call, {"sfa", *sfa}, {"sfb", *sfb}, p);
}

// `p` is complete but for what it computes with. Only the streaming kernel `gathers` rows.
void check_config(const Call& call, int64_t config, bool gathers, GemmParams& p) {
  call.require(config > GemmChoice::kNone && config <= kMaxSplits * 100 + 99 &&
                   GemmChoice::of(static_cast<int>(config)).config < kNumGemmConfigs,
               "expected config to be -1, ", GemmChoice::kStream, " (streaming), a row of 0 to ",
               kNumGemmConfigs - 1, ", or that and 100 times a number of splits up to ", kMaxSplits,
               ", got ", config);
  p.choice = GemmChoice::of(static_cast<int>(config));
  if (gathers) {
    call.require(config == GemmChoice::kTuned || config == GemmChoice::kStream,
                 "expected config to be -1 or ", GemmChoice::kStream,
                 " (streaming) with permutation, got ", config);
    p.choice = {GemmChoice::kStream, 1};
    call.require(p.can_stream, "expected permutation with a smaller K, got ", p.k);
  }
  const bool chosen = config >= 0 || config == GemmChoice::kStream;
  call.require(!chosen || can_run(p.choice, problem_of(p)),
               "expected config to be a row for these operands, scales and activation, or -1, got ",
               config);
}

StreamFormat stream_format(const GemmParams& p) {
  return p.fp8 ? StreamFormat::kFp8 : StreamFormat::kBf16;
}

void launch_stream(const Call& call, const GemmParams& p, const RowGather& gather) {
  StreamGemmParams q{.m = p.m,
                     .n = p.n,
                     .k = p.k,
                     .num_experts = p.num_experts,
                     .format = stream_format(p),
                     .a = p.a,
                     .a_stride = p.a_stride,
                     .gather = gather,
                     .weights = p.b,
                     .tile = {},
                     .scales = p.scales,
                     .expert_offsets = p.expert_offsets,
                     .epilogue = p.epilogue,
                     .static_weights = false,
                     .workspace = nullptr,
                     .nonce = launch_nonce(),
                     .activation_bytes = 0,
                     .error = p.error};
  Tensor workspace = call.workspace(stream_gemm_workspace(q));
  q.workspace = pointer(workspace);
  call.launch(stream_gemm, q);
}

void launch(const Call& call, GemmParams p, const RowGather& gather = {nullptr, 1}) {
  if (p.m == 0 || p.n == 0) return;
  p.choice = choose_gemm(p);
  if (p.choice.config == GemmChoice::kStream) return launch_stream(call, p, gather);
  call.launch(l4k::gemm, p);
}

// All but the result.
GemmParams check_product(const Call& call, const Tensor& a, const Tensor& b,
                         const OptionalTensor& expert_offsets, const GatherArguments& gather,
                         const OptionalTensor& sfa, const OptionalTensor& sfb,
                         const EpilogueArguments& epilogue, bool fast_accum, int64_t config) {
  GemmParams p = check_operands(call, {"a", a}, {"b", b}, expert_offsets, gather);
  check_optional_scales(call, sfa, sfb, p);
  p.epilogue = check_epilogue(call, epilogue, p.m, p.n);
  p.can_stream = can_stream(stream_format(p), p.m, p.k, p.num_experts);
  p.fast_accum = fast_accum;
  check_config(call, config, gather.permutation.has_value(), p);
  return p;
}

}  // namespace

Tensor gemm(const Tensor& a, const Tensor& b, const OptionalTensor& expert_offsets,
            const OptionalTensor& permutation, int64_t top_k, const OptionalTensor& sfa,
            const OptionalTensor& sfb, const OptionalTensor& bias, const OptionalTensor& residual,
            const OptionalTensor& row_scale, const std::string& activation,
            const std::optional<ScalarType>& out_dtype, bool fast_accum, int64_t config) {
  const Call call("gemm", {"a", a});
  GemmParams p =
      check_product(call, a, b, expert_offsets, {permutation, top_k}, sfa, sfb,
                    {bias, residual, row_scale, activation, out_dtype}, fast_accum, config);
  Tensor out = call.empty({p.m, result_columns(p.epilogue, p.n)}, result_dtype(p.epilogue));
  p.epilogue.d = pointer(out);
  launch(call, p, check_gather(call, {permutation, top_k}, p.m));
  return out;
}

Tensor gemm_out(const Tensor& a, const Tensor& b, const OptionalTensor& expert_offsets,
                const OptionalTensor& permutation, int64_t top_k, const OptionalTensor& sfa,
                const OptionalTensor& sfb, const OptionalTensor& bias,
                const OptionalTensor& residual, const OptionalTensor& row_scale,
                const std::string& activation, const std::optional<ScalarType>& out_dtype,
                bool fast_accum, int64_t config, Tensor out) {
  const Call call("gemm", {"a", a});
  GemmParams p =
      check_product(call, a, b, expert_offsets, {permutation, top_k}, sfa, sfb,
                    {bias, residual, row_scale, activation, out_dtype}, fast_accum, config);
  p.epilogue.d =
      check_out(call, {"out", out}, p.epilogue, p.m, p.n, {&a, &b},
                {&expert_offsets, &permutation, &sfa, &sfb, &bias, &row_scale}, residual);
  launch(call, p, check_gather(call, {permutation, top_k}, p.m));
  return out;
}

std::tuple<Tensor, Tensor> gemm_swiglu_fp8(const Tensor& a, const Tensor& b, const Tensor& sfa,
                                           const Tensor& sfb, const OptionalTensor& expert_offsets,
                                           const OptionalTensor& row_scale, int64_t config) {
  const Call call("gemm_swiglu_fp8", {"a", a});
  call.require_dtype({"a", a}, {ScalarType::Float8_e4m3fn});
  GemmParams p = check_operands(call, {"a", a}, {"b", b}, expert_offsets, {std::nullopt, 1});
  check_scales(call, {"sfa", sfa}, {"sfb", sfb}, p);
  p.epilogue.activation = check_activation(call, "swiglu", p.n);
  p.epilogue.row_scale = check_optional_list<float>(call, {"row_scale", row_scale}, {p.m});
  call.require(p.n % 256 == 0, "expected N (rows of b) to be a multiple of 256, got ", p.n);
  Tensor q = call.empty({p.m, p.n / 2}, ScalarType::Float8_e4m3fn);
  Tensor scale = call.empty({p.m, p.n / 256}, ScalarType::Float);
  p.epilogue.d = pointer(q);
  p.d_scale = pointer<float>(scale);
  check_config(call, config, false, p);
  launch(call, p);
  return {q, scale};
}

}  // namespace l4k::binding

L4K_REGISTER(m) {
  l4k::bind<l4k::binding::gemm>(m, "gemm");
  l4k::bind<l4k::binding::gemm_out>(m, "gemm.out");
  l4k::bind<l4k::binding::gemm_swiglu_fp8>(m, "gemm_swiglu_fp8");
}
