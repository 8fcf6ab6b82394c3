"""Random tensors to measure with."""

from typing import Any

import torch
from torch import Tensor

from l4kernels.model.config import Llama4Config
from l4kernels.ops import flash_decode_plan
from l4kernels.ops.check import FP8
from l4kernels.ops.int4_tiles import TILE_ROWS, tile_words
from l4kernels.ops.quant import BLOCK

CHOICES = 2
"""Rows of a token in an MoE layer: every published model routes it to one expert, and all to the
shared one."""


class Inputs:
    """Random tensors on a device; on "meta" only their shapes."""

    def __init__(self, device: str):
        self.device = device

    def normal(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.randn(*shape, device=self.device, dtype=dtype)

    def integers(self, high: int, *shape: int, dtype: torch.dtype) -> Tensor:
        return torch.randint(high, shape, device=self.device, dtype=dtype)

    def arange(self, n: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.arange(n, device=self.device, dtype=dtype)

    def shuffled(self, n: int) -> Tensor:
        if self.device == "meta":
            return torch.empty(n, dtype=torch.int32, device="meta")
        return torch.randperm(n, device=self.device).to(torch.int32)

    def permutation(self, tokens: int) -> Tensor:
        """As `moe_route` makes it: the rows of the routed experts, then the shared one's."""
        routed, token = self.shuffled(tokens), self.arange(tokens, torch.int32)
        return torch.cat([CHOICES * routed, CHOICES * token + 1])

    def fp8(self, *shape: int) -> Tensor:
        return self.normal(*shape).to(FP8)

    def int4_tiles(self, *shape: int) -> Tensor:
        """Of weights `[(E,) N, K]`: any codes, one scale."""
        *experts, n, k = shape
        tiles = *experts, n // TILE_ROWS, k // BLOCK, tile_words()
        words = self.integers(2**31, *tiles, dtype=torch.int32)
        words[..., TILE_ROWS * BLOCK // 8 :] = 0x3C003C00  # 2^-7, twice
        return words

    def numbers(self, values: Tensor) -> Tensor:
        """Lengths and offsets, which the op's work depends on: real values on "meta", too."""
        return values.to(torch.int32).to("cpu" if self.device == "meta" else self.device)

    def full(self, value: float, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.full(shape, value, device=self.device, dtype=dtype)


def planned(
    config: Llama4Config, call: tuple[tuple[Any, ...], dict[str, Any]]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A decoding call as a layer makes it: behind a fence, with the plan of the step."""
    (*_, k, _, lengths, table), options = call
    plan = flash_decode_plan(
        lengths,
        num_heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        capacity=table.shape[1] * k.shape[1],
        chunk=options["chunk"],
    )
    return call[0], options | {"plan": plan, "settled": True}
