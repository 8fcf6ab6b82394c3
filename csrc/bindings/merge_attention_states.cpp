#include "kernels/merge_attention_states/merge_attention_states.h"

#include "bindings/check.h"

namespace l4k::binding {

std::tuple<Tensor, Tensor> merge_attention_states(const Tensor& outs, const Tensor& lses) {
  L4K_CHECK_DTYPE(outs, BFloat16);
  L4K_CHECK_DTYPE(lses, Float);
  const int64_t rank = outs.dim();
  L4K_REQUIRE((rank == 4 || rank == 5) && outs.size(0) >= 1 && outs.size(rank - 1) == 128,
              "expected outs to be [N, T, H, 128] or [N, B, S, H, 128] with N >= 1, got ",
              describe(outs));
  const int64_t parts = outs.size(0), tokens = outs.size(rank - 3), heads = outs.size(rank - 2);
  L4K_REQUIRE(rank == 4 ? fits(lses, {parts, heads, tokens})
                        : fits(lses, {parts, outs.size(1), heads, tokens}),
              "expected lses to be [N, ..., H, T] for outs ", describe(outs), ", got ",
              describe(lses));
  L4K_CHECK_CONTIGUOUS(outs);
  L4K_CHECK_CONTIGUOUS(lses);
  L4K_CHECK_ROWS(outs);
  Device device(outs);
  const std::vector<int64_t> shape(outs.sizes().begin() + 1, outs.sizes().end());
  const std::vector<int64_t> lse_shape(lses.sizes().begin() + 1, lses.sizes().end());
  Tensor out = empty_like(outs, shape), lse = empty_like(lses, lse_shape);
  MergeAttentionStatesParams params{.rows = lse.numel(),
                                    .parts = static_cast<int>(parts),
                                    .tokens = static_cast<int>(tokens),
                                    .heads = static_cast<int>(heads),
                                    .outs = pointer(outs),
                                    .lses = pointer<float>(lses),
                                    .out = pointer(out),
                                    .lse = pointer<float>(lse)};
  L4K_LAUNCH(l4k::merge_attention_states(params, device.stream()));
  return {out, lse};
}

}  // namespace l4k::binding

L4K_REGISTER(m) { L4K_IMPL(m, "merge_attention_states", merge_attention_states); }
