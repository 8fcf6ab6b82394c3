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

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """What a figure depends on besides the code and the clocks: GPU, versions, commit, time."""
    name = torch.cuda.get_device_name()
    return {
        "name": name,
        "gpu": gpu_name(name),
        "torch": torch.__version__,
        "commit": STATUS.build.get("commit", "unknown"),
        "nvcc": STATUS.build.get("nvcc", "unknown"),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def read(file: Path) -> list[dict[str, Any]]:
    """The rows of a file; a last line that was cut off while it was written is none."""
    whole, _, _ = file.read_text().rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]


class Rows:
    """Appends rows to one file per run and knows which keys have a row already."""

    def __init__(self, out: Path, gpu: str):
        out.mkdir(parents=True, exist_ok=True)
        self.path, self.gpu, self._clocks = out / "rows.jsonl", gpu, Clocks()
        self._known = {
            row["key"]: row["time"]
            for folder in (RESULTS / gpu, out)
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
    ) -> dict[str, Any]:
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
