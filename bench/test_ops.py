"""`pytest bench --benchmark-only`: the calls of `bench.shapes` under pytest-benchmark."""

import pytest
import torch

from bench.measure import floor_us
from bench.peaks import PEAKS, gpu_key
from bench.shapes import benchmarked_ops, calls
from l4kernels import STATUS
from l4kernels.ops import OPS

on_gpu = torch.cuda.is_available() and STATUS.loaded
CASES = [case for op in benchmarked_ops() for case in calls(op, ("scout",), ("decode", "prefill"))]


@pytest.mark.skipif(not on_gpu, reason="not measured: needs a Hopper GPU and the library")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.key)
def test_call(benchmark, case):
    args, kwargs = case.make("cuda")
    op = OPS[case.op]

    def call():
        op(*args, **kwargs)
        torch.cuda.synchronize()

    benchmark.extra_info["floor_us"] = floor_us(
        case.work(), PEAKS[gpu_key(torch.cuda.get_device_name())]
    )
    benchmark(call)
