// Launches that are divided among host threads: the outcome is the same for any number of them, what
// crosses the division is reported, and what must not be divided is not.
#include <sys/resource.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "machine/core/machine.h"
#include "machine/image.h"

using namespace l4k::emu;

namespace {

int failures = 0;

void expect(bool ok, const std::string& what) {
  if (ok) return;
  ++failures;
  std::printf("FAILED: %s\n", what.c_str());
}

// %i: the CTA's linear index, %n: their number, %t: the thread, %d: data + 4 * (32 * %i + %t),
// %b: data. Bodies leave what they store in %v.
std::string kernel(const std::string& body) {
  return R"(.version 9.0
.target sm_90a
.address_size 64
.visible .entry k(.param .u64 data) {
.reg .b32 %i, %n, %t, %v, %x<4>; .reg .b64 %b, %d, %w<4>; .reg .pred %p<4>;
ld.param.u64 %b, [data];
mov.u32 %i, %ctaid.x; mov.u32 %n, %nctaid.x; mov.u32 %t, %tid.x;
mad.lo.u32 %x0, %i, 32, %t; mul.wide.u32 %w0, %x0, 4; add.u64 %d, %b, %w0;
)" + body +
         "\nret;\n}\n";
}

struct Setup {
  Mode mode = Mode::late;
  uint32_t threads = 1, sms = 4;
  uint64_t seed = 1, limit = uint64_t{1} << 40;
  uint32_t cluster = 1;
  bool goes_on = false;
};

struct Outcome {
  std::string report, kind;
  std::vector<uint32_t> data;
  InstCounters total;
  uint64_t distinct_read = 0, distinct_written = 0;
  uint32_t cta = 0;
  // What is in memory after a report is not part of it.
  bool operator==(const Outcome& o) const {
    return report == o.report && (!kind.empty() || data == o.data) &&
           distinct_read == o.distinct_read && distinct_written == o.distinct_written &&
           !std::memcmp(&total, &o.total, sizeof total);
  }
};

// Runs the kernel on `ctas` CTAs of a warp, whose data are 32 words each.
Outcome run(const std::string& body, uint32_t ctas, const Setup& setup) {
  Machine& m = Machine::get();
  m.reset();
  Settings s;
  s.mode = setup.mode, s.threads = setup.threads, s.sms = setup.sms, s.seed = setup.seed;
  s.max_instructions = setup.limit;
  s.reports.never_stops = setup.goes_on;
  m.instructions = 0;
  m.configure(s);
  alignas(32) static uint32_t data[64 * 32];  // at one place, which reports name
  std::fill(std::begin(data), std::end(data), 7);
  m.memory.add_range(data, ctas * 128);
  auto image = load_image(kernel(body));
  auto l = std::make_unique<Launch>();
  l->program = image->find("k");
  l->grid[0] = ctas, l->block[0] = 32, l->cluster[0] = setup.cluster;
  l->params.resize(256);
  l->param_base = reinterpret_cast<uint64_t>(l->params.data());
  auto address = reinterpret_cast<uint64_t>(data);
  std::memcpy(l->params.data(), &address, 8);
  const void* params = l->params.data();
  m.launch(std::move(l));
  m.synchronize();
  expect(!m.memory.begins(params), "a launch's parameters are known after its end");
  Outcome o{m.report.text(), m.failed() ? m.report.kind->name : "", {data, data + ctas * 32}};
  KernelCounters c = m.counters().at(0);
  o.total = c.total, o.distinct_read = c.distinct_read_bytes;
  o.distinct_written = c.distinct_written_bytes, o.cta = m.report.cta[0];
  m.memory.remove_range(data, ctas * 128);
  m.reset_counters();
  return o;
}

template <typename F>
void each_setup(F&& f) {
  for (Mode mode : {Mode::late, Mode::early, Mode::random})
    for (uint64_t seed : {1, 2, 3})
      for (uint32_t sms : {1, 2, 4, 132}) f(Setup{mode, 1, sms, seed});
}

// The same for every number of threads; returns it.
Outcome same(const std::string& what, const std::string& body, uint32_t ctas, Setup setup) {
  Outcome one = run(body, ctas, setup);
  for (uint32_t threads : {2, 4}) {
    setup.threads = threads;
    expect(run(body, ctas, setup) == one, what + ": differs with " + std::to_string(threads) +
                                              " threads, " + std::to_string(setup.sms) + " SMs");
  }
  return one;
}

// A loop as long as the CTA's index says, shared memory and a barrier.
const char* const kIndependent = R"(.shared .b32 s[32];
mul.wide.u32 %w1, %t, 4; mov.u32 %x1, s; cvt.u32.u64 %x2, %w1; add.u32 %x1, %x1, %x2;
mov.u32 %v, %t; mov.u32 %x3, 0;
L: add.u32 %v, %v, %i; add.u32 %x3, %x3, 1; setp.le.u32 %p0, %x3, %i; @%p0 bra L;
st.shared.u32 [%x1], %v; bar.sync 0; ld.shared.u32 %v, [%x1];
st.global.u32 [%d], %v;)";

