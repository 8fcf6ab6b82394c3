// Tensor maps: what cuTensorMapEncodeTiled makes and cp.async.bulk.tensor reads.
//
// The 128 bytes of a CUtensorMap are opaque to programs; these are the emulator's own contents. But
// CUTLASS and Triton clear bit 21 of its second 64-bit word, which a driver may set, for tensors below
// 128 KB. So the emulator keeps nothing there.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>

#include "tensor/descriptor.h"

namespace l4k::emu {

// Values equal CUtensorMapDataType.
enum class TensorType : uint8_t {
  u8,
  u16,
  u32,
  s32,
  u64,
  s64,
  f16,
  f32,
  f64,
  bf16,
  f32_ftz,
  tf32,
  tf32_ftz
};
uint32_t tensor_type_bytes(TensorType t);
const char* tensor_type_name(TensorType t);

struct alignas(64) TensorMap {
  uint32_t magic;       // kTensorMapMagic, or the map was never encoded
  uint32_t unused[3];   // whatever programs change there means nothing
  uint64_t address;     // global address of element (0, ..., 0)
  uint64_t strides[4];  // bytes, dimensions 1..4
  uint64_t dims[5];     // extents in elements, 1 beyond the rank; 0 only through replace_field
  uint16_t box[5];      // 1..256 elements, before element strides
  uint8_t element_strides[5];
  TensorType type;
  uint8_t rank;
  Swizzle swizzle;
  uint8_t l2_promotion;
  bool nan_fill;  // out-of-bounds elements are NaN instead of zero
  uint8_t reserved[10];

