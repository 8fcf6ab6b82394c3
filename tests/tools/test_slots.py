"""What a turn of a loop of products issues, on small programs whose loops are known."""

import re
from pathlib import Path

import pytest

from l4kernels.emulation.toolchain import nvcc
from tools.budget import Report, violations
from tools.nvcc import cuobjdump, output_of
from tools.sass import Instruction, first_copy, hot_loop, instructions, kernels, turn_of
from tools.slots import PIPE_OF, pipe_of, slots_of

PROGRAM = """
#include <cstdint>
__device__ void product(float (&d)[4], const uint32_t* a, const uint32_t* b) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
               "{%8,%9}, {%0,%1,%2,%3};" : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ bool ready(uint32_t barrier, uint32_t parity) {
  uint32_t done;
  asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; "
               "selp.u32 %0, 1, 0, p; }" : "=r"(done) : "r"(barrier), "r"(parity) : "memory");
  return done;
}
extern "C" __global__ void stream(float* out, const uint32_t* x, int turns, int rest,
                                  uint32_t row) {
  __shared__ uint32_t weights[4096];
  float d[4] = {};
  uint32_t a[4], b[2] = {x[0], x[1]};
#pragma unroll 1
  for (int turn = 0; turn < turns; ++turn) {
    while (!ready(16, turn & 1)) {}
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      const uint32_t* own = weights + (turn % 8 * 4 + step) * 128 + threadIdx.x * 4;
      for (int i = 0; i < 4; ++i) a[i] = own[i];
      for (int i = 0; i < 4; ++i) a[i] = (a[i] & 0x000f000f) | 0x43004300;
      product(d, a, b);
    }
    EXTRA
  }
  for (int i = 0; i < 4; ++i) out[threadIdx.x * 4 + i] = d[i];
}
"""
RARE = """if (weights[turn] == row) {
  for (int i = 0; i < 4; ++i) out[i * 32 + threadIdx.x] = d[i] * d[i], d[i] = 0;
  __threadfence();
}"""
ALWAYS = "for (int i = 0; i < 4; ++i) d[i] = fmaf(d[i], 2.0f, 1.0f);"
INNER = """
#pragma unroll 1
for (int i = 0; i < rest; ++i) weights[i * 32 + threadIdx.x] = row++;"""


@pytest.fixture(scope="module")
def loop_with(tmp_path_factory):
    """The hot loop of the program with something more in its loop; each compiled once."""

    def compile_(extra: str):
        folder: Path = tmp_path_factory.mktemp("slots")
        source = folder / "stream.cu"
        source.write_text(PROGRAM.replace("EXTRA", extra))
        output_of(nvcc(), "-arch=sm_90a", "-cubin", str(source), "-o", f"{folder}/stream.cubin")
        ((_, code),) = kernels(output_of(cuobjdump(), "-sass", f"{folder}/stream.cubin"))
        return hot_loop(code)

    return compile_


@pytest.fixture(scope="module")
def plain(loop_with):
    return loop_with("")


def count(loop, name):
    return sum(op.split(".")[0] == name for op in loop.opcodes)


def test_a_turn_is_counted_by_pipe(plain):
    slots = slots_of(plain)
    assert (slots.products, slots.weights, slots.pairs(1), slots.pairs(2)) == (4, 1024, 16, 8)
    assert count(plain, "LOP3") >= 16, "a LOP3 for each register of weights"
    assert count(plain, "LDS") == 4, "of 16 bytes"
    assert slots.issued == len(plain.opcodes) == sum(slots.pipes.values())
    facts = slots.facts(1)
    assert facts["slots_per_pair"] == slots.issued / 16
    assert facts["alu_per_pair"] == 2 * slots.pipes["ALU"] / 16
    assert slots.facts(2)["slots_per_pair"] == 2 * facts["slots_per_pair"]


def test_a_retried_wait_is_counted_once(plain):
    assert count(plain, "SYNCS") == 1
    assert plain.rare > 0, "the retry"


def test_what_a_turn_may_leave_out_is_rare(plain, loop_with):
    rare = loop_with(RARE)
    assert count(rare, "STG") == count(rare, "FMUL") == count(rare, "MEMBAR") == 0
    assert rare.rare >= plain.rare + 9, "four products, four stores, a fence"
    assert len(plain.opcodes) < len(rare.opcodes) < len(plain.opcodes) + 14, "load, compare, branch"


def test_what_every_turn_does_is_hot(plain, loop_with):
    more = loop_with(ALWAYS)
    assert count(more, "FFMA") >= count(plain, "FFMA") + 4 and more.rare == plain.rare


def test_an_inner_loop_that_waits_for_nothing_is_refused(loop_with):
    with pytest.raises(ValueError, match=r"waits for nothing.*unroll it"):
        loop_with(INNER)


def sass(*lines: str) -> list[Instruction]:
    return instructions("\n".join(f"/*{16 * i:04x}*/ {line} ;" for i, line in enumerate(lines)))


def test_the_shortest_way_passes_every_product():
    """Two ways round: the shorter one leaves out a product, so it is not a turn."""
    code = sass(
        "MOV R0, R1",
        "HMMA.16816.F32.BF16 R4, R8, R12, R4",  # 0x10: the header
        "@P0 BRA 0x60",
        "HMMA.16816.F32.BF16 R4, R8, R14, R4",
        "FADD R0, R0, R0",
        "FADD R0, R0, R0",
        "@P1 BRA 0x10",  # 0x60
        "EXIT",
    )
    loop = hot_loop(code)
    assert (loop.products, len(loop.opcodes), loop.rare) == (2, 6, 0)


