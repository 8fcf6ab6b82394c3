// Single instructions and whole modules given as PTX text: results against values from the PTX
// manual's definitions, and malformed text against an error with a line.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "machine/core/machine.h"
#include "machine/image.h"
#include "ptx/ast.h"
#include "ptx_run.h"

using namespace l4k::emu;

namespace {

// Under stop=never: the kinds reported after which the run goes on, then the one that ends it, and
// the results by lane.
void goes_on(const std::string& body, const std::string& kinds,
             const std::function<uint32_t(uint32_t)>& want) {
  std::vector<uint32_t> out(32);
  run(body, {7, 8, 9}, &out);
  std::string got;
  for (const Report* r : Machine::get().reports())
    got += (got.empty() ? "" : " ") + std::string(r->kind->name);
  expect(got == kinds, body + ": reported '" + got + "', want '" + kinds + "'");
  for (uint32_t lane = 0; lane < 32; ++lane) {
    if (out[lane] == want(lane)) continue;
    return expect(false, body + ": lane " + std::to_string(lane) + " has " + hex(out[lane]));
  }
}

void malformed(const std::string& text) {
  try {
    load_image(text);
    expect(false, "accepted: " + text.substr(0, 60));
  } catch (const PtxError&) {
  }
}

void arithmetic() {
  value("add.s32 %d, %a, %b;", {7, 0xfffffffe, 0}, 5);
  value("sub.u32 %d, %a, 9;", {7, 0, 0}, 0xfffffffe);
  value("mul.lo.s32 %d, %a, %b;", {0xfffffffd, 5, 0}, 0xfffffff1);
  value("mul.hi.u32 %d, %a, %b;", {0x80000000, 6, 0}, 3);
  value("mul.hi.s32 %d, %a, %b;", {0xffffffff, 6, 0}, 0xffffffff);
  value("mad.lo.u32 %d, %a, %b, %c;", {3, 4, 5}, 17);
  value("div.s32 %d, %a, %b;", {0xfffffff9, 2, 0}, 0xfffffffd);
  value("rem.s32 %d, %a, %b;", {0xfffffff9, 2, 0}, 0xffffffff);
  value("min.s32 %d, %a, %b;", {0xffffffff, 2, 0}, 0xffffffff);
  value("max.u32 %d, %a, %b;", {0xffffffff, 2, 0}, 0xffffffff);
  value("shl.b32 %d, %a, %b;", {1, 32, 0}, 0);
  value("shr.s32 %d, %a, %b;", {0x80000000, 40, 0}, 0xffffffff);
  value("lop3.b32 %d, %a, %b, %c, 0x96;", {0xff00ff00, 0xf0f0f0f0, 0xcccccccc},
        0xff00ff00 ^ 0xf0f0f0f0 ^ 0xcccccccc);
  value("lop3.b32 %d, %a, %b, %c, 0xea;", {0x0f, 0x3c, 0x80}, (0x0f & 0x3c) | 0x80);
  value("prmt.b32 %d, %a, %b, 0x5410;", {0x33221100, 0x77665544, 0}, 0x55441100);
  value("prmt.b32 %d, %a, %b, 0x9;", {0x00008000, 0, 0}, 0x000000ff);
  value("shf.l.wrap.b32 %d, %a, %b, %c;", {0x80000000, 1, 33}, 3);
  value("shf.r.clamp.b32 %d, %a, %b, %c;", {0x80000000, 7, 40}, 7);
  value("bfe.u32 %d, %a, 4, 8;", {0x12345678, 0, 0}, 0x67);
  value("bfe.s32 %d, %a, 4, 8;", {0x12345f78, 0, 0}, 0xfffffff7);
  value("bfi.b32 %d, %a, %b, 8, 4;", {0xa, 0xffffffff, 0}, 0xfffffaff);
  value("brev.b32 %d, %a;", {1, 0, 0}, 0x80000000);
  value("popc.b32 %d, %a;", {0xf0f1, 0, 0}, 9);
  value("clz.b32 %d, %a;", {0x00010000, 0, 0}, 15);
  value("bfind.u32 %d, %a;", {0x00010000, 0, 0}, 16);
  value("dp4a.s32.s32 %d, %a, %b, %c;", {0xff010203, 0x01010101, 10}, 15);
  value("add.cc.u32 %t1, %a, %b; addc.u32 %d, %c, 0;", {0xffffffff, 1, 5}, 6);
  value("setp.lt.s32 %p1, %a, %b; selp.b32 %d, 1, 2, %p1;", {0xffffffff, 0, 0}, 1);
  value("setp.lt.u32 %p1|%p2, %a, %b; selp.b32 %d, 1, 2, %p2;", {0xffffffff, 0, 0}, 1);
  value("cvt.s64.s32 %w1, %a; shr.u64 %w1, %w1, 32; cvt.u32.u64 %d, %w1;", {0x80000000, 0, 0},
        0xffffffff);
  value("cvt.u32.u8 %d, %a;", {0x1234, 0, 0}, 0x34);
  value("cvt.s32.s8 %d, %a;", {0x1284, 0, 0}, 0xffffff84);
}

// Addresses in the parameter space fit 32 bits; cvta makes them generic and back.
void parameter_addresses() {
  const std::string same = "setp.eq.u64 %p1, %w1, %i; selp.u32 %d, 1, 0, %p1;";
  const std::string generic = "cvta.param.u64 %w2, %w1; ld.b64 %w1, [%w2];";
  const std::string entry = "ld.param.u64 %i, [in];";
  value(entry + "mov.b32 %t1, in; cvt.u64.u32 %w1, %t1;" + generic + same, {0}, 1);
  value(entry + "mov.b64 %w1, in;" + generic + same, {0}, 1);
  value(entry + "mov.b32 %t1, in; ld.param.b64 %w1, [%t1];" + same, {0}, 1);
  value(entry + "mov.b32 %t1, out; ld.param.b64 %w1, [%t1+-8];" + same, {0}, 1);
  value(entry + "mov.b64 %w1, in; ld.param.b64 %w1, [%w1];" + same, {0}, 1);
  value("mov.b64 %i, out; cvta.param.u64 %w1, %i; cvta.to.param.u64 %w1, %w1;" + same, {0}, 1);
  value("mov.b64 %w1, out; mov.b64 %w2, in; sub.u64 %w1, %w1, %w2; mov.b64 %i, 8;" + same, {0}, 1);
}

void floating() {
  value("add.f32 %d, %a, %b;", {0x3f800000, 0x40000000, 0}, 0x40400000);
  value("fma.rn.f32 %d, %a, %b, %c;", {0x40000000, 0x40400000, 0x3f800000}, 0x40e00000);
  value("add.rz.f32 %d, %a, %b;", {0x3f800000, 0x33800001, 0}, 0x3f800000);
  value("max.f32 %d, %a, %b;", {0x7fc00000, 0xbf800000, 0}, 0xbf800000);
  value("max.NaN.f32 %d, %a, %b;", {0x7fc00000, 0xbf800000, 0}, 0x7fffffff);
  value("setp.ltu.f32 %p1, %a, %b; selp.b32 %d, 1, 0, %p1;", {0x7fc00000, 0x3f800000, 0}, 1);
  value("setp.lt.f32 %p1, %a, %b; selp.b32 %d, 1, 0, %p1;", {0x7fc00000, 0x3f800000, 0}, 0);
  value("cvt.rn.bf16x2.f32 %d, %a, %b;", {0x3f800000, 0x40000000, 0}, 0x3f804000);
  value("cvt.rzi.s32.f32 %d, %a;", {0xc0200000, 0, 0}, 0xfffffffe);
  value("cvt.rni.s32.f32 %d, %a;", {0x40200000, 0, 0}, 2);
  value("cvt.rn.f32.s32 %d, %a;", {0xffffffff, 0, 0}, 0xbf800000);
  value("cvt.rn.satfinite.e4m3x2.f32 %h1, %a, %b; cvt.u32.u16 %d, %h1;",
        {0x447a0000, 0x3f800000, 0}, 0x7e38);
  value("fma.rn.bf16x2 %d, %a, %b, %c;", {0x3f804000, 0x40003f80, 0x3f803f80}, 0x40404040);
  value("neg.f32 %d, %a;", {0x3f800000, 0, 0}, 0xbf800000);
  value("sqrt.rn.f32 %d, %a;", {0x41100000, 0, 0}, 0x40400000);
}

void warp() {
  value("shfl.sync.bfly.b32 %d, %t0, 5, 31, -1;", {0}, 5);
  value("shfl.sync.idx.b32 %d|%p1, %t0, 9, 0x181f, -1;", {0}, 1);
  value("redux.sync.add.u32 %d, %t0, -1;", {0}, 496);
  value("setp.gt.u32 %p1, %t0, 3; vote.sync.ballot.b32 %d, %p1, -1;", {0}, 0xfffffff0);
  value("elect.sync %d|%p1, -1;", {0}, 0);
  value("and.b32 %t1, %t0, 7; match.any.sync.b32 %d, %t1, -1;", {0}, 0x01010101);
  // Divergence: the long way round, meeting again before the vote.
  value(
      "mov.u32 %d, 0; setp.lt.u32 %p1, %t0, 4; @%p1 bra L; bra M; L: mov.u32 %d, 1; M: "
      "redux.sync.add.u32 %d, %d, -1;",
      {0}, 4);
  // A later block that branches back: the early group has to wait for it.
  value(
      "mov.u32 %d, 1; setp.lt.u32 %p1, %t0, 4; @%p1 bra L; J: redux.sync.add.u32 %d, %d, -1; bra "
      "E; L: mov.u32 %d, 3; bra J; E:",
      {0}, 40);
  value(
      "{ .reg .b32 %x; mov.u32 %x, 5; bra D; D: mov.u32 %d, %x; } { .reg .b32 %x; add.u32 %x, %d, "
      "1; bra D; D: mov.u32 %d, %x; }",
      {0}, 6);
}

void reports() {
  report("add.u32 %d, %t5, 1;", "uninitialised-register");
  report("mov.u32 %d, 0; ld.global.b32 %d, [%o+128];", "global-out-of-bounds");
  report("mov.u32 %d, 0; ld.global.b32 %d, [%o+2];", "misaligned");
  report("mov.u32 %d, 0; setp.lt.u32 %p1, %t0, 4; @%p1 bra E; redux.sync.add.u32 %d, %d, -1; E:",
         "");
  report("mov.u32 %d, 0; setp.lt.u32 %p1, %t0, 4; @%p1 redux.sync.add.u32 %d, %d, -1;",
         "missing-lane");
  report("mov.u32 %d, 0; setp.lt.u32 %p1, %t0, 4; @%p1 exit; shfl.sync.idx.b32 %d, %d, 0, 31, -1;",
         "missing-lane");
  report(".shared .align 4 .b8 s[16]; ld.shared.b32 %d, [s];", "uninitialised-shared-read");
  report(".shared .align 4 .b8 s[16]; st.shared.b32 [s+16], %a; mov.u32 %d, 0;",
         "shared-out-of-bounds");
  for (const char* access :
       {"st.shared.b32 [%w1], %a;", "ld.shared.b32 %d, [%w1];"})  // ends at 2^64
    report(std::string(".shared .b32 s[4]; mov.u64 %w1, -4; mov.u32 %d, 0; ") + access,
           "shared-out-of-bounds");
  report(
      ".shared .b64 s; mov.u32 %d, 0; setp.eq.u32 %p1, %t0, 0; @%p1 mbarrier.init.shared.b64 [s], "
      "1; "
      "bar.warp.sync -1; mov.u64 %w1, -4; @%p1 mov.u64 %w1, s; @%p1 st.shared.b32 [%w1], %a;",
      "mbarrier-overwritten");
  report(
      ".shared .align 8 .b8 s[16]; mov.u32 %d, 0; W: mbarrier.try_wait.parity.shared.b64 %p1, [s], "
      "0; @!%p1 bra W;",
      "mbarrier-uninitialised");
  report(
      ".shared .align 8 .b8 s[16]; mov.u32 %d, 0; setp.ne.u32 %p2, %t0, 0; @%p2 bra W; "
      "mbarrier.init.shared.b64 [s], 1; "
      "W: mbarrier.try_wait.parity.shared.b64 %p1, [s], 0; @!%p1 bra W;",
      "deadlock");
  const std::string init =
      ".shared .align 8 .b8 s[16]; mov.u32 %d, 0; setp.eq.u32 %p1, %t0, 1; setp.eq.u32 %p2, %t0, "
      "0; @%p1 mbarrier.init.shared.b64 [s], 1; bar.sync 0; ";
  const std::string arrive = "@%p1 mbarrier.arrive.shared.b64 %w1, [s]; ";
  const std::string inval = "@%p2 mbarrier.inval.shared.b64 [s];";
  report(init + inval, "");  // by another lane, and nobody has used it
  report(init + arrive + "bar.sync 0; " + inval, "");
  report(init + "mbarrier.test_wait.parity.shared.b64 %p3, [s], 0; " + inval, "shared-race");
  report("trap; mov.u32 %d, 0;", "trap");
  report("mov.u32 %d, 0; tcgen05.mma.cta_group::1.kind::f16 [%d], %w0, %w0, %d, %p0;",
         "not-implemented");
  report("mov.u32 %d, 0; bar.sync 1, 64;", "barrier-mismatch");
  report("mov.u32 %d, 0; mov.u32 %d, %d; bra E; E: bar.sync 0;", "", 20);
}

const std::string kLane3 = "setp.eq.u32 %p1, %t0, 3; mov.u64 %w1, ";
const std::string kAway = "; @%p1 add.u64 %w1, %w1, 1000000; ";

void lanes_left_out() {
  // What is left out leaves undefined registers, which hold zero here.
  auto but_lane_3 = [](auto value, uint32_t left_out) {
    return [=](uint32_t lane) { return lane == 3 ? left_out : value(lane); };
  };
  auto seven = [](uint32_t) { return 7u; };
  auto own = [](uint32_t lane) { return lane; };
  goes_on(kLane3 + "%o" + kAway + "st.global.b32 [%w1], %t0; ld.global.b32 %d, [%o];",
          "global-out-of-bounds", but_lane_3(own, kUnset));
  goes_on(kLane3 + "%i" + kAway + "ld.global.b32 %d, [%w1];",
          "global-out-of-bounds uninitialised-register", but_lane_3(seven, 0));
  goes_on("setp.eq.u32 %p1, %t0, 3; @!%p1 mov.u32 %d, %a;", "uninitialised-register",
          but_lane_3(seven, 0));
  // Each of the other lanes adds once.
  goes_on(
      ".shared .align 4 .b8 s[4]; setp.eq.u32 %p1, %t0, 3; setp.eq.u32 %p2, %t0, 0; mov.u32 %t1, "
      "s; "
      "@%p2 st.shared.u32 [s], 0; bar.warp.sync -1; @%p1 add.u32 %t1, %t1, 4096; "
      "atom.shared.add.u32 %t2, [%t1], 1; bar.warp.sync -1; ld.shared.u32 %d, [s];",
      "shared-out-of-bounds", [](uint32_t) { return 31u; });
  // The copies of the other lanes land.
  goes_on(".shared .align 4 .b8 s[128]; mov.u32 %t1, s; mad.lo.u32 %t1, %t0, 4, %t1; " + kLane3 +
              "%i" + kAway +
              "cp.async.ca.shared.global [%t1], [%w1], 4; cp.async.wait_all; "
              "@%p1 st.shared.u32 [%t1], 5; ld.shared.u32 %d, [%t1];",
          "global-out-of-bounds", [](uint32_t lane) { return lane == 3 ? 5u : 7u; });
}

void instructions_left_out() {
  auto all = [](uint32_t value) { return [=](uint32_t) { return value; }; };
  goes_on("mov.u32 %d, 0; setp.lt.u32 %p1, %t0, 4; @%p1 redux.sync.add.u32 %d, %d, -1;",
          "missing-lane uninitialised-register", all(0));
  goes_on("mov.u32 %d, 1; setp.eq.u32 %p1, %t5, 0; @%p1 bra E; mov.u32 %d, 2; E:",
          "uninitialised-register", all(1));
  goes_on("mov.u32 %d, 1; setp.eq.u32 %p1, %t5, 0; @%p1 mov.u32 %d, 2;", "uninitialised-register",
          all(2));
  goes_on("mov.u32 %d, 3; bar.sync 1, 64;\nbar.sync 17;", "barrier-mismatch barrier-mismatch",
          all(3));
  goes_on("mov.u32 %d, 3; bar.red.popc.u32 %d, 17, %p0;",
          "uninitialised-register barrier-mismatch uninitialised-register", all(3));
  // One report for all that an instruction does wrong, with its count.
  goes_on(
      "mov.u32 %t1, 0; L: st.global.b32 [%o+4000], %a; add.u32 %t1, %t1, 1; "
      "setp.lt.u32 %p1, %t1, 3; @%p1 bra L; mov.u32 %d, 4;",
      "global-out-of-bounds", all(4));
  expect(Machine::get().went_on.at(0).count == 96, "96 stores out of bounds, one report");
  goes_on("trap; mov.u32 %d, 0;", "trap", all(kUnset));
  goes_on("mov.u32 %d, 0; tcgen05.mma.cta_group::1.kind::f16 [%d], %w0, %w0, %d, %p0;",
          "not-implemented", all(kUnset));
  // A wait that is left out for ever.
  goes_on(
      ".shared .align 8 .b8 s[16]; mov.u32 %d, 0; W: mbarrier.try_wait.parity.shared.b64 %p1, "
      "[s], 0; @%p1 bra E; bra W; E:",
      "mbarrier-uninitialised uninitialised-register deadlock", all(kUnset));
}

// What is wrong and can be performed is performed.
void performed() {
  const std::string race =
      ".shared .align 4 .b8 s[128]; mov.u32 %t1, s; mad.lo.u32 %t1, %t0, 4, %t1; "
      "st.shared.u32 [%t1], %t0; xor.b32 %t1, %t1, 4; ld.shared.u32 %d, [%t1];";
  auto other = [](uint32_t lane) { return lane ^ 1; };
  goes_on(race, "shared-race", other);
  Machine& m = Machine::get();
  const Settings before = m.settings;
  Settings s = before;
  s.reports.never_stops = false;
  expect(add_kinds("shared-race", &s.reports.ignored).empty(), "shared-race can be ignored");
  m.configure(s);
  goes_on(race, "", other);
  expect(!add_kinds("deadlock", &s.reports.ignored).empty(), "deadlock cannot be ignored");
  expect(!add_kinds("no-such-kind", &s.reports.ignored).empty(), "kinds have names");
  m.configure(before);
}

void parser() {
  malformed("");
  malformed("garbage");
  malformed(std::string(kHead) + ".visible .entry k() { add.u32 %r1, %r2, %r3; }");
  malformed(std::string(kHead) + ".visible .entry k() { .reg .b32 %r<4>; bra L; }");
  malformed(std::string(kHead) + ".visible .entry k() { .reg .b32 %r<4>; L: L: ret; }");
  malformed(std::string(kHead) + ".visible .entry k() { .reg .b32 %r<4>; add.u32 %r1, %r2; }");
  malformed(std::string(kHead) + ".visible .entry k() { .reg .b64 %r<4>; add.u32 %r1, %r2, %r3; }");
  malformed(std::string(kHead) +
            ".visible .entry k() { .reg .b32 %r<4>; ld.global.b32 %r1, [x]; }");
  malformed(std::string(kHead) + ".visible .entry k() { .reg .b16 %h<4>; activemask.b32 %h1; }");
  malformed(std::string(kHead) +
            ".visible .entry k() { .reg .b32 %r<4>; mul.wide.u32 %r1, %r2, %r3; }");
  malformed(std::string(kHead) +
            ".visible .entry k() { .reg .b32 %r<4>; setp.lt.u32 %r1, %r2, %r3; }");
  malformed(std::string(kHead) + ".visible .entry k() {");
  malformed(std::string(kHead) +
            ".visible .entry k() { .reg .b64 %d<4>; ld.global.b128 %d1, [%d2]; }");
  malformed(std::string(kHead) + ".global .align 3 .b8 x[4];");
  malformed(std::string(kHead) + ".global .b8 x[4] = {1, 2, 3, 4, 5};");
}

// What ptxas 13.0 compiles to; a setmaxnreg.inc below it would be a fault.
void entry_registers() {
  auto check = [](uint32_t threads, const std::string& body, uint32_t want) {
    auto image = load_image(std::string(kHead) + ".visible .entry k() .maxntid " +
                            std::to_string(threads) + ", 1, 1 { " + body + " ret; }");
    uint32_t got = registers_per_thread(*image->find("k"), threads);
    expect(got == want, body + " with " + std::to_string(threads) + " threads: " +
                            std::to_string(got) + " registers, want " + std::to_string(want));
  };
  auto pair = [](int dec, int inc) {
    return "setmaxnreg.dec.sync.aligned.u32 " + std::to_string(dec) +
           "; setmaxnreg.inc.sync.aligned.u32 " + std::to_string(inc) + ";";
  };
  check(128, pair(40, 248), 248);
  check(256, pair(40, 248), 248);
  check(256, pair(40, 104), 104);
  check(256, pair(40, 256), 255);
  check(256, "setmaxnreg.dec.sync.aligned.u32 40;", 255);
  check(320, pair(40, 232), 168);
  check(320, pair(40, 104), 104);
  check(384, pair(40, 240), 168);
  check(512, pair(40, 248), 128);
}

// Every prefix and many corruptions of a real module: an error or success, never a crash.
void fuzz() {
  std::string text = std::string(kHead) + R"(
.global .align 4 .b8 table[8] = {1, 2, 3, 4, 5, 6, 7, 8};
.func (.param .b32 r) f(.param .b32 x) { .reg .b32 %r<3>; ld.param.b32 %r1, [x]; add.u32 %r2, %r1, 1; st.param.b32 [r], %r2; ret; }
.visible .entry k(.param .u64 p) .maxntid 128, 1, 1 { .reg .b32 %r<9>; .reg .b64 %d<4>; .reg .pred %p<2>; .loc 1 2 3
ld.param.u64 %d1, [p]; mov.u32 %r1, %tid.x; { .param .b32 a; st.param.b32 [a], %r1; .param .b32 q; call.uni (q), f, (a); ld.param.b32 %r2, [q]; }
setp.gt.s32 %p1, %r2, -5; @%p1 bra L; cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r1], [%d1, {%r2, %r2}], [%r1];
L: st.global.v2.b32 [%d1+8], {%r1, %r2}; ret; }
)";
  try {
    load_image(text);
  } catch (const PtxError& e) {
    expect(false, std::string("the module to corrupt is malformed: ") + e.what());
  }
  uint32_t random = 12345;
  auto next = [&] { return random = random * 1664525 + 1013904223; };
  for (int i = 0; i < 4000; ++i) {
    std::string t = text;
    if (i % 4 == 0) {
      t.resize(next() % t.size());
    } else {
      for (uint32_t k = 0; k <= next() % 3; ++k)
        t[next() % t.size()] = static_cast<char>(next() >> 24);
    }
    try {
      load_image(t);
    } catch (const PtxError&) {
    }
  }
  std::vector<uint8_t> fat(256);
  for (int i = 0; i < 2000; ++i) {
    for (auto& b : fat) b = static_cast<uint8_t>(next() >> 24);
    const uint8_t magic[] = {0x50, 0xed, 0x55, 0xba, 1, 0, 16, 0};
    if (i % 8) std::memcpy(fat.data(), magic, 8);
    uint64_t size = 240;
    if (i % 8 > 1) std::memcpy(fat.data() + 8, &size, 8);
    if (i % 8 > 3) fat[16] = 1, fat[17] = 0, fat[20] = 64, fat[21] = fat[22] = fat[23] = 0;
    try {
      read_fat_binary(fat.data());
    } catch (const PtxError&) {
    }
  }
}

}  // namespace

int main() {
  in_all_modes([] {
    arithmetic(), parameter_addresses(), floating(), warp(), reports();
    Settings s = Machine::get().settings;
    s.reports.never_stops = true;
    Machine::get().configure(s);
    lanes_left_out(), instructions_left_out(), performed();
  });
  parser(), entry_registers(), fuzz();
  std::printf(failures ? "%d failures\n" : "ok\n", failures);
  return failures != 0;
}
