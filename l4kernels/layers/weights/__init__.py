"""Formats of weights: one file each, and the table that all who offer a format read."""

from l4kernels.layers.weights.bf16 import Bf16Linear
from l4kernels.layers.weights.fp8 import Fp8Linear
from l4kernels.layers.weights.int4 import Int4Linear
from l4kernels.layers.weights.linear import Activations, Linear

__all__ = ["FORMATS", "Activations", "Linear"]

FORMATS: dict[str, type[Linear]] = {made.name: made for made in (Bf16Linear, Fp8Linear, Int4Linear)}
"""What `weights=...` can be, by name."""
