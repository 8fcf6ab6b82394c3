"""The emulator on CUTLASS: known-good device code of others, in every mode."""

from pathlib import Path

import pytest
from harness import BUILD, MODES, build, cutlass_directory, cutlass_programs, run

SEEDS = 5


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("program", cutlass_programs())
def test_cutlass(program: str, mode: str, emulator_library: Path) -> None:
    if cutlass_directory() is None:
        pytest.skip("no CUTLASS headers: pip install nvidia-cutlass")
    if not (BUILD / program).exists():
        pytest.skip("not compiled, which takes most of a minute each: make emulator-cutlass")
    build(program, emulator_library)
    for seed in range(SEEDS):
        outcome = run(program, 0, mode, seed)
        assert outcome.report is None and outcome.status == 0, f"seed {seed}: {outcome.output}"
        assert "PASS" in outcome.output
