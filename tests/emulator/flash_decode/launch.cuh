// One mutant's launch, included once for each in a namespace of its own.
namespace l4k {

inline int launch_step(const Step& s) {
  const FlashDecodeAppendParams p{.attention = {.batch = s.batch,
                                                .tokens = s.tokens,
                                                .kv_heads = s.kv_heads,
                                                .group = s.group,
                                                .chunk = s.chunk,
                                                .num_pages = s.num_pages,
                                                .page_size = s.page_size,
                                                .max_pages = s.max_pages,
                                                .k_cache = s.k_cache,
                                                .v_cache = s.v_cache,
                                                .seqlens_k = static_cast<const int*>(s.lengths),
                                                .block_table = static_cast<const int*>(s.table),
                                                .table_stride = s.max_pages,
                                                .out = s.out,
                                                .lse = static_cast<float*>(s.lse),
                                                .partials = static_cast<float*>(s.partials),
                                                .nonce = static_cast<uint64_t>(s.nonce),
                                                .softmax_scale_log2 = 0.1f,
                                                .error = static_cast<uint32_t*>(s.error)},
                                  .qkv = s.qkv,
                                  .qkv_stride = int64_t{s.kv_heads} * (s.group + 2) * kHeadDim,
                                  .positions = static_cast<const int64_t*>(s.positions),
                                  .slot_mapping = static_cast<const int64_t*>(s.slots),
                                  .rule = {.cos_sin = static_cast<const float*>(s.cos_sin),
                                           .table_rows = s.table_rows,
                                           .qk_norm_eps = 1e-5f,
                                           .attn_scale = 0.1f,
                                           .floor_scale = 16},
                                  .k_cache = s.k_cache,
                                  .v_cache = s.v_cache};
  const LaunchConfig config{.grid = dim3(s.grid),
                            .block = dim3(kDecodeWarps * 32),
                            .smem_bytes = sizeof(AppendSmem<false>)};
  return launch(flash_decode_append_kernel<false>, config, nullptr, p,
                decode_shape(p.attention, s.grid));
}

}  // namespace l4k
