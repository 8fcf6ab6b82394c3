"""The emulator on the streaming kernel: each mistake put into it is reported with its cause, or
gives other results."""

import pytest

from tests.emulator.mutant_program import (
    Change,
    Mutant,
    MutantProgram,
    Run,
    check_mutant,
    check_original,
)

MAIN, LOAD, FINISH, SMEM = "stream_gemm.cuh", "load.cuh", "finish.cuh", "smem.cuh"
ROWS, SCHEDULE, ARRIVE = "row_major.cuh", "schedule.h", "tile/arrive.cuh"
FULL = "smem.stages.wait_full(stage);"
RELEASE = "if (lane == 0) smem.stages.release(stage.index);"
NEXT_ROWS = "ptx::mbarrier_wait(&smem.rows_full, phase ^= 1);"
DEPENDENT = "ptx::grid_dependency_wait();"
STORE = "for (int j = 0; j < kTiles; ++j) __stcg(workspace.at(own, j), sums[j]);"
COUNT = "for_warp(threadIdx.x % 32 == 0 && arrive_last(counter(), nonce, runs));"
LOADED = "slot == own ? own_sums[j] : __ldcg(workspace.at(slot, j))"
# Nobody finds out that it is the last before it has left its sums.
BLIND: Change = (
    ARRIVE,
    "return ptx::compare_and_swap_acquire(counter, others, 0) == others;",
    "return others == 0;",
)
# Loads past L1 are never old, ordinary ones may be.
THROUGH_L1: Change = (FINISH, "__ldcg(workspace.at(slot, j))", "*workspace.at(slot, j)")
IN_FLIGHT = "shared-in-flight shared-race uninitialised-shared-read mbarrier"
OLD = "result stale-global-read global-race same-value-race"


