// Instructions of several lanes and of vectors, given as PTX text: member masks, `_` and literals in
// vector operands, the shapes of mma.sync.
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "ptx_run.h"

using namespace l4k::emu;

namespace {

// Every instruction with a member mask, with two sets of lanes: even ones and odd ones. They pass
// their masks together, or come at different times, in either order.
struct Case {
  const char* name;
  std::string body;
  std::function<uint32_t(uint32_t)> want;  // by lane
};
const char* const kMask =
    "and.b32 %t1, %t0, 1; setp.eq.u32 %p1, %t1, 0; "
    "selp.b32 %t2, 0x55555555, 0xaaaaaaaa, %p1; mov.u32 %d, 77; ";
std::vector<Case> member_cases() {
  auto set = [](uint32_t lane) { return lane & 1 ? 0xaaaaaaaau : 0x55555555u; };
  auto add = [&](const char* type, const char* value) {
    return "redux.sync." + std::string(type) + " %d, " + value + ", %t2;";
  };
  return {
      {"redux.add", add("add.u32", "%t0"), [](uint32_t l) { return l & 1 ? 256u : 240u; }},
      {"redux.min", add("min.s32", "%t0"), [](uint32_t l) { return l & 1; }},
      {"redux.max", add("max.u32", "%t0"), [](uint32_t l) { return l & 1 ? 31u : 30u; }},
      {"redux.and", add("and.b32", "%t0"), [](uint32_t l) { return l & 1; }},
      {"redux.or", add("or.b32", "%t0"), [](uint32_t l) { return l & 1 ? 31u : 30u; }},
      {"redux.xor", add("xor.b32", "%t1"), [](uint32_t) { return 0u; }},
      {"ballot", "setp.gt.u32 %p2, %t0, 15; vote.sync.ballot.b32 %d, %p2, %t2;",
       [&](uint32_t l) { return set(l) & 0xffff0000u; }},
      {"vote.any",
       "setp.eq.u32 %p2, %t0, 4; vote.sync.any.pred %p3, %p2, %t2; "
       "selp.b32 %d, 1, 0, %p3;",
       [](uint32_t l) { return uint32_t(l % 2 == 0); }},
      {"vote.all",
       "setp.ne.u32 %p2, %t0, 4; vote.sync.all.pred %p3, %p2, %t2; "
       "selp.b32 %d, 1, 0, %p3;",
       [](uint32_t l) { return l & 1; }},
      {"vote.uni",
       "setp.ne.u32 %p2, %t0, 5; vote.sync.uni.pred %p3, %p2, %t2; "
       "selp.b32 %d, 1, 0, %p3;",
       [](uint32_t l) { return uint32_t(l % 2 == 0); }},
      {"match.any", "shr.u32 %t3, %t0, 3; match.any.sync.b32 %d, %t3, %t2;",
       [&](uint32_t l) { return set(l) & 0xffu << (l & ~7u); }},
      {"match.any.b64",
       "shr.u32 %t3, %t0, 3; cvt.u64.u32 %w1, %t3; "
       "match.any.sync.b64 %d, %w1, %t2;",
       [&](uint32_t l) { return set(l) & 0xffu << (l & ~7u); }},
      {"match.all",
       "setp.eq.u32 %p2, %t0, 6; selp.b32 %t3, 1, 0, %p2; "
       "match.all.sync.b32 %t4|%p3, %t3, %t2; selp.b32 %d, %t4, 5, %p3;",
       [&](uint32_t l) { return l & 1 ? set(l) : 5u; }},
      {"elect", "elect.sync %t4|%p3, %t2; selp.b32 %t3, 100, 0, %p3; add.u32 %d, %t4, %t3;",
       [](uint32_t l) { return (l & 1) + (l < 2 ? 100u : 0u); }},
      {"shfl.bfly", "shfl.sync.bfly.b32 %d, %t0, 2, 31, %t2;", [](uint32_t l) { return l ^ 2; }},
      {"shfl.up", "shfl.sync.up.b32 %d, %t0, 2, 0, %t2;",
       [](uint32_t l) { return l < 2 ? l : l - 2; }},
      {"shfl.down", "shfl.sync.down.b32 %d, %t0, 2, 31, %t2;",
       [](uint32_t l) { return l > 29 ? l : l + 2; }},
      {"shfl.idx", "shfl.sync.idx.b32 %d, %t0, %t1, 31, %t2;", [](uint32_t l) { return l & 1; }},
      {"bar.warp", "bar.warp.sync %t2; mov.u32 %d, %t0;", [](uint32_t l) { return l; }}};
}

void member_sets() {
  for (const Case& c : member_cases()) {
    const std::string body = c.body;
    const std::string ways[] = {
        body,                                                                 // together
        "@%p1 bra J; nanosleep.u32 1; J: " + body,                            // odd lanes later
        "@!%p1 bra L; J: " + body + " bra E; L: nanosleep.u32 1; bra J; E:",  // even lanes first
        // A quarter of the lanes comes late, from both sets.
        "and.b32 %t5, %t0, 12; setp.eq.u32 %p3, %t5, 4; @%p3 bra L; J: " + body +
            " bra E; L: nanosleep.u32 1; bra J; E:"};
    for (const std::string& way : ways) {
      std::vector<uint32_t> out;
      std::string kind = run(kMask + way, {0}, &out);
      bool right = kind.empty();
      for (uint32_t l = 0; l < 32 && right; ++l) right = out[l] == c.want(l);
      expect(right, std::string(c.name) + " of two sets " + kind + ": " + way);
    }
    // Lane 3 names all lanes, the others their set.
    report(std::string(kMask) + "setp.eq.u32 %p2, %t0, 3; @%p2 mov.u32 %t2, 0xffffffff; " + body,
           "missing-lane");
    // A lane that its own mask leaves out, and one that waits elsewhere for those that need it.
    report(std::string(kMask) + "xor.b32 %t2, %t2, 8; " + body, "missing-lane");
    report(std::string(kMask) + "setp.eq.u32 %p2, %t0, 8; @%p2 bra L; " + body +
               " bra E; L: bar.warp.sync -1; E:",
           "missing-lane");
  }
  // Lanes 0 and 1 wait for 2, which waits for 3 elsewhere first: nobody waits in vain.
  value(
      "mov.u32 %t1, 7; mov.u32 %d, 0; setp.gt.u32 %p1, %t0, 3; @%p1 bra E; setp.gt.u32 %p1, %t0, "
      "1; @%p1 bra L; J: redux.sync.add.u32 %d, %t0, %t1; bra E; L: setp.eq.u32 %p2, %t0, 3; @%p2 "
      "bra M; N: bar.warp.sync 12; @%p2 bra E; bra J; M: nanosleep.u32 1; bra N; E:",
      {0}, 3);
  // 0 waits for 1 and 1 for 0, in different places.
  report(
      "mov.u32 %d, 0; setp.gt.u32 %p1, %t0, 1; @%p1 bra E; setp.eq.u32 %p1, %t0, 1; @%p1 bra L; "
      "bar.warp.sync 3; bra E; L: vote.sync.any.pred %p2, %p1, 3; E:",
      "missing-lane");
}

// `_` for results that nobody wants, and literals among registers.
void vectors() {
  const std::string shared =
      ".shared .align 16 .b8 s[512]; shl.b32 %t7, %t0, 4; mov.u32 %t6, s; add.u32 %t7, %t7, %t6; "
      "st.shared.v4.b32 [%t7], {%a, 5, -1, 0f3f800000}; ";
  value(shared + "ld.shared.v4.b32 {_, %t1, _, %t2}, [%t7]; add.u32 %d, %t1, %t2;", {9},
        0x3f800005);
  value(shared + "ld.shared.v2.b32 {%d, _}, [%t7];", {9}, 9);
  value(shared + "ld.shared.v2.u64 {%w1, _}, [%t7]; shr.u64 %w1, %w1, 32; cvt.u32.u64 %d, %w1;",
        {9}, 5);
  value(shared + "ld.shared.v2.f32 {_, _}, [%t7]; ld.shared.b32 _, [%t7]; mov.b32 %d, %a;", {9}, 9);
  value(shared + "st.shared.v2.u16 [%t7], {7, 8}; ld.shared.b32 %d, [%t7];", {9}, 0x80007);
  value(shared + "bar.warp.sync -1; ldmatrix.sync.aligned.m8n8.x2.shared.b16 {_, %d}, [%t7];", {9},
        9);
  value(shared +
            "stmatrix.sync.aligned.m8n8.x1.shared.b16 [%t7], {0x10002}; "
            "ld.shared.b32 %d, [%t7];",
        {9}, 0x10002);
  value("mov.b64 %w1, {%a, 3}; mov.b64 {_, %t1}, %w1; mov.b64 {%t2, _}, %w1; add.u32 %d, %t1, %t2;",
        {4}, 7);
  value("mov.b32 %d, {7, 0x1234}; mov.b32 {_, %h2}, %d; cvt.u32.u16 %d, %h2;", {4}, 0x1234);
  value("mov.b32 {%h0, %h1, %h2, %h3}, %a; mov.b32 %d, {%h3, %h2, 1, %h0};", {0x44332211},
        0x11013344);
  value("setp.eq.u32 %p1|_, %a, 1; selp.u32 %d, 4, 5, %p1;", {1}, 4);
  value("setp.eq.u32 _|%p1, %a, 1; selp.u32 %d, 4, 5, %p1;", {1}, 5);
  value("shfl.sync.idx.b32 _|%p1, %a, 3, 31, -1; selp.u32 %d, 4, 5, %p1;", {1}, 4);
  value("elect.sync _|%p1, -1; selp.u32 %d, 4, 5, %p1;", {1}, 4);
  value("cvt.u32.u16 _, %h1; add.u32 _, %a, 1; mov.u32 %d, 8;", {1}, 8);
  value(
      ".shared .align 8 .b8 s[16]; st.shared.u64 [s], 3; atom.shared.add.u32 _, [s], 0; "
      "ld.shared.u32 %d, [s];",
      {1}, 3);
  // mma: results that are dropped, operands that are literals. A's and B's ones of f16.
  value(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%d, _, _, _}, {%a, %a, %a, %a}, "
      "{%a, %a}, {0f3f800000, 0, 0, 0};",
      {0x3c003c00}, 0x41880000);
  value(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {_, %d, _, _}, {0, %a, 0, %a}, "
      "{%a, 0x3c003c00}, {1, 0f40000000, 1, 1};",
      {0x3c003c00}, 0x40000000);
  value(
      "mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {_, %d}, {%a, %a, %a, %a}, "
      "{%a, 0}, {0, 0};",
      {0x3c003c00}, 0x48004800);
  report(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%d, _, _, _}, {%t5, %a, %a, %a}, "
      "{%a, %a}, {0, 0, 0, 0};",
      "uninitialised-register");
}

