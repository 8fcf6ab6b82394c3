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
  // Which of the bytes they are, a bit each; where the first of them came from.
  uint32_t find(uint64_t at, uint32_t bytes, Origin* from) const {
    uint32_t mask = 0;
    if (!bytes_.empty())
      for (uint32_t i = bytes; i-- > 0;)
        if (auto it = bytes_.find(at + i); it != bytes_.end()) {
          mask |= 1u << i;
          *from = it->second;
        }
    return mask;
  }

 private:
  std::unordered_map<uint64_t, Origin> bytes_;
};

}  // namespace l4k::emu
