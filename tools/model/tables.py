"""Llama 4's products and attention: what the model predicts, the floor, what the best peer took.

Peers are rows of bench/results/h200. What is less apart than the model was off is undecided.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from . import attention, gemm, headers, rates, stream, streaming

SIZES = (1, 64, 1024, 8192)
FORMS = {"bf16": "bf16", "fp8": "fp8_row"}  # the tool's name and that of the rows
PRODUCTS = {  # by the rows' name: what it is called, N, K, experts
    "qkv": ("QKV", 7168, 5120, 1),
    "o": ("O", 5120, 5120, 1),
    "gate_up": ("gate and up", 16384, 5120, 1),
    "down": ("down", 5120, 8192, 1),
    "experts_gate_up": ("gate and up, 16 experts", 16384, 5120, 16),
}
PROMPTS = ((8192, 0), (32_768, 8192), (32_768, 0))  # new tokens, chunk
HEADS, KV_HEADS, D = 40, 8, 128
OFF = {1: 0.35, 64: 0.39, 1024: 0.15, 8192: 0.16}
"""By how much the model was too fast at the most, by rows of A; docs/model.md has the table."""
OFF_PREFILL = 0.32


@dataclass(frozen=True)
class Cell:
    """Microseconds."""

    model: float
    floor: float
    peer: float | None
    off: float

    @property
    def verdict(self) -> str:
        if self.peer is None:
            return "no peer"
        ratio = self.model / self.peer
        return "ahead" if ratio < 1 - self.off else "behind" if ratio > 1.1 else "undecided"

    def __str__(self) -> str:
        peer = "-" if self.peer is None else short(self.peer)
        mark = {"behind": " **behind**", "ahead": " ahead"}.get(self.verdict, "")  # else undecided
        return f"{short(self.model)} / {short(self.floor)} / {peer}{mark}"


def short(us: float) -> str:
    return f"{us:.1f}" if us < 100 else f"{us:,.0f}"


@cache
def peers() -> dict[str, float]:
    """The least that a peer took, by call."""
    found: dict[str, float] = {}
    for file in sorted(streaming.RESULTS.glob("*.jsonl")):
        for row in map(json.loads, file.read_text().splitlines()):
            took = [us for us in (row.get("peers") or {}).values() if isinstance(us, float)]
            name = row.get("key", "").removeprefix("bench.").removeprefix("peers.")
            if took and row.get("ok"):
                found[name] = min(*took, found.get(name, took[0]))
    return found


def product(name: str, form: str, m: int) -> Cell:
    """Up to 16 rows, in a chain of such launches, as they are measured."""
    _, n, k, experts = PRODUCTS[name]
    element = 2 if form == "bf16" else 1
    active = min(m, experts)
    board, flow = rates.machine("h200"), stream.machine()
    best = rates.constants()["best"]
    moved = (active * n * k + m * k) * element + 2 * m * n
    floor = max(
        moved / (flow.read_ceiling * 1e6),
        2 * m * n * k / (best["bf16" if element == 2 else "e4m3"]["value"] * 1e6),
    )
    if m <= 16:
        weights = streaming.FORMATS["bf16" if element == 2 else "e4m3"]
        kernel = streaming.stream_gemm(weights, streaming.Product(name, n, k, active), m, flow)
        us = stream.simulate(kernel, flow).chained_us
    else:
        swiglu = name.endswith("gate_up")
        found = headers.gemm(m, n, k, experts, form, None, board.sms, swiglu=swiglu)
        assert found is not None, (name, form, m)
        us = gemm.estimate(*found[1:], board).us
    return Cell(us, floor, peers().get(f"gemm.scout.{m}.{name}.{FORMS[form]}"), OFF[m])


def prompt(tokens: int, chunk: int, form: str) -> Cell:
    clock = rates.constants()["attention"]["clock"]["value"]
    board = rates.machine("h200", clock)
    shape, work = headers.prefill(tokens, HEADS, KV_HEADS, chunk, form == "fp8", board.sms)
    floor = work.flops / (rates.constants()["best"]["bf16"]["value"] * 1e6)
    label = f"flash_prefill.scout.{tokens}.{'chunk' if chunk else 'full'}"
    peer = peers().get(label + (".kv_fp8" if form == "fp8" else ""))
    return Cell(attention.estimate(shape, work, board)[0], floor, peer, OFF_PREFILL)


def product_rows(form: str) -> Iterator[str]:
    yield f"| {form}, us | " + " | ".join(f"M = {m:,}" for m in SIZES) + " |"
    yield "| --- |" + " --- |" * len(SIZES)
    for name, (title, *_) in PRODUCTS.items():
        yield f"| {title} | " + " | ".join(str(product(name, form, m)) for m in SIZES) + " |"


def prompt_rows() -> Iterator[str]:
    yield "| new tokens, us | keys in bf16 | keys in e4m3 |"
    yield "| --- | --- | --- |"
    for tokens, chunk in PROMPTS:
        cells = " | ".join(str(prompt(tokens, chunk, form)) for form in FORMS)
        yield f"| {tokens:,}{f', chunk {chunk:,}' if chunk else ''} | {cells} |"


TABLES = {
    "gemm": lambda: (row for form in FORMS for row in (*product_rows(form), "")),
    "flash_prefill": prompt_rows,
}
"""By page: its lines."""
