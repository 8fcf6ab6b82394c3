"""What the tuner makes of its rows, and that the GEMM's table is what it wrote."""

import re

from bench.tune import CONFIGS, GENERATION, HEADER, MODEL, NUMBERED, Entry, choices, entries, header
from l4kernels.bench.rows import load
from tools import budget
from tools.model import headers
from tools.nvcc import ROOT

PROMOTED, FAST = "fp8_128x128_1x2_promote/1", "fp8_128x256/1"


def row(us: dict, *, fp8: bool = True, fast: bool = False, ok: bool = True) -> dict:
    product = {"n": 512, "k": 256, "experts": 1, "fp8": fp8, "fast_accum": fast}
    return {"key": "tune.gemm.x", "ok": ok, "us": us, **product}


def found(us: dict, **options) -> list[Entry]:
    return list(entries([row(us, **options)]))


def test_a_gain_is_an_entry_up_to_the_middle():
    us = {"16": {MODEL: 10.0, PROMOTED: 10.0}, "64": {MODEL: 30.0, PROMOTED: 20.0}}
    us["256"] = {MODEL: 40.0, PROMOTED: 39.0}
    product = (512, 256, 1, True, False)
    assert found(us) == [(*product, 32, MODEL, 0), (*product, 128, PROMOTED, 0)]


def test_neighbours_of_one_choice_are_one_entry():
    us = {str(m): {MODEL: 30.0, PROMOTED: 20.0} for m in (32, 64, 128)}
    assert found(us) == [(512, 256, 1, True, False, 2**31 - 1, PROMOTED, 0)]


def test_a_fast_row_is_only_for_who_asked():
    us = {"64": {MODEL: 30.0, PROMOTED: 20.0, FAST: 10.0}}
    assert [entry[-2] for entry in found(us)] == [PROMOTED]
    assert [entry[-2] for entry in found(us, fast=True)] == [FAST]
    assert [entry[-2] for entry in found({"64": {MODEL: 30.0, FAST: 10.0}}, fp8=False)] == [FAST]


def test_small_gains_and_failed_rows_are_none():
    assert found({"64": {MODEL: 10.0, PROMOTED: 9.8}}) == []
    assert found({"64": {MODEL: 30.0, PROMOTED: 10.0}}, ok=False) == []


def test_the_table_is_what_the_tuner_writes():
    """From the rows of one GPU run, byte for byte."""
    runs = sorted((ROOT / "bench" / "results").rglob("*.jsonl"))
    assert HEADER.read_text() in [header(list(entries(load([run])))) for run in runs]


def test_old_rows_count_by_numbers():
    """-1 and -2 are the model; what a number of old rows means is listed in the tuner."""
    assert found({"64": {"-2": 30.0, "204": 20.0}}) == found(
        {"64": {MODEL: 30.0, PROMOTED[:-1] + "2": 20.0}}
    )
    assert found({"64": {"-1": 30.0, "104": 20.0}})[0][-2] == PROMOTED
    assert found({"64": {"-2": 30.0, "114": 20.0}}, fast=True) == [], "it is no longer there"
    old = {name for name, config in CONFIGS.items() if config.generation == 0}
    assert old <= set(NUMBERED) and NUMBERED[14] not in CONFIGS


def test_an_entry_knows_the_newest_configurations_that_were_timed():
    """Those of later generations may still beat it in the model; rows without one knew none."""
    gain = row({"64": {MODEL: 30.0, PROMOTED: 20.0}})
    old, new = (list(entries([r])) for r in (gain, gain | {"generation": GENERATION}))
    assert (old[0][-1], new[0][-1]) == (0, GENERATION) and GENERATION > 0
    assert ".generation" not in header(old)
    assert f", .max_m = {2**31 - 1}, .generation = {GENERATION},\n" in header(new)


def test_where_streaming_was_not_measured_few_rows_stream():
    """Up to 16 of them, or 32 with experts; where it was, the fastest choice is an entry."""
    gain = {"-2": 30.0, "104": 20.0}
    assert found({"16": gain}) == [] and len(found({"17": gain})) == 1
    ragged = [row({m: gain}) | {"experts": 16} for m in ("32", "33")]
    assert [len(list(entries([r]))) for r in ragged] == [0, 1]
    assert found({"16": {MODEL: 30.0, "stream": 30.0, PROMOTED: 20.0}})[0][-2] == PROMOTED
    streamed = found({"64": {MODEL: 30.0, "stream": 20.0, PROMOTED: 25.0}})
    assert streamed[0][-2] == "stream" and "{GemmChoice::kStream, 1}" in header(streamed)


def test_every_choice_is_timed_once():
    names, numbers = zip(*choices(16, precise=False), strict=True)
    assert len(set(names)) == len(set(numbers)) == len(names) > 8 * len(CONFIGS)
    assert dict(zip(names, numbers, strict=True))["bf16_128x256_2x1/3"] == 303
    precise = [name for name, _ in choices(8192, precise=True)]
    assert PROMOTED in precise and FAST not in precise and "stream" in precise


def test_the_page_lists_the_table():
    page = (ROOT / "docs" / "kernels" / "gemm.md").read_text()
    assert re.findall(r"^\| (\d+) \| `(\w+)` \|", page, re.M) == [
        (str(config.number), name) for name, config in CONFIGS.items()
    ]


def test_python_reads_the_table_as_the_compiler_does():
    """A name asked for by number comes back."""
    for config in CONFIGS.values():
        form = "fp8_fast" if config.fp8 else "bf16"
        gelu = config.gelu  # the question has no activation
        found = headers.gemm(64, 512, 512, 1, form, config.name, 132)
        assert found is None if gelu else found and found[0] == config.name
    assert set(budget.load_budget("gemm")) == {f"gemm_kernel<{config}>" for config in CONFIGS}
