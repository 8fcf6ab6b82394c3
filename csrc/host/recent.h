// Answers that depend on nothing but their question, kept for the next call that asks the same.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <initializer_list>

namespace l4k {

// How often a question was new, of all kinds and threads: between two calls of a warm program it
// stands still.
inline std::atomic<uint64_t>& new_questions() {
  static std::atomic<uint64_t> count{0};
  return count;
}

constexpr uint64_t hash_of(std::initializer_list<uint64_t> words) {
  uint64_t hash = 0;
  for (uint64_t word : words) {
    hash = (hash ^ word) * 0x9e3779b97f4a7c15;
    hash ^= hash >> 32;
  }
  return hash;
}

// The last answers of a thread, each thread with its own: nothing is shared, locked or allocated. A key
// holds all that its answer depends on, compares whole, and has a hash() of what usually differs. What
// has no room is asked again, so a key that is forgotten costs time and nothing else.
template <typename Key, typename Value, size_t kSets, size_t kWays = 4>
class Recent {
  static_assert((kSets & (kSets - 1)) == 0);

 public:
  // `ask(value)` fills in the answer to a new question, or returns false: then it is not kept, and
  // there is none (null). Valid until the next call.
  template <typename Ask>
  const Value* of(const Key& key, const Ask& ask) {
    const uint64_t tag = key.hash() | 1;  // 0: nothing there
    Set& set = sets_[tag >> 8 & (kSets - 1)];
    for (size_t way = 0; way < kWays; ++way)
      if (set.tags[way] == tag && set.keys[way] == key) return &set.values[way];
    new_questions().fetch_add(1, std::memory_order_relaxed);
    Value value{};
    if (!ask(value)) return nullptr;
    const size_t way = set.oldest;
    set.oldest = (way + 1) % kWays;
    set.tags[way] = tag;
    set.keys[way] = key;
    set.values[way] = value;
    return &set.values[way];
  }

 private:
  struct Set {
    uint64_t tags[kWays];
    size_t oldest;
    Key keys[kWays];
    Value values[kWays];
  };
  Set sets_[kSets];
};

}  // namespace l4k
