"""The emulator on small kernels: right ones run clean, mutants are reported with cause and line."""

import pytest

from tests.emulator.emulator_programs import (
    MODES,
    Mutant,
    all_mutants,
    build,
    kernels,
    mutants_of,
    run,
)

FALSE_REPORT_SEEDS = 20
MUTANT_SEEDS = 4


@pytest.mark.parametrize("kernel", kernels())
def test_table_matches_marks(kernel: str) -> None:
    table = mutants_of(kernel)
    assert [mutant.number for mutant in table] == list(range(1, len(table) + 1))
    for mutant in table:
        assert mutant.lines or mutant.kinds == {"launch"}, f"{mutant} has no marked line"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kernel", kernels())
def test_original_is_right(kernel: str, mode: str) -> None:
    build("kernels")
    for seed in range(FALSE_REPORT_SEEDS):
        outcome = run(kernel, 0, mode, seed)
        assert outcome.passed, f"seed {seed}: {outcome.output}"


@pytest.mark.parametrize("mutant", all_mutants(), ids=str)
def test_mutant_is_reported(mutant: Mutant) -> None:
    build("kernels")
    attempts = []
    for seed in range(MUTANT_SEEDS):
        for mode in MODES:
            outcome = run(mutant.kernel, mutant.number, mode, seed)
            if outcome.kind is None:
                attempts.append(f"{mode} {seed}: no report, status {outcome.status}")
                continue
            assert mutant.explains(outcome.kind), f"{mutant.what}: {outcome.output}"
            if mutant.lines:
                lines = {at for file, at in outcome.places if file == f"{mutant.kernel}.cu"}
                assert lines & mutant.lines, f"{mutant.what}: {outcome.output}"
            return
    pytest.fail(f"{mutant.what}: " + "; ".join(attempts))
