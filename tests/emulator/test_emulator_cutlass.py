"""The emulator on CUTLASS: known-good device code of others, in every mode."""

import pytest

from tests.emulator.emulator_programs import (
    MODES,
    PROGRAMS,
    build,
    cutlass_directory,
    cutlass_programs,
    run,
)

SEEDS = 5


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("program", cutlass_programs())
def test_cutlass(program: str, mode: str) -> None:
    if cutlass_directory() is None:
        pytest.skip("no CUTLASS headers: pip install nvidia-cutlass")
    if not (PROGRAMS / program).exists():
        pytest.skip("a minute each to compile: python -m tests.emulator.emulator_programs cutlass")
    build(program)
    for seed in range(SEEDS):
        outcome = run(program, 0, mode, seed)
        assert outcome.passed, f"seed {seed}: {outcome.output}"
