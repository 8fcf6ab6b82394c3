"""Clocks, power and throttling of the GPU while steps run: one nvidia-smi that goes on sampling."""

import contextlib
import statistics
import subprocess
import threading
import time
from typing import Any

QUERY = (
    "driver_version,power.limit,clocks.mem,clocks.sm,power.draw,temperature.gpu,"
    "clocks_event_reasons.active"
)
PERIOD_MS = 100
REASONS = {  # bits of nvmlClocksEventReasons
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "thermal, by software",
    0x40: "thermal, by hardware",
    0x80: "power brake",
}


class Clocks:
    """Samples from its start on. Without nvidia-smi there are none, and every answer says so."""

    def __init__(self) -> None:
        self._samples: list[tuple[float, list[str]]] = []
        command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader,nounits"]
        self._process: subprocess.Popen[str] | None = None
        with contextlib.suppress(OSError):
            self._process = subprocess.Popen(
                [*command, "-lms", str(PERIOD_MS)], stdout=subprocess.PIPE, text=True
            )
            threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        for line in self._process.stdout:
            values = [value.strip() for value in line.split(",")]
            if len(values) == QUERY.count(",") + 1:
                self._samples.append((time.monotonic(), values))

    def during(self, begin: float, end: float) -> dict[str, Any]:
        """What was seen between two times of the monotonic clock, or last before the end."""
        seen = [values for at, values in list(self._samples) if begin <= at <= end]
        seen = seen or [values for at, values in list(self._samples)[-1:] if at <= end]
        if not seen:
            return dict.fromkeys(("driver_version", "power_limit", "clocks_sm"), "unknown")
        sm = [number(values[3]) for values in seen]
        reasons = 0
        for values in seen:
            with contextlib.suppress(ValueError):
                reasons |= int(values[6], 16)
        return {
            "driver_version": seen[-1][0],
            "power_limit": seen[-1][1],
            "clocks_mem": seen[-1][2],
            "clocks_sm": statistics.median(sm),
            "clocks_sm_range": [min(sm), max(sm)],
            "power_draw": max(number(values[4]) for values in seen),
            "temperature_gpu": seen[-1][5],
            "throttled_by": [text for bit, text in REASONS.items() if reasons & bit],
            "clock_samples": len(seen),
        }

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def number(text: str) -> float:
    try:
        return float(text)
    except ValueError:  # "[N/A]"
        return 0.0
