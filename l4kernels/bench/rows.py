"""Result rows: JSON lines that are appended and never edited."""

import json
import time
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from l4kernels import STATUS
from l4kernels.bench.clocks import Clocks
from l4kernels.bench.timing import Timing
from l4kernels.planning.gpus import gpu_name

Row = dict[str, Any]


def current_gpu() -> str:
    """What the table of GPUs calls torch's current device; raises like `gpu_name`."""
    return gpu_name(torch.cuda.get_device_name())


def machine() -> dict[str, Any]:
    """What a figure depends on besides the code and the clocks: GPU, versions, commit, time."""
    return {
        "name": torch.cuda.get_device_name(),
        "gpu": current_gpu(),
        "torch": torch.__version__,
        "commit": STATUS.build.get("commit", "unknown"),
        "nvcc": STATUS.build.get("nvcc", "unknown"),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def read(file: Path) -> list[Row]:
    """The rows of a file; a last line that was cut off while it was written is none."""
    whole, _, _ = file.read_text().rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]


def load(paths: list[Path]) -> list[Row]:
    """Rows of all files, newest per key; a folder stands for the .jsonl files in it."""
    files = [f for p in paths for f in (sorted(p.glob("*.jsonl")) if p.is_dir() else [p])]
    newest: dict[str, Row] = {}
    for file in files:
        for row in read(file):
            if row["time"] >= newest.get(row["key"], row)["time"]:
                newest[row["key"]] = row
    return sorted(newest.values(), key=lambda row: row["key"])


class Rows:
    """Appends rows to a file in `out`, and knows which keys have one there or among `published`."""

    def __init__(self, out: Path, gpu: str, published: Path | None = None):
        out.mkdir(parents=True, exist_ok=True)
        self.path, self.gpu, self._clocks = out / "rows.jsonl", gpu, Clocks()
        self._known: dict[str, str] = {
            row["key"]: row["time"]
            for folder in (published, out)
            if folder is not None
            for file in sorted(folder.glob("*.jsonl"))
            for row in read(file)
            # A step that failed is still missing, and so is one of other kernels.
            if row["ok"] and row.get("commit", "unknown") == STATUS.build.get("commit", "unknown")
        }

    def age(self, key: str) -> str:
        """Sort key: measurements that have no row come first, then the oldest."""
        return self._known.get(key, "")

    def add(
        self,
        key: str,
        ok: bool,
        timing: Timing | None = None,
        since: float | None = None,
        **facts: Any,
    ) -> Row:
        """A row, with the clocks that were seen since a time of the monotonic clock."""
        now = time.monotonic()
        clocks = self._clocks.during(now if since is None else since, now)
        row = {"key": key, "ok": ok, **(asdict(timing) if timing else {}), **facts}
        row |= clocks | machine()
        with self.path.open("a") as file:
            file.write(json.dumps(row, default=str) + "\n")
        return row

    def close(self) -> None:
        self._clocks.close()
