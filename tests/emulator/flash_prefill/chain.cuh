// One mutant's launches, included once for each in a namespace of its own: the plan, the attention and,
// where items are cut, the merging of their pieces.

namespace l4k {

inline bool attend(const Lengths& n, std::vector<float>& results, bool original) {
  const World& w = world();
  if (!poison(w.out) || !poison(w.lse)) return false;
  const int rows = n.queries[0] + n.queries[1] + 2;
  const Buffer<int> starts(std::vector<int>{0, n.queries[0], n.queries[0] + n.queries[1]});
  const Buffer<int> lengths(std::vector<int>{n.keys[0], n.keys[1]});
  FlashPrefillParams p{.rows = rows,
                       .batch = kBatch,
                       .num_heads = kHeads,
                       .kv_heads = kKvHeads,
                       .group = SmallDivisor::of(kGroup),
                       .num_pages = kBatch * kColumns,
                       .page_size = kPage,
                       .max_pages = kColumns,
                       .max_seqlen_q = n.queries[0],
                       .softmax_scale = kScale,
                       .fp8 = true,
                       .q = w.q.data,
                       .q_row_stride = kHeads * kDim,
                       .q_head_stride = kDim,
                       .k_cache = w.k.data,
                       .v_cache = w.v.data,
                       .cu_seqlens_q = starts.data,
                       .seqlens_k = lengths.data,
                       .block_table = w.table.data,
                       .table_stride = kColumns,
                       .k_scale = w.k_scale.data,
                       .v_scale = w.v_scale.data,
                       .out = w.out.data,
                       .lse = w.lse.data,
                       .error = w.error.data};
  size_flash_prefill(p);
  const Buffer<int> plan(flash_prefill_plan_words(p));
  const Buffer<float> anchors(flash_prefill_anchor_words(p));
  const Buffer<float> partials(flash_prefill_partial_words(p));
  p.plan = plan.data;
  p.partials = partials.data;
  p.anchors = anchors.data;
  const bool done =
      flash_prefill(p, nullptr) == cudaSuccess && cudaDeviceSynchronize() == cudaSuccess;
  if (done) {
    const std::vector<uint16_t> out = w.out.download();
    for (int i = 0; i < rows * kHeads * kDim; ++i) results.push_back(from_bf16(out[i]));
    const std::vector<float> lse = w.lse.download();
    results.insert(results.end(), lse.begin(), lse.begin() + kHeads * rows);
    if (original) check_results(n, out);
  }
  for (void* memory : {static_cast<void*>(plan.data), static_cast<void*>(anchors.data),
                       static_cast<void*>(partials.data), static_cast<void*>(starts.data),
                       static_cast<void*>(lengths.data)})
    cudaFree(memory);
  return done;
}

inline void run_chain(std::vector<float>& results, bool original) {
  if (attend(kMany, results, original)) attend(kFew, results, original);
}

}  // namespace l4k
