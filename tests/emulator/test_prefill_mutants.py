"""The emulator on flash_prefill over an e4m3 cache, its sums anchored every two tiles of keys, and
the keys of few queries cut into pieces: each mistake put into it is reported with its cause, or
gives other results."""

import pytest

from tests.emulator.mutant_program import (
    Mutant,
    MutantProgram,
    Run,
    check_mutant,
    check_original,
)

KERNEL, LOADS, ANCHOR = "flash_prefill.cuh", "loads.cuh", "anchor.cuh"
LISTS, PLAN, MERGE = "lists.cuh", "plan.cuh", "merge.cuh"
WAIT, TRIGGER = "  ptx::grid_dependency_wait();\n", "  ptx::grid_launch_dependents();\n"
SUMS = "sums[warp][lane] = total;\n  __syncthreads();"
QUERIES = "ptx::named_barrier_sync(kBarrierQueries"
FENCE = "ptx::fence_proxy_async();\n"
OWN = "AnchoredSums::kWords / 4) + threadIdx.x"
MUTANTS = [Mutant(name, kinds, tuple(changes)) for name, kinds, *changes in (
    ("a tile becomes f16 without a proxy fence", "proxy-fence-missing",
     (LOADS, f"        {FENCE}        __syncwarp();", "        __syncwarp();")),
    ("queries become f16 without a proxy fence", "proxy-fence-missing",
     (KERNEL, f"    {FENCE}    {QUERIES}", f"    {QUERIES}")),
    ("scores keep the scale of their queries", "result",
     (KERNEL, "softmax.scale[0] *= undo[0];", "")),
    ("a range begins with the keys of the one before", "result",
     (LOADS, "(tile - work.first_tile) % kAnchorTiles == 0", "tile == work.first_tile")),
    ("queries are handed back after the first range", "shared-in-flight shared-race",
     (KERNEL, "key_tile + 1 == work().end_tile", "key_tile % kAnchorTiles == 1")),
    ("the first range adds what lies in the workspace", "result",
     (KERNEL, "if (first > work().first_tile) anchor", "anchor")),
    ("CTAs share a place in the workspace", "stale-global-read global-race",
     (KERNEL, f"blockIdx.x * ({OWN}", f"0 * ({OWN}")),
    ("consumers share a place in the workspace", "global-race",
     (KERNEL, OWN, f"{OWN} % 128")),
    ("sums that were put away go on", "result",
     (ANCHOR, "softmax.sum[0] = softmax.sum[1] = 0.f;", "")),
    ("sums keep the maximum of their time", "result",
     (ANCHOR, "{softmax.rescale(0, state.x), softmax.rescale(1, state.y)}", "{1.f, 1.f}")),
    ("weights beyond the range of f16", "result", (KERNEL, "kFp8 ? 15 : 0", "kFp8 ? 17 : 0")),
    ("bad boxes of one round overwrite the last's", "shared-race",
     (LOADS, "smem.bad[stage.phase]", "smem.bad[0]"),
     (KERNEL, "bad = smem.bad[stage.phase]", "bad = smem.bad[0]"),
     (KERNEL, "bad = smem.bad[k_stage.phase]", "bad = smem.bad[0]")),
    ("rows leave before all lanes have staged them", "shared-race",
     (KERNEL, "    __syncwarp();\n    // Sixteen lanes", "    // Sixteen lanes")),
    ("pieces are merged before all are there", "dependency-race dependency-wait-missing",
     (MERGE, WAIT + TRIGGER + "  if (plan_is_stale", TRIGGER + "  if (plan_is_stale")),
    ("the plan is read before it is made", "dependency-race",
     (KERNEL, WAIT + TRIGGER + "  __syncthreads();", TRIGGER + "  __syncthreads();")),
    ("pieces share a place for their results", "global-race result",
     (LISTS, "(item.slot + item.piece) * p.kv_heads", "item.slot * p.kv_heads")),
    ("pieces overlap by a tile", "result",
     (LISTS, "work.first_tile += pieces.begin(item.piece);",
      "work.first_tile += pieces.begin(item.piece) - (item.piece > 0);")),
    ("a warp's sum is read before it is there", "shared-race uninitialised-shared-read",
     (MERGE, SUMS, "sums[warp][lane] = total;")),
    ("the next row's sums overwrite this one's", "shared-race",
     (MERGE, "  __syncthreads();  // before the next row's", "")),
    ("pieces are placed before all are counted", "shared-race result",
     (PLAN, "  __syncthreads();\n  // Over the classes", "  // Over the classes")),
    ("the choice is made before all warps have costs", "shared-race result",
     (PLAN, "  __syncthreads();\n  return (1 << 28)", "  return (1 << 28)")),
)]  # fmt: skip
SMALL = (
    ("schedule.h", "kAnchorTiles = 512", "kAnchorTiles = 2"),
    (
        "schedule.h",
        "kItemCost = 6, kPartialCost = 7, kMergeCost = 5",
        "kItemCost = 1, kPartialCost = 0, kMergeCost = 0",
    ),
    ("schedule.h", "most_pieces > 8 * warps", "most_pieces > warps"),
    ("merge.cuh", "kMergeCtasPerSm = 4", "kMergeCtasPerSm = 1"),
    ("flash_prefill.cu", " : launch_prefill<false>(p, stream)", " : cudaErrorNotSupported"),
)
PROGRAM = MutantProgram(
    "flash_prefill", "flash_prefill", MUTANTS, (), source="flash_prefill.cu", always=SMALL
)


@pytest.fixture(scope="module")
def runs() -> list[Run]:
    return PROGRAM.runs()


def test_the_original_is_right_and_the_same_in_every_mode(runs: list[Run]) -> None:
    check_original(runs)


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_a_mutant_is_reported_or_gives_other_results(mutant: Mutant, runs: list[Run]) -> None:
    check_mutant(mutant, runs)
