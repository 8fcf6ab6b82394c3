"""Llama 4 on Hopper: CUDA kernels, their typed references, and a thin model on top.

Importing the package registers `torch.ops.l4kernels.*`. Only the program `l4k` is spared that: it
answers `--help` before torch is imported, and each of its verbs imports what it needs.
"""

import contextlib
import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "STATUS",
    "Engine",
    "EngineClosed",
    "Llama4",
    "Llama4Config",
    "Output",
    "Prompter",
    "Request",
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


def _is_l4k() -> bool:
    """Whether this process is `l4k`, under whatever name, or what runs a verb of it as a module."""
    program = sys.argv[0] if getattr(sys, "argv", None) else ""
    if program == "-m":  # its name while the module is looked for
        return not {"l4kernels", "l4kernels.emulation"}.isdisjoint(sys.orig_argv)
    with contextlib.suppress(OSError):
        if os.path.isfile(program):  # and not "-c", or a pipe
            with open(program, "rb") as script:
                return b"from l4kernels.cli import main" in script.read(8192)  # the installer's
    return False


if TYPE_CHECKING or not _is_l4k():
    from l4kernels import ops
    from l4kernels.dropin import (
        flash_attn_varlen_func,
        flash_attn_with_kvcache,
        fp8_matmul,
        grouped_gemm,
        moe_ffn,
    )
    from l4kernels.ops import reference
    from l4kernels.ops.library import STATUS, take_device_error
if TYPE_CHECKING:
    from l4kernels.engine.engine import Engine, EngineClosed
    from l4kernels.engine.llama4 import Llama4
    from l4kernels.engine.request import Output, Request
    from l4kernels.engine.sampling import Sampling
    from l4kernels.model.config import Llama4Config
    from l4kernels.prompt.chat import Prompter

_LAZY = {
    "dropin": ("flash_attn_varlen_func", "flash_attn_with_kvcache", "fp8_matmul", "grouped_gemm",
               "moe_ffn"),
    "ops.library": ("STATUS", "take_device_error"),
    "prompt.chat": ("Prompter",),
    "model.config": ("Llama4Config",),
    "engine.sampling": ("Sampling",),
    "engine.llama4": ("Llama4",),
    "engine.engine": ("Engine", "EngineClosed"),
    "engine.request": ("Output", "Request"),
    "ops": ("reference",),
}  # fmt: skip
"""Where names are that are imported when they are asked for: ops alone need no model."""


def __getattr__(name: str) -> Any:
    if name == "ops":
        return importlib.import_module("l4kernels.ops")
    for module, names in _LAZY.items():
        if name in names:
            return getattr(importlib.import_module(f"l4kernels.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
