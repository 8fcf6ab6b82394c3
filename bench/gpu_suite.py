"""A visit to a GPU in one command, with a library that was built elsewhere.

`python -m bench.gpu_suite --out DIR --budget SECONDS` runs the steps below, those without a row
first, and stops before a step that would start after the budget. Each step appends one row; a step
that fails writes a row with `ok: false` and the suite goes on. Nothing is compiled or installed.
"""

import argparse
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.peaks import PEAKS, gpu_key
from bench.rows import Rows
from bench.timing import Timing, capture, time_calls
from l4kernels import STATUS, ops
from l4kernels.testing import assert_close

Result = tuple[Timing | None, dict[str, Any]]
STEPS: dict[str, Callable[[], Result]] = {}


def step(key: str) -> Callable[[Callable[[], Result]], Callable[[], Result]]:
    """Registers a step under the key of its row, in the order of the file."""

    def register(function: Callable[[], Result]) -> Callable[[], Result]:
        STEPS[key] = function
        return function

    return register


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


@step("test.silu_mul")
def silu_mul_is_right() -> Result:
    shapes = [(1, 16), (7, 256), (64, 16384), (4097, 2048)]
    for m, width in shapes:
        x = random(m, width)
        assert_close(ops.silu_mul(x), ops.silu_mul.reference(x), 3e-3, f"silu_mul {m}x{width}")
    return None, {"shapes": shapes}


@step("test.mma_tile")
def mma_tile_is_exact() -> Result:
    a, b = (torch.randint(-4, 5, (64, 64), device="cuda").bfloat16() for _ in range(2))
    assert torch.equal(ops.mma_tile(a, b), ops.mma_tile.reference(a, b)), "mma_tile is not exact"
    return None, {"inputs": "integers in -4..4"}


@step("test.word_sum")
def word_sum_is_exact() -> Result:
    for words in (4, 4096, 1_000_004):
        x = torch.randint(-(2**31), 2**31 - 1, (words,), dtype=torch.int32, device="cuda")
        assert torch.equal(ops.word_sum(x), ops.word_sum.reference(x)), f"{words} words"
    return None, {}


@step("test.graph.dependent_launch")
def chained_launches_replay_in_a_graph() -> Result:
    """Two kernels, the second launched before the first has ended, replayed on new inputs."""
    x = random(4096, 16384)
    results: list[torch.Tensor] = []
    graph = capture(lambda: results.append(ops.silu_mul(ops.silu_mul(x))))
    for _ in range(20):
        x.normal_()
        graph.replay()
        expected = ops.silu_mul.reference(ops.silu_mul.reference(x))
        assert_close(results[-1], expected, 5e-3, "chained silu_mul")
    return None, {"replays": 20}


@step("ceiling.copy")
def copy_ceiling() -> Result:
    source = torch.empty(4 << 30, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    timing = time_calls(lambda: target.copy_(source))
    moved = 2 * source.numel()
    return timing, {"bytes": moved, "bytes_per_second": moved / (timing.median * 1e-6)}


@step("ceiling.read")
def read_ceiling() -> Result:
    data = torch.empty(8 << 30, dtype=torch.uint8, device="cuda").random_()
    timing = time_calls(lambda: ops.word_sum(data))
    return timing, {
        "bytes": data.numel(),
        "bytes_per_second": data.numel() / (timing.median * 1e-6),
    }


@step("bench.silu_mul.16384x8192")
def silu_mul_rate() -> Result:
    x = random(16384, 16384)
    timing = time_calls(lambda: ops.silu_mul(x))
    work = ops.silu_mul.work(x)
    return timing, {
        "bytes": work.bytes,
        "bytes_per_second": work.bytes / (timing.median * 1e-6),
        "torch_eager": time_calls(
            lambda: torch.nn.functional.silu(x[:, :8192]) * x[:, 8192:]
        ).median,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for rows.jsonl")
    parser.add_argument("--budget", type=float, default=540, help="seconds")
    arguments = parser.parse_args()
    begin = time.monotonic()
    if not torch.cuda.is_available():
        raise SystemExit("gpu_suite: torch sees no CUDA device; run `make test` without one")
    if not STATUS.loaded:
        raise SystemExit(f"gpu_suite: {STATUS.reason}")
    gpu = gpu_key(torch.cuda.get_device_name())
    rows = Rows(arguments.out, gpu)
    failed = skipped = 0
    for key in sorted(STEPS, key=rows.age):
        if time.monotonic() - begin > arguments.budget:
            skipped += 1
            continue
        torch.manual_seed(0)
        try:
            timing, facts = STEPS[key]()
            rows.add(key, True, timing, **facts)
            rate = facts.get("bytes_per_second")
            share = f"  {rate / 1e12:.2f} TB/s, {rate / PEAKS[gpu].memory:.0%}" if rate else ""
            print(f"ok    {key}" + (f"  {timing.median:.1f} us{share}" if timing else ""))
        except Exception as error:
            failed += 1
            rows.add(key, False, error=f"{type(error).__name__}: {error}"[:2000])
            print(f"FAIL  {key}\n{traceback.format_exc()}")
        torch.cuda.empty_cache()
    print(f"{len(STEPS) - failed - skipped} passed, {failed} failed, {skipped} skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
