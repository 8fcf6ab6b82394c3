"""Result rows: JSON lines that are appended and never edited."""

import json
import subprocess
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from bench.peaks import gpu_key
from bench.timing import Timing
from l4kernels import STATUS

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """What a figure depends on besides the code: GPU, driver, clocks, versions, commit."""
    query = "name,driver_version,clocks.sm,clocks.mem,power.limit,temperature.gpu"
    done = subprocess.run(
        ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits"],
        capture_output=True,
        text=True,
    )
    values = [v.strip() for v in done.stdout.splitlines()[0].split(",")] if done.stdout else []
    facts = dict(zip(query.replace(".", "_").split(","), values, strict=False))
    return facts | {
        "gpu": gpu_key(torch.cuda.get_device_name()),
        "torch": torch.__version__,
        "commit": STATUS.build.get("commit", "unknown"),
        "nvcc": STATUS.build.get("nvcc", "unknown"),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


class Rows:
    """Appends rows to one file per run and knows which keys have a row already."""

    def __init__(self, out: Path, gpu: str):
        out.mkdir(parents=True, exist_ok=True)
        self.path = out / "rows.jsonl"
        self._known = {
            row["key"]: row["time"]
            for folder in (RESULTS / gpu, out)
            for file in sorted(folder.glob("*.jsonl"))
            for row in map(json.loads, file.read_text().splitlines())
            if row["ok"]  # a step that failed is still missing
        }

    def age(self, key: str) -> str:
        """Sort key: measurements that have no row come first, then the oldest."""
        return self._known.get(key, "")

    def add(self, key: str, ok: bool, timing: Timing | None = None, **facts: Any) -> dict[str, Any]:
        row = {"key": key, "ok": ok, **(asdict(timing) if timing else {}), **facts, **machine()}
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        return row
