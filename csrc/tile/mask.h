// Which keys a tile of queries sees: causal, and with a chunk only those of the query's own chunk.
// Integers only; prefill and decode share it with the host test.
//
// Positions count from the start of a sequence. The query at position p sees key j iff j <= p and,
// with a chunk, j / chunk == p / chunk. A query at a negative position sees nothing. A tile of rows
// packs tokens x heads, row r being token r / heads, so its positions are one span.
#pragma once
#include "tile/base.h"

namespace l4k {

// Positions or keys [first, end).
struct Span {
  int64_t first, end;

  L4K_HD constexpr bool empty() const { return first >= end; }
};

// Neither is negative. A GPU divides 64 bits slowly, and they are rarely needed.
L4K_HD constexpr int64_t modulo(int64_t a, int64_t b) {
  return (a | b) >> 32 == 0 ? static_cast<uint32_t>(a) % static_cast<uint32_t>(b) : a % b;
}

// Keys that the query at `position` sees; chunk 0 is none.
L4K_HD constexpr Span visible_keys(int64_t position, int64_t chunk) {
  if (position < 0) return {0, 0};
  return {chunk > 0 ? position - modulo(position, chunk) : 0, position + 1};
}

// Keys that at least one of the queries sees: there are no gaps between them.
L4K_HD constexpr Span keys_of_any(Span queries, int64_t chunk) {
  if (queries.first < 0) queries.first = 0;
  if (queries.empty()) return {0, 0};
  return {visible_keys(queries.first, chunk).first, queries.end};
}

// Keys that all of the queries see.
L4K_HD constexpr Span keys_of_all(Span queries, int64_t chunk) {
  if (queries.first < 0 || queries.empty()) return {0, 0};
  const Span keys = {visible_keys(queries.end - 1, chunk).first, queries.first + 1};
  return keys.empty() ? Span{0, 0} : keys;
}

// Key tile t holds keys [t * size, (t + 1) * size). The tiles of `touched` hold a key that some
// query sees, those of `whole` (a part of `touched`) only keys that all of them see: they need no
// mask. No other tile needs to be read.
struct KeyTiles {
  Span touched, whole;
};

L4K_HD constexpr KeyTiles key_tiles(Span queries, int64_t chunk, int size) {
  const Span any = keys_of_any(queries, chunk), all = keys_of_all(queries, chunk);
  if (any.empty()) return {{0, 0}, {0, 0}};
  const Span touched = {any.first / size, ceil_div<int64_t>(any.end, size)};
  const Span whole = {ceil_div<int64_t>(all.first, size), all.end / size};
  return {touched, whole.empty() ? Span{touched.end, touched.end} : whole};
}

// A range of keys as indices into the `size` keys from `first_key` on, cut at the tile's ends.
struct TileSpan {
  int first, end;
};

L4K_HD constexpr TileSpan within_tile(Span keys, int64_t first_key, int size) {
  int64_t first = keys.first - first_key, end = keys.end - first_key;
  first = first < 0 ? 0 : first > size ? size : first;
  end = end < first ? first : end > size ? size : end;
  return {static_cast<int>(first), static_cast<int>(end)};
}

}  // namespace l4k
