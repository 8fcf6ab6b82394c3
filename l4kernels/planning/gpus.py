"""Datasheet peaks of the GPUs, dense; the measured ceilings stand in the result rows."""

from dataclasses import dataclass

from l4kernels.ops import Work


@dataclass(frozen=True)
class Peaks:
    """Bytes per second and dense FLOP per second, from the vendor's datasheet (SXM parts)."""

    memory: float
    bf16: float
    fp8: float
    memory_bytes: float


PEAKS = {
    "h100": Peaks(memory=3.35e12, bf16=989e12, fp8=1979e12, memory_bytes=80e9),
    "h200": Peaks(memory=4.8e12, bf16=989e12, fp8=1979e12, memory_bytes=141e9),
}


def gpu_key(device_name: str) -> str:
    """`NVIDIA H200` -> `h200`; raises on a GPU without peaks here, other boards of a name too."""
    words = set(device_name.lower().split())
    for key in PEAKS:
        if key in words and not words & {"pcie", "nvl"}:
            return key
    raise ValueError(f"no datasheet peaks for {device_name!r}; known (SXM): {', '.join(PEAKS)}")


def floor_us(work: Work, peaks: Peaks, *, fp8: bool = False) -> float:
    """The least time: bytes over bandwidth or FLOP over peak, whichever is longer."""
    return 1e6 * max(work.bytes / peaks.memory, work.flops / (peaks.fp8 if fp8 else peaks.bf16))
