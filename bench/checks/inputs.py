"""Seeded sample tensors, and one call of an op."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from l4kernels import ops

FP8 = torch.float8_e4m3fn
I32 = torch.int32


@dataclass
class Case:
    """One call of an op."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name

    def copy(self) -> "Case":
        """With tensors of its own, for ops that write into their arguments."""

        def own(value: Any) -> Any:
            return value.clone() if isinstance(value, Tensor) else value

        kwargs = {name: own(value) for name, value in self.kwargs.items()}
        return Case(self.name, tuple(own(value) for value in self.args), kwargs)


Cases = dict[str, Callable[["Maker"], Iterator[Case]]]
"""What makes the cases of each op."""


def added_to(table: Cases) -> Callable[..., Any]:
    """A decorator of generators, which names the ops whose cases one makes."""

    def of(*names: str) -> Callable[..., Any]:
        def register(generator: Callable[..., Iterator[Case]]) -> Callable[..., Iterator[Case]]:
            for name in names:
                table[name] = lambda make, name=name: generator(make, name)
            return generator

        return register

    return of


class Maker:
    """Makes seeded tensors of one device and dtype; the numbers do not depend on either."""

    def __init__(self, device: str, dtype: torch.dtype, seed: int):
        self.device, self.dtype = device, dtype
        self.generator = torch.Generator().manual_seed(seed)

    def randn(self, *shape: int, scale: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        values = torch.randn(shape, generator=self.generator) * scale
        return values.to(self.device, dtype or self.dtype)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        values = torch.rand(shape, generator=self.generator) * (high - low) + low
        return values.to(self.device)

    def integers(self, *shape: int, low: int = 0, high: int, dtype: torch.dtype = I32) -> Tensor:
        values = torch.randint(low, high, shape, generator=self.generator)
        return values.to(self.device, dtype)

    def tensor(self, values: Any, dtype: torch.dtype = I32) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=self.device)

    def permutation(self, n: int) -> Tensor:
        return torch.randperm(n, generator=self.generator).to(self.device, I32)

    def offsets(self, counts: list[int]) -> Tensor:
        """expert_offsets of experts with these numbers of rows."""
        return self.tensor([0, *torch.tensor(counts).cumsum(0).tolist()])

    def fp8(self, *shape: int, scaling: str) -> tuple[Tensor, Tensor]:
        values = self.randn(*shape, dtype=torch.float32)
        return ops.quantize_fp8.reference(values, scaling)

    def int4(self, *shape: int, group: int = 128, zeros: bool = False) -> ops.Int4WithZeros:
        """Weights `[..., N, K]` that give products near 1: every code, positive scales."""
        *rows, k = shape
        packed = ops.pack_int4(self.integers(*shape, low=-8, high=8))
        scales = self.uniform(*rows, k // group, low=0.1, high=0.4).mul_(k**-0.5).bfloat16()
        points = self.integers(*scales.shape, high=16, dtype=torch.uint8) if zeros else None
        return ops.Int4WithZeros(packed, scales, points)

    def tiles(self, *shape: int, group: int = 128, zeros: bool = False) -> Tensor:
        return ops.tile_int4(*self.int4(*shape, group=group, zeros=zeros))
