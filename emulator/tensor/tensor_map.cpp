#include "tensor/tensor_map.h"

#include <algorithm>

#include "tensor/numeric.h"

namespace l4k::emu {
namespace {

constexpr uint32_t kBytes[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4};
constexpr const char* kNames[] = {"UINT8",       "UINT16",   "UINT32",      "INT32",   "UINT64",
                                  "INT64",       "FLOAT16",  "FLOAT32",     "FLOAT64", "BFLOAT16",
                                  "FLOAT32_FTZ", "TFLOAT32", "TFLOAT32_FTZ"};

bool is_float(TensorType t) { return t >= TensorType::f16; }

EncodeResult fail(EncodeCode code, const char* what, const std::string& expected,
                  const std::string& got, const char* advice = "") {
  return {code, std::string("cuTensorMapEncodeTiled: ") + what + ": expected " + expected +
                    ", got " + got + (*advice ? std::string("; ") + advice : "")};
}

std::string number(uint64_t x) { return std::to_string(x); }
std::string of_dimension(uint64_t x, uint32_t d) {
  return number(x) + " in dimension " + number(d);
}

EncodeResult check_support(int data_type, int interleave, int swizzle, int l2, int oob) {
  constexpr auto invalid = EncodeCode::invalid_value, missing = EncodeCode::not_supported;
  if (data_type < 0 || data_type > 15) {
    return fail(invalid, "tensorDataType", "0..15", std::to_string(data_type));
  }
  if (interleave < 0 || interleave > 2) {
    return fail(invalid, "interleave", "0..2", std::to_string(interleave));
  }
  if (swizzle < 0 || swizzle > 6) {
    return fail(invalid, "swizzle", "0..6", std::to_string(swizzle));
  }
  if (l2 < 0 || l2 > 3) return fail(invalid, "l2Promotion", "0..3", std::to_string(l2));
  if (oob < 0 || oob > 1) return fail(invalid, "oobFill", "0 or 1", std::to_string(oob));
  if (data_type > static_cast<int>(TensorType::bf16)) {
    return fail(missing, "tensorDataType", "a type that is copied bit by bit",
                data_type < 13 ? kNames[data_type] : "a packed 4- or 6-bit type",
                "the emulator does not implement it; use FLOAT32 or UINT8");
  }
  if (interleave != 0) {
    return fail(missing, "interleave", "CU_TENSOR_MAP_INTERLEAVE_NONE", std::to_string(interleave),
                "the emulator does not implement it");
  }
  if (swizzle > 3) {
    return fail(missing, "swizzle", "NONE, 32B, 64B or 128B", std::to_string(swizzle),
                "the emulator does not implement the 128B_ATOM forms");
  }
  if (oob && !is_float(static_cast<TensorType>(data_type))) {
    return fail(invalid, "oobFill", "zero fill for an integer type", "NaN fill");
  }
  return {EncodeCode::ok, ""};
}

// The two's complement value of the low `bytes` bytes.
int64_t sign_extend(uint64_t x, uint32_t bytes) {
  int shift = 64 - static_cast<int>(bytes) * 8;
  return static_cast<int64_t>(x << shift) >> shift;
}

uint64_t load_element(const uint8_t* p, uint32_t bytes) {
  uint64_t x = 0;
  std::memcpy(&x, p, bytes);
  return x;
}

uint8_t* host(uint64_t address) { return reinterpret_cast<uint8_t*>(address); }

}  // namespace

uint32_t tensor_type_bytes(TensorType t) { return kBytes[static_cast<int>(t)]; }
const char* tensor_type_name(TensorType t) { return kNames[static_cast<int>(t)]; }

EncodeResult encode_tiled(void* map_out, int data_type, uint32_t rank, const void* address,
                          const uint64_t* dims, const uint64_t* strides, const uint32_t* box,
                          const uint32_t* element_strides, int interleave, int swizzle,
                          int l2_promotion, int oob_fill) {
  constexpr auto invalid = EncodeCode::invalid_value;
  if (!map_out || reinterpret_cast<uintptr_t>(map_out) % 64) {
    return fail(invalid, "tensorMap", "64-byte alignment",
                number(reinterpret_cast<uintptr_t>(map_out)), "declare it as CUtensorMap");
  }
  if (rank < 1 || rank > 5) return fail(invalid, "tensorRank", "1..5", number(rank));
  if (!dims || !box || !element_strides || (rank > 1 && !strides)) {
    return fail(invalid, "arguments", "arrays of tensorRank entries", "a null pointer");
  }
  if (EncodeResult r = check_support(data_type, interleave, swizzle, l2_promotion, oob_fill);
      r.code != EncodeCode::ok) {
    return r;
  }
  if (!address || reinterpret_cast<uintptr_t>(address) % 16) {
    return fail(invalid, "globalAddress", "a non-null multiple of 16",
                number(reinterpret_cast<uintptr_t>(address)));
  }
  TensorMap m{};
  m.magic = kTensorMapMagic;
  m.address = reinterpret_cast<uint64_t>(address);
  m.type = static_cast<TensorType>(data_type);
  m.rank = static_cast<uint8_t>(rank);
  m.swizzle = static_cast<Swizzle>(swizzle);
  m.l2_promotion = static_cast<uint8_t>(l2_promotion);
  m.nan_fill = oob_fill == 1;
  for (uint32_t d = 0; d < 5; ++d) m.dims[d] = m.box[d] = m.element_strides[d] = 1;
  for (uint32_t d = 0; d < rank; ++d) {
    if (dims[d] < 1 || dims[d] > uint64_t{1} << 32) {
      return fail(invalid, "globalDim", "1..2^32", of_dimension(dims[d], d));
    }
    if (box[d] < 1 || box[d] > 256) {
      return fail(invalid, "boxDim", "1..256", of_dimension(box[d], d), "copy in several boxes");
    }
    // Dimension 0 has no traversal stride without interleaving: the driver ignores the entry.
    uint32_t step = d ? element_strides[d] : 1;
    if (step < 1 || step > 8) {
      return fail(invalid, "elementStrides", "1..8", of_dimension(step, d));
    }
    m.dims[d] = dims[d];
    m.box[d] = static_cast<uint16_t>(box[d]);
    m.element_strides[d] = static_cast<uint8_t>(step);
  }
  for (uint32_t d = 1; d < rank; ++d) {
    if (strides[d - 1] % 16 || strides[d - 1] >= uint64_t{1} << 40) {
      return fail(invalid, "globalStrides", "a multiple of 16 bytes below 2^40",
                  of_dimension(strides[d - 1], d), "pad the rows");
    }
    m.strides[d - 1] = strides[d - 1];
  }
  uint32_t inner = box[0] * m.element_bytes();
  if (inner % 16) {
    return fail(invalid, "boxDim[0]", "a multiple of 16 bytes", number(inner) + " bytes");
  }
  uint32_t span = swizzle_span(m.swizzle);
  if (m.swizzle != Swizzle::none && inner > span) {
    return fail(invalid, "boxDim[0]", "at most the swizzle's " + number(span) + " bytes",
                number(inner) + " bytes", "split the box along dimension 0");
  }
  if (m.swizzle != Swizzle::none && inner < span) {
    return fail(EncodeCode::not_supported, "boxDim[0]", "the swizzle's " + number(span) + " bytes",
                number(inner) + " bytes",
                "the driver takes it, but no document gives the layout; use a narrower swizzle");
  }
  std::memcpy(map_out, &m, sizeof m);
  return {EncodeCode::ok, ""};
}

std::string read_tensor_map(const void* p, TensorMap* out) {
  std::memcpy(out, p, sizeof *out);
  if (out->magic != kTensorMapMagic) {
    return "tensor map: expected 128 bytes written by cuTensorMapEncodeTiled, got other contents; "
           "pass the map as a __grid_constant__ parameter or copy all of it";
  }
  bool sane = out->rank >= 1 && out->rank <= 5 && out->type <= TensorType::bf16 &&
              out->swizzle <= Swizzle::b128;
  for (int d = 0; sane && d < out->rank; ++d) {
    sane = out->box[d] >= 1 && out->box[d] <= 256 && out->element_strides[d] >= 1 &&
           out->element_strides[d] <= 8;
  }
  uint32_t inner = sane ? out->box[0] * out->element_bytes() : 0;
  sane = sane && inner % 16 == 0 &&
         (out->swizzle == Swizzle::none || inner == swizzle_span(out->swizzle));
  return sane ? "" : "tensor map: its contents were changed into no valid map";
}

std::string replace_field(void* p, MapField field, int ordinal, uint64_t value) {
  TensorMap m;
  std::memcpy(&m, p, sizeof m);
  const auto* bytes = static_cast<const uint8_t*>(p);
  if (std::all_of(bytes, bytes + sizeof m, [](uint8_t b) { return b == 0; }))
    m.magic = kTensorMapMagic;
  if (m.magic != kTensorMapMagic) {
    return "tensormap.replace: expected a tensor map at this address, got other contents; copy all "
           "128 bytes of an encoded map there first, or zeros and replace every field";
  }
  auto wrong = [&](const char* expected) {
    return std::string("tensormap.replace: expected ") + expected + ", got " + number(value) +
           " (ordinal " + std::to_string(ordinal) + ")";
  };
  bool per_dimension = field >= MapField::box_dim && field <= MapField::element_stride;
  if (per_dimension && (ordinal < 0 || ordinal > (field == MapField::global_stride ? 3 : 4))) {
    return wrong("an ordinal inside the rank");
  }
  switch (field) {
    case MapField::global_address:
      if (value % 16) return wrong("a 16-byte aligned global_address");
      m.address = value;
      break;
    case MapField::rank:
      if (value > 4) return wrong("a rank minus one of 0..4");
      m.rank = static_cast<uint8_t>(value + 1);
      break;
    case MapField::box_dim:
      if (value < 1 || value > 256) return wrong("a box_dim of 1..256");
      m.box[ordinal] = static_cast<uint16_t>(value);
      break;
    case MapField::global_dim:
      m.dims[ordinal] = value;
      break;
    case MapField::global_stride:
      if (value % 16 || value >= uint64_t{1} << 40) return wrong("a multiple of 16 below 2^40");
      m.strides[ordinal] = value;
      break;
    case MapField::element_stride:
      if (value < 1 || value > 8) return wrong("an element_stride of 1..8");
      m.element_strides[ordinal] = ordinal ? static_cast<uint8_t>(value) : 1;
      break;
    case MapField::elemtype:
      if (value == 9) m.type = TensorType::f64;
      else if (value == 10) m.type = TensorType::bf16;
      else if (value < 8) m.type = static_cast<TensorType>(value);
      else return wrong("an elemtype that is copied bit by bit");
      break;
    case MapField::interleave_layout:
      if (value) return wrong("interleave_layout 0 (the emulator has no other)");
      break;
    case MapField::swizzle_mode:
      if (value > 3) return wrong("a swizzle_mode of 0..3");
      m.swizzle = static_cast<Swizzle>(value);
      break;
    case MapField::fill_mode:
      if (value > 1) return wrong("a fill_mode of 0 or 1");
      m.nan_fill = value == 1;
      break;
  }
  std::memcpy(p, &m, sizeof m);
  return "";
}

uint32_t box_bytes(const TensorMap& m) {
  uint32_t bytes = m.element_bytes();
  for (int d = 0; d < m.rank; ++d) bytes *= m.box_elements(d);
  return bytes;
}

uint64_t oob_fill_bits(const TensorMap& m) {
  if (!m.nan_fill) return 0;
  return m.element_bytes() == 2 ? kNanF16 : m.element_bytes() == 4 ? kNanF32 : ~uint64_t{0} >> 1;
}

void load_box(const TensorMap& m, const int32_t* coords, uint8_t* smem, uint32_t shared) {
  uint64_t fill = oob_fill_bits(m);
  uint32_t size = m.element_bytes();
  for_each_run(m, coords, shared, [&](const BoxRun& run) {
    if (run.in_bounds) {
      std::memcpy(smem + run.shared, host(run.global), run.bytes);
    } else {
      for (uint32_t i = 0; i < run.bytes; i += size)
        std::memcpy(smem + run.shared + i, &fill, size);
    }
  });
}

void store_box(const TensorMap& m, const int32_t* coords, const uint8_t* smem, uint32_t shared) {
  for_each_run(m, coords, shared, [&](const BoxRun& run) {
    if (run.in_bounds) std::memcpy(host(run.global), smem + run.shared, run.bytes);
  });
}

bool reduce_exists(TensorType type, BoxReduce op) {
  bool wide_int = type >= TensorType::u32 && type <= TensorType::s64;
  bool half = type == TensorType::f16 || type == TensorType::bf16;
  switch (op) {
    case BoxReduce::add:
      return wide_int || half || type == TensorType::f32 || type == TensorType::f64;
    case BoxReduce::min:
    case BoxReduce::max:
      return wide_int || half;
    case BoxReduce::inc:
    case BoxReduce::dec:
      return type == TensorType::u32;
    default:
      return wide_int;
  }
}

uint64_t reduce_element(TensorType type, BoxReduce op, uint64_t a, uint64_t b) {
  uint32_t bytes = tensor_type_bytes(type);
  uint64_t mask = ~uint64_t{0} >> (64 - bytes * 8);
  if (is_float(type)) {
    if (type == TensorType::f64) {
      return std::bit_cast<uint64_t>(std::bit_cast<double>(a) + std::bit_cast<double>(b));
    }
    if (type == TensorType::f32) {
      F32Options o;
      o.ftz = true;
      return bits(
          f32_add(from_bits(static_cast<uint32_t>(a)), from_bits(static_cast<uint32_t>(b)), o));
    }
    HalfOp half = op == BoxReduce::add   ? HalfOp::add
                  : op == BoxReduce::min ? HalfOp::min
                                         : HalfOp::max;
    return half_op(type == TensorType::f16 ? Format::f16 : Format::bf16, half,
                   static_cast<uint16_t>(a), static_cast<uint16_t>(b));
  }
  bool is_signed = type == TensorType::s32 || type == TensorType::s64;
  bool less = is_signed ? sign_extend(a, bytes) < sign_extend(b, bytes) : a < b;
  switch (op) {
    case BoxReduce::add:
      return (a + b) & mask;
    case BoxReduce::min:
      return less ? a : b;
    case BoxReduce::max:
      return less ? b : a;
    case BoxReduce::inc:
      return a >= b ? 0 : a + 1;
    case BoxReduce::dec:
      return a == 0 || a > b ? b : a - 1;
    case BoxReduce::and_:
      return a & b;
    case BoxReduce::or_:
      return a | b;
    case BoxReduce::xor_:
      return a ^ b;
  }
  __builtin_unreachable();
}

std::string reduce_box(const TensorMap& m, const int32_t* coords, const uint8_t* smem,
                       uint32_t shared, BoxReduce op) {
  if (!reduce_exists(m.type, op)) {
    return std::string("cp.reduce.async.bulk.tensor: this operation does not exist for ") +
           tensor_type_name(m.type);
  }
  uint32_t size = m.element_bytes();
  for_each_run(m, coords, shared, [&](const BoxRun& run) {
    if (!run.in_bounds) return;
    for (uint32_t i = 0; i < run.bytes; i += size) {
      uint8_t* to = host(run.global) + i;
      uint64_t result = reduce_element(m.type, op, load_element(to, size),
                                       load_element(smem + run.shared + i, size));
      std::memcpy(to, &result, size);
    }
  });
  return "";
}

bool box_global_range(const TensorMap& m, const int32_t* coords, uint64_t* low, uint64_t* high) {
  uint64_t first = m.address, last = m.address;
  for (int d = 0; d < m.rank; ++d) {
    int64_t step = m.element_strides[d], extent = static_cast<int64_t>(m.dims[d]);
    int64_t from = coords[d], to = from + (int64_t{m.box_elements(d)} - 1) * step;
    // The first and last coordinates of the traversal that lie inside.
    if (from < 0) from += (-from + step - 1) / step * step;
    if (to >= extent) to -= (to - extent + step) / step * step;
    if (from > to) return false;
    uint64_t pitch = d ? m.strides[d - 1] : m.element_bytes();
    first += static_cast<uint64_t>(from) * pitch, last += static_cast<uint64_t>(to) * pitch;
  }
  *low = first, *high = last + m.element_bytes();
  return true;
}

}  // namespace l4k::emu
