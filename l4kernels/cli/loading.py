"""What the verbs that load a model share: its options and its size."""

import sys
from pathlib import Path
from typing import Any

import torch

from l4kernels.layers.options import DTYPES, find_device
from l4kernels.layers.weights import FORMATS
from l4kernels.planning.machine import gpu_problem


def checkpoint_bytes(folder: Path) -> int:
    """Of the weights' files, before they are opened."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def load_options(
    device: str | None,
    dtype: str | None,
    weights: str,
    kv_dtype: str = "auto",
    *,
    reference: bool = False,
) -> dict[str, Any]:
    """Arguments of `Llama4.from_pretrained` from the command line's spellings."""
    target = find_device(device or _default_device(weights, reference))
    dtype = dtype or ("bfloat16" if target.type == "cuda" else "float32")
    for option, value, known in (
        ("--dtype", dtype, DTYPES),
        ("--weights", weights, tuple(FORMATS)),
        ("--kv-dtype", kv_dtype, ("auto", "fp8")),
    ):
        if value not in known:
            raise ValueError(f"expected {option} to be one of {', '.join(known)}, got {value!r}")
    small = kv_dtype == "fp8" or (FORMATS[weights].fp8_cache and target.type == "cuda")
    return {
        "device": target,
        "dtype": DTYPES[dtype],
        "weights": weights,
        "kv_dtype": "fp8" if small else None,
    }


def _default_device(weights: str, reference: bool) -> str:
    """The GPU if a whole model can run there; an idle GPU is never passed over in silence."""
    if not torch.cuda.is_available():
        return "cpu"
    problem = None if reference else gpu_problem(weights)
    if problem is None:
        return "cuda"
    print(f"l4k: running on the CPU: {problem}", file=sys.stderr)
    return "cpu"
