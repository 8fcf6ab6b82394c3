// Boxes against an element-by-element model with the manual's swizzle tables; the validation of
// cuTensorMapEncodeTiled; reductions; and a box read back through a wgmma descriptor.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <vector>

#include "check.h"
#include "tensor/numeric.h"
#include "tensor/tensor_map.h"

using namespace l4k::emu;
using test::check;

namespace {

constexpr uint32_t kSmem = 160 * 1024;

// PTX ISA 5.5.7: which 16-byte chunk of the 128-byte line stands where, line after line.
constexpr int k32[2][8] = {{0, 1, 2, 3, 4, 5, 6, 7}, {1, 0, 3, 2, 5, 4, 7, 6}};
constexpr int k64[4][8] = {{0, 1, 2, 3, 4, 5, 6, 7},
                           {1, 0, 3, 2, 5, 4, 7, 6},
                           {2, 3, 0, 1, 6, 7, 4, 5},
                           {3, 2, 1, 0, 7, 6, 5, 4}};
constexpr int k128[8][8] = {{0, 1, 2, 3, 4, 5, 6, 7}, {1, 0, 3, 2, 5, 4, 7, 6},
                            {2, 3, 0, 1, 6, 7, 4, 5}, {3, 2, 1, 0, 7, 6, 5, 4},
                            {4, 5, 6, 7, 0, 1, 2, 3}, {5, 4, 7, 6, 1, 0, 3, 2},
                            {6, 7, 4, 5, 2, 3, 0, 1}, {7, 6, 5, 4, 3, 2, 1, 0}};

uint32_t by_table(Swizzle s, uint32_t address) {
  uint32_t line = address / 128, chunk = address % 128 / 16, byte = address % 16;
  int to = s == Swizzle::none  ? int(chunk)
           : s == Swizzle::b32 ? k32[line % 2][chunk]
           : s == Swizzle::b64 ? k64[line % 4][chunk]
                               : k128[line % 8][chunk];
  return line * 128 + uint32_t(to) * 16 + byte;
}

struct Arguments {
  alignas(64) uint8_t map[128] = {};
  int type = 9;  // BFLOAT16
  uint32_t rank = 2;
  const void* address = nullptr;
  uint64_t dims[5] = {64, 64, 1, 1, 1};
  uint64_t strides[4] = {128, 8192, 8192, 8192};
  uint32_t box[5] = {64, 8, 1, 1, 1};
  uint32_t steps[5] = {1, 1, 1, 1, 1};
  int interleave = 0, swizzle = 0, l2 = 0, oob = 0;
  EncodeResult encode() {
    return encode_tiled(map, type, rank, address, dims, strides, box, steps, interleave, swizzle,
                        l2, oob);
  }
};

// One random map and box, with what every element of the box should be.
struct Trial {
  struct Cell {
    uint64_t global;
    bool inside;
  };
  int round;
  std::vector<uint8_t>& storage;  // 1 MiB that the map points into
  Arguments a;
  TensorMap m;
  uint32_t size = 0, shared = 0;  // bytes of an element; where the box is in shared memory
  int32_t coords[5] = {};
  std::map<uint32_t, Cell> model = {};  // by swizzled shared address
  uint32_t elements = 1;
  uint64_t low = ~uint64_t{0}, high = 0;

