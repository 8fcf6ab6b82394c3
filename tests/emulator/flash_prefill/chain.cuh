// One mutant's launches, included once for each in a namespace of its own: the plan and the attention.

namespace l4k {

inline void run_chain(std::vector<float>& results, bool original) {
  const World& w = world();
  if (!poison(w.out) || !poison(w.lse)) return;
  FlashPrefillParams p{.rows = kRows,
                       .batch = kBatch,
                       .num_heads = kHeads,
                       .kv_heads = kKvHeads,
                       .group = SmallDivisor::of(kGroup),
                       .num_pages = kBatch * kColumns,
                       .page_size = kPage,
                       .max_pages = kColumns,
                       .max_seqlen_q = kNew[0],
                       .softmax_scale = kScale,
                       .fp8 = true,
                       .q = w.q.data,
                       .q_row_stride = kHeads * kDim,
                       .q_head_stride = kDim,
                       .k_cache = w.k.data,
                       .v_cache = w.v.data,
                       .cu_seqlens_q = w.starts.data,
                       .seqlens_k = w.lengths.data,
                       .block_table = w.table.data,
                       .table_stride = kColumns,
                       .k_scale = w.k_scale.data,
                       .v_scale = w.v_scale.data,
                       .out = w.out.data,
                       .lse = w.lse.data,
                       .error = w.error.data};
  const Buffer<int> plan(flash_prefill_plan_words(p));
  const Buffer<float> anchors(flash_prefill_anchor_words(p));
  p.plan = plan.data;
  p.anchors = anchors.data;
  const bool done =
      flash_prefill(p, nullptr) == cudaSuccess && cudaDeviceSynchronize() == cudaSuccess;
  if (done) {
    const std::vector<uint16_t> out = w.out.download();
    for (uint16_t value : out) results.push_back(from_bf16(value));
    for (float value : w.lse.download()) results.push_back(value);
    if (original) check_results(out);
  }
  cudaFree(plan.data);
  cudaFree(anchors.data);
}

}  // namespace l4k
