"""The one table of GPUs. `l4k plan --gpu`, the floors of the bench and their errors all read it.

Figures are the vendor's; what was measured stands in the result rows.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # `l4k plan` does without torch
    from l4kernels.ops import Work


@dataclass(frozen=True)
class Peaks:
    """Dense FLOP per second."""

    bf16: float
    fp8: float


@dataclass(frozen=True)
class Gpu:
    """A board. One without `peaks` can be planned for; calls are not measured against it."""

    name: str  # lowercase, without x; its words tell it from others: "NVIDIA H100 PCIe"
    memory: float  # bytes that CUDA reports
    usable: float  # of these, for weights and KV
    bandwidth: float  # bytes per second
    peaks: Peaks | None = None

    @property
    def words(self) -> set[str]:
        return set(self.name.split("-"))

    def peak(self, *, fp8: bool) -> float:
        """Dense FLOP per second; raises `ValueError` on a GPU without peaks."""
        if self.peaks is None:
            raise _no_peaks(self.name)
        return self.peaks.fp8 if fp8 else self.peaks.bf16

    def floor_us(self, work: "Work", *, fp8: bool = False) -> float:
        """The least time: bytes over bandwidth or FLOP over peak, whichever is longer."""
        return 1e6 * max(work.bytes / self.bandwidth, work.flops / self.peak(fp8=fp8))


_SXM = Peaks(bf16=989e12, fp8=1979e12)
GPUS = {
    gpu.name: gpu
    for gpu in (  # `usable` leaves 4 to 4.5 GB
        Gpu("h100", 85.5e9, 81e9, 3.35e12, _SXM),
        Gpu("h100-pcie", 85.5e9, 81e9, 2.0e12),
        Gpu("h100-nvl", 100.5e9, 96e9, 3.9e12),
        Gpu("h20", 102.6e9, 98e9, 4.0e12),
        Gpu("gh200", 102.6e9, 98e9, 4.0e12),
        Gpu("h200", 150e9, 146e9, 4.8e12, _SXM),
    )
}


def with_peaks() -> list[str]:
    """Names of the GPUs that calls are measured against."""
    return [gpu.name for gpu in GPUS.values() if gpu.peaks]


def gpu_name(device_name: str) -> str:
    """`NVIDIA H200` -> `h200`; raises `ValueError` on a GPU without peaks.

    >>> gpu_name("NVIDIA H100 80GB HBM3")
    'h100'
    """
    words = set(device_name.lower().split())
    known: set[str] = set().union(*(gpu.words for gpu in GPUS.values()))
    for name in with_peaks():
        if GPUS[name].words == words & known:  # not H200 NVL
            return name
    raise _no_peaks(device_name)


def _no_peaks(name: str) -> ValueError:
    known = ", ".join(with_peaks())
    return ValueError(f"no datasheet peaks for {name!r}; known (SXM): {known}")
