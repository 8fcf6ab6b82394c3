#include "check/shadow.h"

#include "check/report.h"

namespace l4k::emu {

void Actor::tick() {
  if (++seen[id] >= kMaxClock) fault("not-implemented", "more than 4 million barriers in one warp");
}

uint32_t Shadow::new_set() {
  if (free_sets_.empty()) {
    read_sets_.resize(read_sets_.size() + actors_, 0);
    return static_cast<uint32_t>(read_sets_.size() / actors_ - 1);
  }
  uint32_t index = free_sets_.back();
  free_sets_.pop_back();
  std::fill_n(set(index), actors_, 0);
  return index;
}

uint32_t Shadow::copy_set(uint32_t reader) {
  uint32_t copy = new_set();
  std::copy_n(set(reader - kReadSet), actors_, set(copy));
  return kReadSet | copy;
}

void Shadow::add_to_set(Cell& c, uint32_t reader) {
  if (c.reader < kReadSet) {
    uint32_t index = new_set();
    set(index)[epoch_actor(c.reader)] = epoch_clock(c.reader);
    c.reader = kReadSet | index;
  }
  set(c.reader - kReadSet)[epoch_actor(reader)] = epoch_clock(reader);
}

uint32_t Shadow::unordered_read(const Cell& c, const Clock& seen) const {
  if (c.reader < kReadSet) return c.reader && !ordered(c.reader, seen) ? c.reader : 0;
  const uint32_t* read = read_sets_.data() + size_t{c.reader - kReadSet} * actors_;
  uint32_t any = 0;
  for (uint32_t a = 0; a < actors_; ++a) any |= read[a] > seen[a];
  if (!any) return 0;
  uint32_t a = 0;
  while (read[a] <= seen[a]) ++a;
  return make_epoch(a, read[a]);
}

void Shadow::split(Cell& c, uint32_t step) {
  if (c.step == 4) {
    uint32_t index = static_cast<uint32_t>(parts_.size());
    if (free_parts_.empty()) {
      parts_.emplace_back();
    } else {
      index = free_parts_.back();
      free_parts_.pop_back();
    }
    parts_[index][0] = c;
    c.writer = index;
  }
  Parts& parts = parts_[c.writer];
  for (uint32_t i = step; i < 4; i += step)
    if (i % c.step) copy(parts[i / c.step * c.step], &parts[i]);
  c.step = static_cast<uint8_t>(step);
}

void Shadow::unite(Cell& c) {
  Parts& parts = parts_[c.writer];
  Cell whole = parts[0];
  if (whole.reader >= kReadSet) return;
  // Whoever read the word after them ordered these writes: lanes do not matter to him any more.
  bool past = whole.reader && whole.writer != whole.reader && whole.kind < Writer::atomic;
  for (size_t i = c.step; i < 4; i += c.step) {
    const Cell& p = parts[i];
    if (p.writer != whole.writer || p.reader != whole.reader || p.kind != whole.kind ||
        p.defined != whole.defined || p.reader_lane != whole.reader_lane ||
        p.volatile_reader != whole.volatile_reader || p.volatile_lane != whole.volatile_lane)
      return;
    if (p.writer_lane == whole.writer_lane) continue;
    if (!past) return;
    whole.writer_lane = kLanes;
  }
  free_parts_.push_back(c.writer);
  c = whole;
}

}  // namespace l4k::emu
