"""Argument checks of the ops: what was expected, what came, what to do.

A check never reads tensor data: the same function serves the CPU body and the shape function, and
what it found holds for all tensors of the same shape, strides, dtype and device.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

NAMESPACE = "l4kernels"

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
FP8 = torch.float8_e4m3fn


def describe(t: Tensor) -> str:
    """`[5120, 128] bfloat16 on cpu`"""
    return f"{list(t.shape)} {str(t.dtype).removeprefix('torch.')} on {t.device}"


def tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among the arguments of a call, and those in its lists."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors_in(value)


def share_memory(a: Tensor, b: Tensor) -> bool:
    """Whether the bytes from the first to the last of one reach into those of the other."""
    (a_first, a_end), (b_first, b_end) = map(_extent, (a, b))
    return a_first < b_end and b_first < a_end


def _extent(t: Tensor) -> tuple[int, int]:
    if t.numel() == 0:
        return 0, 0
    last = sum((n - 1) * stride for n, stride in zip(t.shape, t.stride(), strict=True))
    return t.data_ptr(), t.data_ptr() + (last + 1) * t.element_size()


class Checker:
    """Collects the op's name so that every message starts with it."""

    def __init__(self, op_name: str):
        self.op = f"{NAMESPACE}.{op_name}"

    def fail(self, message: str, kind: type[Exception] = ValueError) -> NoReturn:
        raise kind(f"{self.op}: {message}")

    def require(self, condition: bool, message: str) -> None:
        if not condition:
            self.fail(message)

    def dtype(self, name: str, t: Tensor, allowed: Sequence[torch.dtype]) -> None:
        if not isinstance(t, Tensor):
            self.fail(f"expected {name} to be a tensor, got {t!r:.80}", TypeError)
        if t.dtype not in allowed:
            names = " or ".join(str(d).removeprefix("torch.") for d in allowed)
            self.fail(f"expected {name} to be {names}, got {describe(t)}", TypeError)

    def shape(self, name: str, t: Tensor, expected: Sequence[int | str]) -> None:
        """`expected` holds sizes, or a letter where any size will do, and "..." in front for any
        number of dimensions."""
        own = [e for e in expected if e != "..."]
        got = t.shape[t.dim() - len(own) :] if len(own) < len(expected) else t.shape
        fits = len(got) == len(own) and all(
            isinstance(e, str) or size == e for size, e in zip(got, own, strict=True)
        )
        if not fits:
            shown = ", ".join(map(str, expected))
            self.fail(f"expected {name} to be [{shown}], got {describe(t)}")

    def contiguous(self, name: str, t: Tensor) -> None:
        if not t.is_contiguous():
            self.fail(
                f"expected {name} to be contiguous, got {describe(t)} with strides "
                f"{list(t.stride())}; call {name}.contiguous() first"
            )

    def last_dim_contiguous(self, name: str, t: Tensor) -> None:
        if t.dim() and t.shape[-1] > 1 and t.stride(-1) != 1:
            self.fail(
                f"expected the last dimension of {name} to be contiguous, got {describe(t)} "
                f"with strides {list(t.stride())}; call {name}.contiguous() first"
            )

    def dense(self, **tensors: Tensor) -> None:
        """Neither sparse, nested nor quantised: a value lies where strides say."""
        for name, t in tensors.items():
            if t.layout == torch.strided and not t.is_nested and not t.is_quantized:
                continue
            layout = str(t.layout).removeprefix("torch.").strip("_")
            kind = "nested" if t.is_nested else "quantised" if t.is_quantized else layout
            self.fail(f"expected {name} to be a dense tensor, got a {kind} one", TypeError)

    def same_device(self, **tensors: Tensor | None) -> None:
        present = {name: t for name, t in tensors.items() if t is not None}
        if len({t.device for t in present.values()}) > 1:
            shown = ", ".join(f"{name} on {t.device}" for name, t in present.items())
            self.fail(f"expected all tensors on one device, got {shown}")

    def multiple(self, name: str, value: int, divisor: int) -> None:
        if value % divisor:
            self.fail(f"expected {name} to be a multiple of {divisor}, got {value}")

    def choice(self, name: str, value: str, allowed: Sequence[str]) -> None:
        if value not in allowed:
            self.fail(f"expected {name} to be one of {', '.join(allowed)}, got {value!r}")
