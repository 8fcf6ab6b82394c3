"""Comparing results with references, running kernels in the emulator, and recording steps."""

from l4kernels.testing.compare import assert_close, relative_error, worst_tile
from l4kernels.testing.emulator import chained, emulated, serial_launches
from l4kernels.testing.recorder import CaptureError, Recorder, Recording

__all__ = [
    "CaptureError",
    "Recorder",
    "Recording",
    "assert_close",
    "chained",
    "emulated",
    "relative_error",
    "serial_launches",
    "worst_tile",
]
