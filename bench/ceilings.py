"""What this GPU reaches with the simplest programs: clocks under load, copy and read bandwidth."""

import torch

from bench.gpu_run import Result
from l4kernels import ops
from l4kernels.bench.shapes import calls
from l4kernels.bench.timing import time_calls

CEILING_BYTES = 8 << 30
CLOCKS_TOKENS, CLOCKS_S = 8192, 3.0  # longer than clocks take to settle under load


def clocks_under_load(form: str) -> Result:
    """A large product on random data again and again; the row's clocks were seen meanwhile."""
    sizes = {"prefill": (CLOCKS_TOKENS,)}
    case = next(c for c in calls("gemm", ("scout",), ("prefill",), sizes) if form in c.label)
    args, options = case.make("cuda")
    timing = time_calls(lambda: ops.gemm(*args, **options), repeats=10)
    repeats = max(1, int(CLOCKS_S * 1e6 / timing.median))
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(repeats):
        ops.gemm(*args, **options)
    end.record()
    torch.cuda.synchronize()
    settled = begin.elapsed_time(end) * 1e3 / repeats
    flops = case.work().flops
    return timing, {
        "call": case.key,
        "repeats_under_load": repeats,
        "us_under_load": settled,
        "flops_per_second": flops / (settled * 1e-6),
    }


def copy() -> Result:
    """Device-to-device copy, bytes read and written."""
    source = torch.empty(CEILING_BYTES // 2, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    timing = time_calls(lambda: target.copy_(source))
    moved = 2 * source.numel()
    return timing, {"bytes": moved, "bytes_per_second": moved / (timing.median * 1e-6)}


def read() -> Result:
    """16-byte loads of every byte."""
    data = torch.empty(CEILING_BYTES, dtype=torch.uint8, device="cuda").random_()
    timing = time_calls(lambda: ops.word_sum(data))
    rate = data.numel() / (timing.median * 1e-6)
    return timing, {"bytes": data.numel(), "bytes_per_second": rate}
