#include "kernels/gemm/gemm.h"

#include <string_view>

#include "bindings/arguments.h"
#include "bindings/registry.h"
#include "kernels/gemm/configs.h"
#include "tile/schedule.h"

namespace l4k::binding {

namespace {

constexpr int64_t kIntLimit = int64_t{1} << 31;

// What all forms of the op take.
struct Inputs {
  const Tensor &a, &b;
  const OptionalTensor &expert_offsets, &sfa, &sfb, &bias, &residual, &row_scale;
  std::string_view activation;
  bool fast_accum;
  int64_t config;
};

GemmActivation check_activation(const Call& call, std::string_view name) {
  if (name == "none") return GemmActivation::kNone;
  if (name == "gelu") return GemmActivation::kGelu;
  if (name == "swiglu") return GemmActivation::kSwiglu;
  call.fail("expected activation to be none, gelu or swiglu, got ", name);
}

int64_t result_columns(const GemmParams& p) {
  return p.activation == GemmActivation::kSwiglu ? p.n / 2 : p.n;
}

// Fills in the operands, their sizes and the experts.
void check_operands(const Call& call, const Inputs& in, GemmParams& p) {
  const Argument a("a", in.a), b("b", in.b);
  call.require_dtype(a, {ScalarType::BFloat16, ScalarType::Float8_e4m3fn});
  call.require(b.dtype == a.dtype, "expected b in the dtype of a, got ", b, " with a ", a);
  const Rows rows = check_rows(call, a, a.dtype, {"M", "K"});
  const int64_t m = rows.count, k = rows.width;
  const bool grouped = b.rank() == 3;
  call.require((b.rank() == 2 || grouped) && b.sizes[b.rank() - 1] == k, "expected b to be [N, ", k,
               "] or [E, N, ", k, "], got ", b);
  call.require_contiguous(b);
  call.require(grouped == in.expert_offsets.has_value(),
               "expected expert_offsets with b of three dimensions, and only then");
  const int64_t n = b.sizes[b.rank() - 2], experts = grouped ? b.sizes[0] : 1;
  call.require(experts >= 1 && experts <= kMaxExperts, "expected b to hold 1 to ", kMaxExperts,
               " experts, got ", b);
  call.require(m < kIntLimit && n < kIntLimit && k < kIntLimit,
               "expected sizes of a and b below 2^31, got ", a, " and ", b);
  call.require(k > 0, "expected K (columns of a and b) to be positive, got ", k);
  const auto bytes = static_cast<int64_t>(in.a.element_size());
  call.require(k * bytes % 16 == 0, "expected the rows of a to be a multiple of 16 bytes, got ", a);
  call.require(m <= 1 || rows.stride >= k, "expected the rows of a not to overlap, got ", a,
               " with stride ", rows.stride, "; call contiguous() first");
  p.m = static_cast<int>(m);
  p.n = static_cast<int>(n);
  p.k = static_cast<int>(k);
  p.num_experts = static_cast<int>(experts);
  p.fp8 = a.dtype == ScalarType::Float8_e4m3fn;
  p.a = rows.data;
  p.a_stride = m > 1 ? rows.stride : k;
  p.b = check_vectors(call, b);
  p.expert_offsets =
      check_optional_list<int>(call, {"expert_offsets", in.expert_offsets}, {experts + 1});
}

// Reads the scalings of A and B off the shapes of their scales.
void check_scales(const Call& call, const Inputs& in, GemmParams& p) {
  call.require(p.fp8 == in.sfa.has_value() && p.fp8 == in.sfb.has_value(),
               "expected sfa and sfb with float8 operands, and only then");
  if (!p.fp8) return;
  const Argument sfa("sfa", *in.sfa), sfb("sfb", *in.sfb);
  for (const Argument* scales : {&sfa, &sfb}) {
    call.require_dtype(*scales, {ScalarType::Float});
    call.require_contiguous(*scales);
  }
  const int64_t blocks = ceil_div(p.k, 128), rows = ceil_div(p.n, 128), experts = p.num_experts;
  const bool grouped = in.b.dim() == 3;
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
                            ? call.address({"sfb of channels", *in.sfb}, 16)
                            : call.address(sfb, sizeof(float));
  p.sfb = static_cast<const float*>(factors);
}

// Everything but the result.
GemmParams check_inputs(const Call& call, const Inputs& in) {
  GemmParams p{};
  check_operands(call, in, p);
  p.activation = check_activation(call, in.activation);
  call.require(p.n % (p.activation == GemmActivation::kSwiglu ? 16 : 8) == 0,
               "expected N (rows of b) to be a multiple of 8 (16 for swiglu), got ", p.n);
  check_scales(call, in, p);
  p.fast_accum = in.fast_accum;
  p.bias = check_optional_rows(call, {"bias", in.bias}, ScalarType::BFloat16, {p.n}).data;
  const Rows residual = check_optional_rows(call, {"residual", in.residual}, ScalarType::BFloat16,
                                            {p.m, result_columns(p)});
  p.residual = residual.data;
  p.residual_stride = residual.stride;
  p.row_scale = check_optional_list<float>(call, {"row_scale", in.row_scale}, {p.m});
  call.require(in.config >= -2 && in.config <= kMaxSplits * 100 + 99 &&
                   GemmChoice::of(static_cast<int>(in.config)).config < kNumGemmConfigs,
               "expected config to be -1, a row of 0 to ", kNumGemmConfigs - 1,
               ", or that and 100 times a number of splits up to ", kMaxSplits, ", got ",
               in.config);
  p.asked = GemmChoice::of(static_cast<int>(in.config));
  p.error = error_word();
  return p;
}

ScalarType check_out_dtype(const Call& call, const std::optional<ScalarType>& out_dtype) {
  const ScalarType dtype = out_dtype.value_or(ScalarType::BFloat16);
  call.require(dtype == ScalarType::BFloat16 || dtype == ScalarType::Float,
               "expected out_dtype to be BFloat16 or Float, got ",
               torch::headeronly::toString(dtype));
  return dtype;
}

// A result of the caller's. A tile of it is written while others still read the inputs; of the
// residual each reads just what it writes, so that `out` may be the residual itself.
void* check_out(const Call& call, const Inputs& in, const GemmParams& p, ScalarType dtype,
                const Argument& out) {
  call.require(out.dtype == dtype, "expected out in the dtype that out_dtype asks for, got ", out);
  call.require_shape(out, {p.m, result_columns(p)});
  call.require_contiguous(out);
  void* data = check_vectors(call, out);
  const Extent written(out);
  const auto require_apart = [&](const Tensor& input) {
    call.require(!written.overlaps(Extent({"", input})),
                 "expected out to share no memory with an input, except to be residual itself, ",
                 "got an out in the memory of ", input);
  };
  require_apart(in.a);
  require_apart(in.b);
  for (const OptionalTensor* t : {&in.sfa, &in.sfb, &in.bias, &in.row_scale})
    if (*t) require_apart(**t);
  const bool in_place = p.residual == data && p.residual_stride == out.strides[0];
  if (in.residual && !in_place) require_apart(*in.residual);
  return data;
}

void launch(const Call& call, const Inputs& in, const GemmParams& p) {
  call.require(in.config < 0 || can_run(p.asked, problem_of(p)),
               "expected config to be a row for these operands, scales and activation, or -1, got ",
               in.config);
  if (p.m > 0 && p.n > 0) call.launch(l4k::gemm, p);
}

}  // namespace

Tensor gemm(const Tensor& a, const Tensor& b, const OptionalTensor& expert_offsets,
            const OptionalTensor& sfa, const OptionalTensor& sfb, const OptionalTensor& bias,
            const OptionalTensor& residual, const OptionalTensor& row_scale,
            const std::string& activation, const std::optional<ScalarType>& out_dtype,
            bool fast_accum, int64_t config) {
  const Call call("gemm", {"a", a});
  const Inputs in{a,        b,         expert_offsets, sfa,        sfb,   bias,
                  residual, row_scale, activation,     fast_accum, config};
  GemmParams p = check_inputs(call, in);
  Tensor out = call.empty({p.m, result_columns(p)}, check_out_dtype(call, out_dtype));
  p.d = pointer(out);
  p.out_float32 = out.scalar_type() == ScalarType::Float;
  launch(call, in, p);
  return out;
}

Tensor gemm_out(const Tensor& a, const Tensor& b, const OptionalTensor& expert_offsets,
                const OptionalTensor& sfa, const OptionalTensor& sfb, const OptionalTensor& bias,
                const OptionalTensor& residual, const OptionalTensor& row_scale,
                const std::string& activation, const std::optional<ScalarType>& out_dtype,
                bool fast_accum, int64_t config, Tensor out) {
  const Call call("gemm", {"a", a});
  const Inputs in{a,        b,         expert_offsets, sfa,        sfb,   bias,
                  residual, row_scale, activation,     fast_accum, config};
  GemmParams p = check_inputs(call, in);
  const ScalarType dtype = check_out_dtype(call, out_dtype);
  p.d = check_out(call, in, p, dtype, {"out", out});
  p.out_float32 = dtype == ScalarType::Float;
  launch(call, in, p);
  return out;
}

std::tuple<Tensor, Tensor> gemm_swiglu_fp8(const Tensor& a, const Tensor& b, const Tensor& sfa,
                                           const Tensor& sfb, const OptionalTensor& expert_offsets,
                                           const OptionalTensor& row_scale, int64_t config) {
  const Call call("gemm_swiglu_fp8", {"a", a});
  call.require_dtype({"a", a}, {ScalarType::Float8_e4m3fn});
  const OptionalTensor some_sfa = sfa, some_sfb = sfb, none;
  const Inputs in{a,    b,         expert_offsets, some_sfa, some_sfb, none,
                  none, row_scale, "swiglu",       false,    config};
  GemmParams p = check_inputs(call, in);
  call.require(p.n % 256 == 0, "expected N (rows of b) to be a multiple of 256, got ", p.n);
  Tensor q = call.empty({p.m, p.n / 2}, ScalarType::Float8_e4m3fn);
  Tensor scale = call.empty({p.m, p.n / 256}, ScalarType::Float);
  p.d = pointer(q);
  p.d_scale = pointer<float>(scale);
  launch(call, in, p);
  return {q, scale};
}

}  // namespace l4k::binding

L4K_REGISTER(m) {
  l4k::bind<l4k::binding::gemm>(m, "gemm");
  l4k::bind<l4k::binding::gemm_out>(m, "gemm.out");
  l4k::bind<l4k::binding::gemm_swiglu_fp8>(m, "gemm_swiglu_fp8");
}
