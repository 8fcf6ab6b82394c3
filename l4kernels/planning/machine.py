"""This machine: what is installed, and which kernels are active and why others are not."""

import platform
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from l4kernels.layers.weights import FORMATS, WeightFormat
from l4kernels.ops import OPS
from l4kernels.ops.library import STATUS
from l4kernels.planning import cpu

PACKAGES = {
    "cli": ("typer", "rich", "jinja2"),
    "vision": ("pillow",),
    "core": ("torch", "numpy", "safetensors", "tokenizers"),
}
NO_MODEL_OPS = {"flash_decode", "merge_attention_states", "mma_tile", "word_sum"}
"""Ops that no model calls."""
MINIMUM_DRIVER = 580  # the library carries CUDA 13's runtime


def report() -> dict[str, Any]:
    """What a bug report needs; plain values, ready for JSON."""
    gpus = _gpus()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "executable": sys.executable,
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "cpu": cpu.report(),
        "driver": _driver(),
        "gpus": gpus,
        "library": _library(),
        "kernels": _kernels(gpus),
        "packages": {
            extra: {name: _version(name) for name in names} for extra, names in PACKAGES.items()
        },
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _driver() -> str | None:
    try:
        first = Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    except (OSError, IndexError):
        return None
    found = re.search(r"\b(\d+\.\d+(?:\.\d+)?)\b", first)
    return found.group(1) if found else None


def _gpus() -> list[dict[str, Any]]:
    if not torch.cuda.is_available():
        return []
    gpus = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        gpus.append(
            {
                "name": properties.name,
                "capability": f"{properties.major}.{properties.minor}",
                "hopper": (properties.major, properties.minor) == (9, 0),
                "memory_total": total,
                "memory_free": free,
                "sm_count": properties.multi_processor_count,
            }
        )
    return gpus


def _library() -> dict[str, Any]:
    """State of the compiled library, as the loader saw it."""
    return {
        "loaded": STATUS.loaded,
        "path": str(STATUS.path),
        "reason": STATUS.reason,
        "build": STATUS.build,
    }


def gpu_problem(*weights: str | WeightFormat) -> str | None:
    """Why a model with weights in these formats cannot run on CUDA kernels here; None if it can."""
    forms = [FORMATS[form] if isinstance(form, str) else form for form in weights]
    blocked = _blocked(_gpus())
    others = {op for form in FORMATS.values() for op in form.own_ops}
    others -= {op for form in forms for op in form.own_ops}
    needed = {name for name, op in OPS.items() if not op.without_kernel} - NO_MODEL_OPS - others
    missing = sorted(needed - set(STATUS.kernels))
    if not blocked and missing:
        names = " and ".join(sorted({form.name for form in forms}))
        blocked = f"{names} models need ops that have no CUDA kernel: {', '.join(missing)}"
    return blocked or None


def _blocked(gpus: list[dict[str, Any]]) -> str:
    """Why no op at all can run on a CUDA kernel; empty if some can."""
    if not STATUS.loaded:
        return STATUS.reason
    if torch.version.cuda is None:
        return "this torch is a CPU build"
    if not gpus:
        return "no CUDA device is visible"
    if not any(gpu["hopper"] for gpu in gpus):
        return f"needs compute capability 9.0 (Hopper), found {gpus[0]['capability']}"
    return ""


def _kernels(gpus: list[dict[str, Any]]) -> dict[str, dict[str, str]]:
    """For every op where it runs on a GPU, and why not on a CUDA kernel: "cuda"; "torch", its body
    by design; or "reference", its body for want of something."""
    blocked = _blocked(gpus)
    states = {}
    for name, op in sorted(OPS.items()):
        active, reason = "cuda", ""
        if op.without_kernel:  # whatever the machine has
            active, reason = "torch", f"by design on torch's kernels ({op.without_kernel})"
        elif blocked:
            active, reason = "reference", blocked
        elif name not in STATUS.kernels:
            active, reason = "reference", "this version has no CUDA kernel for it"
        states[name] = {"active": active, "reason": reason}
    return states
