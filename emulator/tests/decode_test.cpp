// The less common instructions: values by the PTX manual's definitions, forms that must decode, and
// those that are refused by name.
#include <cstdio>
#include <string>

#include "machine/core/machine.h"
#include "machine/image.h"
#include "ptx_run.h"

using namespace l4k::emu;

namespace {

void packed_integers() {
  value("mul24.lo.u32 %d, %a, %b;", {0xff000003, 0xaa000005, 0}, 15);
  value("mul24.lo.s32 %d, %a, %b;", {0x00ffffff, 7, 0}, 0xfffffff9);
  value("mul24.hi.u32 %d, %a, %b;", {0x00800000, 0x00000200, 0}, 0x00010000);
  value("mad24.lo.s32 %d, %a, %b, %c;", {0x00fffffe, 3, 10}, 4);
  value("dp2a.lo.s32.u32 %d, %a, %b, %c;", {0xffff0002, 0x0a0b0304, 100}, 105);
  value("dp2a.hi.u32.s32 %d, %a, %b, %c;", {0x00030002, 0xff040000, 100}, 105);
  value("szext.wrap.s32 %d, %a, %b;", {0x0000008f, 40, 0}, 0xffffff8f);
  value("szext.clamp.u32 %d, %a, %b;", {0xffff008f, 4, 0}, 0xf);
  value("szext.clamp.s32 %d, %a, %b;", {0xffff008f, 33, 0}, 0xffff008f);
  value("bmsk.clamp.b32 %d, %a, %b;", {28, 8, 0}, 0xf0000000);
  value("bmsk.wrap.b32 %d, %a, %b;", {36, 35, 0}, 0x70);
  value("fns.b32 %d, %a, %b, %c;", {0xaaaa, 4, 3}, 9);
  value("fns.b32 %d, %a, %b, %c;", {0xaaaa, 4, 0xfffffffe}, 1);
  value("fns.b32 %d, %a, %b, %c;", {0xaaaa, 3, 0}, 3);
  value("fns.b32 %d, %a, %b, %c;", {0xaaaa, 15, 2}, 0xffffffff);
  value("add.sat.s32 %d, %a, %b;", {0x7fffffff, 5, 0}, 0x7fffffff);
  value("sub.sat.s32 %d, %a, %b;", {0x80000000, 5, 0}, 0x80000000);
  value("mad.hi.sat.s32 %d, %a, %b, %c;", {0x40000000, 0x40000000, 0x7fffffff}, 0x7fffffff);
  value("mad.lo.cc.u32 %t1, %a, %b, %c; addc.u32 %d, 0, 0;", {0x10000, 0xffff, 0x10000}, 1);
  value("mad.lo.cc.u32 %t1, %a, %b, %c; madc.hi.u32 %d, %a, %b, 5;", {0x10000, 0xffff, 0x10000}, 6);
  value("mov.b64 %w1, {%a, %b}; mad.lo.cc.u64 %w2, %w1, 3, %w1; addc.u32 %d, 0, 0;",
        {0, 0x80000000, 0}, 1);
  value("add.u16x2 %d, %a, %b;", {0x0001ffff, 0x00010002, 0}, 0x00020001);
  value("min.s16x2 %d, %a, %b;", {0x8000ffff, 0x00010000, 0}, 0x8000ffff);
  value("max.u16x2 %d, %a, %b;", {0x80000001, 0x00010002, 0}, 0x80000002);
  value("max.relu.s16x2 %d, %a, %b;", {0x8000ffff, 0x8001fff0, 0}, 0);
  value("vabsdiff4.u32.u32.u32.add %d, %a, %b, %c;", {0x01020304, 0x04030201, 10}, 18);
  value("vadd4.u32.u32.u32.sat %d, %a, %b, %c;", {0xff020304, 0x04030201, 0}, 0xff050505);
  value("vmax2.s32.s32.s32 %d, %a, %b, %c;", {0xffff0004, 0x00010001, 0}, 0x00010004);
  value("cvt.pack.sat.s8.s32.b32 %d, %a, %b, %c;", {300, 0xffffff00, 0x1234}, 0x12347f80);
  value("cvt.pack.sat.u16.s32 %d, %a, %b;", {70000, 0xffffffff, 0}, 0xffff0000);
  value("lop3.or.b32 %d|%p1, %a, %b, %c, 0x80, 0; selp.u32 %d, %d, 99, %p1;", {6, 3, 2}, 2);
  value(
      "setp.eq.u32 %p2, %a, 6; lop3.and.b32 _|%p1, %a, %b, %c, 0x80, !%p2; selp.u32 %d, 1, 99, "
      "%p1;",
      {6, 3, 2}, 99);
  value("mov.f64 %e1, 0d7ff0000000000000; testp.infinite.f64 %p1, %e1; selp.u32 %d, 1, 2, %p1;",
        {0}, 1);
}

void forms() {
  const char* const kDecodes[] = {
      "cvt.rna.satfinite.tf32.f32 %d, %f1;",
      "cvt.rn.bf16.f16 %h1, %h2;",
      "cvt.rn.satfinite.relu.e5m2x2.f16x2 %h1, %a;",
      "fma.rp.f64 %x1, %x2, %x3, %x1;",
      "rsqrt.approx.ftz.f64 %x1, %x2;",
      "setp.lt.and.bf16 %p1, %h1, %h2, %p2;",
      "isspacep.param::entry %p1, %w1;",
      "atom.global.cas.b16 %h1, [%w1], %h2, %h3;",
      "red.relaxed.gpu.global.add.v4.f32 [%w1], {%f3, %f4, %f1, %f2};",
      "red.global.add.noftz.v4.f16x2 [%w1], {%a, %b, %c, %d};",
      "atom.acq_rel.sys.global.inc.u32 %d, [%w1], %a;",
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%a], {%b, %c, 0, 1}, "
      "[%c];",
      "mbarrier.test_wait.parity.acquire.cta.shared::cta.b64 %p1, [%a], %b;",
      "mbarrier.try_wait.parity.shared.b64 %p1, [%a], %b, %c;",
      "mbarrier.arrive_drop.expect_tx.shared.b64 %w1, [%a], %b;",
      "cp.async.mbarrier.arrive.noinc.shared.b64 [%a];",
      "cp.async.cg.shared.global.L2::cache_hint [%a], [%w1], 16, %w2;",
      "cp.async.bulk.prefetch.tensor.2d.L2.global.tile [%w1, {%a, 0}];",
      "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.noftz.bf16 [%w1], [%a], %b;",
      "getctarank.u64 %d, %w1;",
      "fence.acquire.sync_restrict::shared::cluster.cluster;",
      "fence.proxy.async::generic.acquire.sync_restrict::shared::cluster.cluster;",
      "fence.proxy.alias;",
      "membar.proxy.alias;",
      "discard.global.L2 [%w1], 128;",
      "fence.proxy.tensormap::generic.acquire.gpu [%w1], 128;",
      "tensormap.replace.tile.box_dim.shared::cta.b1024.b32 [%a], 0, %b;",
      "createpolicy.range.global.L2::evict_last.b64 %w1, [%w2], %a, %b;",
      "applypriority.global.L2::evict_normal [%w1], 128;",
      "mov.u32 %d, %envreg2;",
      "mov.u32 %d, %reserved_smem_offset_cap;",
      "barrier.cta.red.popc.aligned.u32 %d, 1, %p1;"};
  const char* const kRefused[] = {"tex.2d.v4.f32.s32 {%f1, %f2, %f3, %f4}, [%w1, {%a, %b}];",
                                  "tld4.r.2d.v4.f32.f32 {%f1, %f2, %f3, %f4}, [%w1, {%f1, %f2}];",
                                  "txq.width.b32 %d, [%w1];",
                                  "suld.b.2d.b32.trap {%a}, [%w1, {%a, %b}];",
                                  "sust.b.2d.b32.trap [%w1, {%a, %b}], {%c};",
                                  "sured.b.add.1d.u32.trap [%w1, {%a}], %b;",
                                  "istypep.texref %p1, %w1;",
                                  "multimem.ld_reduce.global.add.f32 %f1, [%w1];",
                                  "st.bulk.shared::cta [%a], 128, 0;",
                                  "vadd.s32.s32.s32 %d, %a, %b;",
                                  "mma.sp.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32 {%f1, %f2, "
                                  "%f3, %f4}, {%a, %b, %c, %d}, "
                                  "{%a, %b, %c, %d}, {%f1, %f2, %f3, %f4}, %a, 0;"};
  auto note = [](const std::string& instruction) {
    auto image = load_image(std::string(kHead) +
                            ".visible .entry k() { .reg .b32 %a, %b, %c, %d; .reg .f32 %f<8>; .reg "
                            ".f64 %x<4>; .reg .b64 %w<8>; .reg .pred %p<4>; .reg .b16 %h<8>; " +
                            instruction + " ret; }");
    return image->find("k")->code[0].note;
  };
  for (const char* instruction : kDecodes)
    expect(note(instruction).empty(), std::string("decodes: ") + instruction);
  for (const char* instruction : kRefused)
    expect(note(instruction).find('(') != std::string::npos,
           std::string("is refused with a reason: ") + instruction);
}

}  // namespace

int main() {
  in_all_modes(packed_integers);
  forms();
  std::printf(failures ? "%d failures\n" : "ok\n", failures);
  return failures != 0;
}
