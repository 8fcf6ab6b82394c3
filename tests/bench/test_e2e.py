"""`l4k bench e2e` without a GPU: the demo for real, the others refused, the sums by hand."""

import json
import time

import pytest
import torch

from bench import gpu_steps
from bench.checks import gpu_checks
from l4kernels import Engine, Llama4, Llama4Config
from l4kernels.bench.command import main
from l4kernels.bench.e2e import (
    Trial,
    key,
    kv_bytes,
    layers_that_fit,
    prefill_flops,
    run,
    shortened,
    text,
)
from l4kernels.bench.report import table
from l4kernels.bench.serving import Latencies, Load, Timeline, serve, warm
from l4kernels.cli import main as l4k
from l4kernels.layers.weights import FORMATS
from l4kernels.ops import OPS

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")


@no_gpu
@pytest.mark.parametrize("form", FORMATS)
def test_the_demo_is_measured_on_a_cpu_and_says_so(form, capsys):
    command = ["e2e", "--model", "demo", "--format", form, "--prompt", "70", "--new", "3"]
    assert main([*command, "--batch", "2", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["device"] == "cpu" and "step_floor_ms" not in row
    assert (row["layers"], row["layers_of_the_model"], row["format"]) == (8, 8, form)
    assert row["time_to_first_token_ms"] > 0 and row["inter_token_ms"] > 0
    assert row["requests"] == 2 and row["rate"] is None
    # Planned sizes are exact but for rows that fill tiles, and pages: of a chunk of 64 there is one
    # more, for the next chunk's first tokens.
    assert row["weights_bytes"] == pytest.approx(row["planned_weights_bytes"], rel=0.01)
    assert 1 <= row["kv_bytes"] / row["planned_kv_bytes"] <= 2
    assert main([*command, "--layers", "2"]) == 0
    out = capsys.readouterr().out
    assert "2 of 8 layers" in out and "typed references: not a GPU figure" in out


@no_gpu
@pytest.mark.parametrize("model", ["scout", "maverick"])
def test_big_models_are_refused_without_a_gpu(model, capsys):
    assert l4k(["bench", "e2e", "--model", model]) == 2
    captured = capsys.readouterr()
    assert f"{model} needs a Hopper GPU: " in captured.err and not captured.out


def test_out_of_memory_is_one_line(monkeypatch, capsys):
    def run(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 40.00 GiB.")

    monkeypatch.setattr("l4kernels.cli.bench.run", run)
    assert l4k(["bench", "e2e"]) == 2
    assert "l4k: out of memory; `l4k plan` says what fits (CUDA" in capsys.readouterr().err


@no_gpu
def test_requests_at_rates_are_a_row_each(capsys):
    command = ["e2e", "--layers", "1", "--prompt", "5", "--new", "2", "--rate", "500", "20.5"]
    assert main([*command, "--requests", "3", "--json"]) == 0
    fast, slow = map(json.loads, capsys.readouterr().out.splitlines())
    assert (fast["rate"], slow["rate"], fast["requests"]) == (500, 20.5, 3)
    assert fast["time_to_first_token_ms_p99"] >= fast["time_to_first_token_ms"] > 0
    assert "3 requests at 20.5 a second" in text(slow)
    assert key("demo", "fp8", 4, 9, 20.5) == "e2e.demo.fp8.batch4.prompt9.rate20.5"


@pytest.mark.parametrize(
    "wrong", [("--rate", "0"), ("--rate", "1", "nan"), ("--requests", "0"), ("--new", "1")]
)
def test_what_no_engine_can_be_asked(wrong, capsys):
    assert l4k(["bench", "e2e", *wrong]) == 2
    assert f"{wrong[0]}: expected " in capsys.readouterr().err


def test_arrivals_are_a_poisson_process_of_the_rate():
    load = Load(4000, 1, 1, rate=50.0, seed=3)
    times = torch.tensor(load.arrivals(), dtype=torch.float64)
    gaps = times.diff()
    assert times[0] == 0 and gaps.min() >= 0 and load.arrivals() == times.tolist()
    # An exponential: its mean is its standard deviation. Four standard errors.
    assert gaps.mean() == pytest.approx(1 / 50, rel=4 / 4000**0.5)
    assert gaps.std() == pytest.approx(1 / 50, rel=4 * 2**0.5 / 4000**0.5)
    assert Load(9, 1, 1, rate=50.0, seed=4).arrivals() != load.arrivals()[:9]


def test_latencies_by_hand():
    lines = [Timeline(1.0, [1.5, 1.75, 2.0]), Timeline(1.25, [2.0, 3.0]), Timeline(1.5, [4.0, 4.0])]
    found = Latencies.of(lines)
    assert (found.first_p50, found.first_p99) == (750, 2500)
    assert (found.between_p50, found.between_p99) == (250, 1000)
    assert found.tokens_per_second == 7 / 3
    assert found.at_once == (0.5 + 1.0 + 0.0) / 2.5


@pytest.mark.parametrize("batch, prompt, new", [(1, 8, 2), (2, 70, 3), (3, 200, 9)])
def test_the_engine_has_the_pages_of_its_slots(batch, prompt, new):
    trial = Trial("cpu", "demo", "bf16", batch, prompt, new, num_layers=4)
    network = trial.network()
    with trial.engine(network) as engine:
        assert engine._core.cache.bytes == kv_bytes(network, batch, prompt + new)
        assert engine.context == prompt + new


def test_requests_are_sent_whether_or_not_others_are_done():
    """The engine has one slot; a request's wait for it counts from its arrival."""
    model = Llama4.random(shortened(Llama4Config.preset("demo"), 1))
    with Engine(model, slots=1, context=12, kv_tokens=64) as engine:
        began = time.perf_counter()
        lines = serve(engine, Load(4, 2, 10, rate=1e6))
        assert [len(line.tokens) for line in lines] == [10] * 4
        assert max(line.arrived for line in lines) < began + 0.1
        starts = [line.tokens[0] - line.arrived for line in lines]
        assert sorted(starts) == starts  # each behind those before it
        assert Latencies.of(lines).at_once <= 1


def test_warming_captures_every_step_that_is_met():
    captured = []

    def capture(step):
        captured.append(step)
        step()
        return step

    model = Llama4.random(shortened(Llama4Config.preset("demo"), 1))
    with Engine(
        model, slots=3, context=12, kv_tokens=512, capture=capture, prefix_cache=False
    ) as engine:
        warm(engine, 3, 4, 8)
        assert len(captured) == 3  # of 1, 2 and 3 rows
        serve(engine, Load(9, 4, 8, rate=1e3))
        assert len(captured) == 3


def test_a_shortened_model_keeps_its_pattern():
    config = shortened(Llama4Config.preset("maverick"), 5)
    assert config.moe_layers == (1, 3) and config.vision is None
    assert config.chunked_layers == config.rope_layers == (True, True, True, False, True)


def test_as_many_layers_as_fit():
    scout, maverick = (Llama4Config.preset(name) for name in ("scout", "maverick"))
    assert layers_that_fit(scout, "fp8", "h200", 8256, 1) == 48
    assert layers_that_fit(scout, "bf16", "h200", 8256, 1) < 40
    assert layers_that_fit(maverick, "fp8", "h200", 8256, 1) < 20
    with pytest.raises(ValueError, match="not one layer"):
        layers_that_fit(scout, "bf16", "h100", 8192, 4096)


def test_prefill_flops_are_those_of_the_ops():
    config, prompt = shortened(Llama4Config.preset("demo"), 4), 130
    q = torch.empty(prompt, 5, 128, device="meta")
    cache = torch.empty(3, 64, 1, 128, device="meta")
    lengths = torch.tensor([0, prompt], dtype=torch.int32)
    args, options = (q, cache, cache, lengths, lengths[1:], lengths), {"softmax_scale": 1.0}
    attention = sum(
        OPS["flash_prefill"]
        .work(*args, **options, max_seqlen_q=prompt, chunk=config.chunk(layer))
        .flops
        for layer in range(4)
    )
    attended = 128 * (2 * 640 + 2 * 128)  # q and o, k and v
    dense, expert, shared, router = 3 * 128 * 256, 3 * 128 * 128, 3 * 128 * 128, 4 * 128
    per_token = 4 * attended + 2 * dense + 2 * (expert + shared + router)
    norms = 9 * 128  # counted among the parameters; a thousandth
    wanted = 2 * prompt * per_token + attention + 2 * 1056 * 128
    assert prefill_flops(config, 3, prompt) == 3 * (wanted + 2 * prompt * norms)


def test_a_gpu_run_measures_models_and_leaves_time_for_them(monkeypatch):
    monkeypatch.setattr(gpu_steps, "gpu_problem", lambda form: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    keys = [key for key, _ in gpu_steps.steps()]
    assert len(set(keys)) == len(keys)
    for name in ("test.model.fp8_kv.text", "e2e.scout.fp8.batch1.prompt8192"):
        assert name in keys and gpu_steps.cost(name) > 0
    whole = "e2e.scout.int4.batch1.prompt8192"
    assert whole in keys and gpu_steps.cost(whole) > 33  # what quantising Scout is counted to take
    config = Llama4Config.preset("scout")
    assert layers_that_fit(config, "int4", "h100", 8192 + 64, 1) == 48
    assert gpu_steps.cost("bench.gemm.scout.64.o.bf16") < 10


def test_replays_of_attention_are_compared_bit_by_bit(monkeypatch):
    """The GPU's step with a graph that runs the call again, or keeps what it had."""

    class Graph:
        def __init__(self, call, follows):
            self.call, self.follows = call, follows
            call()

        def replay(self):
            if self.follows:
                self.call()

    for follows in (True, False):
        monkeypatch.setattr(gpu_checks, "capture", lambda call, f=follows: Graph(call, f))
        if follows:
            assert gpu_checks.attention_in_a_graph("cpu", 2) == {"replays": 2}
        else:
            with pytest.raises(AssertionError, match="other bits in a graph at"):
                gpu_checks.attention_in_a_graph("cpu", 2)


def test_report_has_a_line_for_each_model():
    row = {"key": "e2e.scout.fp8.batch1.prompt8192", "ok": True, "op": None, "layers": 8}
    row |= {"layers_of_the_model": 48, "time_to_first_token_ms": 12.34, "inter_token_ms": 5.678}
    row |= {"share_of_step_floor": 0.75, "peak_memory_bytes": 3e10}
    assert "| scout.fp8.batch1.prompt8192 | 8 of 48 | 12.3 | 5.68 | 75% | 30.0 |" in table([row])


def test_a_gpu_row_names_gpu_floors_and_peak():
    (row,) = run(Trial("cpu", "demo", "bf16", 1, 8, 2))
    row |= {"device": "cuda", "gpu": "h200"}
    row |= {"step_floor_ms": 0.5, "share_of_step_floor": 0.25, "first_token_floor_ms": 0.75}
    row |= {"peak_memory_bytes": 2e9, "planned_memory_bytes": 4e9}
    shown = text(row)
    assert "demo bf16 (h200), 8 of 8 layers" in shown and "floor 0.75 ms" in shown
    assert "floor 0.500 ms, 25% of it" in shown and "peak 2.00 GB (plan 4.00)" in shown


def test_floors_of_prefill_are_at_the_peaks_of_each_format():
    times = {
        form: Trial("cpu", "scout", form, 1, 8192, 2, 48).prefill_floor_s(1) for form in FORMATS
    }
    assert times["fp8"] == pytest.approx(989 / 1979 * times["bf16"])
    assert times["int4"] == times["bf16"] > times["int4+fp8attn"] > times["fp8"]
    of_attention = 2 * 8192 * 48 * 2 * (5120 * 5120 + 5120 * 1024)
    saved = of_attention * (1 / 989e12 - 1 / 1979e12)
    assert times["int4"] - times["int4+fp8attn"] == pytest.approx(saved)
