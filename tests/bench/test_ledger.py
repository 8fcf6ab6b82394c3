"""`l4k bench ledger`: the calls of a decode step against the plan, the emulator and by hand."""

import json
import re
from collections import Counter
from dataclasses import replace

import pytest
import torch

from l4kernels import STATUS, Llama4, Llama4Config
from l4kernels.bench import ledger as module
from l4kernels.bench.e2e import shortened
from l4kernels.bench.ledger import SHARED_BYTES, Row, ledger
from l4kernels.cli import main
from l4kernels.engine.generate import core_for
from l4kernels.engine.request import Request
from l4kernels.layers.weights import FORMATS
from l4kernels.ops.check import FP8
from l4kernels.planning.footprint import experts_met
from l4kernels.testing import emulated
from l4kernels.testing.emulator import Launch

DEMO = Llama4Config.preset("demo")
compiled = pytest.mark.skipif(not STATUS.loaded, reason="no compiled kernels: run `make build`")


@pytest.fixture
def no_emulator(monkeypatch):
    """As in an installed package; also saves the time."""

    def missing(*_, **__):
        raise NotImplementedError("the emulator is not part of an installed package; build")

    monkeypatch.setattr(module, "launches_of", missing)


STEPS = [("scout", form, batch, 8192) for form in FORMATS for batch in (1, 8)]
STEPS += [("maverick", "fp8", 1, 131_072), ("maverick", "int4", 64, 20_000)]


@pytest.mark.parametrize("model, form, batch, context", STEPS)
def test_floors_are_the_plans_and_a_little_more(no_emulator, model, form, batch, context):
    config = shortened(Llama4Config.preset(model), 8)  # two periods of both kinds of both layers
    step = ledger(config, form, "h100", batch, context)
    assert 1 < step.bytes / step.plan.bytes_per_step < 1.02
    assert 1 < step.floor_us / step.plan.step_floor_ms / 1e3 < 1.02
    assert step.launches == 0 and all(row.launches is None for row in step.rows)
    assert step.unknown == ("the emulator is not part of an installed package",)


def test_an_expert_that_is_met_half_of_the_time_is_half_read(no_emulator):
    config = shortened(Llama4Config.preset("scout"), 1)
    assert [experts_met(config, batch) for batch in (1, 2)] == [1, 1.9375]
    one, two = (
        max(row.bytes for row in ledger(config, "bf16", "h200", batch, 9).rows if row.layer == 0)
        for batch in (1, 2)
    )
    gate_up = 2 * (2 * 8192 * 5120)
    assert two - one == pytest.approx(0.9375 * gate_up, rel=0.001)


@compiled
@pytest.mark.parametrize("form", ["bf16", "int4+fp8attn"])
def test_launches_are_those_of_a_step_that_runs(form):
    config = shortened(DEMO, 2)  # one dense layer, one of experts
    rows = ledger(config, form, context=11, sms=4).rows
    kv_dtype = FP8 if FORMATS[form].fp8_cache else None
    model = Llama4.random(config, dtype=torch.bfloat16, weights=form, kv_dtype=kv_dtype)
    (sequence,) = Request([1, 2, 3, 4, 5, 6, 7, 8], max_new_tokens=3).sequences(model)
    core = core_for(model, [sequence])
    core.add(sequence)
    core.step()
    without = {row.name for row in rows if row.launches is None}
    with emulated(reference=tuple(without)) as control:
        control.reset()
        core.step()
        ran = [facts["launches"] for facts in control.counters().values()]
    listed = Counter(launch.kernel for row in rows for launch in row.launches or ())
    assert len(without) < 2 and sorted(ran) == sorted(listed.values())


@compiled
def test_a_step_of_torch_is_listed_beside_ours(monkeypatch):
    """A call of torch's own counts its bytes; views cost nothing and are left out."""
    layer = module.Llama4Model.embed
    monkeypatch.setattr(
        module.Llama4Model, "embed", lambda self, *ids: (layer(self, *ids) + 1).view(-1, 128)
    )
    plain = {"aten.add.Tensor"}
    step = ledger(shortened(DEMO, 1), "bf16", batch=3, context=9)
    assert {row.name for row in step.rows} - {*module.OPS} == plain
    (added,) = (row for row in step.rows if row.name in plain)
    assert added.bytes == 2 * 3 * 128 * 2 and added.launches is None
    assert "aten.add.Tensor runs on torch's kernels" in step.unknown
    behind = step.rows[step.rows.index(added) + 1]
    assert behind.pair_bytes is None and behind.overlaps is None


