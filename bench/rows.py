"""Result rows: JSON lines that are appended and never edited."""

import functools
import json
import subprocess
import time
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from l4kernels import STATUS

from .peaks import gpu_key
from .timing import Timing

RESULTS = Path(__file__).parent / "results"
CLOCKS_S = 15
"""Seconds between two looks at the clocks: nvidia-smi can take one."""


def machine() -> dict[str, Any]:
    """What a figure depends on besides the code: GPU, driver, clocks, versions, commit."""
    facts = _clocks(int(time.monotonic() / CLOCKS_S))
    return facts | {"time": datetime.now(timezone.utc).isoformat(timespec="seconds")}


@functools.lru_cache(maxsize=1)
def _clocks(period: int) -> dict[str, Any]:
    query = "driver_version,clocks.sm,clocks.mem,power.limit,temperature.gpu"
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits"]
    try:
        out = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):  # a row without clocks is better than none
        out = ""
    values = [v.strip() for v in out.splitlines()[0].split(",")] if out else []
    values += ["unknown"] * (query.count(",") + 1 - len(values))
    return dict(zip(query.replace(".", "_").split(","), values, strict=True)) | {
        "name": torch.cuda.get_device_name(),
        "gpu": gpu_key(torch.cuda.get_device_name()),
        "torch": torch.__version__,
        "commit": STATUS.build.get("commit", "unknown"),
        "nvcc": STATUS.build.get("nvcc", "unknown"),
    }


def read(file: Path) -> list[dict[str, Any]]:
    """The rows of a file; a last line that was cut off while it was written is none."""
    whole, _, _ = file.read_text().rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]


class Rows:
    """Appends rows to one file per run and knows which keys have a row already."""

    def __init__(self, out: Path, gpu: str):
        out.mkdir(parents=True, exist_ok=True)
        self.path, self.gpu = out / "rows.jsonl", gpu
        self._known = {
            row["key"]: row["time"]
            for folder in (RESULTS / gpu, out)
            for file in sorted(folder.glob("*.jsonl"))
            for row in read(file)
            if row["ok"]  # a step that failed is still missing
        }

    def age(self, key: str) -> str:
        """Sort key: measurements that have no row come first, then the oldest."""
        return self._known.get(key, "")

    def add(self, key: str, ok: bool, timing: Timing | None = None, **facts: Any) -> dict[str, Any]:
        row = {"key": key, "ok": ok, **(asdict(timing) if timing else {}), **facts, **machine()}
        with self.path.open("a") as file:
            file.write(json.dumps(row, default=str) + "\n")
        return row
