"""Malformed PTX and fat binaries end in an error that says so, never in a crash."""

import os
import random
import subprocess
from pathlib import Path

import pytest

from tests.emulator.emulator_programs import PROGRAMS, build

CONTAINER = bytes.fromhex("50ed55ba")  # starts the fat binary; its PTX is plain text
CORRUPTIONS = 12


def corrupt(binary: bytearray, part: str, chance: random.Random) -> None:
    start = binary.index(CONTAINER)
    text = binary.index(b".version", start)
    end = binary.index(b"\0", text)
    if part == "size":  # a header, or an image, longer than the program
        at = start + chance.choice([6, 10])
        binary[at : at + 2] = chance.choice([b"\xff\x7f", b"\xff\xff"])
    elif part == "header":
        binary[chance.randrange(start, text)] = chance.randrange(256)
    elif part == "cut":
        at = chance.randrange(text, end)
        binary[at:end] = b" " * (end - at)
    else:
        for _ in range(3):
            binary[chance.randrange(text, end)] = chance.choice(b"{}()[];,.%@ 09ax\xff")


@pytest.mark.parametrize("part", ["header", "size", "cut", "text"])
def test_malformed_module_is_an_error(part: str, tmp_path: Path) -> None:
    build("vector_add")
    original = (PROGRAMS / "vector_add").read_bytes()
    complaints = 0
    for seed in range(CORRUPTIONS):
        binary = bytearray(original)
        corrupt(binary, part, random.Random(seed))
        program = tmp_path / f"{part}{seed}"
        program.write_bytes(binary)
        program.chmod(0o755)
        done = subprocess.run(
            [str(program)],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
            env=dict(os.environ, L4K_EMU="mode=early,seed=1,sms=4"),
        )
        assert done.returncode >= 0, f"seed {seed}: killed by signal {-done.returncode}"
        complaints += done.returncode != 0
    assert complaints > 0  # many bytes of a header mean nothing to the emulator
