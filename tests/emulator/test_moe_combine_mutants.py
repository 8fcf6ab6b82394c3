"""The emulator on the sum of a token's rows with the next norm: each mistake put into it is
reported with its cause, or gives other results."""

import pytest

from tests.emulator.mutant_program import (
    Mutant,
    MutantProgram,
    Run,
    check_mutant,
    check_original,
)

KERNEL, NORM = "moe_combine.cuh", "tile/norm.cuh"
WAIT = "  ptx::grid_dependency_wait();\n  uint4 weight"
MUTANTS = [Mutant(name, kinds, tuple(changes)) for name, kinds, *changes in (
    ("rows before the launch before ends", "dependency-race",
     (KERNEL, WAIT, "  uint4 weight")),
    ("the next token's sums overwrite this one's", "shared-race",
     (KERNEL, "params.eps, sums[parity])", "params.eps, sums[0])")),
    ("an index outside is followed", "global-out-of-bounds",
     (KERNEL, "outside ? nullptr : row_of", "false ? nullptr : row_of")),
    ("a token without a row is summed", "result",
     (KERNEL, "bad ? uint4{} : pack(sum[u])", "pack(sum[u])")),
    ("threads past the row write as well", "global-race result global-out-of-bounds",
     (KERNEL, "if (v < vectors) ptx::store", "if (true) ptx::store")),
    ("the norm is of half a row", "result",
     (NORM, "for (float value : values) sum += value * value;",
      "for (float value : values) sum = value * value;")),
    ("the sum is read before all have added to it", "shared-race uninitialised-shared-read",
     ("tile/reduce.cuh", "  value = warp_sum(value);\n  if (num_warps == 1) return value;\n"
      "  if (lane == 0) partials[threadIdx.x / 32] = value;\n  __syncthreads();",
      "  value = warp_sum(value);\n  if (num_warps == 1) return value;\n"
      "  if (lane == 0) partials[threadIdx.x / 32] = value;")),
)]  # fmt: skip
PROGRAM = MutantProgram("moe_combine", "moe_combine", MUTANTS, ("device", "launch"))


@pytest.fixture(scope="module")
def runs() -> list[Run]:
    return PROGRAM.runs()


def test_the_original_is_right_and_the_same_in_every_mode(runs: list[Run]) -> None:
    check_original(runs)


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_a_mutant_is_reported_or_gives_other_results(mutant: Mutant, runs: list[Run]) -> None:
    check_mutant(mutant, runs)
