"""A GPU run goes on, whatever a step does: with steps that need none."""

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from bench import gpu_run, gpu_steps, gpu_suite
from bench.gpu_run import run_steps
from l4kernels import STATUS
from l4kernels.bench import rows
from l4kernels.bench.clocks import Clocks
from l4kernels.bench.rows import Rows
from l4kernels.bench.timing import Timing
from tools.nvcc import ROOT

COMMIT = STATUS.build.get("commit", "unknown")
MEASURED = Timing(2.0, 1.0, 3.0, 30)


def right():
    return None, {"pid": os.getpid()}


def measured():
    return MEASURED, {"bytes_per_second": 1e12}


def wrong():
    raise AssertionError("other bits")


def leaves():
    raise SystemExit(3)


def dies():
    os.kill(os.getpid(), signal.SIGSEGV)


def hangs():
    subprocess.Popen(["sleep", "1000"])
    time.sleep(1000)


def peer_hangs():
    yield MEASURED, {"peers": {}}
    yield MEASURED, {"peers": {"torch": 1.0}}
    time.sleep(1000)


def breaks_its_context():
    def broken():
        raise RuntimeError("an illegal memory access was encountered")

    gpu_run.recover = broken
    raise RuntimeError("an illegal memory access was encountered")


def answers_what_no_row_holds():
    return None, {"tensor": torch.ones(1)}


def steps():
    found = (
        right,
        measured,
        wrong,
        leaves,
        dies,
        hangs,
        peer_hangs,
        breaks_its_context,
        answers_what_no_row_holds,
    )
    for function in found:
        yield function.__name__, function
    yield "right again", right


def does_not_start():
    raise ImportError("no module of that name")


@pytest.fixture
def no_gpu(monkeypatch):
    facts = {"gpu": "h200", "commit": COMMIT}
    monkeypatch.setattr(rows, "machine", lambda: {"time": str(time.time()), **facts})
    monkeypatch.setattr(gpu_run, "LIMIT_S", 1)
    monkeypatch.setattr(gpu_run, "FIRST_S", 1)


def run(folder, *keys, budget=300.0, cost=lambda key: 0, steps=steps):
    before = (folder / "rows.jsonl").read_text() if (folder / "rows.jsonl").exists() else ""
    failed = run_steps(steps, cost, Rows(folder, "h200"), list(keys), time.monotonic() + budget)
    text = (folder / "rows.jsonl").read_text()
    assert text.startswith(before)
    return failed, {row["key"]: row for row in map(json.loads, text[len(before) :].splitlines())}


def test_no_step_takes_another_with_it(tmp_path, no_gpu):
    keys = [key for key, _ in steps()]
    failed, found = run(tmp_path, *keys)
    bad = {
        "wrong": "AssertionError: other bits",
        "leaves": "SystemExit: 3",
        "dies": "exit code -11",
        "hangs": "no result in time",
        "breaks_its_context": "illegal memory access",
    }
    assert failed == len(bad) and list(found) == keys
    for key, row in found.items():
        assert row["ok"] == (key not in bad) and bad.get(key, "") in row.get("error", ""), row
    assert found["right again"]["pid"] != found["right"]["pid"]
    # What had been measured before a peer hung is a measurement, with the reason beside it.
    assert found["peer_hangs"]["median"] == 2.0 and found["peer_hangs"]["peers"] == {"torch": 1.0}
    assert found["peer_hangs"]["error"] == "no result in time"


def test_a_second_run_goes_on_where_the_first_stopped(tmp_path, no_gpu):
    expensive = {"measured": 1e9}
    failed, found = run(tmp_path, "right", "wrong", "measured", cost=lambda k: expensive.get(k, 0))
    assert failed == 1 and list(found) == ["right", "wrong"]
    failed, found = run(tmp_path, "right", "wrong", "measured")
    assert failed == 1 and list(found) == ["wrong", "measured", "right"]


def test_the_budget_ends_a_step_without_calling_it_failed(tmp_path, no_gpu, monkeypatch, capsys):
    monkeypatch.setattr(gpu_run, "FIRST_S", 1000)
    began = time.monotonic()
    failed, found = run(tmp_path, "right", "hangs", "measured", budget=14)
    assert time.monotonic() - began < 20
    assert failed == 0 and list(found) == ["right"]
    assert "cut   hangs" in capsys.readouterr().out


def test_a_process_that_does_not_start_is_one_failed_row(tmp_path, no_gpu):
    failed, found = run(tmp_path, "right", "measured", steps=does_not_start)
    assert failed == 1 and "did not start" in found["suite"]["error"]


def test_an_op_that_hung_costs_one_limit(tmp_path, no_gpu):
    """Its later steps are skipped; those of other ops run."""
    keys = ["smoke.gemm", "tune.gemm.x", "bench.gemm.x", "bench.silu_mul.x"]
    began = time.monotonic()
    failed, found = run(tmp_path, *keys, steps=steps_of_gemm)
    assert time.monotonic() - began < 40
    assert failed == 1 and list(found) == ["smoke.gemm", "bench.silu_mul.x"]
    assert [gpu_run.op_of(key) for key in (*keys, "ceiling.copy")] == [
        *("gemm", "gemm", "gemm", "silu_mul", "ceiling.copy")
    ]


def steps_of_gemm():
    yield "smoke.gemm", hangs
    yield from ((key, right) for key in ("tune.gemm.x", "bench.gemm.x", "bench.silu_mul.x"))


