"""The timing model against published rates, and against itself.

Fitted: Gluon 05 (run-ahead, waits, latency of shared boxes, clock) and one row of DeepGEMM (store
rate). Held out: every other row, which is Gluon 07, fast.cu, the rest of DeepGEMM, and
FlashAttention-3. No rate of this project's own kernels is used.
"""

import re
import shutil
import subprocess
import sys
from itertools import pairwise

import pytest

from tools.gemm_configs import gemm_config, gemm_configs
from tools.model import attention, decode, gemm, headers, rates, stream, tables
from tools.model.__main__ import main
from tools.model.engine import Machine
from tools.nvcc import ROOT

MEAN_ERROR, ORDER = 0.09, 0.90


def mutated(board: Machine, **factors: float) -> Machine:
    changed = {name: getattr(board, name) * factor for name, factor in factors.items()}
    return Machine(**{**vars(board), **changed})


def form(name: str) -> str:
    config = gemm_config(name)
    return "bf16" if not config.fp8 else "fp8" if config.promote else "fp8_fast"


def own(name: str, m: int = 8192, csrc=headers.CSRC, n: int = 16384, **constants: float) -> float:
    """Time of Scout's gate and up by a configuration."""
    found = headers.gemm(m, n, 5120, 1, form(name), name, 132, csrc)
    assert found is not None, name
    return gemm.estimate(found[1], found[2], mutated(rates.machine(), **constants)).us


@pytest.fixture(scope="module")
def rows() -> list[rates.Row]:
    return rates.validate()


def test_published_rates_are_met(rows):
    """Rows that a board's ceiling cuts do not count for the mean error."""
    assert len(rows) == 72
    uncut = [r for r in rows if not r.cut]
    held_out = [r for r in uncut if r.use == "held out"]
    right, pairs = rates.order(rows)
    error = rates.mean_error(uncut)
    said = (
        f"mean error {error:.1%} over {len(uncut)} rows, {rates.mean_error(rows):.1%} over all 72, "
        f"{rates.mean_error(held_out):.1%} over {len(held_out)} held out; order {right} of {pairs}"
    )
    print(said)
    assert error <= MEAN_ERROR and rates.mean_error(held_out) <= MEAN_ERROR, said
    assert right >= ORDER * pairs, said


def test_what_is_fitted_and_what_is_held_out(rows):
    fitted = [r for r in rows if r.use == "fitted"]
    assert {r.group for r in fitted} == {"Gluon 05, lock-step", "DeepGEMM, M = 4096"}
    assert sum(r.group.startswith("DeepGEMM") for r in fitted) == 1
    for table in rates.constants().values():
        for name, entry in table.items():
            constants = entry.values() if "value" not in entry else [entry]
            for c in constants:
                assert {"value", "unit", "source", "confidence"} <= set(c), name
                for where in re.findall(r"(?:fitted|picked) on ([\w ]+\d\d|the store row)", str(c)):
                    assert where in ("Gluon 05", "the store row"), name


def test_every_row_has_a_source():
    for group in rates.groups():
        assert len(group["source"]) > 20 and group["board"] and group["use"], group["name"]
        assert all(row["rate"] > 0 for row in group["rows"])


def test_the_page_shows_what_the_tool_says(rows):
    page = (ROOT / "docs" / "model.md").read_text()
    uncut = [r for r in rows if not r.cut]
    for name in {r.group for r in rows}:
        error = rates.mean_error([r for r in uncut if r.group == name])
        line = next(line for line in page.splitlines() if line.startswith(f"| {name} |"))
        assert f"| {error:.1%} |" in line, f"python -m tools.model rates says {error:.1%}: {line}"