// One shape of mma.sync: where its elements are, as the PTX manual draws them.
struct Shape {
  int m, k, bits;  // bits of an element of A and B
  const char* types;
  bool is_signed;
  int operation;  // 0: product, 1: xor, 2: and
};
// A register of A or B as a function of the lane, in PTX and here.
uint64_t contents(const Shape& s, int operand, int reg, int lane) {
  if (s.bits == 64) return static_cast<uint64_t>((lane * 7 + reg * 5 + operand * 3) & 15);
  return (static_cast<uint32_t>(lane) + 1) *
             (0x9e3779b1u + 0x61c88647u * static_cast<uint32_t>(operand)) *
             (2 * static_cast<uint32_t>(reg) + 1) &
         0xffffffffu;
}
std::string fill(const Shape& s, int operand, int reg, const std::string& name) {
  if (s.bits == 64)
    return "mad.lo.u32 %t1, %t0, 7, " + std::to_string(reg * 5 + operand * 3) +
           "; and.b32 %t1, %t1, 15; cvt.rn.f64.u32 " + name + ", %t1; ";
  uint32_t factor = (0x9e3779b1u + 0x61c88647u * static_cast<uint32_t>(operand)) *
                    (2 * static_cast<uint32_t>(reg) + 1);
  return "add.u32 %t1, %t0, 1; mul.lo.u32 " + name + ", %t1, " + std::to_string(factor) + "; ";
}
int64_t element(const Shape& s, int operand, int reg, int lane, int i) {
  uint64_t v = contents(s, operand, reg, lane);
  if (s.bits == 64) return static_cast<int64_t>(v);
  v = v >> (i * s.bits) & ((1u << s.bits) - 1);
  bool negative = s.is_signed && v >> (s.bits - 1);
  return static_cast<int64_t>(v) - (negative ? int64_t{1} << s.bits : 0);
}

