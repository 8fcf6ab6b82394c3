"""Llama 4 on Hopper: CUDA kernels, their typed references, and a thin model on top."""

from typing import Any

from l4kernels import ops
from l4kernels._load import STATUS, take_device_error
from l4kernels.dropin import (
    flash_attn_varlen_func,
    flash_attn_with_kvcache,
    fp8_matmul,
    grouped_gemm,
    moe_ffn,
)
from l4kernels.ops.registry import reference

__version__ = "0.1.0"
__all__ = [
    "STATUS",
    "Llama4",
    "Llama4Config",
    "flash_attn_varlen_func",
    "flash_attn_with_kvcache",
    "fp8_matmul",
    "grouped_gemm",
    "moe_ffn",
    "ops",
    "reference",
    "take_device_error",
]


def __getattr__(name: str) -> Any:
    if name == "Llama4":
        from l4kernels.model.llama4 import Llama4

        return Llama4
    if name == "Llama4Config":
        from l4kernels.model.config import Llama4Config

        return Llama4Config
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
