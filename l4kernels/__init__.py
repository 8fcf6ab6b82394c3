"""Llama 4 on Hopper: CUDA kernels, their typed references, and a thin model on top."""

from l4kernels import ops
from l4kernels._load import STATUS, take_device_error
from l4kernels.ops.registry import reference

__version__ = "0.1.0"
__all__ = ["STATUS", "ops", "reference", "take_device_error"]