void mma_shapes() {
  const Shape shapes[] = {{8, 4, 64, "f64.f64.f64.f64", false, 0},
                          {16, 4, 64, "f64.f64.f64.f64", false, 0},
                          {16, 8, 64, "f64.f64.f64.f64", false, 0},
                          {16, 16, 64, "f64.f64.f64.f64", false, 0},
                          {8, 16, 8, "s32.s8.s8.s32", true, 0},
                          {8, 16, 8, "s32.u8.u8.s32", false, 0},
                          {16, 16, 8, "s32.s8.s8.s32", true, 0},
                          {16, 32, 8, "s32.u8.u8.s32", false, 0},
                          {8, 32, 4, "s32.s4.s4.s32", true, 0},
                          {16, 32, 4, "s32.u4.u4.s32", false, 0},
                          {16, 64, 4, "s32.s4.s4.s32", true, 0},
                          {16, 64, 4, "s32.u4.u4.s32", false, 0},
                          {8, 128, 1, "s32.b1.b1.s32.xor.popc", false, 1},
                          {16, 128, 1, "s32.b1.b1.s32.and.popc", false, 2},
                          {16, 256, 1, "s32.b1.b1.s32.xor.popc", false, 1}};
  for (const Shape& s : shapes) {
    const bool wide = s.bits == 64;
    const int per = wide ? 1 : 32 / s.bits, row_groups = s.m / 8, nb = s.k / (4 * per),
              na = nb * row_groups, nc = 2 * row_groups;
    std::string text =
        wide ? ".reg .f64 %x<20>; .reg .f64 %y<8>; " : ".reg .b32 %x<20>; .reg .b32 %y<8>; ";
    auto list = [](const char* prefix, int from, int n) {
      std::string v = "{";
      for (int i = 0; i < n; ++i)
        v += (i ? ", " : "") + std::string(prefix) + std::to_string(from + i);
      return v + "}";
    };
    for (int i = 0; i < na; ++i) text += fill(s, 0, i, "%x" + std::to_string(i));
    for (int i = 0; i < nb; ++i) text += fill(s, 1, i, "%x" + std::to_string(na + i));
    for (int i = 0; i < nc; ++i)
      text += (wide ? "mov.f64 %y" : "mov.b32 %y") + std::to_string(i) +
              (wide ? ", 0d4024000000000000; " : ", 10; ");
    text += "mma.sync.aligned.m" + std::to_string(s.m) + "n8k" + std::to_string(s.k) + ".row.col." +
            s.types + " " + list("%y", 0, nc) + ", " + list("%x", 0, na) + ", " +
            list("%x", na, nb) + ", " + list("%y", 0, nc) + "; ";
    for (int r = 0; r < nc; ++r) {
      std::vector<uint32_t> out;
      std::string result =
          (wide ? "cvt.rni.s32.f64 %d, %y" : "mov.b32 %d, %y") + std::to_string(r) + ";";
      std::string kind = run(text + result, {0}, &out);
      bool right = kind.empty();
      for (int lane = 0; lane < 32 && right; ++lane) {
        int row = lane / 4 + 8 * (r / 2), col = lane % 4 * 2 + r % 2;
        int64_t want = 10;
        for (int k = 0; k < s.k; ++k) {
          int thread = k / per % 4, turn = k / per / 4, i = k % per;
          int64_t x = element(s, 0, turn * row_groups + row / 8, row % 8 * 4 + thread, i);
          int64_t y = element(s, 1, turn, col * 4 + thread, i);
          want += s.operation == 1 ? x ^ y : x * y;
        }
        right = out[static_cast<size_t>(lane)] == static_cast<uint32_t>(want);
      }
      expect(right, "mma m" + std::to_string(s.m) + "n8k" + std::to_string(s.k) + " " + s.types +
                        " " + kind);
    }
  }
}

}  // namespace

int main() {
  in_all_modes([] { member_sets(), vectors(), mma_shapes(); });
  std::printf(failures ? "%d failures\n" : "ok\n", failures);
  return failures != 0;
}
