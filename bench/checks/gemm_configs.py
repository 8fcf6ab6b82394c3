"""The GEMM's configurations as the tests see them, and operands for each."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from bench.checks.inputs import FP8, Case, Maker
from tools.gemm_configs import GemmConfig, gemm_configs

BF16 = torch.bfloat16


class Config(GemmConfig):
    @property
    def dtype(self) -> torch.dtype:
        return FP8 if self.fp8 else BF16

    @property
    def swiglu(self) -> bool:
        """Whether half of a tile's columns are whole boxes of results."""
        return self.swap or self.block_n % 128 == 0

    @property
    def fp8_result(self) -> bool:
        """Whether it can quantise its SwiGLU results."""
        return self.fp8 and (self.swap or self.cluster_n == 2)


CONFIGS = [Config(**vars(config)) for config in gemm_configs()]
EDGES = [0, 1, 7, 8, 15, 16, 17, 63, 64, 65, 127, 128, 129]
"""Rows per expert around every size of a tile."""

PLAIN_CONFIGS = [config for config in CONFIGS if not config.gelu]


def operands(
    make: Maker, config: Config, m: int, *b_shape: int
) -> tuple[tuple[Tensor, Tensor], dict]:
    """Small integers, whose float32 sums are exact, as A `[m, K]` and B `[.., N, K]`."""
    shapes = (m, b_shape[-1]), b_shape
    a, b = (make.integers(*shape, low=-3, high=4).to(config.dtype) for shape in shapes)
    options: dict[str, Any] = {"config": config.number}
    if config.fp8:
        scale_b = torch.ones(b_shape[0], 1) if b.dim() == 3 else torch.ones(1)
        options |= {"sfa": torch.ones(1).to(make.device), "sfb": scale_b.to(make.device)}
    return (a, b), options


def config_cases(op: str, device: str) -> Iterator[Case]:
    """A case for every configuration, in `op`'s name: sums are exact, so are bf16 results."""
    make = Maker(device, BF16, 0)
    for config in CONFIGS:
        if op == "gemm" and config.gelu:
            args, options = operands(make, config, 150, 136, 640)
            yield Case(str(config), args, options | {"activation": "gelu"})
        elif op == "gemm":
            args, options = operands(make, config, sum(EDGES) + 2, len(EDGES), 136, 640)
            options["expert_offsets"] = make.offsets(EDGES)
            yield Case(f"integers {config}", args, options)
            if config.split_k:
                args, halved = operands(make, config, sum(EDGES) + 2, len(EDGES), 136, 512)
                yield Case(f"halves {config}", args, options | {"config": 200 + halved["config"]})
        elif op == "gemm_swiglu_fp8" and config.fp8_result:
            args, options = operands(make, config, 150, 3, 512, 384)
            options["expert_offsets"] = make.offsets([21, 0, 128])
            scale = make.uniform(150) / 64
            yield Case(str(config), args, options | {"row_scale": scale})
