"""What an eager call costs the host of a GPU: Python, dispatcher, runtime and driver included."""

import ctypes
import time
from collections.abc import Iterator
from typing import Any

import torch

from l4kernels import STATUS
from l4kernels.bench.e2e import host_call_us
from l4kernels.bench.shapes import Call, benchmarked_ops, calls
from l4kernels.ops import OPS

CALLS = 200  # fewer than a stream takes before it makes the host wait
ANEW = 0.1
"""Of the calls, how many may ask what is not kept: a result may come to lie elsewhere."""


def eager_calls() -> tuple[None, dict[str, Any]]:
    """Microseconds of a call by case, beside torch's own smallest; fails if warm calls ask anew."""
    questions = ctypes.CDLL(str(STATUS.path)).l4k_new_questions
    questions.restype = ctypes.c_uint64
    us, anew = {}, {}
    for case in one_row():
        args, kwargs = case.make("cuda")
        op = OPS[case.op]
        for _ in range(3):
            op(*args, **kwargs)
        torch.cuda.synchronize()
        before, start = questions(), time.perf_counter()
        for _ in range(CALLS):
            op(*args, **kwargs)
        us[case.key] = (time.perf_counter() - start) / CALLS * 1e6
        torch.cuda.synchronize()
        if (asked := questions() - before) > ANEW * CALLS:
            anew[case.key] = asked
    if anew:
        raise RuntimeError(f"warm calls asked what should have been kept: {anew}")
    return None, {"op": None, "us": us, "host_call_us": host_call_us("cuda")}


def one_row() -> Iterator[Call]:
    """A case of every op of a decode step, of one token or the fewest keys."""
    for op in benchmarked_ops():
        if op in STATUS.kernels:
            yield from list(calls(op, ("scout",), ("decode",)))[:1]
