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
WEIGHTS = "  const RouterWeights weights(params, part, part.first_tile);\n"
NORMALISE = "  normalise_rows(params, part, smem);\n"
COUNTED = "__syncthreads();  // all of this CTA's partial logits before its arrival"
CLEARED = """if (threadIdx.x < kRouteMaxExperts)
    smem.route.totals[threadIdx.x] = smem.route.starts[threadIdx.x] = 0;"""
FACTORS = "rsqrtf(sum / params.width + params.eps);"
ROUTED = "if (smem.last) route_all("
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
    ("a slice is counted before its logits are there", OLD, (MAIN, COUNTED, ""),
     (MAIN, CLEARED, ""), (MAIN, ROUTED, f"if (!smem.last) return;\n{CLEARED}\n__syncthreads();\n"
      "route_all(")),
    ("choices are counted where sums are read", RACE, (MAIN, COUNTED, "__syncwarp();")),
    ("the last CTA but one routes", OLD, (MAIN, "plan.ctas());", "plan.ctas() - 1);")),
    ("the count is kept for the replay", "result", (ARRIVE, "*counter = 0;", "")),
    ("the count is valid for any launch", OLD, (ARRIVE, "expected >> 16 == nonce", "true")),
    ("slices share their logits", OLD, (MAIN, "logits.at(blockIdx.x,", "logits.at(0,")),
    ("tokens of nobody leave logits", f"{OLD} global-out-of-bounds",
     (MAIN, "i < kRouterSums && token < part.tokens", "i < kRouterSums")),
    ("all groups write the normalised rows", "same-value-race global-race",
     (MAIN, "if (blockIdx.y == 0)\n        ptx::store", "ptx::store")),
    # Of one CTA.
    ("factors are read before they are there", RACE,
     (MAIN, f"{FACTORS}\n  }}\n  __syncthreads();", f"{FACTORS}\n  }}")),
    ("rows are multiplied before they are there", RACE,
     (MAIN, "[token][column]) = y;\n  }\n  __syncthreads();", "[token][column]) = y;\n  }")),
    ("sums of tiles lie over each other", RACE, (MAIN, "smem.sums[tile % 2]", "smem.sums[0]")),
    ("sums are added before they are there", RACE,
     (MAIN, "__syncthreads();  // so the other buffer has been read, too", "")),
    ("choices are counted from anything", "result uninitialised-shared-read global-out-of-bounds",
     (MAIN, "smem.route.totals[threadIdx.x] = smem.route.starts[threadIdx.x] = 0;",
      "smem.route.starts[threadIdx.x] = 0;")),
    ("rows of the slice lie in the same banks", "conflicts",
     (MAIN, "kRouterColumns + 4 * kVector", "kRouterColumns")),
    # Where weights and rows end.
    ("experts past the last", "global-out-of-bounds",
     (MAIN, "tile < part.end_tile && expert < params.routing.num_experts && column",
      "tile < part.end_tile && column")),
    ("columns past the end of D", "global-out-of-bounds",
     (MAIN, "expert < params.routing.num_experts && column < part.columns",
      "expert < params.routing.num_experts")),
    ("tokens past the last", "global-out-of-bounds",
     (MAIN, "if (token < part.tokens && v < vectors)", "if (v < vectors)")),
    # The launch before.
    ("rows before it ends", "dependency-race",
     (MAIN, WAIT, ""), (MAIN, NORMALISE, f"{NORMALISE}{WAIT}")),
    ("weights before it ends", "dependency-race",
     (MAIN, WAIT, f"{WEIGHTS}{WAIT}"),
     (MAIN, f"dependents();\n\n{WEIGHTS}", "dependents();\n")),
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
