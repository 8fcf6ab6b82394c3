"""A visit to a GPU goes on, whatever a step does: with steps that need none."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from bench import gpu_suite, rows
from bench.gpu_suite import visit
from bench.rows import Rows
from bench.timing import Timing

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

    gpu_suite.recover = broken
    raise RuntimeError("an illegal memory access was encountered")


def answers_what_no_row_holds():
    return None, {"tensor": torch.ones(1)}


def steps():
    found = (right, measured, wrong, leaves, dies, hangs, peer_hangs, breaks_its_context,
             answers_what_no_row_holds)  # fmt: skip
    for function in found:
        yield function.__name__, function
    yield "right again", right


def does_not_start():
    raise ImportError("no module of that name")


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(rows, "machine", lambda: {"time": str(time.time()), "gpu": "h200"})
    monkeypatch.setattr(gpu_suite, "LIMIT_S", 1)


def run(folder, *keys, budget=300.0, cost=lambda key: 0, steps=steps):
    before = (folder / "rows.jsonl").read_text() if (folder / "rows.jsonl").exists() else ""
    failed = visit(steps, cost, Rows(folder, "h200"), list(keys), time.monotonic() + budget)
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


def test_a_second_visit_goes_on_where_the_first_stopped(tmp_path, no_gpu):
    expensive = {"measured": 1e9}
    failed, found = run(tmp_path, "right", "wrong", "measured", cost=lambda k: expensive.get(k, 0))
    assert failed == 1 and list(found) == ["right", "wrong"]
    failed, found = run(tmp_path, "right", "wrong", "measured")
    assert failed == 1 and list(found) == ["wrong", "measured", "right"]


def test_the_budget_ends_a_step_without_calling_it_failed(tmp_path, no_gpu, monkeypatch, capsys):
    monkeypatch.setattr(gpu_suite, "LIMIT_S", 1000)
    began = time.monotonic()
    failed, found = run(tmp_path, "right", "hangs", "measured", budget=14)
    assert time.monotonic() - began < 20
    assert failed == 0 and list(found) == ["right"]
    assert "cut   hangs" in capsys.readouterr().out


def test_a_process_that_does_not_start_is_one_failed_row(tmp_path, no_gpu):
    failed, found = run(tmp_path, "right", "measured", steps=does_not_start)
    assert failed == 1 and "did not start" in found["suite"]["error"]


def test_a_row_without_nvidia_smi_says_unknown(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setenv("PATH", "/nonexistent")
    rows._clocks.cache_clear()
    facts = rows.machine()
    rows._clocks.cache_clear()
    assert facts["driver_version"] == facts["clocks_sm"] == "unknown" and facts["gpu"] == "h200"


def test_a_row_that_was_cut_off_is_none(tmp_path):
    whole = json.dumps({"key": "x", "ok": True, "time": "2026"})
    (tmp_path / "rows.jsonl").write_text(f"{whole}\n{whole[:9]}")
    assert rows.read(tmp_path / "rows.jsonl") == [json.loads(whole)]


def test_a_visit_needs_no_more_than_it_says():
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
