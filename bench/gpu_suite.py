"""A GPU run in one command, with a library that was built elsewhere.

`python -m bench.gpu_suite --out DIR --budget SECONDS` runs the steps of `bench.gpu_steps`, those
without a row first, and starts none that the rest of the budget does not cover. Nothing is compiled
or installed.
"""

import argparse
import time
from pathlib import Path

import torch

from bench.gpu_run import run_steps
from bench.gpu_steps import cost, steps
from l4kernels import STATUS
from l4kernels.bench.rows import Rows, current_gpu

RESULTS = Path(__file__).parent / "results"
"""Rows that are published, by GPU."""
STARTS_S = 15
"""Seconds until the first step begins; for the plan."""


def print_plan(gpu: str) -> int:
    """The steps in their order, and when each would end at the cost that it is given."""
    end = float(STARTS_S)
    for key, _ in steps(gpu):
        end += cost(key)
        print(f"{end:7.1f} s  {cost(key):5.1f}  {key}")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.gpu_suite", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/gpu"), help="folder for rows.jsonl")
    parser.add_argument("--budget", type=float, default=540, help="seconds")
    parser.add_argument("--plan", metavar="GPU", help="print the steps and their seconds alone")
    parser.add_argument("--only", default="", help="starts of keys, with commas: only their steps")
    options = parser.parse_args()
    end = time.monotonic() + options.budget
    if options.plan:
        return print_plan(options.plan)
    if not torch.cuda.is_available():
        raise SystemExit("gpu_suite: torch sees no CUDA device; run `make test` without one")
    if not STATUS.loaded:
        raise SystemExit(f"gpu_suite: {STATUS.reason}")
    gpu = current_gpu()
    rows = Rows(options.out, gpu, RESULTS / gpu)
    try:
        keys = [key for key, _ in steps() if key.startswith(tuple(options.only.split(",")))]
        return 1 if run_steps(steps, cost, rows, keys, end) else 0
    finally:
        rows.close()


if __name__ == "__main__":
    raise SystemExit(main())