  void choose(test::Rng& rng);
  void build_model();
  void check_extent();
  void check_load();
  void check_runs();
  void check_store(test::Rng& rng);
};

void Trial::choose(test::Rng& rng) {
  uint8_t* base = storage.data() + (16 - reinterpret_cast<uintptr_t>(storage.data()) % 16) % 16;
  const int types[] = {0, 1, 2, 3, 6, 7, 8, 9};
  a.type = types[rng.below(8)];
  size = tensor_type_bytes(static_cast<TensorType>(a.type));
  a.rank = 1 + rng.below(5);
  a.address = base + 16 * rng.below(64);
  a.swizzle = static_cast<int>(rng.below(4));
  a.oob = a.type >= 6 ? static_cast<int>(rng.below(2)) : 0;
  uint32_t inner =
      a.swizzle ? swizzle_span(static_cast<Swizzle>(a.swizzle)) : 16 * (1 + rng.below(12));
  if (inner / size > 256) inner = 256 * size;
  a.box[0] = inner / size;
  a.dims[0] = 1 + rng.below(a.box[0] * 3);
  uint64_t pitch = (a.dims[0] * size + 15) / 16 * 16 + 16 * rng.below(3);
  for (uint32_t d = 1; d < a.rank; ++d) {
    a.dims[d] = 1 + rng.below(6);
    a.box[d] = 1 + rng.below(5);
    a.steps[d] = 1 + rng.below(3) / 2 * rng.below(3);
    a.strides[d - 1] = pitch;
    pitch *= a.dims[d];
  }
  for (uint32_t d = 0; d < a.rank; ++d) {
    coords[d] = static_cast<int>(rng.below(static_cast<uint32_t>(a.dims[d]) + 8)) - 4;
    if (rng.below(3) == 0) coords[d] = 0;
  }
  shared = 128 * rng.below(64);
}

void Trial::build_model() {
  uint32_t count[5] = {1, 1, 1, 1, 1};
  for (uint32_t d = 0; d < a.rank; ++d) count[d] = (a.box[d] + a.steps[d] - 1) / a.steps[d];
  for (uint32_t n : count) elements *= n;
  for (uint32_t i = 0; i < elements; ++i) {
    Cell cell{reinterpret_cast<uint64_t>(a.address), true};
    for (uint32_t d = 0, rest = i; d < a.rank; rest /= count[d++]) {
      int64_t c = coords[d] + int64_t{rest % count[d]} * a.steps[d];
      if (c < 0 || c >= int64_t(a.dims[d])) cell.inside = false;
      cell.global += uint64_t(c) * (d ? a.strides[d - 1] : size);
    }
    model[by_table(m.swizzle, shared + i * size)] = cell;
    if (cell.inside) low = std::min(low, cell.global), high = std::max(high, cell.global + size);
  }
}

void Trial::check_extent() {
  check(box_bytes(m) == elements * size, "round %d: box_bytes %u, model %u", round, box_bytes(m),
        elements * size);
  uint64_t got_low = 0, got_high = 0;
  bool any = box_global_range(m, coords, &got_low, &got_high);
  check(any == (high != 0), "round %d: anything inside", round);
  if (any && high) check(got_low == low && got_high == high, "round %d: range", round);
}

void Trial::check_load() {
  uint64_t fill = a.oob ? (size == 2 ? 0x7fff : size == 4 ? 0x7fffffff : 0x7fffffffffffffff) : 0;
  std::vector<uint8_t> smem(kSmem, 0xcd), want(kSmem, 0xcd);
  load_box(m, coords, smem.data(), shared);
  for (auto& [at, cell] : model)
    std::memcpy(&want[at], cell.inside ? reinterpret_cast<const void*>(cell.global) : &fill, size);
  check(smem == want, "round %d: load (rank %u swizzle %d type %d)", round, a.rank, a.swizzle,
        a.type);
}

void Trial::check_runs() {
  uint64_t covered = 0;
  for_each_run(m, coords, shared, [&](const BoxRun& run) {
    covered += run.bytes;
    check(run.bytes && run.bytes % size == 0 && (a.swizzle == 0 || run.bytes <= 16), "run size");
    auto it = model.find(run.shared);
    if (!check(it != model.end(), "round %d: run at an unknown address", round)) return;
    check(it->second.inside == run.in_bounds, "round %d: run in bounds", round);
    if (run.in_bounds) check(it->second.global == run.global, "round %d: run address", round);
  });
  check(covered == box_bytes(m), "round %d: runs cover %llu", round, (unsigned long long)covered);
}

// A store, then a reduction: they write the inside and nothing else.
void Trial::check_store(test::Rng& rng) {
  std::vector<uint8_t> before = storage, after, smem(kSmem);
  auto restore = [&] { std::memcpy(storage.data(), before.data(), before.size()); };
  for (auto& x : smem) x = static_cast<uint8_t>(rng.next());
  store_box(m, coords, smem.data(), shared);
  after = storage;
  restore();
  for (auto& [at, cell] : model)
    if (cell.inside) std::memcpy(reinterpret_cast<void*>(cell.global), &smem[at], size);
  check(after == storage, "round %d: store", round);

  restore();
  auto op = static_cast<BoxReduce>(rng.below(3));
  std::string error = reduce_box(m, coords, smem.data(), shared, op);
  check(error.empty() == reduce_exists(m.type, op), "round %d: %s", round, error.c_str());
  after = storage;
  restore();
  for (auto& [at, cell] : model) {
    if (!cell.inside || !error.empty()) continue;
    uint64_t x = 0, y = 0;
    std::memcpy(&x, reinterpret_cast<void*>(cell.global), size);
    std::memcpy(&y, &smem[at], size);
    x = reduce_element(m.type, op, x, y);
    std::memcpy(reinterpret_cast<void*>(cell.global), &x, size);
  }
  check(after == storage, "round %d: reduction", round);
}

void one_box(test::Rng& rng, int round) {
  static std::vector<uint8_t> storage(1 << 20);
  for (size_t i = 0; i < storage.size(); ++i)
    storage[i] = static_cast<uint8_t>(rng.state >> (i % 40)) ^ static_cast<uint8_t>(i * 31);
  rng.next();
  Trial t{.round = round, .storage = storage, .a = {}, .m = {}};
  t.choose(rng);
  EncodeResult r = t.a.encode();
  if (!check(r.code == EncodeCode::ok, "round %d: %s", round, r.reason.c_str())) return;
  check(read_tensor_map(t.a.map, &t.m).empty(), "read back");
  t.build_model();
  t.check_extent();
  t.check_load();
  t.check_runs();
  t.check_store(rng);
}

void refusals() {
  alignas(16) static uint8_t data[64];
  auto expect = [&](const char* what, EncodeCode code, const char* mention, auto change) {
    Arguments a;
    a.address = data;
    change(a);
    EncodeResult r = a.encode();
    check(r.code == code, "%s: expected code %d, got %d (%s)", what, int(code), int(r.code),
          r.reason.c_str());
    check(r.reason.find(mention) != std::string::npos, "%s: '%s' should mention %s", what,
          r.reason.c_str(), mention);
    TensorMap m;
    check(read_tensor_map(a.map, &m).empty() == (code == EncodeCode::ok), "%s: map written", what);
  };
  constexpr auto ok = EncodeCode::ok, bad = EncodeCode::invalid_value,
                 no = EncodeCode::not_supported;
  expect("plain", ok, "", [](Arguments&) {});
  expect("address", bad, "globalAddress", [](Arguments& a) { a.address = data + 8; });
  expect("null", bad, "globalAddress", [](Arguments& a) { a.address = nullptr; });
  expect("rank 0", bad, "tensorRank", [](Arguments& a) { a.rank = 0; });
  expect("rank 6", bad, "tensorRank", [](Arguments& a) { a.rank = 6; });
  expect("stride 8", bad, "globalStrides", [](Arguments& a) { a.strides[0] = 136; });
  expect("stride 2^40", bad, "globalStrides", [](Arguments& a) { a.strides[0] = 1ull << 40; });
  expect("stride below 2^40", ok, "", [](Arguments& a) { a.strides[0] = (1ull << 40) - 16; });
  expect("dim 0", bad, "globalDim", [](Arguments& a) { a.dims[1] = 0; });
  expect("dim 2^32", ok, "", [](Arguments& a) { a.dims[1] = 1ull << 32; });
  expect("dim 2^32 + 1", bad, "globalDim", [](Arguments& a) { a.dims[1] = (1ull << 32) + 1; });
  expect("box 0", bad, "boxDim", [](Arguments& a) { a.box[1] = 0; });
  expect("box 256", ok, "", [](Arguments& a) { a.box[1] = 256; });
  expect("box 257", bad, "boxDim", [](Arguments& a) { a.box[1] = 257; });
  expect("inner box 24 bytes", bad, "multiple of 16", [](Arguments& a) { a.box[0] = 12; });
  expect("inner over span", bad, "swizzle", [](Arguments& a) { a.swizzle = 2; });
  expect("inner under span", no, "swizzle", [](Arguments& a) { a.swizzle = 3, a.box[0] = 32; });
  expect("inner equals span", ok, "", [](Arguments& a) { a.swizzle = 3; });
  expect("step 0", bad, "elementStrides", [](Arguments& a) { a.steps[1] = 0; });
  expect("step 9", bad, "elementStrides", [](Arguments& a) { a.steps[1] = 9; });
  expect("step of dimension 0", ok, "", [](Arguments& a) { a.steps[0] = 9; });
  expect("interleave", no, "interleave", [](Arguments& a) { a.interleave = 1; });
  expect("atom swizzle", no, "swizzle", [](Arguments& a) { a.swizzle = 4; });
  expect("tf32", no, "TFLOAT32", [](Arguments& a) { a.type = 11; });
  expect("type 16", bad, "tensorDataType", [](Arguments& a) { a.type = 16; });
  expect("NaN fill of integers", bad, "oobFill", [](Arguments& a) { a.type = 1, a.oob = 1; });
  expect("promotion", bad, "l2Promotion", [](Arguments& a) { a.l2 = 4; });
  Arguments a;
  a.address = data;
  check(encode_tiled(a.map + 16, 9, 2, data, a.dims, a.strides, a.box, a.steps, 0, 0, 0, 0).code ==
            bad,
        "an unaligned map is refused");
  TensorMap m;
  check(!read_tensor_map(a.map, &m).empty(), "zeros are no map");
}

// A map that a kernel makes out of zeros, as Triton's do.
void begin_from_zeros(const Arguments& like) {
  TensorMap want, got;
  read_tensor_map(like.map, &want);
  alignas(64) uint8_t made[128] = {};
  auto set = [&](MapField f, int ordinal, uint64_t v) {
    check(replace_field(made, f, ordinal, v).empty(), "replace in a map made of zeros");
  };
  set(MapField::global_address, 0, want.address), set(MapField::rank, 0, want.rank - 1u);
  check(!read_tensor_map(made, &got).empty(), "a map without its boxes is none");
  for (int d = 0; d < want.rank; ++d) {
    set(MapField::box_dim, d, want.box[d]), set(MapField::global_dim, d, want.dims[d]);
    set(MapField::element_stride, d, want.element_strides[d]);
    if (d) set(MapField::global_stride, d - 1, want.strides[d - 1]);
  }
  set(MapField::elemtype, 0, 10), set(MapField::interleave_layout, 0, 0);
  set(MapField::swizzle_mode, 0, 2), set(MapField::fill_mode, 0, 1);
  check(read_tensor_map(made, &got).empty(), "a map made of zeros");
  check(box_bytes(got) == box_bytes(want) && got.address == want.address, "its box and address");
}

// CUTLASS and Triton clear this bit of small tensors' maps: nothing changes, whatever the address.
void clear_bit_85(const Arguments& like) {
  for (uint64_t address : {uint64_t{0x7fff12345670}, ~uint64_t{0} << 48 >> 8, uint64_t{1} << 21}) {
    alignas(64) uint8_t map[128];
    std::memcpy(map, like.map, sizeof map);
    check(replace_field(map, MapField::global_address, 0, address).empty(), "an address");
    TensorMap before, after;
    read_tensor_map(map, &before);
    uint64_t word;
    std::memcpy(&word, map + 8, 8);
    for (uint64_t patched : {word & ~(uint64_t{1} << 21), word | uint64_t{1} << 21}) {
      std::memcpy(map + 8, &patched, 8);
      check(read_tensor_map(map, &after).empty() && after.address == before.address &&
                box_bytes(after) == box_bytes(before) && after.swizzle == before.swizzle,
            "a map with bit 85 changed");
    }
  }
}

void replacements() {
  alignas(16) static uint8_t data[4096];
  Arguments a;
  a.map[3] = 1;
  check(!replace_field(a.map, MapField::rank, 0, 1).empty(), "other contents are no map");
  a.address = data, a.rank = 1;
  a.encode();
  auto set = [&](MapField f, int ordinal, uint64_t v) {
    std::string error = replace_field(a.map, f, ordinal, v);
    check(error.empty(), "replace: %s", error.c_str());
  };
  set(MapField::global_address, 0, reinterpret_cast<uint64_t>(data + 64));
  set(MapField::rank, 0, 1), set(MapField::box_dim, 0, 32), set(MapField::box_dim, 1, 4);
  set(MapField::global_dim, 0, 40), set(MapField::global_dim, 1, 3);
  set(MapField::global_stride, 0, 96), set(MapField::element_stride, 1, 2);
  set(MapField::elemtype, 0, 10), set(MapField::swizzle_mode, 0, 2), set(MapField::fill_mode, 0, 1);
  Arguments b;
  b.address = data + 64;
  b.dims[0] = 40, b.dims[1] = 3, b.strides[0] = 96, b.box[0] = 32, b.box[1] = 4, b.steps[1] = 2;
  b.swizzle = 2, b.oob = 1;
  check(b.encode().code == EncodeCode::ok, "the same by encoding");
  check(std::memcmp(a.map, b.map, 128) == 0, "replaced fields equal encoded ones");
  begin_from_zeros(b);
  clear_bit_85(b);
  check(!replace_field(a.map, MapField::global_address, 0, 8).empty(), "unaligned address");
  check(!replace_field(a.map, MapField::global_stride, 0, 8).empty(), "unaligned stride");
  check(!replace_field(a.map, MapField::global_stride, 4, 16).empty(), "stride ordinal");
  check(!replace_field(a.map, MapField::box_dim, 5, 16).empty(), "box ordinal");
  check(!replace_field(a.map, MapField::box_dim, 1, 0).empty(), "box 0");
  set(MapField::global_dim, 1, 0);  // an empty group: everything is out of bounds
  TensorMap m;
  check(read_tensor_map(a.map, &m).empty(), "an empty extent is a map");
  int32_t origin[5] = {};
  uint64_t low, high;
  check(!box_global_range(m, origin, &low, &high), "nothing inside an empty tensor");
  for_each_run(m, origin, 0, [](const BoxRun& run) { check(!run.in_bounds, "empty extent"); });
  set(MapField::box_dim, 0, 24);
  check(!read_tensor_map(a.map, &m).empty(), "a box that its swizzle does not take");
}

void reductions() {
  auto f = [](float x) { return uint64_t{bits(x)}; };
  using T = TensorType;
  using R = BoxReduce;
  check(reduce_element(T::f32, R::add, f(1.5f), f(2.f)) == f(3.5f), "f32 add");
  check(reduce_element(T::f32, R::add, f(1e-40f), f(0.f)) == 0, "f32 add flushes subnormals");
  check(reduce_element(T::bf16, R::add, 0x3f80, 0x3b80) == 0x3f80, "bf16 add ties to even");
  check(reduce_element(T::f16, R::max, 0xbc00, 0x3c00) == 0x3c00, "f16 max");
  check(reduce_element(T::s32, R::min, 0xffffffff, 1) == 0xffffffff, "s32 min is signed");
  check(reduce_element(T::u32, R::min, 0xffffffff, 1) == 1, "u32 min is not");
  check(reduce_element(T::u32, R::add, 0xffffffff, 2) == 1, "u32 add wraps");
  check(reduce_element(T::s64, R::max, ~0ull, 0) == 0, "s64 max");
  check(reduce_element(T::u32, R::inc, 5, 5) == 0 && reduce_element(T::u32, R::inc, 4, 5) == 5,
        "inc");
  check(reduce_element(T::u32, R::dec, 0, 5) == 5 && reduce_element(T::u32, R::dec, 7, 5) == 5 &&
            reduce_element(T::u32, R::dec, 3, 5) == 2,
        "dec");
  check(reduce_element(T::u32, R::xor_, 0xf0, 0xff) == 0x0f, "xor");
  check(!reduce_exists(T::f32, R::max) && !reduce_exists(T::u8, R::add) &&
            !reduce_exists(T::s32, R::inc) && !reduce_exists(T::f16, R::and_),
        "what PTX has not");
}

// A TMA load followed by wgmma's view of it: the two swizzles are one.
void through_a_descriptor() {
  constexpr int rows = 128, cols = 64;
  alignas(16) static uint16_t matrix[rows * cols];
  for (int i = 0; i < rows * cols; ++i) matrix[i] = static_cast<uint16_t>(i * 7919);
  for (int s = 1; s <= 3; ++s) {
    auto swizzle = static_cast<Swizzle>(s);
    uint32_t span = swizzle_span(swizzle), wide = span / 2;
    Arguments a;
    a.address = matrix, a.dims[0] = cols, a.dims[1] = rows, a.strides[0] = cols * 2;
    a.box[0] = wide, a.box[1] = rows, a.swizzle = s;
    check(a.encode().code == EncodeCode::ok, "encode");
    TensorMap m;
    read_tensor_map(a.map, &m);
    std::vector<uint8_t> smem(kSmem, 0);
    uint32_t base = 3 * 1024;
    int32_t coords[2] = {static_cast<int32_t>(cols - wide), 0};
    load_box(m, coords, smem.data(), base);
    for (uint32_t k = 0; k < span / 32; ++k)
      for (int half = 0; half < 2; ++half) {
        uint64_t desc = encode_descriptor(
            {base + uint32_t(half) * 64 * span + k * 32, 16, 8 * span, 0, swizzle});
        uint8_t packed[64 * 32];
        std::string error =
            gather_operand(smem.data(), kSmem, desc, 64, MmaType::bf16, false, packed);
        check(error.empty(), "%s", error.c_str());
        for (int r = 0; r < 64; ++r)
          check(std::memcmp(packed + r * 32, &matrix[(half * 64 + r) * cols + cols - wide + k * 16],
                            32) == 0,
                "swizzle %d k %u row %d", s, k, r);
      }
    // MN-major: the box's columns are rows of the operand, its rows are K.
    uint64_t desc = encode_descriptor({base, 8 * span, 8 * span, 0, swizzle});
    std::vector<uint8_t> packed(wide * 32);
    gather_operand(smem.data(), kSmem, desc, static_cast<int>(wide), MmaType::bf16, true,
                   packed.data());
    for (uint32_t r = 0; r < wide; ++r)
      for (uint32_t k = 0; k < 16; ++k) {
        uint16_t got;
        std::memcpy(&got, &packed[r * 32 + k * 2], 2);
        check(got == matrix[k * cols + cols - wide + r], "MN-major swizzle %d row %u k %u", s, r,
              k);
      }
  }
}

void descriptors() {
  test::Rng rng(9);
  for (int i = 0; i < 1000; ++i) {
    MatrixDescriptor d{rng.below(1 << 14) * 16, rng.below(1 << 14) * 16, rng.below(1 << 14) * 16,
                       rng.below(8), static_cast<Swizzle>(rng.below(4))};
    MatrixDescriptor e = decode_descriptor(encode_descriptor(d));
    check(e.start == d.start && e.leading_offset == d.leading_offset &&
              e.stride_offset == d.stride_offset && e.base_offset == d.base_offset &&
              e.swizzle == d.swizzle,
          "round trip of %s", to_string(d).c_str());
  }
  check(decode_descriptor(1ull << 62).swizzle == Swizzle::b128, "1 is 128B");
  check(decode_descriptor(2ull << 62).swizzle == Swizzle::b64, "2 is 64B");
  check(decode_descriptor(3ull << 62).swizzle == Swizzle::b32, "3 is 32B");
  for (int s = 0; s < 4; ++s)
    for (uint32_t x = 0; x < 4096; ++x)
      check(swizzle_address(static_cast<Swizzle>(s), x) == by_table(static_cast<Swizzle>(s), x),
            "swizzle %d of %u", s, x);
  // A pattern that starts at line 3 of 8: the base offset takes the start's phase away.
  for (uint32_t x = 0; x < 1024; ++x)
    check(swizzle_address(Swizzle::b128, 3 * 128 + x, 3) == 3 * 128 + by_table(Swizzle::b128, x),
          "base offset, byte %u", x);
  std::vector<uint8_t> smem(4096), packed(256 * 32);
  auto error = [&](const MatrixDescriptor& d, int rows, MmaType t, bool mn) {
    return gather_operand(smem.data(), 4096, encode_descriptor(d), rows, t, mn, packed.data());
  };
  MatrixDescriptor d{0, 16, 512, 0, Swizzle::none};
  check(error(d, 64, MmaType::bf16, false).empty(), "8 x 512 bytes fit");
  d.start = 128;
  check(error(d, 64, MmaType::bf16, false).empty() && !error(d, 72, MmaType::bf16, false).empty(),
        "one group past the end does not");
  d.start = 4096 - 144;  // 8 rows of 16 bytes and one more chunk
  check(error(d, 8, MmaType::bf16, false).empty(), "the last byte of memory may be read");
  d.start += 16;
  check(!error(d, 8, MmaType::bf16, false).empty(), "the next 16 may not");
  d.start = 4096 - 16;
  check(error(d, 8, MmaType::bf16, false).find("of 4096") != std::string::npos, "end of memory");
  d.start = 0;
  check(!error(d, 8, MmaType::e4m3, true).empty(), "fp8 is never MN-major");
  check(!error(d, 12, MmaType::bf16, false).empty(), "12 rows");
}

}  // namespace

int main() {
  test::Rng rng(8);
  for (int round = 0; round < 400; ++round) one_box(rng, round);
  refusals();
  replacements();
  reductions();
  through_a_descriptor();
  descriptors();
  return test::finish("tensor_map_test");
}
