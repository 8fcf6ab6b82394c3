"""The rows of csrc/kernels/gemm/configs.h as the tests see them, and operands for each."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.checks.inputs import FP8, Case, Maker


@dataclass(frozen=True)
class Row:
    config: int
    dtype: torch.dtype
    block_m: int
    block_n: int
    promote: bool = False
    gelu: bool = False
    swap: bool = False
    cluster_m: int = 1
    cluster_n: int = 1

    def __str__(self) -> str:
        return f"row{self.config}"

    @property
    def fp8(self) -> bool:
        return self.dtype == FP8

    @property
    def fp8_result(self) -> bool:
        """Whether it can quantise its SwiGLU results."""
        return self.fp8 and (self.swap or self.cluster_n == 2)


BF16 = torch.bfloat16
ROWS = [
    Row(0, BF16, 128, 256),
    Row(1, BF16, 128, 128),
    Row(2, BF16, 128, 128, gelu=True, cluster_n=2),
    Row(3, BF16, 128, 256, cluster_m=2),
    Row(4, FP8, 128, 128, promote=True, cluster_n=2),
    Row(5, FP8, 256, 128, promote=True, cluster_n=2),
    Row(6, FP8, 128, 256),
    Row(7, FP8, 128, 256, cluster_m=2),
    *(Row(8 + i, BF16, m, 128, swap=True) for i, m in enumerate((16, 64, 128))),
    *(Row(11 + i, FP8, m, 128, promote=True, swap=True) for i, m in enumerate((16, 64, 128))),
    *(Row(14 + i, FP8, m, 128, swap=True) for i, m in enumerate((16, 64, 128))),
]
EDGES = [0, 1, 7, 8, 15, 16, 17, 63, 64, 65, 127, 128, 129]
"""Rows per expert around every size of a tile."""

PLAIN_ROWS = [row for row in ROWS if not row.gelu]


def operands(make: Maker, row: Row, m: int, *b_shape: int) -> tuple[tuple[Tensor, Tensor], dict]:
    """Small integers, whose float32 sums are exact, as A `[m, K]` and B `[.., N, K]`."""
    a, b = (
        make.integers(*shape, low=-3, high=4).to(row.dtype) for shape in ((m, b_shape[-1]), b_shape)
    )
    options: dict[str, Any] = {"config": row.config}
    if row.fp8:
        scale_b = torch.ones(b_shape[0], 1) if b.dim() == 3 else torch.ones(1)
        options |= {"sfa": torch.ones(1).to(make.device), "sfb": scale_b.to(make.device)}
    return (a, b), options


def row_cases(op: str, device: str) -> Iterator[Case]:
    """A case for every row, in `op`'s name: sums are exact, so are bf16 results."""
    make = Maker(device, BF16, 0)
    for row in ROWS:
        if op == "gemm" and row.gelu:
            args, options = operands(make, row, 150, 136, 640)
            yield Case(f"row {row.config}", args, options | {"activation": "gelu"})
        elif op == "gemm":
            args, options = operands(make, row, sum(EDGES) + 2, len(EDGES), 136, 640)
            options["expert_offsets"] = make.offsets(EDGES)
            yield Case(f"integers row {row.config}", args, options)
        elif op == "gemm_swiglu_fp8" and row.fp8_result:
            args, options = operands(make, row, 150, 3, 512, 384)
            options["expert_offsets"] = make.offsets([21, 0, 128])
            scale = make.uniform(150) / 64
            yield Case(f"row {row.config}", args, options | {"row_scale": scale})
