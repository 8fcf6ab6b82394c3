"""The steps of a GPU run, rehearsed at small sizes on a fake GPU."""

import contextlib
import json
import time
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from bench import ceilings, decode_step, gpu_steps, peers, tune
from bench.checks import edges, edges_sample, gpu_checks
from bench.gpu_run import run_steps
from bench.host import eager
from l4kernels import STATUS, Llama4Config
from l4kernels.bench import measure, rows, shapes, timing
from l4kernels.bench.report import table
from l4kernels.bench.rows import Rows, load
from tests.support.fake_cuda import fake_cuda

pytestmark = pytest.mark.skipif(not STATUS.loaded, reason="no compiled kernels: run `make build`")

SMALL = {
    "REPEATS": 2,
    "CHAINED": (40, 512),
    "TOKENS": 150,
    "WIDTH": 256,
    "SAMPLED": (150, 512),
    "ROUTED": ((70, 16, 2, True),),
    "ROPE_HEADS": 1,
    "ROPE_PAGES": 3,
    "LONG_PREFILL": (1024, 4),
}


def short_graph(calls, chain, **_):
    return timing.time_graph(calls, chain=min(chain, 2), repeats=2)


@contextlib.contextmanager
def rehearsal():
    """Small tensors of the demo's shapes, one repeat, peers as they are written."""
    demo = SimpleNamespace(preset=lambda name: Llama4Config.preset("demo"))
    sizes = {op: dict.fromkeys(found, (128,)) for op, found in shapes.SIZES.items()}
    with contextlib.ExitStack() as stack:
        for patch in (
            *(mock.patch.object(gpu_checks, name, value) for name, value in SMALL.items()),
            mock.patch.dict(edges_sample.DRAWS, {"cuda": 400}),
            mock.patch.object(edges_sample, "VOCABULARIES", (1000,)),
            mock.patch.object(edges, "STREAMING", ("rms_norm_fp8", "rope_cache", "embed")),
            mock.patch.dict(shapes.PHASES, {"decode": (1,), "prefill": (5,)}),
            mock.patch.dict(shapes.SIZES, sizes),
            mock.patch.dict(shapes.FIRST_SIZES, {op: sizes[op] for op in shapes.FIRST_SIZES}),
            mock.patch.object(shapes, "Llama4Config", demo),
            mock.patch.object(peers.torch, "compile", lambda function: function),
            mock.patch.object(measure, "time_graph", short_graph),
            mock.patch.object(gpu_steps, "time_graph", short_graph),
            mock.patch.dict(timing.time_calls.__kwdefaults__, {"repeats": 2, "warmup": 1}),
            mock.patch.object(
                gpu_steps,
                "WHOLE_MODELS",
                (("demo", "fp8", 1, 4, 2, 1), ("demo", "bf16", 1, 4, 2, 1)),
            ),
            mock.patch.object(ceilings, "CEILING_BYTES", 1 << 20),
            mock.patch.object(ceilings, "CLOCKS_S", 0.0),
            mock.patch.object(ceilings, "CLOCKS_TOKENS", 128),
            mock.patch.object(tune, "TOKENS", (1, 9)),
            mock.patch.object(tune, "INT4_TOKENS", (2,)),
            mock.patch.object(tune, "max_splits", return_value=2),
            mock.patch.object(tune, "time_graph", short_graph),
            mock.patch.object(decode_step, "CONTEXTS", (5,)),
            mock.patch.object(decode_step, "REPLAYS", 2),
            mock.patch.object(eager, "CALLS", 1),
            mock.patch.object(eager, "ANEW", 9.0),
            fake_cuda(),
        ):
            stack.enter_context(patch)
        yield


def keys():
    """Not the other preset's cases, which are the same at these sizes, nor those without peers, the
    first part of those with; and not what other tests run in the emulator: the model, and every row
    of the GEMM's table."""
    if not STATUS.loaded:
        return []
    with rehearsal():
        found = dict.fromkeys(key for key, _ in gpu_steps.steps())
    elsewhere = (
        "test.gemm",
        "test.model.",
        "test.engine.",
        "test.graph.attention",
        "micro.",
        "conformance.",
        "counters.",
        "compiled.",
    )
    again = "maverick", "batch64", "bench.gemm", "bench.w4_gemm", "bench.flash"
    tuned = {"qkv.bf16", "qkv.fp8_row", "moe_down.fp8_fast", "w4_gemm.scout.mlp_down"}
    return [
        key
        for key in found
        if not key.startswith(elsewhere)
        and not any(part in key for part in again)
        and (not key.startswith("tune.") or key.endswith(tuple(tuned)))
    ]


@pytest.mark.parametrize("key", keys())
def test_step(key):
    with rehearsal():
        returned = dict(gpu_steps.steps())[key]()
        results = [returned] if isinstance(returned, tuple) else list(returned)
    _, facts = results[-1]
    json.dumps(facts)
    assert facts.get("relative_error", 0) < 0.05
    left_out = {name: why for name, why in facts.get("peers", {}).items() if isinstance(why, str)}
    excused = facts.get("op") in shapes.SIZES or ".sample." in key  # no CPU form; other numbers
    assert excused or not left_out, left_out


STARTED = contextlib.ExitStack()


def rehearsed_steps():
    """In the process of the steps, which ends with it."""
    STARTED.enter_context(rehearsal())
    return gpu_steps.steps()


def test_a_run_from_its_command_to_its_table(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    rows.machine()  # caches what nvidia-smi would say
    wanted = ["test.silu_mul", "ceiling.copy", "peers.silu_mul.scout.1", "sanitizer.memcheck"]
    end = time.monotonic() + 300
    assert run_steps(rehearsed_steps, gpu_steps.cost, Rows(tmp_path, "h200"), wanted, end) == 0
    found = {row["key"]: row for row in load([tmp_path])}
    assert found["test.silu_mul"]["cases"] >= 7
    assert found["sanitizer.memcheck"]["skipped"] == "no compute-sanitizer on this machine"
    assert found["peers.silu_mul.scout.1"]["peers"].keys() == {"torch"}
    assert "silu_mul.scout.1" in table(list(found.values()))


def test_the_fake_refuses_to_mix_devices():
    with fake_cuda():
        here, there = torch.ones(3), torch.ones(3, device="cuda")
        assert (there + 1).is_cuda and there.cpu().device == here.device
        for mix in (lambda: here + there, lambda: torch.cat([here, there])):
            with pytest.raises(RuntimeError, match="on cuda and cpu"):
                mix()
