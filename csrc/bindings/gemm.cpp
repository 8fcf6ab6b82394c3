#include "kernels/gemm/gemm.h"

#include "bindings/arguments.h"
#include "bindings/registry.h"
#include "kernels/gemm/configs.h"
#include "tile/schedule.h"

namespace l4k::binding {

namespace {

// The operands, their sizes and the experts; the rest of the parameters is zero.
GemmParams check_operands(const Call& call, const Argument& a, const Argument& b,
                          const OptionalTensor& expert_offsets) {
  call.require_dtype(a, {ScalarType::BFloat16, ScalarType::Float8_e4m3fn});
  call.require(b.dtype == a.dtype, "expected b in the dtype of a, got ", b, " with a ", a);
  const Rows rows = check_rows(call, a, a.dtype, {"M", "K"});
  const int64_t m = rows.count, k = rows.width;
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
  call.require(m <= 1 || rows.stride >= k, "expected the rows of a not to overlap, got ", a,
               " with stride ", rows.stride, "; call contiguous() first");
  GemmParams p{};
  p.m = static_cast<int>(m);
  p.n = static_cast<int>(n);
  p.k = static_cast<int>(k);
  p.num_experts = static_cast<int>(experts);
  p.fp8 = a.dtype == ScalarType::Float8_e4m3fn;
  p.a = rows.data;
  p.a_stride = m > 1 ? rows.stride : k;
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
  if (fits(sfa.sizes, {p.m, blocks}) && p.k % 128 == 0) p.scale_a = GemmScale::kBlock;
  if (fits(sfa.sizes, {p.m})) p.scale_a = GemmScale::kRow;
  if (fits(sfa.sizes, {1})) p.scale_a = GemmScale::kTensor;
  const auto fits_b = [&](Shape dense, Shape per_expert) {
    return fits(sfb.sizes, grouped ? per_expert : dense);
  };
  const bool per_block = fits_b({rows, blocks}, {experts, rows, blocks});
  const bool per_channel = fits_b({p.n}, {experts, p.n});
  const bool per_tensor = fits_b({1}, {experts, 1});
  // The legal pairs; with M = 1 a scale [1] of A may be both per tensor and per row.
  if (p.scale_a == GemmScale::kBlock && per_block) {
    p.scale_b = GemmScale::kBlock;
  } else if (per_channel && p.scale_a != GemmScale::kNone &&
             (p.scale_a != GemmScale::kTensor || p.m == 1)) {
    p.scale_b = GemmScale::kRow;
  } else if (p.scale_a == GemmScale::kTensor && per_tensor) {
    p.scale_b = GemmScale::kTensor;
  } else {
    call.fail("expected scales per tensor, per row and channel, 1x128 and 128x128, 1x128 and ",
              "channel, got sfa ", sfa, ", sfb ", sfb);
  }
  p.sfa = static_cast<const float*>(call.address(sfa, sizeof(float)));
  // By channel they are read in vectors.
  const void* factors = p.scale_b == GemmScale::kRow
                            ? call.address({"sfb of channels", sfb.tensor}, 16)
                            : call.address(sfb, sizeof(float));
  p.sfb = static_cast<const float*>(factors);
}

void check_optional_scales(const Call& call, const OptionalTensor& sfa, const OptionalTensor& sfb,
                           GemmParams& p) {
  call.require(p.fp8 == sfa.has_value() && p.fp8 == sfb.has_value(),
               "expected sfa and sfb with float8 operands, and only then");
  if (p.fp8) check_scales(call, {"sfa", *sfa}, {"sfb", *sfb}, p);
}

void check_activation(const Call& call, const std::string& activation, GemmParams& p) {
  if (activation == "none") p.activation = Activation::kNone;
  else if (activation == "gelu") p.activation = Activation::kGelu;
  else if (activation == "swiglu") p.activation = Activation::kSwiglu;
  else call.fail("expected activation to be none, gelu or swiglu, got ", activation);
  call.require(p.n % (p.activation == Activation::kSwiglu ? 16 : 8) == 0,
               "expected N (rows of b) to be a multiple of 8 (16 for swiglu), got ", p.n);
}

int64_t result_columns(const GemmParams& p) {
  return p.activation == Activation::kSwiglu ? p.n / 2 : p.n;
}

void check_epilogue(const Call& call, const OptionalTensor& bias, const OptionalTensor& residual,
                    const OptionalTensor& row_scale, GemmParams& p) {
  p.bias = check_optional_rows(call, {"bias", bias}, ScalarType::BFloat16, {p.n}).data;
  const Rows rows = check_optional_rows(call, {"residual", residual}, ScalarType::BFloat16,
                                        {p.m, result_columns(p)});
  p.residual = rows.data;
  p.residual_stride = rows.stride;
  p.row_scale = check_optional_list<float>(call, {"row_scale", row_scale}, {p.m});
}

// `p` is complete but for what it computes with.
void check_config(const Call& call, int64_t config, GemmParams& p) {
  call.require(config >= -2 && config <= kMaxSplits * 100 + 99 &&
                   GemmChoice::of(static_cast<int>(config)).config < kNumGemmConfigs,
               "expected config to be -1, a row of 0 to ", kNumGemmConfigs - 1,
               ", or that and 100 times a number of splits up to ", kMaxSplits, ", got ", config);
  p.asked = GemmChoice::of(static_cast<int>(config));
  call.require(config < 0 || can_run(p.asked, problem_of(p)),
               "expected config to be a row for these operands, scales and activation, or -1, got ",
               config);
}

ScalarType check_out_dtype(const Call& call, const std::optional<ScalarType>& out_dtype) {
  const ScalarType dtype = out_dtype.value_or(ScalarType::BFloat16);
  call.require(dtype == ScalarType::BFloat16 || dtype == ScalarType::Float,
               "expected out_dtype to be BFloat16 or Float, got ",
               torch::headeronly::toString(dtype));
  return dtype;
}

void* check_out(const Call& call, const Argument& out, ScalarType dtype, const GemmParams& p) {
  call.require(out.dtype == dtype, "expected out in the dtype that out_dtype asks for, got ", out);
  call.require_shape(out, {p.m, result_columns(p)});
  call.require_contiguous(out);
  return check_vectors(call, out);
}

// A tile of the result is written while others still read the inputs.
void require_apart(const Call& call, const Argument& out, const Tensor& input) {
  call.require(!Extent(out).overlaps(Extent({"", input})),
               "expected out to share no memory with an input, except to be residual itself, ",
               "got an out in the memory of ", input);
}

void launch(const Call& call, const GemmParams& p) {
  if (p.m > 0 && p.n > 0) call.launch(l4k::gemm, p);
}

}  // namespace

Tensor gemm(const Tensor& a, const Tensor& b, const OptionalTensor& expert_offsets,
            const OptionalTensor& sfa, const OptionalTensor& sfb, const OptionalTensor& bias,
            const OptionalTensor& residual, const OptionalTensor& row_scale,
            const std::string& activation, const std::optional<ScalarType>& out_dtype,
            bool fast_accum, int64_t config) {
  const Call call("gemm", {"a", a});
  GemmParams p = check_operands(call, {"a", a}, {"b", b}, expert_offsets);
  check_optional_scales(call, sfa, sfb, p);
  check_activation(call, activation, p);
  check_epilogue(call, bias, residual, row_scale, p);
  const ScalarType dtype = check_out_dtype(call, out_dtype);
  p.out_float32 = dtype == ScalarType::Float;
  p.fast_accum = fast_accum;
  check_config(call, config, p);
  Tensor out = call.empty({p.m, result_columns(p)}, dtype);
  p.d = pointer(out);
  launch(call, p);
  return out;
}

Tensor gemm_out(const Tensor& a, const Tensor& b, const OptionalTensor& expert_offsets,
                const OptionalTensor& sfa, const OptionalTensor& sfb, const OptionalTensor& bias,
                const OptionalTensor& residual, const OptionalTensor& row_scale,
                const std::string& activation, const std::optional<ScalarType>& out_dtype,
                bool fast_accum, int64_t config, Tensor out) {
  const Call call("gemm", {"a", a});
  GemmParams p = check_operands(call, {"a", a}, {"b", b}, expert_offsets);
  check_optional_scales(call, sfa, sfb, p);
  check_activation(call, activation, p);
  check_epilogue(call, bias, residual, row_scale, p);
  const ScalarType dtype = check_out_dtype(call, out_dtype);
  p.out_float32 = dtype == ScalarType::Float;
  p.fast_accum = fast_accum;
  check_config(call, config, p);
  p.d = check_out(call, {"out", out}, dtype, p);
  for (const Tensor* t : {&a, &b}) require_apart(call, {"out", out}, *t);
  for (const OptionalTensor* t : {&expert_offsets, &sfa, &sfb, &bias, &row_scale})
    if (*t) require_apart(call, {"out", out}, **t);
  // Of the residual each tile reads just what it writes. The stride of a single row says nothing.
  const bool same_rows = p.m == 1 || p.residual_stride == out.stride(0);
  const bool in_place = p.residual == p.d && same_rows;
  if (residual && !in_place) require_apart(call, {"out", out}, *residual);
  launch(call, p);
  return out;
}

std::tuple<Tensor, Tensor> gemm_swiglu_fp8(const Tensor& a, const Tensor& b, const Tensor& sfa,
                                           const Tensor& sfb, const OptionalTensor& expert_offsets,
                                           const OptionalTensor& row_scale, int64_t config) {
  const Call call("gemm_swiglu_fp8", {"a", a});
  call.require_dtype({"a", a}, {ScalarType::Float8_e4m3fn});
  GemmParams p = check_operands(call, {"a", a}, {"b", b}, expert_offsets);
  check_scales(call, {"sfa", sfa}, {"sfb", sfb}, p);
  check_activation(call, "swiglu", p);
  p.row_scale = check_optional_list<float>(call, {"row_scale", row_scale}, {p.m});
  call.require(p.n % 256 == 0, "expected N (rows of b) to be a multiple of 256, got ", p.n);
  Tensor q = call.empty({p.m, p.n / 2}, ScalarType::Float8_e4m3fn);
  Tensor scale = call.empty({p.m, p.n / 256}, ScalarType::Float);
  p.d = pointer(q);
  p.d_scale = pointer<float>(scale);
  check_config(call, config, p);
  launch(call, p);
  return {q, scale};
}

}  // namespace l4k::binding

L4K_REGISTER(m) {
  l4k::bind<l4k::binding::gemm>(m, "gemm");
  l4k::bind<l4k::binding::gemm_out>(m, "gemm.out");
  l4k::bind<l4k::binding::gemm_swiglu_fp8>(m, "gemm_swiglu_fp8");
}