void independent() {
  each_setup([](const Setup& setup) {
    Outcome o =
        same("independent", std::string(kIndependent) + "st.global.u32 [%d], %v;", 1, setup);
    o = same(
        "in place",
        "ld.global.u32 %v, [%d]; add.u32 %v, %v, %i; add.u32 %v, %v, %t; st.global.u32 [%d], %v;",
        37, setup);
    bool right = o.kind.empty();
    for (uint32_t i = 0; i < o.data.size(); ++i) right &= o.data[i] == 7 + i / 32 + i % 32;
    expect(right, "in place: wrong result, " + o.report);
    expect(o.distinct_read == 37 * 128 && o.distinct_written == 37 * 128, "distinct sectors");
    expect(o.total.issued % 37 == 0 && o.total.global_bytes == 2 * 37 * 128, "counters");
  });
}

// What every CTA reads counts once.
void distinct() {
  each_setup([](const Setup& setup) {
    Outcome o = same("one sector", "ld.global.nc.u32 %v, [%b];", 19, setup);
    expect(o.kind.empty() && o.distinct_read == 32, "a sector that all shards read counts once");
  });
}

void races() {
  const std::pair<const char*, const char*> kRaces[] = {
      {"its neighbour's", R"(add.u32 %x1, %i, 1; rem.u32 %x1, %x1, %n; mul.wide.u32 %w1, %x1, 128;
       add.u64 %w1, %w1, %b; ld.global.u32 %v, [%w1]; st.global.u32 [%d], %v;)"},
      {"its neighbour's, later", R"(st.global.u32 [%d], %t;
       add.u32 %x1, %i, 1; rem.u32 %x1, %x1, %n; mul.wide.u32 %w1, %x1, 128;
       add.u64 %w1, %w1, %b; ld.global.u32 %v, [%w1];)"},
      {"the first's",
       R"(ld.global.u32 %v, [%b]; setp.eq.u32 %p0, %i, 0; @%p0 st.global.u32 [%d], %v;)"},
      {"the last's", R"(add.u32 %x1, %n, -1; setp.eq.u32 %p0, %i, %x1; @%p0 st.global.u32 [%b], %i;
       @!%p0 ld.global.u32 %v, [%b];)"},
      {"bytes of one sector",
       R"(mul.wide.u32 %w1, %i, 1; add.u64 %w1, %w1, %b; setp.eq.u32 %p0, %t, 0;
       @%p0 st.global.u8 [%w1], %t; @%p0 ld.global.u8 %v, [%w1+1];)"}};
  for (const auto& [what, body] : kRaces)
    each_setup([&](Setup setup) {
      // Undivided, only the last reader of a sector is known.
      if (setup.sms == 1 && !std::strncmp(what, "bytes", 5)) return;
      Outcome o = same(what, body, 23, setup);
      expect(o.kind == "stale-global-read", std::string("reads ") + what + ": '" + o.report + "'");
    });
}

// All CTAs store to one row. What memory holds is the same for any number of threads, even where the
// run goes on after other values.
void overwrites() {
  const std::string other =
      "mul.wide.u32 %w1, %t, 4; add.u64 %w1, %w1, %b; st.global.u32 [%w1], %i;";
  each_setup([&](Setup setup) {
    Outcome o = same("other values", other, 23, setup);
    expect(o.kind == "global-race", "stores other values: '" + o.report + "'");
    o = same("the same values", "mov.u32 %v, 5; st.global.u32 [%b], %v;", 23, setup);
    expect(o.kind.empty() && o.data[0] == 5, "stores the same: '" + o.report + "'");
    setup.goes_on = true;
    o = same("other values, going on", other, 23, setup);
    expect(o.kind.empty(), "goes on: '" + o.report + "'");
  });
}

// Neighbours share sectors and no bytes.
void no_race() {
  each_setup([](const Setup& setup) {
    Outcome o =
        same("bytes", R"(mul.wide.u32 %w1, %i, 1; add.u64 %w1, %w1, %b; setp.eq.u32 %p0, %t, 0;
      @%p0 ld.global.u8 %v, [%w1]; @%p0 st.global.u8 [%w1], %i;)",
             64, setup);
    expect(o.kind.empty() && o.distinct_written == 64, "bytes of one sector: " + o.report);
  });
}

// A cluster stays together: its barrier orders what its CTAs write and read.
void clusters() {
  each_setup([](Setup setup) {
    setup.cluster = 2;
    Outcome o =
        same("cluster", R"(st.global.u32 [%d], %i; barrier.cluster.arrive; barrier.cluster.wait;
      xor.b32 %x1, %i, 1; mul.wide.u32 %w1, %x1, 128; add.u64 %w1, %w1, %b; ld.global.u32 %v, [%w1];)",
             26, setup);
    expect(o.kind.empty(), "a cluster's barrier: " + o.report);
  });
}

