// One step of flash_decode_append, as its test passes it to a mutant: the fields are those of `Step` in
// tests/emulator/test_append_mutants.py.
#pragma once
#include <cstdint>

struct Step {
  int batch, tokens, kv_heads, group, chunk, num_pages, page_size, max_pages, grid;
  int64_t table_rows, nonce;
  const void *qkv, *positions, *slots, *lengths, *table, *cos_sin;
  void *k_cache, *v_cache, *out, *lse, *partials, *error;
};
