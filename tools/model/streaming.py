"""The kernels that `stream` simulates: stream_gemm, the swapped GEMM, and what is measured.

`python -m tools.model stream` says what it predicts for Llama 4 Scout; `--check` how far the same
simulation is from rows of bench/results/h200: of micro.launch_cost, on which three of its constants
are fitted, and of the swapped GEMM, which is held out.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil

from l4kernels.bench import rows
from tools.nvcc import ROOT

from . import headers
from .engine import Machine
from .stream import Answer, Kernel, Runs, simulate

KB = 1024
ROW_TILE = 16
SMEM_OF_SM = 228 * KB
ROWS_ROOM = 66 * KB  # of shared memory for activations
MIN_UNITS = 8  # of a share


@dataclass(frozen=True)
class Format:
    """Weights in stream_gemm: units of 16 rows, what a stage of them is and costs."""

    element: float  # bytes of a weight, its scales included
    unit_k: int
    stage_units: int
    slots: tuple[float, float]  # issue slots a pair of weights, up to 8 tokens and up to 16
    swapped: str | None  # what the GEMM calls it

    @property
    def unit(self) -> int:
        return int(ROW_TILE * self.unit_k * self.element)


FORMATS = {
    "int4": Format(1056 / 2048, 128, 16, (3.6, 4.25), None),  # slots: the budget
    "bf16": Format(2, 64, 8, (1.0, 1.25), "bf16"),  # assumed: no conversion
    "e4m3": Format(1, 128, 8, (2.0, 2.25), "fp8"),  # assumed: a conversion a pair
}
STAGES, FINISHERS = 5, 2


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


def stream_gemm(form: Format, product: Product, m: int, machine: Machine, **more: float) -> Kernel:
    """One item an expert, or one for each slice of the rows along K that shared memory needs."""
    tokens = 8 if m <= 8 else 16
    blocks, row_tiles = product.k // form.unit_k, product.n // ROW_TILE * product.experts
    pitch = form.unit_k * 2  # of a block of a bf16 row
    slices = ceil(m * blocks * pitch / ROWS_ROOM)
    runs = [blocks * (i + 1) // slices - blocks * i // slices for i in range(slices)]
    shares = shares_of([units for units in runs for _ in range(row_tiles)], slices > 1, machine)
    rows_bytes = m * max(runs) * pitch
    ring = STAGES * form.stage_units * form.unit
    smem = ring + FINISHERS * 8 * tokens * 64 + 5 * KB + rows_bytes
    pairs = form.stage_units * ROW_TILE * form.unit_k / 2
    slots = form.slots[m > 8]
    return Kernel(
        tuple(tuple((units * form.unit, cycles) for units, cycles in runs) for runs in shares),
        form.stage_units * form.unit,
        STAGES,
        stage_cycles=pairs * slots / (128 * machine.issue_share),
        run_change=machine.run_change,
        finishers=FINISHERS,
        per_sm=max(1, SMEM_OF_SM // (smem + KB)),
        static=True,
        activations=rows_bytes,
        **more,
    )


def shares_of(runs: list[int], meet: bool, machine: Machine) -> list[Runs]:
    """Runs of units, one after the other, as csrc/tile/shares.h deals them to CTAs."""
    units = sum(runs)
    ctas = max(1, min(machine.sms, units // MIN_UNITS))
    found: list[Runs] = []
    position, left, whole = 0, 0, True
    todo = iter(runs)
    for cta in range(ctas):
        end, own = units * (cta + 1) // ctas, []
        while position < end:
            if left == 0:
                left, whole = next(todo), True
            part = min(left, end - position)
            whole &= part == left
            left, position = left - part, position + part
            cycles = machine.run_finish + (machine.run_meet if meet or not whole else 0)
            own.append((part, cycles))
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


def check(machine: Machine) -> Iterator[Comparison]:
    """The simulation beside the newest rows."""
    found = {row["key"]: row for row in rows.load([ROOT / "bench" / "results" / "h200"])}
    metrics = {m["name"]: m["value"] for m in found["micro.launch_cost"]["metrics"]}
    for name, kernel in MICRO.items():
        yield Comparison(name, metrics[name], simulate(kernel, machine))
    late = Machine(**vars(machine) | {"hand_over": machine.hand_over + machine.swap_start})
    for key, product in measured_products():
        for form in ("bf16", "fp8"):
            row = found[f"bench.gemm.scout.{key}.{form + '_row' * (form == 'fp8')}"]
            m = int(key.split(".")[0])
            answer = simulate(swapped(form, product, m, late), late)
            yield Comparison(f"swapped {key} {form}", row["median"], answer)


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