def test_the_first_limit_holds_until_an_op_has_passed(tmp_path, no_gpu, monkeypatch):
    monkeypatch.setattr(gpu_run, "LIMIT_S", 60)
    monkeypatch.setattr(gpu_run, "FIRST_S", 1)
    failed, found = run(tmp_path, "bench.gemm.slow", steps=slow_steps)
    assert failed == 1 and found["bench.gemm.slow"]["error"] == "no result in time"
    failed, found = run(tmp_path / "next", "smoke.gemm", "bench.gemm.slow", steps=slow_steps)
    assert failed == 0 and len(found) == 2


def slow():
    time.sleep(3)
    return right()


def slow_steps():
    yield "smoke.gemm", right
    yield "bench.gemm.slow", slow


def test_rows_of_other_kernels_do_not_count(tmp_path, no_gpu):
    row = {"key": "right", "ok": True, "time": "2026"}
    (tmp_path / "old.jsonl").write_text(json.dumps(row | {"commit": "other"}) + "\n")
    assert Rows(tmp_path, "h200").age("right") == ""
    (tmp_path / "new.jsonl").write_text(json.dumps(row | {"commit": COMMIT}) + "\n")
    assert Rows(tmp_path, "h200").age("right") == "2026"
    assert Rows(tmp_path / "out", "h200").age("right") == ""
    assert Rows(tmp_path / "out", "h200", tmp_path).age("right") == "2026"


def test_the_command_knows_the_published_rows(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(gpu_suite, "STATUS", SimpleNamespace(loaded=True))
    monkeypatch.setattr(gpu_suite, "steps", steps)
    monkeypatch.setattr(gpu_suite, "Rows", lambda *folders: seen.extend(folders) or mock.Mock())
    monkeypatch.setattr(gpu_suite, "run_steps", lambda *_: 0)
    monkeypatch.setattr(sys, "argv", ["gpu_suite", "--out", str(tmp_path)])
    assert gpu_suite.main() == 0 and seen[:2] == [tmp_path, "h200"]
    assert [*seen[2].glob("*.jsonl")] and seen[2] == ROOT / "bench" / "results" / "h200"


def test_two_commands_of_a_run_reach_what_matters():
    """330 s are enough up to the captured steps; 240 s more for correctness."""
    ends, at = {}, float(gpu_suite.STARTS_S)
    for key, _ in gpu_steps.steps("h200"):
        at += gpu_steps.cost(key)
        ends[key] = at
    first = [
        key for key in ends if key.startswith(("smoke.", "micro.", "clocks.", "tune.", "step."))
    ]
    assert len(first) > 50 and max(ends[key] for key in first) < 330
    assert (
        max(at for key, at in ends.items() if key.startswith("smoke.")) - gpu_suite.STARTS_S <= 20
    )
    assert sum(gpu_steps.cost(key) for key in ends if key.startswith("micro.")) <= 60
    assert sum(gpu_steps.cost(key) for key in ends if key.startswith("conformance.")) <= 20
    assert sum(gpu_steps.cost(key) for key in ends if key.startswith("tune.")) <= 50
    tests = max(at for key, at in ends.items() if key.startswith("test."))
    assert tests < 330 + 240
    order = [key.split(".")[0] for key in ends]
    wanted = ["smoke", "micro", "conformance", "clocks", "tune", "bench", "step", "test", "peers"]
    wanted.append("sanitizer")
    assert sorted(wanted, key=order.index) == wanted


def test_the_plan_is_printed_without_a_gpu(capsys):
    assert gpu_suite.print_plan("h100") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[-1].startswith("smoke.") and len(lines) > 500


def test_an_error_names_no_folder():
    text = f'  File "{gpu_run.ROOT}/l4kernels/bench/rows.py", line 1'
    assert gpu_run.without_paths(text) == '  File "l4kernels/bench/rows.py", line 1'


def test_clocks_are_those_of_the_step(tmp_path, monkeypatch):
    smi = tmp_path / "nvidia-smi"
    line = "580.1, 700.00, 3201, %d, 650.5, 60, 0x0000000000000004"
    smi.write_text(
        "#!/bin/sh\nfor c in 1980 1500 1560; do echo '" + line.replace("%d", "'$c'") + "'; "
        "sleep 0.2; done\nsleep 100\n"
    )
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    began = time.monotonic()
    clocks = Clocks()
    while time.monotonic() - began < 10 and len(clocks._samples) < 3:
        time.sleep(0.05)
    seen = clocks.during(began, time.monotonic())
    clocks.close()
    assert (seen["clocks_sm"], seen["clocks_sm_range"]) == (1560, [1500, 1980])
    assert seen["throttled_by"] == ["power cap"] and seen["power_draw"] == 650.5
    assert clocks.during(0, began)["clocks_sm"] == "unknown"


def test_clocks_without_nvidia_smi_are_unknown(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    clocks = Clocks()
    assert clocks.during(0, time.monotonic())["driver_version"] == "unknown"
    clocks.close()


def test_a_row_that_was_cut_off_is_none(tmp_path):
    whole = json.dumps({"key": "x", "ok": True, "time": "2026"})
    (tmp_path / "rows.jsonl").write_text(f"{whole}\n{whole[:9]}")
    assert rows.read(tmp_path / "rows.jsonl") == [json.loads(whole)]


def test_a_run_needs_no_more_than_it_says():
    """docs/measuring.md names what the Python of a GPU machine must have."""
    program = """
import sys
absent = "hypothesis huggingface_hub matplotlib psutil pybind11 pytest rich transformers typer"
sys.modules.update(dict.fromkeys(absent.split()))
import torch
torch.cuda.get_device_name = lambda: "NVIDIA H200"
from bench.gpu_steps import cost, steps
keys = [key for key, _ in steps()]
assert len(keys) == len(set(keys)) and all(cost(key) > 0 for key in keys)
print(len(keys))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0 and int(done.stdout) > 20, done.stderr
