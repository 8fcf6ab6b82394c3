#include <link.h>

#include <algorithm>
#include <cstring>

#include "ptx/ast.h"

namespace l4k::emu {
namespace {

struct Wrapper {  // what __cudaRegisterFatBinary is given
  uint32_t magic, version;
  const void* data;
  const void* extra;
};
struct Container {
  uint32_t magic;
  uint16_t version, header_bytes;
  uint64_t bytes;
};
struct Entry {
  uint16_t kind, version;  // kind 1: PTX, 2: machine code
  uint32_t header_bytes;
  uint64_t payload_bytes;
  uint32_t compressed_bytes, unknown;
  uint16_t minor, major;
  uint32_t arch;
  uint32_t name_offset, name_bytes;
  uint64_t flags;
  uint64_t zero;
  uint64_t full_bytes;  // 0 when not compressed
};
constexpr uint32_t kWrapperMagic = 0x466243b1, kContainerMagic = 0xba55ed50;
constexpr uint64_t kCompressedFlags = 0x2000 | 0x8000;  // LZ4, Zstandard
constexpr uint64_t kLimit = uint64_t{1} << 31;

// Bytes from `data` to the end of the segment, of the program or a library, that holds it, which is
// the longest that a container there can be. Elsewhere kLimit.
uint64_t bytes_to_segment_end(const void* data) {
  struct Search {
    uint64_t address, bytes;
  } search{reinterpret_cast<uint64_t>(data), kLimit};
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* found) {
        auto& s = *static_cast<Search*>(found);
        for (int i = 0; i < info->dlpi_phnum; ++i) {
          const auto& segment = info->dlpi_phdr[i];
          uint64_t offset = s.address - (info->dlpi_addr + segment.p_vaddr);
          if (segment.p_type == PT_LOAD && offset < segment.p_memsz)
            s.bytes = std::min(s.bytes, segment.p_memsz - offset);
        }
        return 0;
      },
      &search);
  return search.bytes;
}

}  // namespace

std::vector<FatBinaryImage> read_fat_binary(const void* data) {
  if (!data) throw PtxError(0, "fat binary: null pointer");
  uint32_t magic;
  std::memcpy(&magic, data, 4);
  if (magic == kWrapperMagic) {
    Wrapper w;
    std::memcpy(&w, data, sizeof w);
    if (!w.data) throw PtxError(0, "fat binary: the wrapper holds no data");
    data = w.data;
  }
  Container c;
  std::memcpy(&c, data, sizeof c);
  if (c.magic != kContainerMagic)
    throw PtxError(0, "fat binary: magic is " + std::to_string(c.magic) + ", expected 0xba55ed50");
  uint64_t room = bytes_to_segment_end(data);
  if (c.header_bytes < sizeof c || c.header_bytes > room || c.bytes > room - c.header_bytes)
    throw PtxError(0, "fat binary: impossible header size " + std::to_string(c.header_bytes) +
                          " or size " + std::to_string(c.bytes));
  const auto* p = static_cast<const uint8_t*>(data) + c.header_bytes;
  const uint8_t* end = p + c.bytes;
  std::vector<FatBinaryImage> images;
  while (end - p >= static_cast<ptrdiff_t>(sizeof(Entry))) {
    Entry e;
    std::memcpy(&e, p, sizeof e);
    room = static_cast<uint64_t>(end - p);
    if (e.header_bytes < 64 || e.header_bytes > room || e.payload_bytes > room - e.header_bytes)
      throw PtxError(0, "fat binary: an image of " + std::to_string(e.payload_bytes) +
                            " bytes does not fit its container");
    if (e.kind == 1) {
      if (e.flags & kCompressedFlags)
        throw PtxError(0, "fat binary: its PTX is compressed; compile with nvcc --no-compress");
      const char* text = reinterpret_cast<const char*>(p + e.header_bytes);
      images.push_back({std::string(text, strnlen(text, e.payload_bytes)), int(e.arch)});
    }
    p += e.header_bytes + e.payload_bytes;
  }
  return images;
}

}  // namespace l4k::emu
