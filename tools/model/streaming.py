"""The kernels that `stream` simulates: stream_gemm, the swapped GEMM, and what is measured.

Rows of bench/results/h200 say how far the simulation is off: those of micro.launch_cost, on which
three of its constants are fitted, and those of the swapped GEMM, which are held out.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

from tools.nvcc import ROOT

from . import headers
from .engine import Machine
from .stream import Answer, Kernel, Runs, simulate

RESULTS = ROOT / "bench" / "results" / "h200"
KB = 1024
ROW_TILE = 16
SMEM_OF_SM = 228 * KB
KERNEL = headers.CSRC / "kernels" / "stream_gemm"
MIN_UNITS = headers.integer(KERNEL / "schedule.h", r"kStreamMinUnits = (\d+)")  # of a share
ROWS_ROOM = KB * headers.integer(KERNEL / "schedule.h", r"kStreamMaxRowBytes = (\d+) \* 1024")
STAGES = headers.integer(KERNEL / "weights.cuh", r"kStages = (\d+)")
FINISHERS = (2, 4)  # warps, for up to 8 tokens and for up to 16
LISTS = 2432  # bytes of shared memory besides ring, sums and rows: smem.cuh


@dataclass(frozen=True)
class Format:
    """Weights in stream_gemm: units of 16 rows, what a stage of them is and costs."""

    element: float  # bytes of a weight, its scales included
    unit_k: int
    stage_units: int
    slots: tuple[float, float]  # issue slots a pair of weights, up to 8 tokens and up to 16
    swapped: str  # what the GEMM calls it, if it has it

    @property
    def unit(self) -> int:
        return int(ROW_TILE * self.unit_k * self.element)


FORMATS = {
    "int4": Format(1056 / 2048, 128, 16, (3.44, 3.94), ""),  # slots: from SASS, budget.toml
    "bf16": Format(2, 64, 8, (3.0, 3.38), "bf16"),
    "e4m3": Format(1, 128, 8, (3.06, 3.91), "fp8"),
}


@dataclass(frozen=True)
class Product:
    name: str
    n: int
    k: int
    experts: int = 1  # whose weights are read in one launch

    def weights(self, form: Format) -> int:
        return int(self.experts * self.n * self.k * form.element)


def products() -> Iterator[Product]:
    """Scout's matrices, whole and as slices for 2, 4 and 8 GPUs."""
    for gpus in (1, 2, 4, 8):
        of = f" / {gpus}" if gpus > 1 else ""
        yield Product(f"QKV{of}", 7168 // gpus, 5120)
        yield Product(f"O{of}", 5120, 5120 // gpus)
        yield Product(f"gate-up{of}", 16384 // gpus, 5120)
        yield Product(f"down{of}", 5120, 8192 // gpus)
    yield Product("routed + shared gate-up", 16384, 5120, 2)
    yield Product("routed + shared down", 5120, 8192, 2)
    yield Product("head", 202048, 5120)


def stream_gemm(
    form: Format, product: Product, m: int, machine: Machine, room: int = ROWS_ROOM
) -> Kernel:
    """One item an expert, or one for each slice of the rows along K that shared memory needs.

    With experts nothing is known before the wait.
    """
    tiles = 1 if m <= 8 else 2  # of tokens
    blocks, row_tiles = product.k // form.unit_k, product.n // ROW_TILE * product.experts
    pitch = form.unit_k * 2  # of a block of a bf16 row
    slices = ceil(blocks / ((room // m - 16) // pitch))
    runs = [blocks * (i + 1) // slices - blocks * i // slices for i in range(slices)]
    shares = shares_of([units for units in runs for _ in range(row_tiles)], slices > 1, machine)
    rows_bytes = m * (max(runs) * pitch + 16)
    finishers = FINISHERS[tiles - 1]
    sums = finishers * tiles * 4 * KB
    smem = STAGES * form.stage_units * form.unit + sums + LISTS + rows_bytes
    pairs = form.stage_units * ROW_TILE * form.unit_k / 2
    return Kernel(
        tuple(tuple((units * form.unit, cycles) for units, cycles in runs) for runs in shares),
        form.stage_units * form.unit,
        STAGES,
        stage_cycles=pairs * form.slots[tiles - 1] / (128 * machine.issue_share),
        run_change=machine.run_change,
        finishers=finishers,
        trigger="loaded",
        per_sm=2 if tiles == 1 and 2 * (smem + KB) <= SMEM_OF_SM else 1,
        static=product.experts == 1,
        activations=rows_bytes,
    )


def shares_of(runs: list[int], sliced: bool, machine: Machine) -> list[Runs]:
    """Runs of units, one after the other, as csrc/tile/shares.h deals them to CTAs.

    A run that is all of a row tile is stored; others meet. The one at the start of K, with which a
    share ends, finds the rest, which its neighbour multiplied first.
    """
    units = sum(runs)
    ctas = max(1, min(machine.sms, units // MIN_UNITS))
    found: list[Runs] = []
    todo, run, left = iter(runs), 0, 0
    for cta in range(ctas):
        own: list[tuple[int, float]] = []
        share = units * (cta + 1) // ctas - units * cta // ctas
        while share:
            if left == 0:
                run = left = next(todo)
            part = min(left, share)
            found_rest = left == run and part == share and own
            alone = not sliced and (part == run or found_rest)
            own.append((part, machine.run_store if alone else machine.run_meet))
            left, share = left - part, share - part
        found.append(tuple(own))
    return found


def swapped(form: str, product: Product, m: int, machine: Machine) -> Kernel:
    """The GEMM's choice: tiles of 128 rows dealt to CTAs, its first boxes in L2 before the wait.

    Start and end are what a timeline of O in bf16 has (docs/kernels/gemm.md).
    """
    _, program, _ = headers.gemm(m, product.n, product.k, product.experts, form, None, machine.sms)
    blocks = product.k * program.element // 128
    tiles = product.experts * ceil(product.n / 128)
    count = min(tiles * program.splits, 2 * machine.sms // program.splits * program.splits)
    shares: list[list[tuple[int, float]]] = [[] for _ in range(count)]
    for part in range(tiles * program.splits):
        i = part % program.splits
        own = blocks * (i + 1) // program.splits - blocks * i // program.splits
        shares[part % count].append((own * 128 * 128, 0.0))
    return Kernel(
        tuple(map(tuple, shares)),
        128 * 128,
        program.stages,
        stage_cycles=250,
        end=machine.swap_end + 990,
        per_sm=2,
        static=product.experts == 1,
        activations=m * 128,
    )


def read_40m(kilobytes: int, static: bool, trigger: str, tiles: int = 2560) -> Kernel:
    """bench/micro/launch_cost.cu: tiles of 16 KB dealt to 132 CTAs, nothing done with them."""
    shares = [((tiles + i) // 132 * 16 * KB, 0.0) for i in range(132)]
    stages = min(12, kilobytes // 16)
    return Kernel(
        tuple((share,) for share in shares),
        16 * KB,
        stages,
        per_sm=2 if kilobytes <= 113 else 1,
        static=static,
        trigger=trigger,
    )


MICRO = {
    "read_40m_100k_before_wait": read_40m(100, True, "start"),
    "read_40m_200k_before_wait": read_40m(200, True, "start"),
    "read_40m_100k_early": read_40m(100, False, "start"),
    "read_40m_200k_early": read_40m(200, False, "start"),
    "read_40m_200k": read_40m(200, False, "end"),
    "copy_100k_early": read_40m(100, False, "start", 132),
    "copy_200k_early": read_40m(200, False, "start", 132),
    "copy_100k": read_40m(100, False, "end", 132),
}


@dataclass(frozen=True)
class Comparison:
    name: str
    measured_us: float
    answer: Answer

    @property
    def error(self) -> float:
        return self.answer.chained_us / self.measured_us - 1


def newest_rows() -> dict[str, dict[str, Any]]:
    files = [file.read_text() for file in RESULTS.glob("*.jsonl")]
    found = [json.loads(line) for file in files for line in file.splitlines()]
    return {row["key"]: row for row in sorted(found, key=lambda row: row["time"])}


def check_micro(machine: Machine) -> Iterator[Comparison]:
    """Beside the rows on which three constants are fitted."""
    metrics = newest_rows()["micro.launch_cost"]["metrics"]
    measured = {m["name"]: m["value"] for m in metrics}
    for name, kernel in MICRO.items():
        yield Comparison(name, measured[name], simulate(kernel, machine))


def check_swapped(machine: Machine, only: str = "") -> Iterator[Comparison]:
    """Beside the swapped GEMM's newest rows, held out but for the timeline of O in bf16."""
    found = newest_rows()
    late = Machine(**vars(machine) | {"hand_over": machine.hand_over + machine.swap_start})
    for key, product in measured_products():
        for form in ("bf16", "fp8"):
            if only not in f"{key} {form}":
                continue
            answer = simulate(swapped(form, product, int(key.split(".")[0]), late), late)
            measured = found[row_key(key, form)]["median"]
            yield Comparison(f"swapped {key} {form}", measured, answer)


def row_key(key: str, form: str) -> str:
    return f"bench.gemm.scout.{key}.{form}" + "_row" * (form == "fp8")


def measured_products() -> Iterator[tuple[str, Product]]:
    for m in (1, 16):
        for name, n, k in ("qkv", 7168, 5120), ("o", 5120, 5120), ("gate_up", 16384, 5120):
            yield f"{m}.{name}", Product(name, n, k)
        yield f"{m}.down", Product("down", 5120, 8192)
    yield "1.experts_gate_up", Product("experts", 16384, 5120)
    yield "1.experts_down", Product("experts", 5120, 8192)


def as_swapped(kernel: Kernel, machine: Machine) -> tuple[Kernel, Machine]:
    """With the swapped GEMM's start and end, of which the reason is not known."""
    slow = Machine(**vars(machine) | {"cta_start": machine.cta_start + machine.swap_start})
    return replace(kernel, end=kernel.end + machine.swap_end), slow


What = tuple[str, dict[str, float], dict[str, object], int]
WHAT_IF: list[What] = [
    ("as it stands", {}, {}, ROWS_ROOM),
    ("the next launch triggered at the start", {}, {"trigger": "start"}, ROWS_ROOM),
    ("one CTA an SM", {}, {"per_sm": 1}, ROWS_ROOM),
    ("two, four stages each", {}, {"per_sm": 2, "stages": 4}, ROWS_ROOM),
    ("two, three stages each", {}, {"per_sm": 2, "stages": 3}, ROWS_ROOM),
    ("rows take up to 66 KB", {}, {}, 66 * KB),
    ("two warps finish runs", {}, {"finishers": 2}, ROWS_ROOM),
    ("copies at 3.95 TB/s", {"stream_rate": 3.95}, {}, ROWS_ROOM),
    ("copies at 4.54 TB/s", {"stream_rate": 4.54}, {}, ROWS_ROOM),
    ("half of the issue slots used", {"issue_share": 0.5}, {}, ROWS_ROOM),
    ("all issue slots used", {"issue_share": 1.0}, {}, ROWS_ROOM),
    ("a grid's end passed on in 0.25 us", {"hand_over": 495}, {}, ROWS_ROOM),
    ("a CTA starts in 0.8 us", {"cta_start": 1600}, {}, ROWS_ROOM),
    ("sums meet in half the time", {"run_meet": 1350}, {}, ROWS_ROOM),
    ("a change of runs costs 150 cycles", {"run_change": 150}, {}, ROWS_ROOM),
]
"""What one may change: constants, the kernel, room for rows."""


@dataclass(frozen=True)
class Versus:
    """The swapped GEMM as it was measured, and streaming as the model has it."""

    format: str
    m: int
    product: str
    swapped_us: float
    streaming_us: float
    slow_us: float  # with the swapped GEMM's start and end

    @property
    def verdict(self) -> str:
        """Under 10 % either way nothing is decided."""
        if self.slow_us < self.swapped_us / 1.1:
            return "streaming"
        return "swapped" if self.streaming_us > 1.1 * self.swapped_us else "undecided"


def versus(machine: Machine, trigger: str) -> Iterator[Versus]:
    found = newest_rows()
    for form in ("bf16", "e4m3"):
        for key, product in measured_products():
            m = int(key.split(".")[0])
            kernel = stream_gemm(FORMATS[form], product, m, machine)
            if "experts" in key:
                kernel = replace(kernel, static=False)
            kernel = replace(kernel, trigger=trigger)
            us = simulate(kernel, machine).chained_us
            slow = simulate(*as_swapped(kernel, machine)).chained_us
            measured = found[row_key(key, FORMATS[form].swapped)]["median"]
            yield Versus(form, m, key.split(".")[1], measured, us, slow)
