#include "kernels/w4_gemm/w4_gemm.h"

#include "bindings/epilogue.h"
#include "bindings/gather.h"
#include "bindings/registry.h"
#include "host/nonce.h"
#include "kernels/stream_gemm/stream_gemm.h"
#include "kernels/w4_gemm/configs.h"
#include "tile/schedule.h"

namespace l4k::binding {

namespace {

// The operands of a product with tiles; the rest of the parameters is zero.
StreamGemmParams check_operands(const Call& call, const Argument& a, const Argument& tiles,
                                const OptionalTensor& expert_offsets,
                                const GatherArguments& gather) {
  const Rows rows = check_rows(call, a, ScalarType::BFloat16, {"M", "K"});
  const int64_t m = rows_of_product(call, gather, rows.count, expert_offsets);
  const int64_t k = rows.width, rank = tiles.rank();
  call.require_dtype(tiles, {ScalarType::Int});
  call.require(rank == 3 || rank == 4, "expected packed to be the tiles of tile_int4, ",
               "[N / 16, K / 128, words] or [E, N / 16, K / 128, words], got ", tiles);
  const Int4Tile tile = Int4Tile::of_words(tiles.sizes[rank - 1]);
  call.require(tile.groups > 0, "expected packed to be the tiles of tile_int4, got ", tiles);
  const int64_t row_tiles = tiles.sizes[rank - 3], experts = rank == 4 ? tiles.sizes[0] : 1;
  call.require(k > 0 && k % kInt4TileK == 0 && tiles.sizes[rank - 2] == k / kInt4TileK,
               "expected K (columns of a) to be 128 times the tiles of a row of packed, got ", a,
               " and ", tiles);
  call.require(row_tiles > 0, "expected packed to hold rows, got ", tiles);
  call.require((rank == 4) == expert_offsets.has_value(),
               "expected expert_offsets with packed of four dimensions, and only then");
  call.require(experts >= 1 && experts <= kMaxExperts, "expected packed to hold 1 to ", kMaxExperts,
               " experts, got ", tiles);
  const int64_t n = row_tiles * kInt4TileRows;
  call.require(m < kIntLimit && n < kIntLimit && k < kIntLimit,
               "expected sizes of a and packed below 2^31, got ", a, " and ", tiles);
  call.require(rows.count <= 1 || rows.stride >= k, "expected the rows of a not to overlap, got ",
               a, " with stride ", rows.stride, "; call contiguous() first");
  call.require_contiguous(tiles);
  StreamGemmParams p{};
  p.m = static_cast<int>(m);
  p.n = static_cast<int>(n);
  p.k = static_cast<int>(k);
  p.num_experts = static_cast<int>(experts);
  p.a = rows.data;
  p.a_stride = rows.count > 1 ? rows.stride : k;
  p.gather = check_gather(call, gather, m);
  p.weights = check_vectors(call, tiles);
  p.tile = tile;
  p.expert_offsets =
      check_optional_list<int>(call, {"expert_offsets", expert_offsets}, {experts + 1});
  p.error = error_word();
  return p;
}

struct W4Arguments {
  const Tensor &a, &packed;
  const OptionalTensor &scales, &zeros, &expert_offsets;
  const GatherArguments gather;
  bool static_weights;
  int64_t config;
};

StreamGemmParams check_product(const Call& call, const W4Arguments& w,
                               const EpilogueArguments& epilogue) {
  call.require(!w.scales && !w.zeros, "expected packed to be the tiles of tile_int4, which hold ",
               "scales and zeros: call tile_int4 once, when the weights are loaded");
  StreamGemmParams p =
      check_operands(call, {"a", w.a}, {"packed", w.packed}, w.expert_offsets, w.gather);
  p.epilogue = check_epilogue(call, epilogue, p.m, p.n);
  p.static_weights = w.static_weights;
  call.require(w.config >= -1 && w.config < 1 + kNumW4GemmConfigs, "expected config to be -1, 0 ",
               "(streaming) or 1 to ", kNumW4GemmConfigs, ", got ", w.config);
  const bool gathers = p.gather.permutation != nullptr;
  call.require(!gathers || w.config <= 0, "expected config 0 (streaming) or -1 with permutation, ",
               "got ", w.config);
  call.require((w.config != 0 && !gathers) || can_stream(p.format, p.m, p.k, p.num_experts),
               "expected config 0 (streaming) with fewer rows of a ", "or a smaller K, got ",
               Argument("a", w.a));
  return p;
}

W4GemmParams many_tokens(const StreamGemmParams& p, int64_t config) {
  return {.m = p.m,
          .n = p.n,
          .k = p.k,
          .num_experts = p.num_experts,
          .a = p.a,
          .a_stride = p.a_stride,
          .tiles = p.weights,
          .tile = p.tile,
          .expert_offsets = p.expert_offsets,
          .epilogue = p.epilogue,
          .static_weights = p.static_weights,
          .config = static_cast<int>(config),
          .workspace = nullptr,
          .nonce = launch_nonce(),
          .error = p.error};
}

void launch(const Call& call, StreamGemmParams p, int64_t config) {
  if (p.m == 0) return;
  const int rows = p.expert_offsets == nullptr ? kFewRows : kFewRaggedRows;
  if (config == 0 || (config < 0 && p.m <= rows && can_stream(p.format, p.m, p.k, p.num_experts))) {
    Tensor workspace = call.workspace(stream_gemm_workspace(p));
    p.workspace = pointer(workspace);
    p.nonce = launch_nonce();
    return call.launch(stream_gemm, p);
  }
  W4GemmParams q = many_tokens(p, config < 0 ? -1 : config - 1);
  Tensor workspace = call.workspace(w4_gemm_workspace(q));
  q.workspace = pointer(workspace);
  call.launch(l4k::w4_gemm, q);
}

}  // namespace

Tensor w4_gemm(const Tensor& a, const Tensor& packed, const OptionalTensor& scales,
               const OptionalTensor& zeros, const OptionalTensor& expert_offsets,
               const OptionalTensor& permutation, int64_t top_k, const OptionalTensor& bias,
               const OptionalTensor& residual, const OptionalTensor& row_scale,
               const std::string& activation, const std::optional<ScalarType>& out_dtype,
               bool static_weights, int64_t config) {
  const Call call("w4_gemm", {"a", a});
  StreamGemmParams p = check_product(
      call,
      {a, packed, scales, zeros, expert_offsets, {permutation, top_k}, static_weights, config},
      {bias, residual, row_scale, activation, out_dtype});
  Tensor out = call.empty({p.m, result_columns(p.epilogue, p.n)}, result_dtype(p.epilogue));
  p.epilogue.d = pointer(out);
  launch(call, p, config);
  return out;
}

Tensor w4_gemm_out(const Tensor& a, const Tensor& packed, const OptionalTensor& scales,
                   const OptionalTensor& zeros, const OptionalTensor& expert_offsets,
                   const OptionalTensor& permutation, int64_t top_k, const OptionalTensor& bias,
                   const OptionalTensor& residual, const OptionalTensor& row_scale,
                   const std::string& activation, const std::optional<ScalarType>& out_dtype,
                   bool static_weights, int64_t config, Tensor out) {
  const Call call("w4_gemm", {"a", a});
  StreamGemmParams p = check_product(
      call,
      {a, packed, scales, zeros, expert_offsets, {permutation, top_k}, static_weights, config},
      {bias, residual, row_scale, activation, out_dtype});
  p.epilogue.d = check_out(call, {"out", out}, p.epilogue, p.m, p.n, {&a, &packed},
                           {&expert_offsets, &permutation, &bias, &row_scale}, residual);
  launch(call, p, config);
  return out;
}

}  // namespace l4k::binding

L4K_REGISTER(m) {
  l4k::bind<l4k::binding::w4_gemm>(m, "w4_gemm");
  l4k::bind<l4k::binding::w4_gemm_out>(m, "w4_gemm.out");
}