@pytest.mark.parametrize(
    ("name", "kind", "most"),
    [
        *(("bf16_128x256_2x1", kind, most) for kind, most in (("plain", 0.02), ("swiglu", 0.04))),
        ("bf16_128x256_2x1", "residual", 0.02),
        *(("fp8_256x128_1x2_promote", kind, 0.04) for kind in ("plain", "residual")),
        ("fp8_256x128_1x2_promote", "codes", 0.08),
    ],
)
def test_the_tensor_core_has_work_between_tiles(name, kind, most):
    """By the instructions that budget.toml allows a consumer between two tiles of K = 5120."""
    _, program, problem = headers.gemm(8192, 16384, 5120, 1, form(name), name, 132, epilogue=kind)
    assert gemm.exposed(program, problem, rates.machine()) <= most


def test_what_the_tensor_core_waits_for_grows_with_the_epilogue():
    _, program, problem = headers.gemm(
        8192, 16384, 5120, 1, "bf16", "bf16_128x256_2x1", 132, epilogue="plain"
    )
    longer = gemm.Program(**{**vars(program), "instructions": 3000})
    board = rates.machine()
    assert gemm.exposed(longer, problem, board) > 0.02 + gemm.exposed(program, problem, board)


def test_half_of_a_bandwidth_slows_what_it_binds():
    assert own("bf16_128x128", l2_rate=0.5) > 1.5 * own("bf16_128x128"), (
        "a lone 128 x 128 tile lives on L2"
    )
    assert own("bf16_128x256", l2_rate=0.5) > 1.3 * own("bf16_128x256")
    assert own("bf16_128x128", l2_rate=0.5) / own("bf16_128x128") > own(
        "bf16_128x256_2x1", l2_rate=0.5
    ) / own("bf16_128x256_2x1"), "pairs ask L2 for less"
    assert own("fp8_128x128_1x2_promote", shared_rate=0.5) > 1.3 * own("fp8_128x128_1x2_promote")
    assert own("bf16_swap_16x128", m=16, dram_rate=0.5) > 1.7 * own("bf16_swap_16x128", m=16), (
        "16 tokens read all weights"
    )
    assert own("bf16_128x256_2x1", dram_rate=0.5) < 1.05 * own("bf16_128x256_2x1"), (
        "8,192 tokens do not wait for DRAM"
    )
    assert own("bf16_swap_16x128", m=16, l2_rate=0.8) < 1.05 * own("bf16_swap_16x128", m=16)


@pytest.mark.parametrize(
    "config", [c for c in gemm_configs() if not c.swap and not c.gelu], ids=str
)
def test_a_stage_less_never_helps(config):
    _, program, problem = headers.gemm(8192, 16384, 5120, 1, form(config.name), config.name, 132)
    times = [
        gemm.estimate(gemm.Program(**{**vars(program), "stages": s}), problem, rates.machine()).us
        for s in range(program.stages, 1, -1)
    ]
    assert all(b >= 0.995 * a for a, b in pairwise(times)), times
    assert times[-1] > 1.1 * times[0], "two stages do not hide a copy"


