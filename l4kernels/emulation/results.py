"""What the emulator writes when a program ends: how many reports there were, and the counters."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

Counts = dict[str, int]

COLUMNS = {  # of the table by source line
    "issued": "issued",
    "global_bytes": "requested",
    "sectors": "sectors",
    "bulk_bytes": "bulk bytes",
    "bank_conflicts": "conflicts",
    "flop": "FLOP",
    "waits": "waits",
}
SECTOR_BYTES = 32


@dataclass(frozen=True)
class Kernel:
    name: str
    counts: Counts
    lines: list[tuple[str, Counts]]


@dataclass(frozen=True)
class Results:
    """Reports by severity, launches that a report ended, and the kernels' counters."""

    reports: Counts
    kernels: list[Kernel]

    @property
    def failed(self) -> bool:
        return bool(self.reports["error"] or self.reports["ended"])


def read(path: Path) -> Results | None:
    """None if the program ended in a way that writes none, or used no CUDA at all."""
    lines = path.read_text(errors="replace").splitlines()
    if not lines:
        return None
    kernels: list[Kernel] = []
    for line in lines[1:]:
        name, counts = _split(line)
        if line.startswith("  "):
            kernels[-1].lines.append((name, counts))
        else:
            kernels.append(Kernel(name, counts, []))
    return Results(_split(lines[0])[1], kernels)


def _split(line: str) -> tuple[str, Counts]:
    match = re.fullmatch(r"(.*?)((?:(?:^| )\w+=\d+)+) ?", line.strip())
    if match is None:
        raise ValueError(f"expected names and counts of the emulator, got {line!r}")
    pairs = (item.split("=") for item in match[2].split())
    return match[1], {name: int(value) for name, value in pairs}


def table(kernel: Kernel) -> Iterator[str]:
    """The counters of a kernel as lines for people; what is nought is left out."""
    n = kernel.counts
    yield f"{kernel.name}: {n['launches']:,} launch{'es' if n['launches'] > 1 else ''}"
    classes = {key[7:]: value for key, value in n.items() if key.startswith("issued_") and value}
    by_class = sorted(classes.items(), key=lambda item: -item[1])
    shares = ", ".join(f"{name} {value:,}" for name, value in by_class)
    yield f"  warp instructions  {n.get('issued', 0):,}: {shares}"
    read, written = n["distinct_read"], n["distinct_written"]
    moved = n.get("sectors", 0) * SECTOR_BYTES + n.get("bulk_bytes", 0)
    if moved:
        needed = f" = {moved / (read + written):.2f} x needed" if read + written else ""
        distinct = f"{read:,} read, {written:,} written"
        yield f"  global memory      {moved:,} bytes moved{needed} ({distinct})"
    if conflicts := n.get("bank_conflicts"):
        yield f"  bank conflicts     {conflicts:,} extra wavefronts in shared memory"
    if flop := n.get("flop"):
        yield f"  tensor cores       {flop:,} FLOP"
    shown = [key for key in COLUMNS if any(counts.get(key) for _, counts in kernel.lines)]
    if shown:
        yield "  " + "".join(f"{COLUMNS[key]:>12}" for key in shown) + "  at"
    here = f"{os.getcwd()}/"
    for where, counts in kernel.lines:
        values = (f"{counts[key]:,}" if key in counts else "" for key in shown)
        yield "  " + "".join(f"{value:>12}" for value in values) + f"  {where.replace(here, '')}"
