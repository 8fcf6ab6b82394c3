"""`pytest bench`: the calls of `l4kernels.bench.shapes` under pytest-benchmark.

On a GPU a round is one measurement of `l4kernels.bench.measure`, and the clock moves by what its
events say. Anywhere else the typed references run on the demo's shapes: figures of this machine,
not of a GPU.
"""

import time

import pytest
import torch

from l4kernels import STATUS
from l4kernels.bench.measure import timed
from l4kernels.bench.rows import current_gpu
from l4kernels.bench.shapes import PHASES, benchmarked_ops, calls
from l4kernels.ops import OPS
from l4kernels.planning.gpus import GPUS

ON_GPU = torch.cuda.is_available() and STATUS.loaded
MODELS, SIZES = (("scout", "maverick"), None) if ON_GPU else (("demo",), {"decode": (1, 64)})
CASES = [case for op in benchmarked_ops() for case in calls(op, MODELS, tuple(PHASES), SIZES)]


class EventClock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


CLOCK = EventClock()


@pytest.mark.benchmark(timer=CLOCK if ON_GPU else time.perf_counter)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.key)
def test_call(benchmark, case):
    op, (args, kwargs) = OPS[case.op], case.make("cuda" if ON_GPU else "cpu")

    def measured() -> None:
        CLOCK.now += timed(op, args, kwargs, case.work(), floor).median * 1e-6

    benchmark.group = case.op
    if ON_GPU:
        floor = case.floor_us(GPUS[current_gpu()])
        benchmark.extra_info["floor_us"] = floor
        benchmark.pedantic(measured, rounds=3)
    else:
        benchmark.pedantic(op, args, kwargs, rounds=3, warmup_rounds=1)
