"""Where a check of the kernels' edges runs: in the emulator, or on a GPU."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.checks.inputs import Maker
from bench.checks.kernel_checks import device_error
from l4kernels.ops.library import LIBRARY_PATH
from l4kernels.testing import chained, emulated


@dataclass
class Machine:
    """Where a check runs: "cpu" stands for the emulator."""

    device: str = "cpu"

    def __post_init__(self) -> None:
        self.make = Maker(self.device, torch.bfloat16, seed=3)
        self.on_gpu = self.device != "cpu"

    def dispatch(self, **settings: Any) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext() if self.on_gpu else emulated(**settings)

    def chained(self) -> contextlib.AbstractContextManager[Any]:
        """On a GPU every launch is part of a chain."""
        return contextlib.nullcontext() if self.on_gpu else chained()

    def error(self) -> str:
        """What the kernels have reported since the last call."""
        if not self.on_gpu:
            return device_error()
        torch.cuda.synchronize()
        return device_error(LIBRARY_PATH)

    def ids(self, *values: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=self.device)


EDGES: dict[str, Callable[[Machine], None]] = {}


def edge(check: Callable[[Machine], None]) -> Callable[[Machine], None]:
    EDGES[check.__name__] = check
    return check
