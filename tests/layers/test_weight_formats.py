"""Formats of weights: what each says of itself, and that one file and one line add another."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from l4kernels import Llama4, ops
from l4kernels.bench import e2e
from l4kernels.cli import main
from l4kernels.demo import CHECKPOINT
from l4kernels.layers.options import ModelOptions
from l4kernels.layers.weights import FORMATS, WeightFormat
from l4kernels.layers.weights.linear import Linear, unquantised
from l4kernels.planning.footprint import weight_bytes
from l4kernels.planning.plan import find_format, plan

CPU = torch.device("cpu")


class Int8Linear(Linear):
    """int8 with one float32 scale per output channel, multiplied in the model's dtype."""

    name = "int8"

    def allocate(self, *rows: int) -> None:
        self.codes = self.empty(*rows, self.in_features, dtype=torch.int8)
        self.scale = self.empty(*rows, dtype=torch.float32)

    def write(self, weight, place):
        scale = weight.float().abs().amax(-1).clamp(min=1e-12) / 127
        place.fill(self.codes, (weight.float() / scale[:, None]).round().to(torch.int8))
        place.fill(self.scale, scale)

    def multiply(self, x, epilogue: dict[str, Any]):
        weight = (self.codes.float() * self.scale.unsqueeze(-1)).to(self.dtype)
        return ops.gemm(unquantised(x), weight, **epilogue)


INT8 = WeightFormat(
    "int8",
    f"{__name__}.Int8Linear",
    bytes_per_weight=1.0,
    bytes_per_row=4.0,
    head="int8",
)


@pytest.fixture
def int8(monkeypatch):
    monkeypatch.setitem(FORMATS, "int8", INT8)


@pytest.mark.parametrize("name", [*FORMATS, "int8"])
@pytest.mark.parametrize("experts", [None, 3])
def test_a_format_takes_the_memory_that_it_says(int8, name, experts):
    layer = ModelOptions(torch.bfloat16, CPU, name).linear(256, 48, experts=experts)
    got = sum(parameter.nbytes for parameter in layer.parameters())
    assert got == FORMATS[name].bytes(48, 256, experts or 1)


def test_sizes_that_a_format_cannot_hold_are_refused_by_name():
    options = ModelOptions(torch.bfloat16, CPU, "int4")
    for sizes, kind in (((100, 48), "input .* 128, got 100"), ((128, 40), "output .* 16, got 40")):
        with pytest.raises(ValueError, match=f'int4 weights need {kind}.*weights="bf16"'):
            options.linear(*sizes)


def test_entries_of_the_table_fit_their_classes_and_one_another():
    for name, form in FORMATS.items():
        own = FORMATS[ModelOptions(torch.bfloat16, CPU, name).linear_class.name]
        assert name == form.name and form.head in FORMATS and own.linear == form.linear
        # A mix is a format of one class but for attention, and that is not a mix itself.
        assert form == own or form == replace(own, name=name, attention=form.attention)
        assert not form.attention or not FORMATS[form.attention].attention
        assert {*form.own_ops} <= {*ops.OPS}
        others = {o for f in FORMATS.values() if f.linear != form.linear for o in f.own_ops}
        assert not {*form.own_ops} & others


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("wanted", FORMATS)
def test_a_layer_takes_unquantised_rows_and_those_of_its_own_format(name, wanted):
    layer = ModelOptions(torch.float32, CPU, name).linear(128, 16)
    layer.store(torch.randn(16, 128))
    x, ones = torch.randn(5, 128), torch.ones(128)
    norm = ModelOptions(torch.float32, CPU, wanted).linear_class.rms_norm
    rows = norm(x, ones, 1e-5)
    if wanted == "fp8" and name != "fp8":
        with pytest.raises(TypeError, match="expected unquantised activations, got e4m3 rows"):
            layer(rows)
        return
    torch.testing.assert_close(layer(rows), layer(ops.rms_norm(x, ones, 1e-5)), rtol=0, atol=1e-5)


def test_one_entry_adds_a_format_to_everything_that_offers_one(int8, capsys):
    exact = Llama4.from_pretrained(CHECKPOINT, dtype="bfloat16")
    model = Llama4.from_pretrained(CHECKPOINT, dtype="bfloat16", weights="int8")
    weights = {n for n, p in model.named_parameters() if p.dtype == torch.int8}
    assert any("gate_up_proj" in n for n in weights) and "lm_head.codes" in weights
    ids = torch.randint(0, 256, (1, 40))
    want, got = exact.prompt_logits(ids), model.prompt_logits(ids)
    assert 0 < (got - want).norm() / want.norm() < 0.05
    loaded = sum(parameter.nbytes for parameter in model.parameters())
    planned = weight_bytes(model.config, find_format("int8"))
    in_bf16 = sum(p.nbytes for p in exact.parameters())
    padding = in_bf16 - weight_bytes(model.config, find_format("bf16"))
    assert loaded - padding == pytest.approx(planned, abs=1)
    assert plan(model.config, "int8", context=1024).obstacles == ()
    for command in (
        ["generate", "--model", str(CHECKPOINT), "--prompt", "And", "--max-new-tokens", "2",
         "--device", "cpu", "--weights", "int8"],
        ["plan", "demo", "--format", "int8"],
    ):  # fmt: skip
        assert main(command) == 0
    assert "int8" in capsys.readouterr().out
    assert e2e.parse(["--format", "int8"]).format == "int8"
    with pytest.raises(
        ValueError, match=r"one of bf16, fp8, int4, int4\+fp8attn, int8, got 'int3'"
    ):
        Llama4.from_pretrained(CHECKPOINT, weights="int3")


@pytest.mark.parametrize("verb", ["generate", "demo", "plan"])
def test_the_help_names_every_format(verb, capsys):
    main([verb, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert all(name in text for name in FORMATS)
