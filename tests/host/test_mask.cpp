// Spans of keys against the definition, key by key: every small problem, and the edges of chunks of
// 8192 and of contexts of ten million.
#include <initializer_list>

#include "expect.h"
#include "tile/mask.h"

namespace {

bool sees(int64_t query, int64_t key, int64_t chunk) {
  if (query < 0 || key < 0 || key > query) return false;
  return chunk == 0 || key / chunk == query / chunk;
}

// Looks at the keys [low, high), which hold everything that the queries see.
void check(l4k::Span queries, int64_t chunk, int size, int64_t low, int64_t high) {
  const l4k::Span any = l4k::keys_of_any(queries, chunk), all = l4k::keys_of_all(queries, chunk);
  const l4k::KeyTiles tiles = l4k::key_tiles(queries, chunk, size);
  for (int64_t tile = low / size; tile * size < high; ++tile) {
    bool touched = false, whole = !queries.empty();
    for (int64_t key = tile * size; key < (tile + 1) * size; ++key) {
      bool some = false, every = !queries.empty();
      for (int64_t query = queries.first; query < queries.end; ++query) {
        const bool seen = sees(query, key, chunk);
        some |= seen;
        every &= seen;
        const l4k::TileSpan span =
            l4k::within_tile(l4k::visible_keys(query, chunk), tile * size, size);
        EXPECT(0 <= span.first && span.first <= span.end && span.end <= size, "key " << key);
        const int64_t index = key - tile * size;
        EXPECT(seen == (span.first <= index && index < span.end), query << " sees " << key);
      }
      EXPECT(some == (any.first <= key && key < any.end), "any, key " << key);
      EXPECT(every == (all.first <= key && key < all.end), "all, key " << key);
      touched |= some;
      whole &= every;
    }
    EXPECT(touched == (tiles.touched.first <= tile && tile < tiles.touched.end), "tile " << tile);
    EXPECT(whole == (tiles.whole.first <= tile && tile < tiles.whole.end),
           "tile " << tile << " of queries " << queries.first << " to " << queries.end << ", chunk "
                   << chunk << ", size " << size);
  }
  EXPECT(tiles.touched.empty() || tiles.touched.end * size <= high + size, "end");
  if (any.empty()) EXPECT(tiles.touched.empty() && tiles.whole.empty(), "no keys, no tiles");
}

}  // namespace

int main() {
  for (int64_t chunk = 0; chunk <= 17; ++chunk)
    for (int size : {1, 2, 4, 8})
      for (int64_t first = -4; first < 40; ++first)
        for (int64_t end = first; end <= first + 20; ++end) check({first, end}, chunk, size, 0, 80);
  const int64_t ten_million = 10'485'760;
  for (int64_t edge : {int64_t{8192}, int64_t{16384}, ten_million, ten_million + 77})
    for (int64_t chunk : {8192, 8191, 100, 64, 16, 1})
      for (int64_t first = edge - 2; first <= edge + 1; ++first)
        for (int64_t count : {1, 2, 25, 128})
          check({first, first + count}, chunk, 128, first - 2 * chunk < 0 ? 0 : first - 2 * chunk,
                first + 400);
  // Positions 8190 ... 8193 and 16383 ... 16385 by hand.
  static_assert(l4k::visible_keys(8190, 8192).first == 0);
  static_assert(l4k::visible_keys(8191, 8192).first == 0);
  static_assert(l4k::visible_keys(8192, 8192).first == 8192);
  static_assert(l4k::visible_keys(8193, 8192).first == 8192);
  static_assert(l4k::visible_keys(16383, 8192).first == 8192);
  static_assert(l4k::visible_keys(16384, 8192).first == 16384);
  static_assert(l4k::visible_keys(16385, 8192).end == 16386);
  static_assert(l4k::visible_keys(10'485'759, 8192).first == 10'477'568);
  // Beyond 32 bits, and without a chunk.
  static_assert(l4k::visible_keys((int64_t{5} << 32) + 8191, 8192).first == int64_t{5} << 32);
  static_assert(l4k::visible_keys(8193, int64_t{1} << 40).first == 0);
  static_assert(l4k::visible_keys(int64_t{1} << 40, 8192).first == int64_t{1} << 40);
  constexpr int64_t kFar = int64_t{1} << 40;
  static_assert(l4k::key_tiles({kFar + 5, kFar + 6}, 0, 128).touched.end == kFar / 128 + 1);
  return 0;
}
