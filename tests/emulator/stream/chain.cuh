// One mutant's launches, included once for each in a namespace of its own: copies of tokens and
// weights, their dense product, a copy of what a router says, a product by expert that gathers the
// first one's rows; all dependent, with the same workspaces and nonces again and again, at last with
// rows of A in slices. Then a product with bf16 weights as they are, N and K ending inside a unit.

#include "../kernels/copy.cuh"

namespace l4k {

using Int4 = Int4Weights<true>;
using Bf16 = RowMajorWeights<false>;

struct Chain {
  World& w;
  int slots, row_bytes;

  // Two more than there is room for: they begin when others have ended.
  static int ctas() { return sm_count() + 2; }

  StreamGemmParams product(int which) const {
    StreamGemmParams p{};
    p.m = which == 0 ? kTokens : kRows;
    p.n = p.k = kWidth;
    p.num_experts = which == 0 ? 1 : kExperts;
    p.a = which == 0 ? w.x.data : w.y.data;
    p.a_stride = kWidth;
    p.weights = which == 0 ? w.first.data : w.second.data;
    p.static_weights = which == 1;
    p.expert_offsets = which == 0 ? nullptr : w.routed.data;
    if (which == 1) p.gather = {w.routed.data + kExperts + 1, kTopK};
    p.epilogue.d = which == 0 ? static_cast<void*>(w.y.data) : w.z.data;
    p.epilogue.out_float32 = which == 1;
    p.workspace = w.workspaces[which].data;
    p.nonce = 0x1234567 + which;
    p.activation_bytes = row_bytes;
    p.error = w.error.data;
    return p;
  }

  bool multiply(int which) const {
    const StreamGemmParams p = product(which);
    return multiply<Int4>(p, static_cast<const char*>(p.weights));
  }

  bool multiply_rows() const {
    StreamGemmParams p = product(0);
    p.n = kRowsN;
    p.k = kRowsK;
    p.weights = w.rows.data;
    p.workspace = w.workspaces[2].data;
    p.epilogue.d = w.of_rows.data;
    p.epilogue.out_float32 = true;
    const TensorMapSpec spec{.type = CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                             .rank = 3,
                             .base = p.weights,
                             .shape = {kRowsK, kRowsN, 1},
                             .strides = {kRowsK * 2, kRowsK * kRowsN * 2},
                             .box = {64, 16, 1}};
    CUtensorMap map;
    return make_tensor_map(spec, &map) == cudaSuccess && multiply<Bf16>(p, map);
  }

  template <typename Weights>
  bool multiply(const StreamGemmParams& p, const typename Weights::Source& source) const {
    LaunchConfig config{.grid = dim3(ctas()), .block = dim3(StreamSmem<Weights, 1>::kThreads)};
    config.smem_bytes = round_up<size_t>(sizeof(StreamSmem<Weights, 1>), 128) + row_bytes;
    return launch(stream_gemm_kernel<Weights, 1>, config, nullptr, p, source, slots) == cudaSuccess;
  }

  // False if a report has ended the run.
  bool run(uint32_t salt, std::vector<float>& results) const {
    const bool filled = upload(w.dense.tiles, w.source) && upload(w.experts.tiles, w.second) &&
                        upload(w.routing, w.given) && upload(tokens(salt), w.asked) &&
                        poison(w.x) && poison(w.first) && poison(w.routed) && poison(w.y) &&
                        poison(w.z) && poison(w.of_rows);
    if (!filled || !copy(w.asked, w.x) || !copy(w.source, w.first) || !multiply(0) ||
        !copy(w.given, w.routed) || !multiply(1) || !multiply_rows() ||
        cudaDeviceSynchronize() != cudaSuccess)
      return false;
    for (float value : w.of_rows.download()) results.push_back(value);
    for (uint16_t value : w.y.download()) results.push_back(from_bf16(value));
    const std::vector<float> last = w.z.download();
    results.insert(results.end(), last.begin(), last.end());
    return true;
  }
};

inline void run_chain(std::vector<float>& results, bool original) {
  const StreamRows whole = StreamRows::of(kTokens, kTokens, kBlocks, Int4::kRowBytes);
  // Slices for as few as two rows; three of them are added in another order if they come in another.
  const StreamRows sliced{whole.capacity / 4, kBlocks, Int4::kRowBytes};
  const auto items = static_cast<int>(sliced.most_items(kTokens, 8, true));
  Chain chain{world(), StreamSchedule::slots(items * kRowTiles, Chain::ctas()), 0};
  for (const Buffer<uint32_t>& workspace : chain.w.workspaces)
    if (!poison(workspace)) return;
  for (uint32_t salt : {1, 2, 3, 4}) {
    chain.row_bytes = salt < 3 ? whole.capacity : sliced.capacity;
    if (!chain.run(salt, results)) return;
    if (original) check_results(salt, results);
  }
}

}  // namespace l4k
