"""The emulator on w4_gemm: each mistake put into it is reported, or gives other numbers."""

import pytest

from tests.emulator.gemm_mutants import Mutant, check_original, check_reported, program

# M, N, K, groups, zeros: tiles that two CTAs share, one that all share, whole ones; two tiles of
# which a CTA has a part each.
CROSSED = "20 256 2688 1 0"
SHARED, ONE, WHOLE, GROUPS = (
    "20 640 2048 1 0",
    "20 128 2048 1 0",
    "40 384 640 1 0",
    "20 128 256 4 1",
)
SMALL, TALL = "w4_32x128", "w4_128x256"
WAIT = "ptx::grid_dependency_wait();\n  Stage"
IN_FLIGHT = "shared-in-flight shared-race uninitialised-shared-read mbarrier"
OLD = "result stale-global-read global-race uninitialised same-value-race"
MUTANTS = [
    Mutant("tokens before the previous kernel ends", SMALL, "load.cuh", WAIT, "Stage",
           "dependency-race", WHOLE),
    Mutant("a stage is filled unasked", SMALL, "load.cuh", "smem.ring.wait_empty(stage);", "",
           IN_FLIGHT, WHOLE),
    Mutant("fewer bytes are expected than come", SMALL, "load.cuh",
           "C.token_bytes() + count * bytes", "C.token_bytes() + (count - 1) * bytes", IN_FLIGHT,
           WHOLE),
    Mutant("a stage is read before it is full", SMALL, "w4_gemm.cuh",
           "smem.ring.wait_full(stage);", "", IN_FLIGHT, WHOLE),
    Mutant("a stage is released while it is multiplied", SMALL, "w4_gemm.cuh",
           ("if (part == 0 && block > piece.first) release(previous);", "release(previous);\n}\n"),
           ("if (part == 0) release(stage.index);", "}\n"), IN_FLIGHT, WHOLE),
    Mutant("a warp gives back others' codes", SMALL, "w4_gemm.cuh",
           ("smem.ring.init(kW4Consumers / 32);", "if (threadIdx.x % 32 == 0) smem.ring"),
           ("smem.ring.init(2);", "if (threadIdx.x % 128 == 0) smem.ring"), IN_FLIGHT, WHOLE),
    Mutant("operands in flight are overwritten", SMALL, "w4_gemm.cuh",
           "ptx::wgmma_wait<kSets - 1>();", "", "register-in-flight", WHOLE),
    Mutant("no fence before wgmma", TALL, "w4_gemm.cuh", "ptx::wgmma_fence();", "",
           "wgmma-fence-missing", WHOLE),
    Mutant("sums are finished in flight", TALL, "w4_gemm.cuh", "ptx::wgmma_wait<0>();", "",
           "register-in-flight shared-in-flight", WHOLE),
    Mutant("too many registers", TALL, "configs.h", "== 2 ? 104 : 232", "== 2 ? 112 : 240",
           "setmaxnreg-pool", WHOLE),
    Mutant("the first group's scale for all", SMALL, "convert.cuh",
           "static_cast<unsigned>((2 * half + i) * layout.groups) / 4", "0", "result", GROUPS),
    Mutant("rows g and g + 8 exchange scales", SMALL, "convert.cuh",
           "h == 0 ? 0x1010 : 0x3232", "h == 1 ? 0x1010 : 0x3232", "result", WHOLE),
    Mutant("a staged result is read too early", SMALL, "epilogue.cuh",
           "at.sync();\n      each<8>(16 * first << halved, [&](int chunk, int row, int column, "
           "bool exists) {\n        if (!exists)",
           "each<8>(16 * first << halved, [&](int chunk, int row, int column, "
           "bool exists) {\n        if (!exists)", "shared-race uninitialised-shared-read", WHOLE),
    Mutant("who arrives is not asked for all", SMALL, "schedule.h",
           "return last - first + 1;", "return last - first;", OLD, SHARED),
    Mutant("the last of two adds a slot that nobody filled", SMALL, "meet.cuh",
           "if (!pair || holder != cta)", "if (true)", OLD, SHARED),
    Mutant("a count is kept for the replay", SMALL, "../../tile/arrive.cuh", "*counter = 0;", "",
           "result", ONE),
    Mutant("two tiles of a CTA share a slot", SMALL, "schedule.h",
           "return 2 * cta + (cta == first);", "return 2 * cta;", OLD, CROSSED, 7),
]  # fmt: skip


@pytest.mark.parametrize("case", [SHARED, ONE, WHOLE, GROUPS])
@pytest.mark.parametrize("config", [SMALL, TALL])
def test_original_is_right(config: str, case: str) -> None:
    check_original(program("w4_gemm", config), case)


def test_a_cta_between_two_tiles_is_right() -> None:
    check_original(program("w4_gemm", SMALL), CROSSED, 7)


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_mutant_is_reported(mutant: Mutant) -> None:
    check_reported(program("w4_gemm", mutant.config, mutant), mutant)
