"""Lengths and offsets that arrive as data: what is wrong with them, as a mask and as a message.

Nothing is read on the host unless an op has refused its data, which it does on a CPU. On a GPU the
mask makes the op report it (`l4kernels.take_device_error`) and keeps it from reading anything.
"""

from typing import Any

from torch import Tensor

from l4kernels.ops.check import Checker

WRONG = -1
"""A length that the ops report."""

LONGEST = 2**31 - 1
"""No int32 length is longer; comparing one with a larger number would wrap that."""

Rule = tuple[Tensor, str, Any]
"""What is broken (any true element), what was expected, what came."""


def unordered(offsets: Tensor, rows: int) -> Tensor:
    """Whether offsets `[B + 1]` do not ascend from 0 to at most `rows`; one element."""
    return ((offsets.diff() < 0) | (offsets[1:] > rows)).any() | (offsets[0] != 0)


def offset_rule(name: str, offsets: Tensor, rows: int, what: str) -> Rule:
    expected = f"{name} to ascend from 0 to at most {rows} (the rows of {what})"
    return unordered(offsets, rows), expected, offsets


def bound_rule(name: str, bound: int, lengths: Tensor) -> Rule:
    return lengths > bound, f"{name} to bound every length, {lengths.tolist()}", bound


def query_rules(cu_seqlens_q: Tensor, max_seqlen_q: int, q: Tensor) -> list[Rule]:
    """What sequences of queries one after the other must keep."""
    return [
        offset_rule("cu_seqlens_q", cu_seqlens_q, q.shape[0], "q"),
        bound_rule("max_seqlen_q", max_seqlen_q, cu_seqlens_q.diff()),
    ]


def index_rule(name: str, indices: Tensor, end: int) -> Rule:
    return (indices < 0) | (indices >= end), f"{name} in [0, {end}) where it is used", indices


def explained(check: Checker, error: IndexError, *rules: Rule) -> IndexError:
    """The error of an op in the words of its caller: the first rule that is broken."""
    for broken, expected, got in rules:
        if bool(broken.any()):
            shown = got.tolist() if isinstance(got, Tensor) else got
            return IndexError(f"{check.op}: expected {expected}, got {shown}")
    return error
