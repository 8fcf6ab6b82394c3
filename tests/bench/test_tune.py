"""What the tuner makes of its rows, and that the GEMM's table is what it wrote."""

import re

from bench.tune import CONFIGS, HEADER, MODEL, Entry, entries, header
from l4kernels.bench.rows import load
from tools import budget
from tools.model import headers
from tools.nvcc import ROOT

# As rows of a GPU run have them, and as bench/results keeps them: 100 * splits + number.
PROMOTED, FAST = "104", "106"


def row(us: dict, *, fp8: bool = True, fast: bool = False, ok: bool = True) -> dict:
    product = {"n": 512, "k": 256, "experts": 1, "fp8": fp8, "fast_accum": fast}
    return {"key": "tune.gemm.x", "ok": ok, "us": us, **product}


def found(us: dict, **options) -> list[Entry]:
    return list(entries([row(us, **options)]))


def test_a_gain_is_an_entry_up_to_the_middle():
    us = {"16": {MODEL: 10.0, PROMOTED: 10.0}, "64": {MODEL: 30.0, PROMOTED: 20.0}}
    us["256"] = {MODEL: 40.0, PROMOTED: 39.0}
    assert found(us) == [(512, 256, 1, True, False, 32, -1), (512, 256, 1, True, False, 128, 104)]


def test_neighbours_of_one_choice_are_one_entry():
    us = {str(m): {MODEL: 30.0, PROMOTED: 20.0} for m in (1, 16, 64)}
    assert found(us) == [(512, 256, 1, True, False, 2**31 - 1, 104)]


def test_a_fast_row_is_only_for_who_asked():
    us = {"64": {MODEL: 30.0, PROMOTED: 20.0, FAST: 10.0}}
    assert [entry[-1] for entry in found(us)] == [104]
    assert [entry[-1] for entry in found(us, fast=True)] == [106]
    assert [entry[-1] for entry in found({"64": {MODEL: 30.0, "106": 10.0}}, fp8=False)] == [106]


def test_small_gains_and_failed_rows_are_none():
    assert found({"64": {MODEL: 10.0, PROMOTED: 9.8}}) == []
    assert found({"64": {MODEL: 30.0, PROMOTED: 10.0}}, ok=False) == []


def test_the_table_is_what_the_tuner_writes():
    """From the rows of one GPU run, byte for byte: also what their numbers mean has not changed."""
    runs = sorted((ROOT / "bench" / "results").rglob("*.jsonl"))
    assert HEADER.read_text() in [header(list(entries(load([run])))) for run in runs]


def test_old_measurements_keep_their_meaning():
    """Numbers in bench/results are places in the table: docs/kernels/gemm.md lists them."""
    page = (ROOT / "docs" / "kernels" / "gemm.md").read_text()
    assert re.findall(r"^\| (\d+) \| `(\w+)` \|", page, re.M) == [
        (str(config.number), config.name) for config in CONFIGS
    ]
    names = {int(PROMOTED) % 100: "fp8_128x128_1x2_promote", int(FAST) % 100: "fp8_128x256"}
    assert {number: CONFIGS[number].name for number in names} == names


def test_python_reads_the_table_as_the_compiler_does():
    """A name asked for by number comes back."""
    for config in CONFIGS:
        form = "fp8_fast" if config.fp8 else "bf16"
        gelu = config.gelu  # the question has no activation
        found = headers.gemm(64, 512, 512, 1, form, config.name, 132)
        assert found is None if gelu else found and found[0] == config.name
    assert set(budget.load_budget("gemm")) == {f"gemm_kernel<{config}>" for config in CONFIGS}