  uint32_t element_bytes() const { return tensor_type_bytes(type); }
  // Elements of the box in shared memory along d: element strides thin the box out.
  uint32_t box_elements(int d) const {
    return (uint32_t{box[d]} + element_strides[d] - 1) / element_strides[d];
  }
};
static_assert(sizeof(TensorMap) == 128);
inline constexpr uint32_t kTensorMapMagic = 0x4d54346c;  // "l4TM"

// Codes equal CUresult.
enum class EncodeCode : int { ok = 0, invalid_value = 1, not_supported = 801 };
struct EncodeResult {
  EncodeCode code;
  std::string reason;  // empty when ok: expected, got, what to do
};
// Arguments as cuTensorMapEncodeTiled has them (enums as their integer values). `strides` has
// rank - 1 entries, in bytes. Not supported, and said so: interleaved layouts, the 128B_ATOM
// swizzles, the 4- and 6-bit types, the tf32 and ftz types (they convert while copying), and a box
// whose inner dimension is narrower than its swizzle (no document gives that layout).
EncodeResult encode_tiled(void* map_out, int data_type, uint32_t rank, const void* address,
                          const uint64_t* dims, const uint64_t* strides, const uint32_t* box,
                          const uint32_t* element_strides, int interleave, int swizzle,
                          int l2_promotion, int oob_fill);

// Copies the map at `p` (any alignment) to `out`. Returns "" or why it is no map.
std::string read_tensor_map(const void* p, TensorMap* out);

// tensormap.replace.tile.<field>: changes one field of the map at `p`. `ordinal` is for box_dim,
// global_dim, global_stride (0 is dimension 1) and element_stride. Values are PTX's, not the
// driver's: rank minus one, PTX's element type codes, strides in bytes (as since CUDA 12.5). On 128
// bytes of zeros it begins a new map, which is complete when all its fields have been replaced.
// Returns "" or what is wrong.
enum class MapField : uint8_t {
  global_address,
  rank,
  box_dim,
  global_dim,
  global_stride,
  element_stride,
  elemtype,
  interleave_layout,
  swizzle_mode,
  fill_mode
};
std::string replace_field(void* p, MapField field, int ordinal, uint64_t value);

// Shared-memory bytes of the whole box: what a load adds to an mbarrier's transaction count.
uint32_t box_bytes(const TensorMap& m);
// The fill of out-of-bounds elements, as one element's bits.
uint64_t oob_fill_bits(const TensorMap& m);

// A run of consecutive elements that is contiguous in global and in shared memory.
struct BoxRun {
  uint64_t global;  // address; meaningless where !in_bounds
  uint32_t shared;  // absolute shared-memory address, swizzled
  uint32_t bytes;   // a multiple of the element size; at most 16 under a swizzle
  bool in_bounds;   // loads: copy, else fill. Stores and reductions: write, else skip
};

// Calls fn(const BoxRun&) for every run of the box at element coordinates `coords` (rank of them,
// negative and past the end allowed) placed at shared address `shared`. Runs never overlap and
// together cover box_bytes(m).
template <typename Fn>
void for_each_run(const TensorMap& m, const int32_t* coords, uint32_t shared, Fn&& fn);

// The whole box at once, for when nothing has to be checked: global addresses are host pointers,
// `smem` is indexed by shared address.
void load_box(const TensorMap& m, const int32_t* coords, uint8_t* smem, uint32_t shared);
void store_box(const TensorMap& m, const int32_t* coords, const uint8_t* smem, uint32_t shared);
// cp.reduce.async.bulk{.tensor}: add, min, max, inc, dec, and, or, xor. Returns "" or why the
// operation does not exist for the map's type.
enum class BoxReduce : uint8_t { add, min, max, inc, dec, and_, or_, xor_ };
std::string reduce_box(const TensorMap& m, const int32_t* coords, const uint8_t* smem,
                       uint32_t shared, BoxReduce op);
// Whether the operation exists, and one element of it on the elements' bits: `a` is what memory
// holds. f32 add flushes subnormals, as the manual says of these instructions.
bool reduce_exists(TensorType type, BoxReduce op);
uint64_t reduce_element(TensorType type, BoxReduce op, uint64_t a, uint64_t b);

// Lowest and one-past-highest global byte that the in-bounds part of the box touches; false when
// nothing is in bounds. For a cheap test against one allocation before load_box.
bool box_global_range(const TensorMap& m, const int32_t* coords, uint64_t* low, uint64_t* high);

// ---- implementation of the template -----------------------------------------------------------
namespace detail {
// One inner row: its shared address before swizzling, and [first, last) elements in bounds.
template <typename Fn>
void split_run(const TensorMap& m, uint64_t global, uint32_t shared, uint32_t bytes, bool in_bounds,
               Fn& fn) {
  if (m.swizzle == Swizzle::none) {
    if (bytes) fn(BoxRun{global, shared, bytes, in_bounds});
    return;
  }
  while (bytes) {
    uint32_t step = 16 - shared % 16;
    if (step > bytes) step = bytes;
    fn(BoxRun{global, swizzle_address(m.swizzle, shared), step, in_bounds});
    global += step, shared += step, bytes -= step;
  }
}
}  // namespace detail

template <typename Fn>
void for_each_run(const TensorMap& m, const int32_t* coords, uint32_t shared, Fn&& fn) {
  uint32_t size = m.element_bytes(), inner = m.box_elements(0);
  int64_t x = coords[0], extent0 = static_cast<int64_t>(m.dims[0]);
  auto clamp = [&](int64_t v) { return static_cast<uint32_t>(v < 0 ? 0 : v > inner ? inner : v); };
  uint32_t first = clamp(-x), last = clamp(extent0 - x);
  if (last < first) last = first;
  uint32_t count[5] = {1, 1, 1, 1, 1}, at[5] = {};
  for (int d = 1; d < m.rank; ++d) count[d] = m.box_elements(d);
  uint32_t row = shared;
  for (at[4] = 0; at[4] < count[4]; ++at[4])
    for (at[3] = 0; at[3] < count[3]; ++at[3])
      for (at[2] = 0; at[2] < count[2]; ++at[2])
        for (at[1] = 0; at[1] < count[1]; ++at[1], row += inner * size) {
          bool inside = first < last;
          uint64_t global = m.address + static_cast<uint64_t>(x) * size;
          for (int d = 1; d < m.rank && inside; ++d) {
            int64_t c = coords[d] + int64_t{at[d]} * m.element_strides[d];
            inside = c >= 0 && c < static_cast<int64_t>(m.dims[d]);
            global += static_cast<uint64_t>(c) * m.strides[d - 1];
          }
          if (!inside) {
            detail::split_run(m, 0, row, inner * size, false, fn);
            continue;
          }
          detail::split_run(m, 0, row, first * size, false, fn);
          detail::split_run(m, global + first * size, row + first * size, (last - first) * size,
                            true, fn);
          detail::split_run(m, 0, row + last * size, (inner - last) * size, false, fn);
        }
}

}  // namespace l4k::emu
