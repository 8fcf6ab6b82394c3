"""The emulator's instructions on a GPU: the same programs, compared value by value.

A program (`NAME.cu`) is a family of instructions over edge values and random bits. `python -m
bench.conformance build` compiles each for a GPU and for the emulator, runs the latter, and puts
what came out beside the former in l4kernels/lib/conformance; `python -m bench.conformance run` runs
the GPU's and compares. A value that differs is an error of the emulator, or of a document.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tools import cuda_programs
from tools.nvcc import ROOT

from . import approximations, sums
from .compare import Facts, Judge, compare, exact, summary
from .table import Expected, Table

__all__ = ["FAMILIES", "Expected", "Table", "build", "build_emulated", "check", "run", "steps"]

SOURCES = Path(__file__).parent
FOLDER = ROOT / "l4kernels" / "lib" / "conformance"
EMULATED = ROOT / "build" / "conformance"
SETTINGS = "perturb=0"  # approximations are rounded correctly


@dataclass(frozen=True)
class Family:
    program: str
    arguments: tuple[str, ...] = ()
    judge: Judge = exact


FAMILIES = {
    "float32": Family("float32"),
    "half": Family("half"),
    "convert": Family("convert"),
    "integer": Family("integer"),
    "approximate": Family("approximate", judge=approximations.judge),
    "warp": Family("warp"),
    "warp_divided": Family("warp", ("divided",)),
    "matrix": Family("matrix"),
    "atomic": Family("atomic"),
    "mbarrier": Family("mbarrier"),
    "tma": Family("tma"),
    "mma": Family("mma"),
    "mma_sums": Family("mma", ("sums",), sums.judge_mma),
    "wgmma": Family("wgmma"),
    "wgmma_sums": Family("wgmma", ("sums",), sums.judge_wgmma),
}
PROGRAMS = tuple(dict.fromkeys(family.program for family in FAMILIES.values()))


def build(output: Path = FOLDER) -> None:
    """The programs for a GPU, and beside them what the emulator makes of each family."""
    cuda_programs.build(SOURCES, PROGRAMS, output)
    build_emulated()
    for name in FAMILIES:
        expected = Expected.of(run(name, EMULATED, L4K_EMU=SETTINGS))
        (output / f"{name}.xz").write_bytes(expected.pack())


def build_emulated(output: Path = EMULATED) -> None:
    cuda_programs.build_emulated(SOURCES, PROGRAMS, output)


def run(name: str, folder: Path = FOLDER, **environment: str) -> Table:
    family = FAMILIES[name]
    program = folder / family.program
    return Table.parse(cuda_programs.run(program, *family.arguments, **environment))


def check(name: str, folder: Path = FOLDER, **environment: str) -> Facts:
    """Runs a family of `folder` and compares it with what lies beside it."""
    expected = Expected.unpack((folder / f"{name}.xz").read_bytes())
    return compare(run(name, folder, **environment), expected, FAMILIES[name].judge)


Result = tuple[None, dict[str, Any]]


def steps(folder: Path = FOLDER) -> Iterator[tuple[str, Callable[[], Iterator[Result]]]]:
    """One step of a GPU run per family, in the shape of `bench.gpu_steps`."""
    for name in FAMILIES:
        yield f"conformance.{name}", partial(_step, name, folder)


def _step(name: str, folder: Path) -> Iterator[Result]:
    """The counts are kept when values differ, and the row is not `ok`."""
    if not (folder / f"{name}.xz").exists():
        yield None, {"skipped": f"no {folder / name}.xz: `make gpu-files` makes it"}
        return
    facts = check(name, folder)
    yield None, facts
    if problem := summary(facts):
        raise AssertionError(f"{name}: {problem}")
