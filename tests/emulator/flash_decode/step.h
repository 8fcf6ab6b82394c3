// One step of decoding, as its test passes it to a mutant: the fields are those of `Step` in
// tests/emulator/test_append_mutants.py.
#pragma once
#include <cstdint>

struct Step {
  int batch, tokens, kv_heads, group, chunk, num_pages, page_size, max_pages, grid;
  int64_t table_rows;
  const void *projected, *counted, *positions, *slots, *table, *cos_sin, *ids, *weight;
  void *qkv, *lengths, *plan, *embedded, *k_cache, *v_cache, *out, *lse, *again, *again_lse;
  void *partials, *error;
};
