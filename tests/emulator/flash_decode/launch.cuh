// One mutant's launches, included once for each in a namespace of its own: what the engine's step does
// around attention, with stand-ins for the end of the step before and for the layer's products.
namespace l4k {

// Ends a step: a fence.
__global__ void advance_stand_in(const int* counted, int* lengths, int batch) {
  ptx::grid_dependency_wait();
  ptx::grid_launch_dependents();
  for (int b = threadIdx.x; b < batch; b += blockDim.x) lengths[b] = counted[b];
}

// Begins a layer: none.
__global__ void project_stand_in(const uint4* projected, uint4* qkv, int vectors) {
  ptx::grid_launch_dependents();
  ptx::grid_dependency_wait();
  const int step = static_cast<int>(gridDim.x * blockDim.x);
  for (int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); i < vectors; i += step)
    qkv[i] = projected[i];
}

inline FlashDecodeParams attention_of(const Step& s, void* out, void* lse) {
  return {.batch = s.batch,
          .tokens = s.tokens,
          .kv_heads = s.kv_heads,
          .group = s.group,
          .chunk = s.chunk,
          .num_pages = s.num_pages,
          .page_size = s.page_size,
          .max_pages = s.max_pages,
          .page_blocks = BlockDivisor::of(s.page_size / kDecodeKeyBlock),
          .k_cache = s.k_cache,
          .v_cache = s.v_cache,
          .seqlens_k = static_cast<const int*>(s.lengths),
          .block_table = static_cast<const int*>(s.table),
          .table_stride = s.max_pages,
          .out = out,
          .lse = static_cast<float*>(lse),
          .partials = static_cast<float*>(s.partials),
          .plan = static_cast<int*>(s.plan),
          .settled = true,
          .softmax_scale_log2 = 0.1f,
          .error = static_cast<uint32_t*>(s.error)};
}

inline DecodeShape shape_of(const Step& s) {
  const int row_blocks = ceil_div(s.tokens * s.group, kDecodeRows);
  return {.batch = s.batch,
          .kv_heads = s.kv_heads,
          .row_blocks = row_blocks,
          .tokens = s.tokens,
          .chunk = s.chunk,
          .capacity = s.max_pages * s.page_size,
          .grid = s.grid};
}

inline LaunchConfig of(int grid, int threads, size_t smem = 0) {
  return {.grid = dim3(grid), .block = dim3(threads), .smem_bytes = smem};
}

// The end of the step before, the plan, the embeddings, and a layer that attends twice: with new keys of
// its own, and with those that the launch before has written.
inline int launch_step(const Step& s) {
  const DecodeShape shape = shape_of(s);
  const DecodeLaunch call{shape, decode_plan_bounds(shape)};
  const int row = s.kv_heads * (s.group + 2) * kHeadDim, rows = s.batch * s.tokens;
  [[maybe_unused]] FlashDecodeParams again = attention_of(s, s.again, s.again_lse);
  again.q = s.out;
  again.q_head_stride = kHeadDim;
  again.q_token_stride = int64_t{s.kv_heads} * s.group * kHeadDim;
  again.q_batch_stride = s.tokens * again.q_token_stride;
  const FlashDecodeAppendParams append{.attention = attention_of(s, s.out, s.lse),
                                       .qkv = s.qkv,
                                       .qkv_stride = row,
                                       .positions = static_cast<const int64_t*>(s.positions),
                                       .slot_mapping = static_cast<const int64_t*>(s.slots),
                                       .rule = {.cos_sin = static_cast<const float*>(s.cos_sin),
                                                .table_rows = s.table_rows,
                                                .qk_norm_eps = 1e-5f,
                                                .attn_scale = 0.1f,
                                                .floor_scale = 16},
                                       .k_cache = s.k_cache,
                                       .v_cache = s.v_cache};
  const FlashDecodePlanParams plan{.header = {kDecodePlanKind, shape},
                                   .seqlens_k = static_cast<const int*>(s.lengths),
                                   .plan = static_cast<int*>(s.plan)};
  const EmbedParams embed{.tokens = 1,
                          .vocab = 1,
                          .row_vectors = 32,
                          .input_ids = s.ids,
                          .weight = s.weight,
                          .out = s.embedded,
                          .weight_stride = 32,
                          .error = static_cast<uint32_t*>(s.error),
                          .wide_ids = true};
  const cudaError_t errors[] = {
      launch(advance_stand_in, of(1, 32), nullptr, static_cast<const int*>(s.counted),
             static_cast<int*>(s.lengths), s.batch),
      launch(flash_decode_plan_kernel, of(1, kDecodePlanThreads), nullptr, plan),
      launch(embed_kernel, of(1, 32), nullptr, embed, 1),
      launch(project_stand_in, of(3, 128), nullptr, static_cast<const uint4*>(s.projected),
             static_cast<uint4*>(s.qkv), rows * row / 8),
      launch(flash_decode_append_kernel<false>,
             of(s.grid, kDecodeThreads, sizeof(AppendSmem<false>)), nullptr, append, call),
#if L4K_AGAIN
      launch(flash_decode_kernel<false>, of(s.grid, kDecodeThreads, sizeof(DecodeSmem<false>)),
             nullptr, again, call)
#endif
  };
  for (cudaError_t error : errors)
    if (error != cudaSuccess) return error;
  return cudaSuccess;
}

}  // namespace l4k