// CTAs that wait for one another by what is not a race: undivided, whichever way they do it.
void dependent() {
  const std::pair<const char*, const char*> kWays[] = {
      {"atom",
       "@%p0 atom.add.release.gpu.global.u32 %v, [%b], 1;\nL: ld.relaxed.gpu.global.u32 %v, [%b];"},
      {"generic red",
       "@%p0 red.add.release.gpu.u32 [%b], 1;\nL: ld.acquire.gpu.global.u32 %v, [%b];"},
      {"volatile", "@%p0 red.add.global.u32 [%b], 1;\nL: ld.volatile.u32 %v, [%b];"}};
  for (const auto& [what, way] : kWays)
    for (uint32_t threads : {1, 2})
      for (Mode mode : {Mode::late, Mode::early, Mode::random}) {
        std::string body = std::string("setp.eq.u32 %p0, %t, 0; add.u32 %x1, %n, 7;\n") + way +
                           "\nsetp.ne.u32 %p1, %v, %x1; @%p1 bra L;";
        Outcome o = run(body, 8, Setup{mode, threads});
        expect(o.kind.empty() && o.data[0] == 15, std::string(what) + ": " + o.report);
      }
}

void faults() {
  each_setup([](const Setup& setup) {
    const char* past =
        "add.u32 %x1, %n, -1; setp.eq.u32 %p0, %i, %x1; @%p0 ld.global.u32 %v, [%d+128];";
    Outcome o = same("past the end", past, 29, setup);
    expect(o.kind == "global-out-of-bounds" && o.cta == 28, "past the end: " + o.report);
    o = same("past in all", "ld.global.u32 %v, [%d+65536];", 29, setup);
    expect(o.kind == "global-out-of-bounds", "past the end in all: " + o.report);
    Setup limited = setup;
    limited.limit = 200;
    o = same("limit", "mov.u32 %v, 1;", 29, limited);
    expect(o.kind == "instruction-limit", "limit: " + o.report);
  });
}

// Every task runs once, and two at the same time where there are two threads.
void workers() {
  Workers pool;
  for (uint32_t threads : {1, 2, 3}) {
    std::vector<std::atomic<uint32_t>> runs(100);
    pool.run(threads, 100, [&](uint32_t i) { ++runs[i]; });
    for (const auto& n : runs) expect(n == 1, "a task runs once");
  }
  std::atomic<uint32_t> here{0};
  auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  pool.run(2, 2, [&](uint32_t) {
    ++here;
    while (here < 2 && std::chrono::steady_clock::now() < end) std::this_thread::yield();
  });
  expect(here == 2 && std::chrono::steady_clock::now() < end, "two tasks at the same time");
}

double user_seconds() {
  rusage u;
  getrusage(RUSAGE_SELF, &u);
  return static_cast<double>(u.ru_utime.tv_sec) + 1e-6 * static_cast<double>(u.ru_utime.tv_usec);
}
template <typename F>
std::pair<double, double> seconds(F&& f) {  // elapsed, and of processors
  double user = user_seconds();
  auto start = std::chrono::steady_clock::now();
  f();
  std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  return {elapsed.count(), user_seconds() - user};
}

// Whether this host has a second processor to spare just now.
bool second_processor() {
  auto spin = [] {
    std::atomic<uint32_t> n{0};
    while (n.fetch_add(1, std::memory_order_relaxed) < 10000000) {
    }
  };
  double one = seconds(spin).first;
  double two = seconds([&] {
                 std::thread other(spin);
                 spin();
                 other.join();
               }).first;
  return two < 1.1 * one;
}

void speed() {
  const std::string body = R"(mov.u32 %v, %t; mov.u32 %x3, 0;
L: mad.lo.u32 %v, %v, %v, %i; xor.b32 %v, %v, %x3; add.u32 %x3, %x3, 1; setp.lt.u32 %p0, %x3, 4000;
@%p0 bra L; st.global.u32 [%d], %v;)";
  for (int attempt = 0; attempt < 5; ++attempt) {
    bool free = second_processor();
    auto one = seconds([&] { run(body, 64, {Mode::late, 1}); });
    auto two = seconds([&] { run(body, 64, {Mode::late, 2}); });
    free = free && second_processor();
    std::printf(
        "one thread %.3f s, two threads %.3f s: %.2f times as fast, %.2f times the work%s\n",
        one.first, two.first, one.first / two.first, two.second / one.second,
        free ? "" : " (the second processor is busy: not judged)");
    if (!free) continue;
    expect(one.first / two.first >= 1.5, "two threads are not 1.5 times as fast as one");
    return;
  }
}

}  // namespace

int main() {
  independent();
  distinct();
  races();
  overwrites();
  no_race();
  clusters();
  dependent();
  faults();
  workers();
  speed();
  if (!failures) std::printf("PASS\n");
  return failures != 0;
}
