"""One call measured: time, share of the floor, peers of the same run, as a row."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map_only

from l4kernels.bench.shapes import Arguments, Call
from l4kernels.bench.timing import Timing, time_calls, time_graph
from l4kernels.ops import OPS, Work
from l4kernels.planning.gpus import GPUS
from l4kernels.testing import relative_error

SMALL_US = 50
"""Below this floor a call is timed inside a captured chain, where launches leave no gaps."""
ROTATED_BYTES = 128 << 20
"""A chain goes round enough copies of its tensors to push each out of L2 (50 MB) in between."""
MAX_COPIED_BYTES = 4 << 30  # a vocabulary of which a call reads a few rows is copied once or twice


def timed(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    work: Work,
    floor: float,
) -> Timing:
    if floor >= SMALL_US:
        return time_calls(functools.partial(function, *args, **kwargs))
    held = sum(t.nbytes for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor))
    copies = min(20, math.ceil(ROTATED_BYTES / max(work.bytes, 1)), 1 + MAX_COPIED_BYTES // held)
    sets = [(args, kwargs)]
    sets += [tree_map_only(torch.Tensor, torch.Tensor.clone, sets[0]) for _ in range(copies - 1)]
    # A replay starts some microseconds late, which a long chain of short calls shares.
    chain = max(20, min(100, int(500 / floor)))
    return time_graph([functools.partial(function, *a, **named) for a, named in sets], chain=chain)


def timed_chained(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Timing | None:
    """A chain in which each call takes the result of the one before; None if it cannot be one.

    In `timed` the calls of a chain share nothing, as neighbours in a model never do.
    """
    returned, given = function(*args, **kwargs), args[0]
    if returned is None:
        return None
    result = first_tensor(returned)
    if (result.shape, result.dtype) != (given.shape, given.dtype):
        return None
    held = [given]

    def step() -> None:
        held[0] = first_tensor(function(held[0], *args[1:], **kwargs))

    return time_graph([step], chain=20)


@dataclass(frozen=True)
class Peers:
    """What one op is measured against: name -> callable with the op's signature."""

    calls: Mapping[str, Callable[..., Any]]
    prepare: Callable[[str, Arguments], Arguments]
    """Lays a call's arguments out as the peer of a name wants them, outside of the timed call."""
    other_result: frozenset[str] = frozenset()
    """Those that return the same work in another form: they are not compared."""


def measure(
    case: Call, gpu: str, peers: Peers | None = None
) -> Iterator[tuple[Timing, dict[str, Any]]]:
    """Times a call on the GPU, then its peers; each peer is first compared with the reference.

    Yields timing and facts as soon as there are some, and again with the peers: a peer that hangs
    or breaks the process does not cost the measurement.
    """
    args, kwargs = case.make("cuda")
    op, work = OPS[case.op], case.work()
    floor = case.floor_us(GPUS[gpu])
    timing = timed(op, args, kwargs, work, floor)
    facts: dict[str, Any] = {
        "op": case.op,
        "model": case.model,
        "phase": case.phase,
        "bytes": work.bytes,
        "flops": work.flops,
        "floor_us": floor,
        "share_of_floor": floor / timing.median,
        "bytes_per_second": work.bytes / (timing.median * 1e-6),
        "flops_per_second": work.flops / (timing.median * 1e-6),
        "peers": {},
    }
    if floor < SMALL_US and (chained := timed_chained(op, args, kwargs)) is not None:
        facts["dependent_us"] = chained.median
    yield timing, facts
    try:
        expected = op.reference(*args, **kwargs)
    except torch.OutOfMemoryError:  # float32 copies of a cache of 10M tokens
        facts["left_out"] = "peers: the reference they are compared with does not fit this GPU"
        yield timing, facts
        return
    if expected is not None:  # what is written in place is another after every call
        facts["relative_error"] = difference(op(*args, **kwargs), expected)
    if peers is None:
        yield timing, facts
        return
    for name, peer in peers.calls.items():
        try:
            given, named = peers.prepare(name, (args, kwargs))
            if expected is not None and name not in peers.other_result:
                error = difference(peer(*given, **named), expected)
                if error > 0.05:
                    facts["peers"][name] = f"differs from the reference by {error:.2g}"
                    continue
            facts["peers"][name] = timed(peer, given, named, work, floor).median
        except Exception as error:
            facts["peers"][name] = f"{type(error).__name__}: {error}"[:200]
        yield timing, facts


def difference(got: Any, expected: Any) -> float:
    """Relative error of the first result."""
    return relative_error(first_tensor(got), first_tensor(expected))


def first_tensor(result: Any) -> torch.Tensor:
    return result if isinstance(result, torch.Tensor) else result[0]


def line(case: Call, work: Work, gpu: str, timing: Timing | None, facts: dict[str, Any]) -> str:
    """`rms_norm scout 16384   floor 69.9 us   73.1 us ±0.4   96 % of floor   1.9x torch`"""
    floor = case.floor_us(GPUS[gpu])
    text = f"{case.op:16s} {case.model:9s} {case.label:30s} floor {floor:9.2f} us ({gpu})  "
    if timing is None:
        return text + "not measured"
    text += f"{timing.median:9.2f} us ±{(timing.high - timing.low) / 2:.2f}  "
    text += f"{floor / timing.median:4.0%} of floor"
    for name, value in facts["peers"].items():
        if isinstance(value, float):
            text += f"  {value / timing.median:.2f}x {name}"
    return text
