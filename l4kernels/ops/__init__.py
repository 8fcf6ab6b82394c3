"""Typed references: the meaning of every operation, and its CPU implementation."""

from l4kernels.ops.activation import silu_mul
from l4kernels.ops.mma_tile import mma_tile
from l4kernels.ops.registry import OPS, Op, Work, reference

__all__ = ["OPS", "Op", "Work", "mma_tile", "reference", "silu_mul"]
