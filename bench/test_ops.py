"""`pytest bench --benchmark-only`: the calls of `bench.shapes` under pytest-benchmark."""

import pytest
import torch

from l4kernels import STATUS
from l4kernels.ops import OPS

from .peaks import PEAKS, gpu_key
from .shapes import benchmarked_ops, calls

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

    peaks = PEAKS[gpu_key(torch.cuda.get_device_name())]
    benchmark.extra_info["floor_us"] = case.floor_us(peaks)
    benchmark(call)
