"""Constants and published rates from their files; how far the model is from each row."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tools.budget import tomllib

from . import attention, gemm
from .engine import Machine

HERE = Path(__file__).resolve().parent
APART = 1.05  # pairs closer than this have no order to get right


@cache
def constants() -> dict[str, Any]:
    return tomllib.loads((HERE / "constants.toml").read_text())


def machine(gpu: str = "h100", clock_mhz: float | None = None) -> Machine:
    """The constants at a clock: nanoseconds and GB/s become cycles and bytes of one SM."""
    tables = constants()
    board = {name: entry["value"] for name, entry in tables["gpu"][gpu].items()}
    clock = clock_mhz or board["clock"]
    value = {
        name: entry["value"]
        for table in ("tensor", "shared", "latency", "memory", "scalar", "launch")
        for name, entry in tables[table].items()
    }
    l2 = value["copy_fixed"] + value["copy_l2"] * clock * 1e-3
    return Machine(
        **value,
        sms=board["sms"],
        clock_mhz=clock,
        l2_latency=l2,
        dram_latency=l2 + value["copy_dram"] * clock * 1e-3,
        dram_rate=board["dram"] * 1e3 / clock / board["sms"],
    )


@dataclass(frozen=True)
class Row:
    """A published rate and the model's, in TFLOP/s."""

    group: str
    use: str
    rate: float
    model: float
    cut: bool  # by the board's ceiling

    @property
    def error(self) -> float:
        return self.model / self.rate - 1


def groups() -> list[dict[str, Any]]:
    return tomllib.loads((HERE / "rates.toml").read_text())["group"]


def predict(group: dict[str, Any], row: dict[str, Any]) -> float:
    """TFLOP/s of a row, before its board's ceiling."""
    problem = group["problem"] | row
    if group["kind"] == "attention":
        board = machine("h100", constants()["attention"]["clock"]["value"])
        size = {name: problem[name] for name in ("d", "heads", "keys", "causal")}
        return attention.estimate(*attention.flash3(**size, sms=board.sms), board)[1]
    known = gemm.Program.__dataclass_fields__
    program = {name: v for name, v in (group["program"] | row).items() if name in known}
    product = gemm.Problem(problem["m"], problem["n"], problem["k"])
    return gemm.estimate(gemm.Program(**program), product, machine()).tflops


def validate() -> list[Row]:
    """Every published row beside the model's answer."""
    rows = []
    for group in groups():
        ceiling = group.get("ceiling", float("inf"))
        for row in group["rows"]:
            free = predict(group, row)
            use = "fitted" if row.get("fitted") or group["use"] == "fitted" else "held out"
            cut = free >= ceiling
            rows.append(Row(group["name"], use, row["rate"], min(free, ceiling), cut))
    return rows


def mean_error(rows: list[Row]) -> float:
    return sum(abs(r.error) for r in rows) / len(rows)


def order(rows: list[Row]) -> tuple[int, int]:
    """Pairs within a group more than 5 % apart: how many the model orders rightly, of how many."""
    right = pairs = 0
    for i, a in enumerate(rows):
        for b in rows[:i]:
            if a.group != b.group or max(a.rate, b.rate) < APART * min(a.rate, b.rate):
                continue
            pairs += 1
            right += (a.model - b.model) * (a.rate - b.rate) > 0
    return right, pairs