def test_the_innermost_loop_with_the_most_products_is_taken():
    code = sass(
        "HMMA.16816.F32.BF16 R4, R8, R12, R4",  # the outer loop
        "HMMA.16816.F32.BF16 R4, R8, R12, R4",  # 0x10: the inner one
        "@P0 BRA 0x10",
        "@P1 BRA 0x0",
        "HMMA.16816.F32.BF16 R4, R8, R12, R4",  # 0x40: one of its own
        "HMMA.16816.F32.BF16 R4, R8, R12, R4",
        "FADD R0, R0, R0",
        "@!P2 BRA 0x40",
        "EXIT",
    )
    assert hot_loop(code).opcodes.count("FADD") == 1
    assert hot_loop(sass("FADD R0, R0, R0", "@P0 BRA 0x0", "EXIT")) is None
    assert hot_loop(sass("HMMA.16816.F32.BF16 R4, R8, R12, R4", "EXIT")) is None


def test_a_slow_way_with_a_loop_of_its_own_is_rare():
    """Two units at once, or one by one where a row ends: the outer loop is the hot one."""
    code = sass(
        "MOV R0, R1",  # the stage loop
        "@!P0 BRA 0x60",
        "HMMA.16816.F32.BF16 R4, R8, R12, R4",
        "HMMA.16816.F32.BF16 R4, R8, R12, R4",
        "BRA 0x80",
        "NOP",
        "HMMA.16816.F32.BF16 R4, R8, R12, R4",  # 0x60
        "@P1 BRA 0x60",
        "SYNCS.ARRIVE RZ, [R0]",  # 0x80
        "@P2 BRA 0x0",
        "EXIT",
    )
    loop = hot_loop(code)
    assert (loop.products, len(loop.opcodes), loop.rare) == (2, 7, 2)


def test_a_call_inside_a_turn_is_refused():
    code = sass(
        "HMMA.16816.F32.BF16 R4, R8, R12, R4", "CALL.REL.NOINC 0x40", "BRA 0x0", "NOP", "RET"
    )
    with pytest.raises(ValueError, match=r"CALL.REL.NOINC at 0x10"):
        hot_loop(code)


def test_a_turn_around_an_opcode_is_the_innermost_loops():
    code = sass(
        "F2FP.F16.E4M3 R4, R8",  # the outer loop
        "F2FP.F16.E4M3 R4, R8",  # 0x10: the inner one
        "@P0 BRA 0x50",
        "FADD R0, R0, R0",  # now and then
        "FADD R0, R0, R0",
        "@P1 BRA 0x10",  # 0x50
        "@P2 BRA 0x0",
        "EXIT",
    )
    assert turn_of(code, "F2FP.F16.E4M3") == 3
    assert turn_of(code, "FADD") == 5, "its way passes them"
    assert turn_of(code, "HGMMA") is None
    limits, report = {"registers": 999, "smem": 0}, Report(turns={"F2FP": 3})
    assert not violations("k", report, limits | {"turn": {"F2FP": "<= 3"}})
    for rule in ({"F2FP": "<= 2"}, {"HGMMA": "<= 9"}):
        (problem,) = violations("k", report, limits | {"turn": rule})
        assert "instructions a turn around" in problem


def test_an_instruction_without_a_pipe_is_refused():
    assert pipe_of("UIADD3.X") == "uniform"
    assert {pipe_of(name) for name in PIPE_OF} == set(PIPE_OF.values())
    with pytest.raises(ValueError, match=r"NEWOP.X.*PIPES"):
        pipe_of("NEWOP.X")


def test_a_budget_holds_the_loop(plain):
    limits = {"registers": 999, "smem": 0}
    report = Report(loop=slots_of(plain))
    facts = report.loop.facts(1)
    fitting = {name: f"<= {value}" for name, value in facts.items()}
    assert not violations("k", report, limits | {"loop": {"n_tiles": 1, **fitting}})
    for name, value in facts.items():
        tight = {"n_tiles": 1, name: f"<= {value - 0.01}"}
        (problem,) = violations("k", report, limits | {"loop": tight})
        assert re.search(rf"{name}, expected <= ", problem)
    (missing,) = violations("k", Report(), limits | {"loop": {"n_tiles": 1}})
    assert "no loop of products" in missing


TWO_WAYS = """
        /*0000*/                   S2R R0, SR_TID.X ;
        /*0010*/               @P0 BRA 0x40 ;
        /*0020*/                   IADD3 R1, R0, R0, RZ ;
        /*0030*/                   IADD3 R1, R1, R0, RZ ;
        /*0040*/                   IADD3 R2, R1, R0, RZ ;
        /*0050*/              @!P1 LDGSTS.E.BYPASS.128 [R2], [R4.64] ;
        /*0060*/               @P2 BRA 0x50 ;
        /*0070*/                   EXIT ;
"""


def test_the_first_copy_is_counted_along_the_shortest_way():
    code = instructions(TWO_WAYS)
    assert first_copy(code) == 4
    assert first_copy(instructions(TWO_WAYS.replace("@P0 BRA", "@P0 NOP"))) == 6
    assert first_copy(instructions(TWO_WAYS.replace("LDGSTS.E.BYPASS.128", "LDG.E"))) is None
    limit = {"registers": 0, "smem": 0, "first_copy": "<= 3"}
    (found,) = violations("k", Report(first_copy=4), limit)
    assert found == "k: 4 instructions to a copy, expected <= 3"
