// A launch whose CTAs cannot communicate, divided among shards that several host threads run. How it
// is divided depends on the settings and never on the number of threads, and shards see nothing of
// one another: results, reports and counters are the same for any number. Bytes that two of them
// touched are found afterwards.
#include <algorithm>
#include <atomic>
#include <cstring>

#include "machine/core/machine.h"

namespace l4k::emu {
namespace {

constexpr uint32_t kMaxShards = 16;  // each has tables of its own

}  // namespace

// One byte or more that two shards touched, in no order: what the later one did. `repeats` stores what
// the earlier had stored.
struct ShardConflict {
  enum class What : uint8_t { reads, writes, overwrites, repeats };
  uint64_t address = ~uint64_t{0};
  bool attributed = false;  // the sectors still name the two accesses
  What what = What::reads;
  Sector earlier, later;
  // Of several conflicts, a harmful one, one that can be attributed, and then the lowest address.
  bool better_than(const ShardConflict& other) const {
    if (!~other.address) return true;
    bool harms = what != What::repeats, other_harms = other.what != What::repeats;
    if (harms != other_harms) return harms;
    if (attributed != other.attributed) return attributed;
    return address < other.address;
  }
};

namespace {

// The bytes of a sector to which the later stores give another value.
uint32_t differing(uint64_t address, const StoreBuffer& earlier, const StoreBuffer& later) {
  uint8_t old[32], now[32];
  std::memcpy(old, reinterpret_cast<const void*>(address), 32);
  earlier.read(address, old, 32);
  std::memcpy(now, old, 32);
  later.read(address, now, 32);
  uint32_t differ = 0;
  for (uint32_t i = 0; i < 32; ++i) differ |= uint32_t{old[i] != now[i]} << i;
  return differ;
}

void find_conflict(uint64_t address, const Sector& earlier, const Sector& later,
                   const StoreBuffer& stored, const StoreBuffer& stores, ShardConflict* first) {
  using What = ShardConflict::What;
  auto consider = [&](What what, uint32_t bytes, uint32_t attributed) {
    if (!bytes) return;
    ShardConflict c{address, attributed != 0, what, earlier, later};
    c.address += static_cast<uint32_t>(std::countr_zero(attributed ? attributed : bytes));
    if (c.better_than(*first)) *first = c;
  };
  consider(What::reads, earlier.written & later.read,
           earlier.last_written & later.last_read & earlier.written & later.read);
  consider(What::writes, earlier.read & later.written,
           earlier.last_read & later.last_written & earlier.read & later.written);
  uint32_t both = earlier.written & later.written;
  if (!both || !earlier.plainly_written || !later.plainly_written) return;
  uint32_t differ = both & differing(address, stored, stores),
           attributed = earlier.last_written & later.last_written;
  if (differ) consider(What::overwrites, differ, differ & attributed);
  else consider(What::repeats, both, both & attributed);
}

// What both shards did to a sector, and the later's as the last access.
void combine(Sector& earlier, const Sector& later) {
  uint32_t written = earlier.written | later.written, read = earlier.read | later.read;
  uint32_t nc_read = earlier.nc_read | later.nc_read;
  Sector merged = earlier;
  if (later.launch) {
    merged.launch = later.launch, merged.owner = later.owner, merged.writer = later.writer;
    merged.last_written = later.last_written, merged.write_time = later.write_time;
    merged.writer_bytes = later.writer_bytes, merged.bulk_written = later.bulk_written;
    merged.write_at = later.write_at, merged.plainly_written = later.plainly_written;
  }
  if (later.reader_launch) {
    merged.reader_launch = later.reader_launch, merged.reader = later.reader;
    merged.last_read = later.last_read, merged.read_time = later.read_time;
    merged.reading = later.reading, merged.reading_bytes = later.reading_bytes;
    merged.read_at = later.read_at;
  }
  merged.written = written, merged.read = read, merged.nc_read = nc_read;
  merged.nc_reader = std::max(earlier.nc_reader, later.nc_reader);
  merged.counted_read = std::max(earlier.counted_read, later.counted_read);
  earlier = merged;
}

}  // namespace

// As many as there are groups of SMs that a cluster may need.
uint32_t Machine::shards_of(const Launch& l) const {
  uint32_t groups = settings.sms / std::min(l.ctas_per_cluster(), settings.sms);
  return static_cast<uint32_t>(std::min<uint64_t>({groups, l.clusters, kMaxShards}));
}

void Machine::begin_shard(const Machine& whole, const Launch& l, uint32_t index, uint32_t count,
                          uint64_t seed) {
  settings = whole.settings;
  settings.print = false;
  is_shard_ = true;
  settings.max_instructions -= std::min(settings.max_instructions, whole.instructions);
  random.seed(seed);
  instructions = 0;
  first_sm_ = index * settings.sms / count;
  sms_.assign((index + 1) * settings.sms / count - first_sm_, Sm{});
  auto part = std::make_unique<Launch>();
  static_cast<LaunchShape&>(*part) = l;
  part->first_cluster = index, part->cluster_stride = count;
  part->clusters = (l.clusters - index + count - 1) / count;
  part->released = l.released, part->proxied = l.proxied;
  part->tracks_flags = l.tracks_flags;
  launches_.push_back(std::move(part));
}

void Machine::run_shard(const std::function<bool()>& stopped) {
  FaultListener::current = this;
  while (!failed() && !launches_.front()->done() && !stopped() && step()) {
  }
}

void Machine::end_shard() {
  launches_.clear();
  bulk_.clear();
  sectors.clear();
  report = Report{};
  went_on.clear();
  kept_.clear();
  tally = {};
  tallies_.clear();
}

// The sum of what shards counted: a sector that several touched counts once.
void Machine::merge_shard(Launch& l, Machine& shard, ShardConflict* first) {
  Launch& part = *shard.launches_.front();
  instructions += shard.instructions;
  for (const auto& [program, counted] : shard.tallies_) {
    InstCounters* total = counters_of(*program);
    for (size_t i = 0; i < counted.size(); ++i) total[i] += counted[i];
  }
  take_reports(shard);
  l.triggers_early |= part.triggers_early;
  l.distinct_read += part.distinct_read;
  l.distinct_written += part.distinct_written;
  sectors.absorb(shard.sectors, [&](uint64_t address, Sector& mine, const Sector& theirs) {
    find_conflict(address, mine, theirs, l.held, part.held, first);
    if (mine.counted_read && theirs.counted_read) --l.distinct_read;
    if (mine.written && theirs.written) --l.distinct_written;
    combine(mine, theirs);
  });
  part.held.merge_into(&l.held);
}

void Machine::report_conflict(const Launch& l, const ShardConflict& c) {
  using What = ShardConflict::What;
  static constexpr struct {
    KindName kind;
    const char *did, *done, *why;
  } kTexts[] = {
      {"stale-global-read", "reads what ", " wrote",
       ", with no release there and acquire here between: the read may come before or after"},
      {"stale-global-read", "writes what ", " has read",
       ", with no release there and acquire here between: the read may come before or after"},
      {"global-race", "stores another value than ", " has stored there", ", in no order with it"},
      {"same-value-race", "stores what ", " has stored there", ", in no order with it"}};
  const auto& text = kTexts[static_cast<size_t>(c.what)];
  const Sector &e = c.earlier, &s = c.later;
  bool reads = c.what == What::reads, read_before = c.what == What::writes;
  uint32_t other = read_before ? e.reader : e.owner, me = reads ? s.reader : s.owner;
  const Inst *there = read_before ? e.read_at : e.write_at, *here = reads ? s.read_at : s.write_at;
  std::string who =
      c.attributed ? "CTA " + std::to_string(other - 1) + " (linear index)" : "another CTA";
  std::string message = text.did + who + text.done;
  if (c.attributed) message += " at " + location(*l.program, *there);
  Fault f{text.kind, message + text.why, -1, true, c.address};
  uint32_t warp = epoch_actor(reads ? s.reading : s.writer) % l.actors_per_cta();
  Where where(l, me - 1, warp, here);
  if (!keep(f, where, false)) record(f, where);
}

void Machine::run_shards(Launch& l, uint32_t count) {
  while (shards_.size() < count) shards_.push_back(std::make_unique<Machine>(memory));
  uint64_t seed = random();
  for (uint32_t i = 0; i < count; ++i) shards_[i]->begin_shard(*this, l, i, count, seed + i);
  // The first shard with a fault has the report, whichever was the quickest.
  std::atomic<uint32_t> faulty{count};
  workers_.run(settings.threads, count, [&](uint32_t i) {
    shards_[i]->run_shard([&] { return faulty.load(std::memory_order_relaxed) < i; });
    uint32_t lowest = faulty;
    while (shards_[i]->failed() && i < lowest && !faulty.compare_exchange_weak(lowest, i)) {
    }
  });
  ShardConflict conflict;
  FaultListener::current = this;
  for (uint32_t i = 0; i < count && i <= faulty; ++i) merge_shard(l, *shards_[i], &conflict);
  if (!failed() && ~conflict.address) report_conflict(l, conflict);
  if (!failed() && instructions > settings.max_instructions) report_limit();
  for (uint32_t i = 0; i < count; ++i) shards_[i]->end_shard();
  l.finished = l.clusters;
  if (failed()) abandon_failed();
  else finish_first_launch();
}

}  // namespace l4k::emu
