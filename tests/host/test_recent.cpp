// Answers that are kept: right whatever collides or is forgotten, asked again only when they must be.
#include <thread>
#include <vector>

#include "expect.h"
#include "host/recent.h"

namespace {

struct Key {
  int hashed, beside;  // the second is no part of the hash

  uint64_t hash() const { return l4k::hash_of({static_cast<uint64_t>(hashed)}); }
  bool operator==(const Key&) const = default;
};

template <size_t kSets, size_t kWays>
struct Asker {
  l4k::Recent<Key, int, kSets, kWays> kept{};
  int asked = 0;

  int of(int hashed, int beside) {
    const int* answer = kept.of({hashed, beside}, [&](int& value) {
      ++asked;
      value = 1000 * hashed + beside;
      return true;
    });
    return *answer;
  }
};

void a_question_is_asked_once() {
  const uint64_t before = l4k::new_questions();
  Asker<16, 4> asker;
  for (int turn = 0; turn < 3; ++turn) EXPECT(asker.of(7, 3) == 7003, turn);
  EXPECT(asker.asked == 1 && l4k::new_questions() == before + 1, asker.asked);
}

// Keys of one hash share a set and a tag: only the whole key tells them apart.
void equal_hashes_are_told_apart() {
  Asker<16, 4> asker;
  for (int turn = 0; turn < 3; ++turn)
    for (int beside = 0; beside < 4; ++beside)
      EXPECT(asker.of(5, beside) == 5000 + beside, beside);
  EXPECT(asker.asked == 4, asker.asked << " questions for as many keys as a set holds");
}

void the_oldest_makes_room() {
  Asker<1, 4> asker;
  for (int key = 0; key < 5; ++key) asker.of(key, 0);  // the fifth takes the first one's place
  asker.asked = 0;
  for (int key = 1; key < 5; ++key) EXPECT(asker.of(key, 0) == 1000 * key, key);
  EXPECT(asker.asked == 0, asker.asked);
  EXPECT(asker.of(0, 0) == 0 && asker.asked == 1, asker.asked);
}

void answers_are_right_however_many_there_are() {
  Asker<8, 2> asker;
  for (int turn = 0; turn < 20'000; ++turn) {
    const int hashed = turn * 7919 % 97, beside = turn % 3;
    EXPECT(asker.of(hashed, beside) == 1000 * hashed + beside, turn);
  }
}

// As many keys as a step of a model has: next to none is asked again.
void sets_fill_evenly() {
  Asker<256, 4> asker;
  for (int turn = 0; turn < 2; ++turn)
    for (int key = 0; key < 400; ++key) asker.of(key * 64, 0);
  EXPECT(asker.asked < 400 + 40, asker.asked);
}

void a_refusal_is_not_kept() {
  l4k::Recent<Key, int, 4> kept{};
  int asked = 0;
  const auto refuse = [&](int&) { return ++asked, false; };
  EXPECT(kept.of({1, 1}, refuse) == nullptr && kept.of({1, 1}, refuse) == nullptr, asked);
  EXPECT(asked == 2, asked);
  const int* answer = kept.of({1, 1}, [](int& value) { return value = 3, true; });
  EXPECT(answer != nullptr && *answer == 3, "after a refusal");
}

// 0 is a key like any other, and nothing is there before it was asked.
void nothing_is_kept_at_first() {
  Asker<4, 4> asker;
  EXPECT(asker.of(0, 0) == 0 && asker.asked == 1, asker.asked);
}

void every_thread_has_its_own() {
  const uint64_t before = l4k::new_questions();
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i)
    threads.emplace_back([] {
      static thread_local Asker<16, 4> asker;
      for (int turn = 0; turn < 10'000; ++turn)
        EXPECT(asker.of(turn % 16, 1) == turn % 16 * 1000 + 1, turn);
    });
  for (std::thread& t : threads) t.join();
  EXPECT(l4k::new_questions() - before == 4 * 16, l4k::new_questions() - before);
}

}  // namespace

int main() {
  a_question_is_asked_once();
  equal_hashes_are_told_apart();
  the_oldest_makes_room();
  answers_are_right_however_many_there_are();
  sets_fill_evenly();
  a_refusal_is_not_kept();
  nothing_is_kept_at_first();
  every_thread_has_its_own();
}
