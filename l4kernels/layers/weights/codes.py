"""Rows of a weight that came quantised: codes and scales, in the layout that our formats hold.

A format of weights that holds the same codes takes them bit by bit; any other takes the values that
they stand for.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from l4kernels import ops
from l4kernels.layers.weights import FORMATS, WeightFormat, int4_format
from l4kernels.ops.quant import BLOCK

Rows = TypeVar("Rows", bound="Codes")

_PART = 1 << 20
"""Codes that are looked at together."""


def invalid_scales(scales: Tensor, kind: str) -> int:
    """How many of the scales of "int" or "float" codes are NaN, infinite or 0, or below 0.

    Those of integers may be below: -8 reaches further than 7, so a search for the least error
    makes some negative, ours and those of others.

    >>> scales = torch.tensor([0.5, -0.5, 0.0, torch.nan])
    >>> invalid_scales(scales, "int"), invalid_scales(scales, "float")
    (2, 3)
    """
    good = scales.isfinite() & (scales != 0 if kind == "int" else scales > 0)
    return int((~good).sum())


@dataclass(frozen=True, eq=False)
class Codes(ABC):
    """Rows `[n, K]` of a weight; every tensor of it begins with a dimension of n."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """`(n, K)` of the weights that it stands for."""

    @property
    @abstractmethod
    def form(self) -> WeightFormat:
        """The format of weights that holds these codes as they are."""

    @abstractmethod
    def dequantized(self) -> Tensor:
        """float32 `[n, K]`."""

    @property
    @abstractmethod
    def scales(self) -> Tensor:
        """Whatever its codes are multiplied by."""

    def invalid(self) -> int:
        """How many of its codes and scales stand for no number."""
        return invalid_scales(self.scales, "float")

    def map(self: Rows, change: Any) -> Rows:
        """With every tensor changed in one way."""
        return replace(self, **{name: change(t) for name, t in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """Those that are there, by name."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: tensor for name, tensor in values.items() if tensor is not None}

    def rows(self: Rows, first: int, end: int) -> Rows:
        return self.map(lambda tensor: tensor[first:end])

    def to(self: Rows, device: torch.device) -> Rows:
        return self.map(lambda tensor: tensor.to(device))


@dataclass(frozen=True, eq=False)
class Fp8Codes(Codes):
    """`q * scale` of each row.

    Args:
        q: float8_e4m3fn `[n, K]`.
        scale: float32 `[n]`.

    >>> q = torch.ones(2, 4).to(torch.float8_e4m3fn)
    >>> Fp8Codes(q, torch.tensor([0.5, 2.0])).dequantized()[:, 0]
    tensor([0.5000, 2.0000])
    """

    q: Tensor
    scale: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        n, k = self.q.shape
        return n, k

    @property
    def form(self) -> WeightFormat:
        return FORMATS["fp8"]

    @property
    def scales(self) -> Tensor:
        return self.scale

    def invalid(self) -> int:
        # A byte is NaN where all seven bits below the sign are set. In parts: memory that is new
        # costs more than the rest.
        parts = self.q.view(torch.uint8).split(max(1, _PART // self.q.shape[1]))
        nan = sum(int(((part & 0x7F) == 0x7F).sum()) for part in parts)
        return super().invalid() + nan

    def dequantized(self) -> Tensor:
        return self.q.float() * self.scale[:, None]


@dataclass(frozen=True, eq=False)
class Int4Codes(Codes):
    """`(nibble - zero) * scale` of each group along K.

    Args:
        packed: int32 `[n, K / 8]` of `ops.pack_int4`; K is a multiple of 128.
        group_scales: float32, bfloat16 or float16 `[n, K / group]`; the group is 128, 64 or 32.
            The kernels' tiles have them in bfloat16: others are rounded there.
        zeros: uint8, the shape of `group_scales`; None: all are 8.

    >>> codes = Int4Codes(ops.pack_int4(torch.ones(16, 128)), torch.full((16, 1), 0.5))
    >>> codes.form.name, codes.dequantized()[0, 0].item()
    ('int4', 0.5)
    """

    packed: Tensor
    group_scales: Tensor
    zeros: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        n, words = self.packed.shape
        return n, 8 * words

    @property
    def group(self) -> int:
        return self.shape[1] // self.group_scales.shape[1]

    @property
    def form(self) -> WeightFormat:
        return int4_format(self.group, zeros=self.zeros is not None)

    @property
    def scales(self) -> Tensor:
        return self.group_scales

    def invalid(self) -> int:
        return invalid_scales(self.scales, "int")

    def dequantized(self) -> Tensor:
        return ops.dequantize_int4(self.packed, self.group_scales, self.zeros)

    def in_tiles_of(self, form: WeightFormat) -> "Int4Codes":
        """Groups of 128 without zero points as a format with others has them: the same values."""
        assert self.group == BLOCK and self.zeros is None
        scales = self.group_scales.repeat_interleave(BLOCK // form.group, 1)
        zeros = torch.full_like(scales, 8, dtype=torch.uint8) if form.zeros else None
        return Int4Codes(self.packed, scales, zeros)