MUTANTS = [Mutant(name, kinds, tuple(changes)) for name, kinds, *changes in (
    ("all leave their sums", "", BLIND),
    ("sums are read through L1", "", THROUGH_L1),
    # The ring.
    ("a stage is read before it is full", IN_FLIGHT, (MAIN, FULL, "")),
    ("a stage is never released", "deadlock", (MAIN, RELEASE, "")),
    ("a stage is released before it is read", IN_FLIGHT,
     (MAIN, RELEASE, ""), (MAIN, FULL, f"{FULL}\n__syncwarp(); {RELEASE}")),
    ("a stage is filled unasked", IN_FLIGHT, (LOAD, "smem.stages.wait_empty(stage);", "")),
    ("fewer bytes are expected than come", IN_FLIGHT,
     (LOAD, "(full, (stage_end - base) * bytes)", "(full, (stage_end - base - 1) * bytes)")),
    ("a copy runs past the end of its slice", "result",
     (LOAD, "Weights::kTiled && i.slices == 1 ?", "Weights::kTiled ?")),
    # Rows of A.
    ("rows are overwritten", IN_FLIGHT,
     (LOAD, "ptx::mbarrier_wait(&smem.rows_empty, phase ^ 1);", "")),
    ("rows of the item before are read", IN_FLIGHT, (MAIN, NEXT_ROWS, "")),
    ("rows wait for a phase that is over", IN_FLIGHT,
     (MAIN, NEXT_ROWS, NEXT_ROWS.replace("phase ^= 1", "phase"))),
    ("slices take rows from the start", "result",
     (LOAD, "first_k = i.first_block * Weights::kUnitK", "first_k = 0")),
    ("rows lie in the same banks", "conflicts",
     (SCHEDULE, "return blocks * block_bytes + 16;", "return blocks * block_bytes;")),
    ("rows of nobody are left as they were", "result",
     (MAIN, "clear_tail(p, smem", "if (false) clear_tail(p, smem")),
    # Sums of a CTA.
    ("sums are overwritten", "shared-race mbarrier",
     (MAIN, "ptx::mbarrier_wait(&smem.sums_empty[place], (index / smem.kFinishers & 1) ^ 1);", "")),
    ("seven warps' sums are enough", IN_FLIGHT,
     (SMEM, "(&sums_full[i], kStreamConsumers);", "(&sums_full[i], kStreamConsumers - 1);")),
    ("a finisher's phase never flips", f"deadlock {IN_FLIGHT}", (FINISH, "phase ^= 1;", "")),
    # Sums of several CTAs.
    ("the last does not acquire", "acquire-fence-missing stale-global-read", THROUGH_L1,
     ("ptx/memory.cuh", "atom.acquire.gpu.global.cas", "atom.relaxed.gpu.global.cas")),
    ("who arrives does not release", OLD,
     (ARRIVE, "__threadfence();  // partial results before the count", "")),
    ("who arrives last does not acquire", "acquire-fence-missing stale-global-read", BLIND,
     THROUGH_L1, (ARRIVE, "__threadfence();  // the count before the", "// the count before the")),
    ("a run is counted before its sums are there", OLD, (FINISH, STORE, ";"),
     (FINISH, f"return {COUNT}", f"const bool last = {COUNT}\n{STORE}\nreturn last;")),
    ("the count is kept for the replay", "result", BLIND, (ARRIVE, "*counter = 0;", "")),
    ("the count is valid for any launch", "result", (ARRIVE, "expected >> 16 == nonce", "true")),
    ("a run's own sums are added last", "result",
     (FINISH, LOADED, LOADED.replace("own_sums[j]", "float4{}")),
     (FINISH, "    });\n  }\n\n private:\n", "    });\n    for (int j = 0; j < kTiles; ++j) "
      "add(total[j], own_sums[j]);\n  }\n\n private:\n")),
    ("two runs share a slot", OLD, BLIND, (SCHEDULE, "(first ? 0 : 1)", "0")),
    ("row tiles of slices share slots", OLD, (SCHEDULE, "(sliced ? tile : 0)", "0")),
    # Weights that are no tiles.
    ("boxes lie over each other", IN_FLIGHT, (ROWS, "smem + i * kMaxUnitBytes", "smem")),
    ("boxes are all the row tile's first", "result",
     (ROWS, "full, (span.block + i) * kUnitK", "full, span.block * kUnitK")),
    ("boxes are read as if they had no swizzle", "conflicts",
     (ROWS, "swizzle_128(lane", "(lane")),
    ("nothing follows the end of K", "uninitialised-shared-read result",
     (LOAD, "? bytes : 0) + 16 * lane;", "? padded : 0) + 16 * lane;")),
    # Rows that are gathered.
    ("a choice is taken for its token", "global-out-of-bounds result",
     (LOAD, "return index / p.gather.top_k;", "return index;")),
    ("an index outside is followed", "global-out-of-bounds",
     (LOAD, "if (index >= 0 && index < p.m)", "if (true)")),
    ("a row that lies nowhere is left as it was", "uninitialised-shared-read result",
     (LOAD, "(loaded >> r & 1 ? bytes : 0)", "bytes")),
    ("bytes of a row that lies nowhere are expected", "deadlock",
     (LOAD, "__popc(loaded) * bytes", "i.rows * bytes")),
    ("every item takes the first one's rows", "result",
     (LOAD, "own_row, i.row + lane)", "own_row, lane)")),
    ("the order is read before it is there", "dependency-race",
     (MAIN, "  if (p.expert_offsets != nullptr) {\n    if constexpr",
      "  const int early = warp == kWarpRows ? gathered_row<Weights>(p) : -1;\n"
      "  if (p.expert_offsets != nullptr) {\n    if constexpr"),
     (MAIN, "own_row = gathered_row<Weights>(p);", "own_row = early;")),
    ("rows past the end of N are stored", "global-out-of-bounds",
     (FINISH, "both = Weights::kTiled || channel + 8 < p.n;", "both = true;")),
    # The launch before.
    ("rows before it ends", "dependency-race",
     (MAIN, f"{DEPENDENT}\n    if (warp == kWarpRows)",
      f"if (warp != kWarpRows) {DEPENDENT}\n    if (warp == kWarpRows)")),
    ("weights are taken for static", "dependency-race",
     (MAIN, "if (!p.static_weights) {", "if (false) {")),
    ("offsets before it ends", "dependency-race",
     (MAIN, f"prefetch_last_expert(smem, p, source);\n    {DEPENDENT}",
      "prefetch_last_expert(smem, p, source);")),
)]  # fmt: skip
PROGRAM = MutantProgram("stream_gemm", "stream", MUTANTS, ("launch", "tensor_map"))


@pytest.fixture(scope="module")
def runs() -> list[Run]:
    return PROGRAM.runs()


def test_the_original_is_right_and_the_same_in_every_mode(runs: list[Run]) -> None:
    check_original(runs)


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_a_mutant_is_reported_or_gives_other_results(mutant: Mutant, runs: list[Run]) -> None:
    check_mutant(mutant, runs)
