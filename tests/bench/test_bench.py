"""The bench without a GPU: floors, shapes, reports; nothing is made up."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

from bench import test_ops
from bench.checks.inputs import Case
from bench.checks.kernel_checks import mutated, tensors
from bench.checks.oracles import ORACLES, oracle
from bench.peers import EAGER, peers
from l4kernels import STATUS
from l4kernels.bench import counters
from l4kernels.bench.command import main
from l4kernels.bench.report import page, roofline, table
from l4kernels.bench.rows import Rows, load
from l4kernels.bench.shapes import SIZES, benchmarked_ops, calls
from l4kernels.bench.timing import Timing, summarise
from l4kernels.cli import main as l4k
from l4kernels.ops import OPS, Work
from l4kernels.planning.gpus import GPUS
from l4kernels.testing import assert_close, relative_error
from tools.nvcc import ROOT

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")

ROW = {
    "key": "bench.silu_mul.scout.16384",
    "ok": True,
    "op": "silu_mul",
    "median": 200.0,
    "low": 199.0,
    "high": 202.0,
    "floor_us": 168.0,
    "share_of_floor": 0.84,
    "flops": 6.7e8,
    "bytes": 8.05e8,
    "bytes_per_second": 4.0e12,
    "peers": {"torch": 400.0, "other": "ImportError"},
    "name": "a test's row",
    "gpu": "h200",
    "driver_version": "0",
    "commit": "0",
    "torch": "0",
    "time": "2026-01-01T00:00:00",
}


def test_every_case_has_a_floor_without_a_device():
    for op in benchmarked_ops():
        for case in calls(op, ("scout", "maverick"), ("decode", "prefill")):
            assert case.work().bytes > 0, case.key


def test_floors_are_the_formula():
    case = next(c for c in calls("silu_mul", ("scout",), ("prefill",)) if c.label == "16384")
    assert case.work().bytes == 3 * 16384 * 8192 * 2
    assert GPUS["h200"].floor_us(case.work()) == pytest.approx(167.77, abs=0.01)
    compute_bound = Work(flops=989e12, bytes=1)
    assert GPUS["h100"].floor_us(compute_bound) == pytest.approx(1e6)


def test_command_prints_floors_and_says_not_measured(capsys):
    if torch.cuda.is_available():
        pytest.skip("this is about machines without a GPU")
    assert main(["rms_norm", "--model", "scout", "--phase", "prefill"]) == 0
    out = capsys.readouterr().out
    assert out.count("not measured") == 3 and "69.91 us" in out
    assert main(["rms_norm", "--model", "scout", "--phase", "decode", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all(row["measured_us"] is None for row in rows)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("no_such_op", "no shapes for no_such_op; there are shapes for add_rms_norm"),
        ("rms_norm --phase x", "argument --phase: invalid choice: 'x'"),
        ("rms_norm --bogus", "unrecognized arguments: --bogus"),
        ("rms_norm --counters", "--counters prints no JSON"),
        ("e2e --new 1", "--new: expected at least 2, got 1"),
        ("e2e --layers 9", "demo has 8 layers, got --layers 9"),
        ("e2e --model x", "argument --model: invalid choice: 'x'"),
        ("e2e --prompt 4096 --new 4096", "beyond the model's 4096 positions"),
    ],
)
def test_errors_are_those_of_the_command_line(capsys, arguments, message):
    assert l4k(["bench", *arguments.split(), "--json"]) == 2
    assert message in json.loads(capsys.readouterr().out)["error"]


def test_counters_without_a_library_or_an_emulator_say_why(monkeypatch, tmp_path):
    monkeypatch.setattr(counters, "STATUS", SimpleNamespace(kernels={}, reason="not built here"))
    assert list(counters.counters_of("rms_norm")) == ["rms_norm: no kernel: not built here"]
    monkeypatch.setattr(counters, "STATUS", SimpleNamespace(kernels={"rms_norm"}, reason=""))
    monkeypatch.setattr("l4kernels.testing.emulator.BUILD", tmp_path)
    with pytest.raises(NotImplementedError, match="the emulator is not part of an installed"):
        list(counters.counters_of("rms_norm"))


@pytest.mark.parametrize("op", sorted(set(EAGER) & set(benchmarked_ops()) - set(SIZES)))
def test_peers_mean_the_same_as_the_op(op):
    case = next(calls(op, ("scout",), ("decode",)))
    given = Case(op, *case.make("cpu"))

    def first(call: Any) -> Tensor:
        own = given.copy()
        results = tensors(call(*own.args, **own.kwargs))
        return next(t for t in (*results, *dict(mutated(op, own)).values()))

    expected, got = first(OPS[op]), first(EAGER[op])
    if op.endswith("fp8"):  # a peer rounds to bfloat16 first: some codes are one step of 1/8 apart
        assert relative_error(got, expected) < 0.03
    else:
        assert_close(got, expected, 2e-2, op)


def test_every_op_has_a_peer_that_a_graph_can_hold():
    """The typed bodies look at indices on the host, which no capture allows."""
    assert set(benchmarked_ops()) - set(EAGER) == {"gemm_swiglu_fp8", "merge_attention_states"}


@pytest.mark.parametrize("op", ORACLES)
def test_oracles_mean_the_same_as_the_op(op):
    """With NumPy in the place of CuPy."""
    for case in calls(op, ("demo",), ("decode",), {"decode": (3,)}):
        args, kwargs = case.make("cpu")
        expected, got = OPS[op](*args, **kwargs), oracle(numpy, Tensor.numpy, op, args, kwargs)
        expected = expected[0] if isinstance(expected, tuple) else expected
        if got is not None:
            assert relative_error(expected, torch.from_numpy(got)) < 0.03, case.key


@pytest.mark.parametrize("op", ["flash_decode", "flash_decode_append", "flash_prefill", "gemm"])
def test_peers_of_products_and_attention_mean_the_same(op):
    compared = set()
    for case in calls(op, ("demo",), ("decode", "prefill"), {"decode": (64,), "prefill": (128,)}):
        args, kwargs = case.make("cpu")
        try:
            given, named = peers(op).prepare("torch", (args, kwargs))
            got = peers(op).calls["torch"](*given, **named)
        except (NotImplementedError, ValueError, RuntimeError):  # what torch lacks on a CPU
            continue
        expected = OPS[op](*args, **kwargs)
        expected = expected[0] if isinstance(expected, tuple) else expected
        assert_close(got, expected, 2e-2, case.key)
        compared.add(case.label.partition(".")[2])
    wanted = {
        "flash_decode": {"full", "chunk", "planned"},
        "flash_decode_append": {"full", "chunk", "planned"},
        "flash_prefill": {"full", "chunk"},
        "gemm": {"mlp_down.bf16", "mlp_down.fp8_row", "moe_gate_up.bf16.swiglu"},
    }[op]
    assert wanted <= compared, compared


def test_products_are_those_of_the_models():
    labels = {c.label: c for c in calls("gemm", ("scout",), ("decode", "prefill"))}
    head = labels["1024.head.bf16"].work()
    assert head.flops == 2 * 1024 * 202_048 * 5120
    fp8 = labels["8192.gate_up.fp8_row"]
    assert fp8.floor_us(GPUS["h200"]) == pytest.approx(694.49, abs=0.01)  # at the e4m3 peak
    bf16 = labels["8192.gate_up.bf16"]
    assert bf16.floor_us(GPUS["h200"]) == pytest.approx(1389.68, abs=0.01)
    # 16 tokens meet few of 128 experts and the shared one, and only those weights have to be read
    few = next(c for c in calls("gemm", ("maverick",), ("decode",)) if "16.moe_down" in c.label)
    assert few.work().bytes < 18 * 2 * 5120 * 8192


def test_attention_reads_what_the_mask_shows():
    cases = {c.label: c.work() for c in calls("flash_decode", ("scout",), ("decode",))}
    key = 2 * 8 * 128 * 2  # bytes of one key and value of all heads
    assert cases["1048576.full"].bytes == pytest.approx(key << 20, rel=1e-3)
    assert cases["1048576.full.kv_fp8"].bytes == pytest.approx(key << 19, rel=1e-3)
    assert cases["10485760.full"].bytes == pytest.approx(key * 10_485_760, rel=1e-3)
    assert cases["131072.chunk"].bytes == pytest.approx(key * 8192, rel=1e-3)
    assert cases["8192.batch64"].bytes == pytest.approx(key * 64 * 8160, rel=1e-2)
    prefill = {c.label: c.work() for c in calls("flash_prefill", ("scout",), ("prefill",))}
    assert prefill["32768.chunk"].flops == pytest.approx(4 * 40 * 128 * 4 * 8192**2 / 2, rel=1e-3)


def test_report_shows_shares_of_floor_and_of_the_measured_ceiling(tmp_path):
    older = ROW | {"median": 999.0, "time": "2025-01-01T00:00:00"}
    copy = {"key": "ceiling.copy", "ok": True, "bytes_per_second": 4.3e12, "time": "2026"}
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(r) for r in (ROW, older, copy)) + "\n")
    text = table(load([tmp_path]))
    assert "200.00 (199.00-202.00)" in text and "999" not in text
    assert "84%" in text and "93%" in text and "torch 400.0; other: ImportError" in text


def test_a_pages_table_has_the_ceiling_of_what_bytes_bound():
    ceilings = [
        {"key": f"ceiling.{name}", "ok": True, "bytes_per_second": rate}
        for name, rate in (("copy", 4.2e12), ("read", 4.6e12))
    ]
    few = ROW | {"key": "bench.gemm.scout.1.o.bf16", "op": "gemm", "bytes_per_second": 2.3e12}
    many = few | {"key": "bench.gemm.scout.1024.o.bf16", "floor_us": 400.0}
    rows = [many, few, ROW, *ceilings]
    silu = page(rows, "silu_mul")
    assert "| 16384 | 200.00 | 168.00 | 84% | 95% | torch 400.0 |" in silu and "o.bf16" not in silu
    products = page(rows, "gemm").splitlines()
    assert "| 50% |" in products[2] and "| - |" in products[3] and "1024" in products[3]
    assert "1024" not in page(rows, "gemm", r"1\.o") and "commit 0" in products[-1]
    assert page(rows, "gemm", "64") == "not measured\n"


def test_report_without_rows_says_not_measured(tmp_path):
    assert table([]) == "not measured\n"
    pytest.importorskip("matplotlib")
    roofline([], tmp_path / "roofline.png")
    assert (tmp_path / "roofline.png").read_bytes()[:4] == b"\x89PNG"


def test_missing_rows_come_first(tmp_path):
    build = {"time": "2026", "commit": STATUS.build.get("commit", "unknown")}
    done = [{"key": "x", "ok": True, **build}, {"key": "y", "ok": False, **build}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, done)) + "\n")
    rows = Rows(tmp_path, "h200")
    assert sorted(["x", "y"], key=rows.age) == ["y", "x"]


def test_timing_summary_is_median_and_spread():
    timing = summarise([float(i) for i in range(1, 101)])
    assert (timing.median, timing.low, timing.high, timing.repeats) == (50.5, 11, 91, 100)


def test_pytest_benchmark_shows_what_the_events_say(monkeypatch):
    """On a fake GPU: the rule of timing is that of `measure`, the shapes are Scout's."""
    case = next(calls("silu_mul", ("scout",), ("decode",)))
    make = case.make
    monkeypatch.setattr(case, "make", lambda d: make("cpu" if d == "cuda" else d))
    monkeypatch.setattr(test_ops, "ON_GPU", True)
    monkeypatch.setattr(test_ops.torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    took = iter((5.0, 6.0, 9.0))
    monkeypatch.setattr(test_ops, "timed", lambda *_: Timing(next(took), 0.0, 99.0, 30))
    rounds = []

    def pedantic(call, rounds_wanted=3, **_):
        for _ in range(rounds_wanted):
            before = test_ops.CLOCK()
            call()
            rounds.append(test_ops.CLOCK() - before)

    fixture = SimpleNamespace(extra_info={}, pedantic=pedantic)
    test_ops.test_call(fixture, case)
    assert rounds == pytest.approx([5e-6, 6e-6, 9e-6])
    assert fixture.group == "silu_mul" and 0 < fixture.extra_info["floor_us"] < 1


@no_gpu
def test_pytest_benchmark_runs_anywhere(tmp_path):
    out = tmp_path / "rows.json"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "bench",
        "-k",
        "silu_mul.demo",
        "-p",
        "no:cacheprovider",
    ]
    # Among parallel test processes pytest-benchmark would switch itself off.
    alone = {name: value for name, value in os.environ.items() if "PYTEST" not in name}
    command.append(f"--benchmark-json={out}")
    subprocess.run(command, cwd=ROOT, env=alone, check=True, capture_output=True)
    found = json.loads(out.read_text())["benchmarks"]
    assert {row["name"] for row in found} == {
        f"test_call[bench.silu_mul.demo.{n}]" for n in (1, 64)
    }
    assert all(row["group"] == "silu_mul" and row["stats"]["rounds"] == 3 for row in found)


def test_small_pages_are_measured():
    found = calls("flash_prefill", ("scout",), ("prefill",), {"prefill": (8192,)})
    (case,) = (c for c in found if c.key == "bench.flash_prefill.scout.8192.page16")
    (_, k_cache, *_, table), _ = case.make("meta")
    assert k_cache.shape == (512, 16, 8, 128) and table.shape == (1, 512)
