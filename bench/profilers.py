"""NVIDIA's tools over our kernels, each in a process of its own: sanitizers, and ncu's counters."""

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

from bench.gpu_run import Result

SANITIZERS = ("memcheck", "racecheck", "synccheck")


def sanitizer(tool: str) -> Result:
    """One process per tool, which looks at our kernels only; without torch's cache of memory, which
    would hide an access past a tensor's end."""
    program = shutil.which("compute-sanitizer")
    if program is None:
        return None, {"skipped": "no compute-sanitizer on this machine"}
    command = [program, "--tool", tool, "--error-exitcode", "9", "--show-backtrace", "no"]
    command += ["--kernel-name", "kernel_substring=l4k"]
    command += [sys.executable, "-m", "bench.checks.gpu_checks"]
    env = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env
    )
    lines = done.stdout.strip().splitlines() or ["no output"]
    reports = dict.fromkeys(line[:160] for line in lines if line.startswith("========="))
    shown = [line for line in reports if line.strip("= ")][:40]
    assert done.returncode == 0, f"exit {done.returncode}\n" + "\n".join(shown)
    return None, {"summary": lines[-1]}


def counters(what: str) -> Result:
    """Hardware counters of one launch, by ncu, which leaves the clocks alone."""
    program = shutil.which("ncu")
    if program is None:
        return None, {"skipped": "no ncu on this machine"}
    command = [program, "--clock-control", "none", "--set", "full", "--page", "raw", "--csv"]
    command += ["--kernel-name", "regex:gemm_kernel", "--launch-skip", "1", "--launch-count", "1"]
    script = Path(__file__).with_name("profiled_product.py")
    done = subprocess.run(
        [*command, sys.executable, str(script), what], capture_output=True, text=True
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith('"')]
    assert done.returncode == 0 and len(lines) >= 3, done.stdout[-2000:] + done.stderr[-1000:]
    return None, {"counters": values_of(lines)}


def values_of(lines: list[str]) -> dict[str, str]:
    """Name -> value of ncu's raw page: a line of names, one of units, one of values."""
    names, units, values = list(csv.reader(lines))[:3]
    found = zip(names, units, values, strict=True)
    return {name: f"{value} {unit}".strip() for name, unit, value in found if value}
