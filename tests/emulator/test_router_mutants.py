"""The emulator on the router: each mistake put into it is reported with its cause, or gives other
results."""

import pytest

from tests.emulator.mutant_program import (
    Change,
    Mutant,
    MutantProgram,
    Run,
    check_mutant,
    check_original,
)

MAIN, ARRIVE = "moe_router.cuh", "tile/arrive.cuh"
WAIT = "  ptx::grid_dependency_wait();\n"
WEIGHTS = "  RouterWeights weights(params, part.first_column, part.columns, part.first_tile);\n"
FACTOR = "  norm_factors(params, part, smem);\n#pragma"
ARRIVED = "__syncthreads();  // all that this CTA has written, before its arrival"
FACTORS = "rsqrtf(sum / params.width + params.eps);"
LAST = "  if (!all_arrived(params, 0,"
CHOSEN, PLACED = "plan.tile_ctas(), smem)", "plan.token_tiles, smem)"
# Loads past L1 are never old, ordinary ones may be.
THROUGH_L1: Change = (MAIN, "a = __ldcg(from), b = __ldcg(from + 1)", "a = *from, b = from[1]")
OLD = "result stale-global-read global-race same-value-race uninitialised-global-read"
RACE = "shared-race uninitialised-shared-read"

MUTANTS = [Mutant(name, kinds, tuple(changes)) for name, kinds, *changes in (
    ("logits are read through L1", "", THROUGH_L1),
    # Of several CTAs.
    ("who arrives does not release", OLD,
     (ARRIVE, "__threadfence();  // partial results before the count", "")),
    ("who arrives last does not acquire", "acquire-fence-missing stale-global-read", THROUGH_L1,
     (ARRIVE, "__threadfence();  // the count before the", "// the count before the")),
    ("a CTA arrives before all of it has written", f"{OLD} {RACE}",
     (MAIN, ARRIVED, "__syncwarp();")),
    ("the last CTA but one of a tile chooses", OLD,
     (MAIN, CHOSEN, "max(plan.tile_ctas() - 1, 1), smem)")),
    ("the last tile but one places all tokens", OLD, (MAIN, PLACED, "plan.token_tiles - 1, smem)")),
    ("a tile's CTAs are those of one tile of experts", OLD,
     (MAIN, CHOSEN, "plan.slice_ctas, smem)")),
    ("the count is kept for the replay", "result", (ARRIVE, "*counter = 0;", "")),
    ("the count is valid for any launch", OLD, (ARRIVE, "expected >> 16 == nonce", "true")),
    ("slices share their logits", OLD, (MAIN, "logits.at(part.slice,", "logits.at(0,")),
    ("tokens of nobody leave logits", f"{OLD} global-out-of-bounds",
     (MAIN, "i < kRouterSums && token < part.tokens", "i < kRouterSums")),
    ("all groups write the normalised rows", "same-value-race global-race",
     (MAIN, "if (blockIdx.y == 0)\n          ptx::store", "ptx::store")),
    # Of one CTA.
    ("factors are read before they are there", RACE,
     (MAIN, f"{FACTORS}\n  }}\n  __syncthreads();", f"{FACTORS}\n  }}")),
    ("rows are multiplied before they are there", RACE,
     (MAIN, "[token][column]) = y;\n    }\n    __syncthreads();", "[token][column]) = y;\n    }")),
    ("sums of tiles lie over each other", RACE, (MAIN, "smem.sums[tile % 2]", "smem.sums[0]")),
    ("sums are added before they are there", RACE,
     (MAIN, "__syncthreads();  // so the other buffer has been read, too, and all tokens", "")),
    ("the next slice has this one's weights", "result",
     (MAIN, "more ? part.first_column : after.first_column", "part.first_column")),
    ("the next slice has this one's rows", "result",
     (MAIN, "columns = RouterColumns(params, after);", "")),
    ("starts are read before totals are there", RACE,
     ("tile/route.cuh", "smem.starts[own] = 0;\n    }\n    __syncthreads();",
      "smem.starts[own] = 0;\n    }")),
    ("starts are read before they are there", RACE,
     ("tile/route.cuh", "add_offsets(routing, smem, true);\n    __syncthreads();",
      "add_offsets(routing, smem, true);")),
    ("rows of the slice lie in the same banks", "conflicts",
     (MAIN, "kRouterColumns + 4 * kVector", "kRouterColumns")),
    # Where weights and rows end.
    ("experts past the last", "global-out-of-bounds",
     (MAIN, "expert < params.routing.num_experts && column < columns", "column < columns")),
    ("columns past the end of D", "global-out-of-bounds",
     (MAIN, "expert < params.routing.num_experts && column < columns",
      "expert < params.routing.num_experts")),
    ("tokens past the last", "global-out-of-bounds",
     (MAIN, "if (token < part.tokens && v < vectors)", "if (v < vectors)")),
    # The launch before.
    ("rows before it ends", "dependency-race",
     (MAIN, WAIT, ""), (MAIN, FACTOR, f"{WAIT}{FACTOR}")),
    ("weights before it ends", "dependency-race",
     (MAIN, f"{WAIT}\n  const PartialLogits logits(params, plan);\n{WEIGHTS}",
      f"{WEIGHTS}{WAIT}\n  const PartialLogits logits(params, plan);\n")),
    ("what is placed before it ends", "dependency-race global-race result",
     (MAIN, WAIT, ""), (MAIN, LAST, f"{WAIT}{LAST}")),
)]  # fmt: skip
PROGRAM = MutantProgram("moe_router", "router", MUTANTS)


@pytest.fixture(scope="module")
def runs() -> list[Run]:
    return PROGRAM.runs()


def test_the_original_is_right_and_the_same_in_every_mode(runs: list[Run]) -> None:
    check_original(runs)


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_a_mutant_is_reported_or_gives_other_results(mutant: Mutant, runs: list[Run]) -> None:
    check_mutant(mutant, runs)
