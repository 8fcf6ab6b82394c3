"""Microbenchmarks: small CUDA programs, each of which answers one question about the machine.

`python -m bench.micro build` compiles them into l4kernels/lib/micro, `python -m bench.micro run`
runs them on a GPU and prints their lines. `NAME.cu` says at its head what is measured, the bound,
the loop that is asserted in machine code, and which values to disbelieve; `programs.py` holds the
same as tables.
"""

import hashlib
import json
import math
import os
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from tools.nvcc import FLAGS, ROOT, nvcc, output_of

from .programs import PROGRAMS, Bounds, Code, Program

__all__ = ["PROGRAMS", "Bounds", "Code", "Program", "build", "build_emulated", "run", "steps"]

SOURCES = Path(__file__).parent
FOLDER = ROOT / "l4kernels" / "lib" / "micro"
JOBS = 2
TIMEOUT_S = 20

Row = dict[str, Any]


def build(output: Path = FOLDER) -> list[Path]:
    """Compiles every program for sm_90a, with the CUDA runtime inside."""
    return _build_all(output, [*FLAGS, "--cudart=static"], None)


def build_emulated(output: Path, library: Path) -> list[Path]:
    """The same for the emulator, whose `library` takes the runtime's place. The machine code is
    beside the PTX, for a look at its loops."""
    flags = [flag for flag in FLAGS if not flag.startswith("-gencode")]
    flags += ["-gencode=arch=compute_90a,code=[compute_90a,sm_90a]", "--no-compress"]
    return _build_all(output, [*flags, "--cudart=none", "-DL4K_EMULATED"], library)


def _build_all(output: Path, flags: list[str], library: Path | None) -> list[Path]:
    output.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(JOBS) as pool:
        return list(pool.map(lambda name: _build(name, output, flags, library), PROGRAMS))


def _build(name: str, output: Path, flags: list[str], library: Path | None) -> Path:
    """Compiles a program unless it is up to date; ptxas may not put products one after another."""
    compiler = nvcc()
    if compiler is None:
        raise RuntimeError("expected nvcc: a toolkit, or `make venv`")
    headers = [p for p in (ROOT / "csrc").rglob("*.*h") if p.suffix in (".h", ".cuh")]
    sources = [SOURCES / f"{name}.cu", *SOURCES.glob("*.*h"), *headers]
    inputs = b"".join(path.read_bytes() for path in sorted(sources))
    key = hashlib.sha256(inputs + str((flags, library, compiler)).encode()).hexdigest()
    program, stamp = output / name, output / f"{name}.key"
    if program.exists() and stamp.exists() and stamp.read_text() == key:
        return program
    source = str(SOURCES / f"{name}.cu")
    if library is None:
        log = output_of(compiler, *flags, source, "-o", str(program))
    else:
        log = output_of(compiler, *flags, "-c", source, "-o", f"{program}.o")
        link = [f"-L{library.parent}", "-ll4k_emulator", f"-Wl,-rpath,{library.parent}"]
        output_of("c++", f"{program}.o", "-o", str(program), *link)
        Path(f"{program}.o").unlink()
    if "(C75" in log:
        raise RuntimeError(f"{name}: ptxas says\n{log}")
    stamp.write_text(key)
    return program


def run(name: str, folder: Path = FOLDER, *, small: bool = False, **environment: str) -> list[Row]:
    """The lines of a program; raises if it fails or its values were wrong."""
    program = folder / name
    if not os.access(program, os.X_OK):
        program.chmod(0o755)
    command = [str(program), *(["--small"] if small else [])]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, env=os.environ | environment
        )
    except subprocess.TimeoutExpired as late:
        raise RuntimeError(f"{name}: no end after {TIMEOUT_S} s: {late.stdout!r}") from None
    if done.returncode:
        said = done.stdout[-1500:] + done.stderr[-1000:]
        raise RuntimeError(f"{name}: exit {done.returncode}\n{said}")
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
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