def test_pairs_that_split_k_share_no_box_and_halve_its_blocks():
    """O at 128 rows, where 64 tiles leave half of the SMs idle; at 256 rows nothing is gained."""

    def us(m: int, splits: int) -> float:
        size = (m, 5120, 5120, 1, "bf16")
        _, program, problem = headers.gemm(*size, "bf16_128x80_2x1", 132)
        if m == 128:
            assert (program.splits, program.cluster_m, problem.tiles) == (2, 1, 1)
        pair = vars(program) | {"splits": splits, "cluster_m": 3 - splits}
        shares = vars(problem) | {"tiles": m // 128 if splits == 2 else 1}
        return gemm.estimate(gemm.Program(**pair), gemm.Problem(**shares), rates.machine()).us

    assert us(128, 2) < 0.75 * us(128, 1)
    assert us(256, 2) > us(256, 1)


def test_attention_follows_its_scalar_work_and_its_ring():
    board = rates.machine("h100", 1600)
    shape, work = headers.prefill(8192, 40, 8, 0, False, board.sms)
    us, tflops = attention.estimate(shape, work, board)
    assert 300 < tflops < 4096 * 132 * 1.6e-3
    slower = mutated(board, exp_cycles=2, alu_cycles=2, attention_fixed=2)
    assert attention.estimate(shape, work, slower)[0] > 1.1 * us
    short = attention.Attention(**{**vars(shape), "ring": 2})
    assert attention.estimate(short, work, board)[0] > us
    chunked = headers.prefill(32768, 40, 8, 8192, False, board.sms)
    whole = headers.prefill(32768, 40, 8, 0, False, board.sms)
    assert attention.estimate(*chunked, board)[0] < 0.4 * attention.estimate(*whole, board)[0]


def test_attention_pays_for_e4m3_and_for_what_l2_gives():
    board = rates.machine("h200", 1600)
    shape, work = headers.prefill(8192, 40, 8, 0, True, board.sms)
    us = attention.estimate(shape, work, board)[0]
    slow = attention.Attention(**{**vars(shape), "convert": 3 * shape.convert})
    assert attention.estimate(slow, work, board)[0] > 1.05 * us
    plain = headers.prefill(8192, 40, 8, 0, False, board.sms)[0]
    pair = attention.Attention(**{**vars(plain), "pair": True})
    alone, together = (attention.estimate(s, work, board)[0] for s in (plain, pair))
    assert alone < us and abs(together / alone - 1) < 0.05
    starved = rates.Machine(**{**vars(board), "l2_rate": 22})
    alone, together = (attention.estimate(s, work, starved)[0] for s in (plain, pair))
    assert together < 0.9 * alone


def test_shapes_come_from_the_headers(tmp_path):
    """A configuration with two stages in a copy of configs.h, and a kernel with a shorter ring."""
    shutil.copytree(headers.CSRC, tmp_path / "csrc")
    table = tmp_path / "csrc" / "kernels" / "gemm" / "configs.h"
    before = table.read_text()
    after = re.sub(r'("bf16_128x256_2x1",\s.*?\.stages = )4', r"\g<1>2", before)
    assert after != before
    table.write_text(after)
    assert own("bf16_128x256_2x1", csrc=tmp_path / "csrc") > 1.1 * own("bf16_128x256_2x1")
    assert own("bf16_128x256", csrc=tmp_path / "csrc") == own("bf16_128x256")
    loads = tmp_path / "csrc" / "kernels" / "flash_prefill" / "loads.cuh"
    loads.write_text(
        re.sub(r"kStages = kFp8 \? 4 : 5", "kStages = kFp8 ? 4 : 3", loads.read_text())
    )
    question = (8192, 40, 8, 0, False, 132)
    assert headers.prefill(*question, tmp_path / "csrc")[0].ring == 3
    assert headers.prefill(*question)[0].ring != 3


def test_few_rows_cost_their_bytes_and_a_start():
    for gpu in ("h100", "h200"):
        board = rates.machine(gpu)
        for form in ("bf16", "fp8"):
            _, program, problem = headers.gemm(1, 7168, 5120, 1, form, None, board.sms)
            answer = gemm.estimate(program, problem, board)
            assert program.swap and answer.memory_us < answer.us < answer.memory_us + 12


@pytest.mark.parametrize(
    "command",
    [
        "gemm --m 16",
        "gemm --m 1 --n 7168 --k 5120 --format fp8 --gpu h200",
        "gemm --m 64 --n 5120 --k 8192 --experts 16 --config bf16_swap_16x128 --clock 1500",
        "attention --tokens 8192 --gpu h200",
        "attention --tokens 1024 --pair --end 882",
        "rates --rows",
    ],
)
def test_everything_printed_says_model(command):
    run = [sys.executable, "-m", "tools.model", *command.split()]
    lines = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert len(lines.splitlines()) >= 2
    assert all(line.startswith("model") for line in lines.splitlines()), lines


TRIPLE = re.compile(r"[\d.,]+ / [\d.,]+ / ")


def cells(page: str, title: str) -> list[list[str]]:
    """Of the predictions of a page, the lines that begin with a title."""
    text = (ROOT / "docs" / "kernels" / f"{page}.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith(f"| {title} | ")]
    rows = [[cell.strip() for cell in line.split("|")[2:-1]] for line in lines]
    return [row for row in rows if TRIPLE.match(row[0])]


def shown(page: str, title: str, number: int, size: int, cell: tables.Cell) -> None:
    said = cells(page, title)[number][size]
    assert said == str(cell), f"python -m tools.model tables --page {page}: {title} is {cell}"


def test_the_pages_show_predictions_beside_floors_and_peers():
    """Streamed rows take a second each: one of them stands for the others."""
    for number, form_ in enumerate(tables.FORMS):
        for name, (title, *_) in tables.PRODUCTS.items():
            for size, m in enumerate(tables.SIZES):
                if m > 16 or name == "o":
                    shown("gemm", title, number, size, tables.product(name, form_, m))
    for tokens, chunk in tables.PROMPTS:
        for size, form_ in enumerate(tables.FORMS):
            title = f"{tokens:,}{f', chunk {chunk:,}' if chunk else ''}"
            shown("flash_prefill", title, 0, size, tables.prompt(tokens, chunk, form_))
    for sequences, keys in tables.STEPS:
        for size, form_ in enumerate(tables.FORMS):
            title = f"{sequences}, {keys:,}"
            shown("flash_decode", title, 0, size, tables.decoded(sequences, keys, form_))


def test_a_verdict_needs_more_than_the_models_error():
    for model, peer, off, verdict in (
        (89, 100, 0.1, "ahead"), (91, 100, 0.1, "undecided"), (109, 100, 0.1, "undecided"),
        (111, 100, 0.1, "behind"), (89, 100, 0.32, "undecided"), (67, 100, 0.32, "ahead"),
        (111, 100, 0.32, "behind"), (1, None, 0.1, "no peer"),
    ):  # fmt: skip
        assert tables.Cell(model, 1.0, peer, off).verdict == verdict, (model, peer, off)


def test_the_page_says_why_a_shape_is_behind():
    page = (ROOT / "docs" / "kernels" / "gemm.md").read_text()
    why = page.partition("**Predicted behind**")[2].partition("\n## ")[0]
    behind = {t for t, *_ in tables.PRODUCTS.values() if "behind" in str(cells("gemm", t))}
    assert not {title for title in behind if title not in why}


def test_decode_attention_is_met_where_a_timeline_was_taken():
    """Measured, bf16 and e4m3: 24.4 and 22.0 us for 8,192 keys, 152.6 us for 131,072."""
    board = stream.machine()
    old, new = decode.before(board), decode.after(board)
    for keys, size, measured in ((8192, 2, 24.38), (8192, 1, 21.98), (131072, 2, 152.59)):
        error = decode.predict(old, board, 1, keys, size).alone_us / measured - 1
        assert -0.14 < error < 0.02, "the page says what is missing"
        made = decode.predict(new, board, 1, keys, size)
        assert made.floor_us < made.chained_us < made.alone_us < measured
    assert decode.ISSUE["fp8"].share(board, 1) > decode.ISSUE["bf16"].share(board, 2)


@pytest.mark.parametrize(
    "options, said",
    [
        ("gemm --m 0", "argument --m: expected 1 or more, got 0"),
        ("gemm --clock nan", "argument --clock: expected 1 or more, got nan"),
        ("epilogue --k -1", "argument --k: expected 1 or more, got -1"),
        ("attention --tokens 0", "argument --tokens: expected 1 or more, got 0"),
        ("attention --convert -5", "argument --convert: expected 0 or more, got -5"),
        ("attention --chunk -1", "argument --chunk: expected 0 or more, got -1"),
    ],
)
def test_numbers_out_of_range_are_refused(options, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["model", *options.split()])
    with pytest.raises(SystemExit):
        main()
    assert said in capsys.readouterr().err
