"""What the tuner makes of its rows, and that the GEMM's table is what it wrote."""

import re

from bench.checks.gemm_rows import ROWS
from bench.tune import HEADER, MODEL, NUM_ROWS, PROMOTED, Entry, entries, header

ROW_4, ROW_6 = "104", "106"


def row(us: dict, *, fp8: bool = True, fast: bool = False, ok: bool = True) -> dict:
    product = {"n": 512, "k": 256, "experts": 1, "fp8": fp8, "fast_accum": fast}
    return {"key": "tune.gemm.x", "ok": ok, "us": us, **product}


def found(us: dict, **options) -> list[Entry]:
    return list(entries([row(us, **options)]))


def test_a_gain_is_an_entry_up_to_the_middle():
    us = {"16": {MODEL: 10.0, ROW_4: 10.0}, "64": {MODEL: 30.0, ROW_4: 20.0}}
    us["256"] = {MODEL: 40.0, ROW_4: 39.0}
    assert found(us) == [(512, 256, 1, True, False, 32, -1), (512, 256, 1, True, False, 128, 104)]


def test_neighbours_of_one_choice_are_one_entry():
    us = {str(m): {MODEL: 30.0, ROW_4: 20.0} for m in (1, 16, 64)}
    assert found(us) == [(512, 256, 1, True, False, 2**31 - 1, 104)]


def test_a_fast_row_is_only_for_who_asked():
    us = {"64": {MODEL: 30.0, ROW_4: 20.0, ROW_6: 10.0}}
    assert [entry[-1] for entry in found(us)] == [104]
    assert [entry[-1] for entry in found(us, fast=True)] == [106]
    assert [entry[-1] for entry in found({"64": {MODEL: 30.0, "106": 10.0}}, fp8=False)] == [106]


def test_small_gains_and_failed_rows_are_none():
    assert found({"64": {MODEL: 10.0, ROW_4: 9.8}}) == []
    assert found({"64": {MODEL: 30.0, ROW_4: 10.0}}, ok=False) == []


def test_the_table_is_what_the_tuner_writes():
    lines = re.findall(r"^\{(.*)\},$", HEADER.read_text(), re.M)
    values = [[{"true": True, "false": False}.get(v) for v in line.split(", ")] for line in lines]
    table = [
        tuple(
            int(text) if flag is None else flag
            for text, flag in zip(line.split(", "), flags, strict=True)
        )
        for line, flags in zip(lines, values, strict=True)
    ]
    assert header(table) == HEADER.read_text()


def test_the_tuner_knows_the_rows():
    assert len(ROWS) == NUM_ROWS
    assert {row.config for row in ROWS if row.promote} == PROMOTED
