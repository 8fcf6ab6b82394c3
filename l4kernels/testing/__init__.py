"""Comparing results with references, and running kernels in the emulator."""

from l4kernels.testing.compare import assert_close, relative_error, worst_tile
from l4kernels.testing.emulator import chained, emulated, serial_launches

__all__ = [
    "assert_close",
    "chained",
    "emulated",
    "relative_error",
    "serial_launches",
    "worst_tile",
]
