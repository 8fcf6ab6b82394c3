"""Microbenchmarks: small CUDA programs, each of which answers one question about the machine.

`python -m bench.micro build` compiles them into l4kernels/lib/micro, `python -m bench.micro run`
runs them on a GPU and prints their lines. `NAME.cu` says at its head what is measured, the bound,
the loop that is asserted in machine code, and which values to disbelieve; `programs.py` holds the
same as tables.
"""

import json
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tools import cuda_programs
from tools.nvcc import ROOT

from .programs import PROGRAMS, Bounds, Code, Program

__all__ = ["PROGRAMS", "Bounds", "Code", "Program", "build", "build_emulated", "run", "steps"]

SOURCES = Path(__file__).parent
FOLDER = ROOT / "l4kernels" / "lib" / "micro"

Row = dict[str, Any]


def build(output: Path = FOLDER) -> list[Path]:
    return cuda_programs.build(SOURCES, PROGRAMS, output)


def build_emulated(output: Path) -> list[Path]:
    return cuda_programs.build_emulated(SOURCES, PROGRAMS, output)


def run(name: str, folder: Path = FOLDER, *, small: bool = False, **environment: str) -> list[Row]:
    """The lines of a program; raises if it fails or its values were wrong."""
    said = cuda_programs.run(folder / name, *(["--small"] if small else []), **environment)
    rows = [json.loads(line) for line in said.decode().splitlines() if line.startswith("{")]
    return [judged(row, PROGRAMS[name].metrics) for row in rows]


def judged(row: Row, metrics: dict[str, Bounds]) -> Row:
    """The row, marked if its value is outside its bounds or has none."""
    low, high = metrics.get(row["name"], (math.inf, -math.inf))
    return row if low <= row["value"] <= high else row | {"disbelieved": True}


def steps(
    folder: Path = FOLDER,
) -> Iterator[tuple[str, Callable[[], tuple[None, dict[str, Any]]]]]:
    """One step of a GPU run per program, in the shape of `bench.gpu_steps`."""
    for name in PROGRAMS:
        yield f"micro.{name}", partial(_step, name, folder)


def _step(name: str, folder: Path) -> tuple[None, dict[str, Any]]:
    if not (folder / name).exists():
        return None, {"skipped": f"no {folder / name}: `python -m bench.micro build` makes it"}
    return None, {"metrics": run(name, folder)}
