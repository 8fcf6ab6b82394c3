// Undefined data outside registers.
#pragma once

#include <cstdint>
#include <unordered_map>

namespace l4k::emu {

struct Inst;
struct Program;

// Where undefined data came from: what read it, and the shared memory that nobody had written.
struct Origin {
  static constexpr uint32_t kRegister = ~0u;  // not shared memory: a register, and what stored it
  const Program* program = nullptr;
  const Inst* read = nullptr;
  uint32_t address = 0;
  explicit operator bool() const { return read; }
};

// Bytes of a memory that hold undefined data because such data was stored there. Empty in most runs.
class UndefinedBytes {
 public:
  bool empty() const { return bytes_.empty(); }
  void set(uint64_t at, uint32_t bytes, const Origin& from) {
    for (uint32_t i = 0; i < bytes; ++i) bytes_[at + i] = from;
  }
  void clear(uint64_t at, uint32_t bytes) {
    if (!bytes_.empty())
      for (uint32_t i = 0; i < bytes; ++i) bytes_.erase(at + i);
  }
  void copy(uint64_t at, const UndefinedBytes& source, uint64_t from, uint64_t bytes) {
    if (bytes_.empty() && source.bytes_.empty()) return;
    for (uint64_t i = 0; i < bytes; ++i) {
      bytes_.erase(at + i);
      if (auto it = source.bytes_.find(from + i); it != source.bytes_.end())
        bytes_[at + i] = it->second;
    }
  }
  // Where the first of these bytes came from.
  Origin origin(uint64_t at, uint32_t bytes) const {
    if (!bytes_.empty())
      for (uint32_t i = 0; i < bytes; ++i)
        if (auto it = bytes_.find(at + i); it != bytes_.end()) return it->second;
    return {};
  }
  // Which of up to 32 bytes they are, a bit each; where the first of them came from.
  uint32_t find(uint64_t at, uint32_t bytes, Origin* from) const {
    uint32_t mask = 0;
    if (bytes_.empty()) return mask;
    for (uint32_t i = 0; i < bytes; ++i) mask |= uint32_t{bytes_.contains(at + i)} << i;
    if (mask) *from = origin(at, bytes);
    return mask;
  }

 private:
  std::unordered_map<uint64_t, Origin> bytes_;
};

}  // namespace l4k::emu
