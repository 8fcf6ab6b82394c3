"""How long a GPU takes: CUDA events, cold L2, median and spread."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """Microseconds over the repeats of one measurement."""

    median: float
    low: float  # 10th percentile
    high: float  # 90th percentile
    repeats: int


def summarise(microseconds: list[float]) -> Timing:
    ordered = sorted(microseconds)
    n = len(ordered)
    return Timing(statistics.median(ordered), ordered[n // 10], ordered[(9 * n) // 10], n)


LONG_S = 0.5
"""What the repeats of a call may take together; but five there are at least."""


def time_calls(call: Callable[[], object], *, repeats: int = 30, warmup: int = 3) -> Timing:
    """Times single calls, each on a cold L2: for work of tens of microseconds and more."""
    flush = torch.zeros(64 << 20, dtype=torch.int32, device="cuda")
    call()
    torch.cuda.synchronize()
    began = time.perf_counter()
    call()
    torch.cuda.synchronize()
    once = time.perf_counter() - began
    repeats = max(min(repeats, 5), min(repeats, int(LONG_S / once)))
    for _ in range(min(warmup - 2, repeats)):
        call()
    pairs = []
    for _ in range(repeats):
        flush.sum()  # read: written lines would have to be written back under the call
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        pairs.append((begin, end))
    torch.cuda.synchronize()
    return summarise([begin.elapsed_time(end) * 1e3 for begin, end in pairs])


def time_graph(
    calls: Sequence[Callable[[], object]], *, chain: int = 20, repeats: int = 30
) -> Timing:
    """Times one call inside a captured chain of `chain` calls: no host gaps between launches.

    For work of a few microseconds. The chain goes round `calls`, which do the same to different
    tensors, so that L2 holds no more of them than it does in a model.
    """
    graph = capture(lambda: [calls[i % len(calls)]() for i in range(chain)])
    return time_replays(graph.replay, repeats=repeats, of=chain)


def time_replays(replay: Callable[[], object], *, repeats: int = 30, of: int = 1) -> Timing:
    """Times one of the `of` equal parts of a graph that `replay` runs."""
    replay()
    torch.cuda.synchronize()
    samples = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        replay()
        end.record()
        torch.cuda.synchronize()
        samples.append(begin.elapsed_time(end) * 1e3 / of)
    return summarise(samples)


def capture(call: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """Captures a call into a graph, after a warm-up on a side stream."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph
