#include "kernels/gemm/gemm.h"

#include "bindings/arguments.h"
#include "kernels/gemm/configs.h"
#include "tile/schedule.h"

namespace l4k::binding {

using OptionalTensor = std::optional<Tensor>;

GemmActivation parse_activation(const std::string& name) {
  if (name == "none") return GemmActivation::kNone;
  if (name == "gelu") return GemmActivation::kGelu;
  if (name == "swiglu") return GemmActivation::kSwiglu;
  STD_TORCH_CHECK(false, "l4kernels.gemm: expected activation to be none, gelu or swiglu, got ",
                  name);
}

// Reads the scalings of A and B off the shapes of their scales.
void fill_scales(GemmParams& p, const Tensor& sfa, const Tensor& sfb, bool grouped) {
  const int64_t blocks = ceil_div(p.k, 128), rows = ceil_div(p.n, 128), experts = p.num_experts;
  if (fits(sfa, {p.m, blocks}) && p.k % 128 == 0) p.scale_a = GemmScale::kBlock;
  if (fits(sfa, {p.m})) p.scale_a = GemmScale::kRow;
  if (fits(sfa, {1})) p.scale_a = GemmScale::kTensor;
  const bool per_block = grouped ? fits(sfb, {experts, rows, blocks}) : fits(sfb, {rows, blocks});
  const bool per_channel = grouped ? fits(sfb, {experts, p.n}) : fits(sfb, {p.n});
  const bool per_tensor = grouped ? fits(sfb, {experts, 1}) : fits(sfb, {1});
  // The legal pairs; with M = 1 a scale [1] of A may be both per tensor and per row.
  if (p.scale_a == GemmScale::kBlock && per_block) {
    p.scale_b = GemmScale::kBlock;
  } else if (per_channel && p.scale_a != GemmScale::kNone &&
             (p.scale_a != GemmScale::kTensor || p.m == 1)) {
    p.scale_b = GemmScale::kRow;
  } else if (p.scale_a == GemmScale::kTensor && per_tensor) {
    p.scale_b = GemmScale::kTensor;
  } else {
    STD_TORCH_CHECK(false, "l4kernels.gemm: expected scales per tensor, per row and channel, ",
                    "1x128 and 128x128, 1x128 and channel, got sfa ", describe(sfa), ", sfb ",
                    describe(sfb));
  }
  p.sfa = pointer<float>(sfa);
  p.sfb = pointer<float>(sfb);
  STD_TORCH_CHECK(p.scale_b != GemmScale::kRow || rows_aligned(sfb), "l4kernels.gemm: expected ",
                  "sfb of channels to be 16-byte aligned, got ", describe(sfb), "; clone() it");
}

// What all forms share; messages bear its name. `out_scale`: the result is e4m3 with 1x128 scales.
void gemm(const Tensor& a, const Tensor& b, const OptionalTensor& maybe_offsets,
          const OptionalTensor& maybe_sfa, const OptionalTensor& maybe_sfb,
          const OptionalTensor& maybe_bias, const OptionalTensor& maybe_residual,
          const OptionalTensor& maybe_row_scale, const std::string& activation, bool fast_accum,
          int64_t config, Tensor& out, const Tensor* out_scale = nullptr) {
  const bool fp8 = a.scalar_type() == ScalarType::Float8_e4m3fn, grouped = b.dim() == 3;
  if (!fp8) L4K_CHECK_DTYPE(a, BFloat16);
  L4K_REQUIRE(b.scalar_type() == a.scalar_type(), "expected b in the dtype of a, got ", describe(b),
              " with a ", describe(a));
  L4K_CHECK_SHAPE(a, -1, -1);
  L4K_REQUIRE((b.dim() == 2 || grouped) && b.size(b.dim() - 1) == a.size(1),
              "expected b to be [N, ", a.size(1), "] or [E, N, ", a.size(1), "], got ",
              describe(b));
  L4K_CHECK_ROWS(a);
  L4K_CHECK_CONTIGUOUS(b);
  L4K_REQUIRE(grouped == maybe_offsets.has_value(),
              "expected expert_offsets with b of three dimensions, and only then");
  const int64_t m = a.size(0), k = a.size(1), n = b.size(b.dim() - 2);
  const int64_t experts = grouped ? b.size(0) : 1;
  L4K_REQUIRE(experts >= 1 && experts <= kMaxExperts, "expected 1 to ", kMaxExperts,
              " experts, got ", describe(b));
  L4K_REQUIRE(m < int64_t{1} << 31 && n < int64_t{1} << 31 && k < int64_t{1} << 31,
              "expected sizes below 2^31, got a ", describe(a), ", b ", describe(b));
  L4K_REQUIRE(k > 0, "expected K (columns of a and b) to be positive, got ", k);
  L4K_CHECK_MULTIPLE(k * a.element_size(), 16);
  L4K_REQUIRE(n % (activation == "swiglu" ? 16 : 8) == 0,
              "expected N to be a multiple of 8 (16 for swiglu), got ", n);
  L4K_REQUIRE(m <= 1 || a.stride(0) >= k, "expected the rows of a not to overlap, got ",
              describe(a), " with stride ", a.stride(0), "; call contiguous() first");
  L4K_REQUIRE(config >= -2 && config <= kMaxSplits * 100 + 99 &&
                  GemmChoice::of(static_cast<int>(config)).config < kNumGemmConfigs,
              "expected config to be -1, a row of 0 to ", kNumGemmConfigs - 1,
              ", or that and 100 times a number of splits up to ", kMaxSplits, ", got ", config);
  Device device(a);
  GemmParams p{};
  p.m = static_cast<int>(m);
  p.n = static_cast<int>(n);
  p.k = static_cast<int>(k);
  p.num_experts = static_cast<int>(experts);
  p.fp8 = fp8;
  p.a = pointer(a);
  p.b = pointer(b);
  p.d = pointer(out);
  if (out_scale != nullptr) p.d_scale = pointer<float>(*out_scale);
  p.a_stride = m > 1 ? a.stride(0) : k;
  p.activation = parse_activation(activation);
  p.out_float32 = out.scalar_type() == ScalarType::Float;
  p.fast_accum = fast_accum;
  p.asked = GemmChoice::of(static_cast<int>(config));
  p.error = error_word();
  const int64_t columns = p.activation == GemmActivation::kSwiglu ? n / 2 : n;
  L4K_CHECK_SHAPE(out, m, columns);
  if (!p.out_float32 && out_scale == nullptr) L4K_CHECK_DTYPE(out, BFloat16);
  L4K_CHECK_CONTIGUOUS(out);
  L4K_CHECK_ROWS(out);
  if (grouped) {
    const Tensor& expert_offsets = *maybe_offsets;
    L4K_CHECK_TABLE(expert_offsets, Int, experts + 1);
    p.expert_offsets = pointer<int>(expert_offsets);
  }
  L4K_REQUIRE(fp8 == maybe_sfa.has_value() && fp8 == maybe_sfb.has_value(),
              "expected sfa and sfb with float8 operands, and only then");
  if (fp8) {
    const Tensor &sfa = *maybe_sfa, &sfb = *maybe_sfb;
    L4K_CHECK_DTYPE(sfa, Float);
    L4K_CHECK_DTYPE(sfb, Float);
    L4K_CHECK_CONTIGUOUS(sfa);
    L4K_CHECK_CONTIGUOUS(sfb);
    fill_scales(p, sfa, sfb, grouped);
  }
  if (maybe_bias) {
    const Tensor& bias = *maybe_bias;
    L4K_CHECK_BF16_ROWS(bias, n);
    p.bias = pointer(bias);
  }
  if (maybe_residual) {
    const Tensor& residual = *maybe_residual;
    L4K_CHECK_BF16_ROWS(residual, m, columns);
    p.residual = pointer(residual);
    p.residual_stride = residual.stride(0);
  }
  if (maybe_row_scale) {
    const Tensor& row_scale = *maybe_row_scale;
    L4K_CHECK_TABLE(row_scale, Float, m);
    p.row_scale = pointer<float>(row_scale);
  }
  L4K_REQUIRE(config < 0 || can_run(p.asked, problem_of(p)),
              "expected config to be a row for these operands, scales and activation, or -1, got ",
              config);
  if (m > 0 && n > 0) L4K_LAUNCH(l4k::gemm(p, device.stream()));
}

void require_apart(const Tensor& out, const OptionalTensor& input, bool may_be_out = false) {
  STD_TORCH_CHECK(!input || may_be_out || !share_memory(out, *input), "l4kernels.gemm: expected ",
                  "out to share no memory with an input, except to be residual itself, got an out ",
                  "in the memory of ", describe(*input));
}

Tensor gemm_out(const Tensor& a, const Tensor& b, const OptionalTensor& expert_offsets,
                const OptionalTensor& sfa, const OptionalTensor& sfb, const OptionalTensor& bias,
                const OptionalTensor& residual, const OptionalTensor& row_scale,
                const std::string& activation, const std::optional<ScalarType>& out_dtype,
                bool fast_accum, int64_t config, Tensor out) {
  STD_TORCH_CHECK(out.scalar_type() == out_dtype.value_or(ScalarType::BFloat16),
                  "l4kernels.gemm: expected out in the dtype that out_dtype asks for, got ",
                  describe(out));
  // A tile is written while others still read; of the residual each reads just what it writes.
  const bool in_place = residual.has_value() && residual->dim() == 2 && out.dim() == 2 &&
                        pointer(*residual) == pointer(out) && residual->stride(0) == out.stride(0);
  for (const OptionalTensor* t : {&sfa, &sfb, &bias, &residual, &row_scale})
    require_apart(out, *t, t == &residual && in_place);
  require_apart(out, a);
  require_apart(out, b);
  gemm(a, b, expert_offsets, sfa, sfb, bias, residual, row_scale, activation, fast_accum, config,
       out);
  return out;
}

Tensor gemm_new(const Tensor& a, const Tensor& b, const OptionalTensor& expert_offsets,
                const OptionalTensor& sfa, const OptionalTensor& sfb, const OptionalTensor& bias,
                const OptionalTensor& residual, const OptionalTensor& row_scale,
                const std::string& activation, const std::optional<ScalarType>& out_dtype,
                bool fast_accum, int64_t config) {
  const int64_t n = b.size(b.dim() - 2) / (activation == "swiglu" ? 2 : 1);
  return gemm_out(a, b, expert_offsets, sfa, sfb, bias, residual, row_scale, activation, out_dtype,
                  fast_accum, config,
                  empty_like(a, {a.size(0), n}, out_dtype.value_or(ScalarType::BFloat16)));
}

std::tuple<Tensor, Tensor> gemm_swiglu_fp8(const Tensor& a, const Tensor& b, const Tensor& sfa,
                                           const Tensor& sfb, const OptionalTensor& expert_offsets,
                                           const OptionalTensor& row_scale, int64_t config) {
  const int64_t m = a.size(0), n = b.size(b.dim() - 2);
  L4K_CHECK_DTYPE(a, Float8_e4m3fn);
  L4K_REQUIRE(n % 256 == 0, "expected N to be a multiple of 256, got ", n);
  Tensor q = empty_like(a, {m, n / 2}, ScalarType::Float8_e4m3fn);
  Tensor scale = empty_like(a, {m, n / 256}, ScalarType::Float);
  gemm(a, b, expert_offsets, sfa, sfb, {}, {}, row_scale, "swiglu", false, config, q, &scale);
  return {q, scale};
}

}  // namespace l4k::binding

L4K_REGISTER(m) {
  L4K_IMPL(m, "gemm", gemm_new);
  L4K_IMPL(m, "gemm.out", gemm_out);
  L4K_IMPL(m, "gemm_swiglu_fp8", gemm_swiglu_fp8);
}