def row(layer, name, shared, pair, size=1.0):
    launch = Launch(name, (1, 1, 1), (32, 1, 1), (1, 1, 1), shared, True)
    return Row(layer, name, size, 0.0, size, (launch,), pair)


def test_equal_layers_stand_once_and_differences_are_kept():
    rows = [row(None, "embed", 0, None)]
    for layer, size in enumerate((1.0, 1.0, 2.0, 1.0)):
        rows += [row(layer, "a", 4, 4 if layer else 0), row(layer, "b", SHARED_BYTES, size == 1.0)]
    rows.append(row(None, "sample", 1, SHARED_BYTES + 1, 5.0))
    rows[6] = replace(rows[6], bytes=3.0)
    step = replace(ledger_of_nothing(), rows=tuple(rows))
    before, equal, other, after = step.groups()
    assert (before.place, after.place) == ("before the layers", "after the layers")
    assert (equal.layers, other.layers) == ([0, 1, 3], [2])
    assert equal.launches == 2 and step.launches == 10
    assert equal.rows[0].pair_bytes == 4  # behind a layer, not behind the embedding
    assert after.rows[0].overlaps is False and equal.rows[1].overlaps is True


def ledger_of_nothing():
    return module.Ledger("demo", "bf16", "h200", 1, 9, (), None, ())


@compiled
def test_a_layer_of_scout_in_int4_is_seven_launches():
    step = ledger(Llama4Config.preset("scout"), "int4")
    assert step.unknown == ()
    assert {group.launches for group in step.groups() if not group.place} == {7}


@compiled
@pytest.mark.parametrize(
    ("weights", "batch", "marks"), [("int4", 1, {""}), ("bf16", 64, {"", "!"})], ids=str
)
def test_the_command_says_what_overlaps_nothing(weights, batch, marks, capsys):
    """One token's int4 launches all fit beside their neighbours; products of wgmma fill an SM."""
    argv = ["bench", "ledger", "--model", "scout", "--format", weights, "--batch", str(batch)]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "each of 36 layers (0, 1, 2, 4, 5, 6, ..., 46), launches: " in out
    pairs = re.findall(r" (!?)(\d+\.\d) +\d+\.\d{3} +\d+\.\d{2} ", out)
    assert {mark for mark, _ in pairs} == marks
    assert all((mark == "!") == (float(size) > 227) for mark, size in pairs)
    assert ("by `l4k plan` 2.007 ms (+" in out) == (weights == "int4")


@compiled
def test_the_command_for_programs(capsys):
    command = ["bench", "ledger", "--model", "demo", "--format", "fp8", "--gpu", "h100"]
    assert main([*command, "--batch", "4", "--context", "1k", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["gpu"], found["batch"], found["context"]) == ("h100", 4, 1024)
    assert sum(len(group["layers"]) for group in found["groups"]) == 8
    parts = [(max(1, len(group["layers"])), group) for group in found["groups"]]
    assert sum(n * group["launches"] for n, group in parts) == found["launches"]
    total = sum(n * group["floor_us"] for n, group in parts)
    assert total == pytest.approx(found["floor_us"])
    assert found["floor_us"] > found["planned_floor_us"] > 0


@pytest.mark.parametrize(
    "wrong, message",
    [
        (("--context", "11M"), "beyond the model's 10485760 positions"),
        (("--context", "x"), "expected a number of tokens"),
        (("--batch", "0"), "expected batch in 1"),
        (("--format", "int3"), "invalid choice: 'int3'"),
        (("--gpu", "h20"), "invalid choice: 'h20'"),
    ],
)
def test_what_cannot_be_listed(wrong, message, capsys):
    assert main(["bench", "ledger", *wrong]) == 2
    assert message in capsys.readouterr().err
