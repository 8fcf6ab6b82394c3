"""Llama 4 on Hopper: CUDA kernels, their typed references, and a thin model on top."""

import importlib
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
from l4kernels.ops import reference

__version__ = "0.1.0"
__all__ = [
    "STATUS",
    "Llama4",
    "Llama4Config",
    "Prompter",
    "Sampling",
    "flash_attn_varlen_func",
    "flash_attn_with_kvcache",
    "fp8_matmul",
    "grouped_gemm",
    "moe_ffn",
    "ops",
    "reference",
    "take_device_error",
]


_OF_THE_MODEL = {
    "Llama4": "llama4",
    "Llama4Config": "config",
    "Prompter": "chat",
    "Sampling": "generate",
}
"""Names that are imported when they are asked for: ops alone need none of it."""


def __getattr__(name: str) -> Any:
    if name not in _OF_THE_MODEL:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"l4kernels.model.{_OF_THE_MODEL[name]}"), name)


def __dir__() -> list[str]:
    return __all__
