"""What the verbs that load a model share: its options and its size."""

import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from l4kernels.layers.options import DTYPES, find_device
from l4kernels.layers.weights import FORMATS, WeightFormat
from l4kernels.planning.machine import gpu_problem


def checkpoint_bytes(folder: Path) -> int:
    """Of the weights' files, before they are opened."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def check_options(
    device: str | None, dtype: str | None, weights: str | None, kv_dtype: str
) -> None:
    """Refuses what no checkpoint can be loaded with, before one is looked at."""
    for option, value, known in (
        ("--dtype", dtype, tuple(DTYPES)),
        ("--weights", weights, tuple(FORMATS)),
        ("--kv-dtype", kv_dtype, ("auto", "fp8")),
    ):
        if value is not None and value not in known:
            raise ValueError(f"expected {option} to be one of {', '.join(known)}, got {value!r}")
    find_device(device or "cpu")


def load_options(
    device: str | None,
    dtype: str | None,
    weights: str | None,
    kv_dtype: str = "auto",
    *,
    stored: Collection[WeightFormat] = (),
    reference: bool = False,
) -> dict[str, Any]:
    """Arguments of `Llama4.from_checkpoint` from the command line's spellings; `stored` are the
    formats that the checkpoint holds, for a model that is as they are."""
    check_options(device, dtype, weights, kv_dtype)
    forms = list(stored) if weights is None else [FORMATS[weights]]
    target = find_device(device or _default_device(forms, reference))
    dtype = dtype or ("bfloat16" if target.type == "cuda" else "float32")
    by_default = target.type == "cuda" and any(form.fp8_cache for form in forms)
    small = kv_dtype == "fp8" or by_default
    return {
        "device": target,
        "dtype": DTYPES[dtype],
        "weights": weights,
        "kv_dtype": "fp8" if small else None,
    }


def _default_device(forms: Collection[WeightFormat], reference: bool) -> str:
    """The GPU if a whole model can run there; an idle GPU is never passed over in silence."""
    if not torch.cuda.is_available():
        return "cpu"
    problem = None if reference else gpu_problem(*forms)
    if problem is None:
        return "cuda"
    print(f"l4k: running on the CPU: {problem}", file=sys.stderr)
    return "cpu"
