"""The emulator on flash_prefill over an e4m3 cache, its sums anchored every two tiles of keys: each
mistake put into it is reported with its cause, or gives other results."""

import pytest

from tests.emulator.mutant_program import (
    Mutant,
    MutantProgram,
    Run,
    check_mutant,
    check_original,
)

KERNEL, LOADS, ANCHOR = "flash_prefill.cuh", "loads.cuh", "anchor.cuh"
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
    ("queries are handed back after the first range", "shared-in-flight",
     (KERNEL, "key_tile + 1 == work().end_tile", "key_tile % kAnchorTiles == 1")),
    ("the first range adds what lies in the workspace", "result",
     (KERNEL, "if (first > work().first_tile) anchor", "anchor")),
    ("CTAs share a place in the workspace", "stale-global-read",
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
)]  # fmt: skip
SMALL = (
    ("schedule.h", "kAnchorTiles = 512", "kAnchorTiles = 2"),
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
