"""LoRA adapters, written by peft, merged at load: against what peft itself merges."""

import functools
import json
import os
import shutil
import time
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

from l4kernels import Llama4, Llama4Config
from l4kernels.checkpoint import formats
from l4kernels.checkpoint.files.reader import CheckpointError
from l4kernels.checkpoint.files.shares import Piece
from l4kernels.checkpoint.formats import open_checkpoint
from l4kernels.checkpoint.formats.unquantised import Unquantised
from l4kernels.checkpoint.quantize.run import Job, quantize
from l4kernels.checkpoint.quantize.scheme import Scheme
from l4kernels.cli import main
from l4kernels.demo import CHECKPOINT
from l4kernels.inputs.fields import ConfigError
from l4kernels.layers.weights import FORMATS
from l4kernels.layers.weights.codes import Fp8Codes
from tests.support.checkpoints import unfused
from tests.support.parity import TOLERANCE, Case, hf_logits, prompt, save_model

peft = pytest.importorskip("peft")
WEIGHTS = "adapter_model.safetensors"
CASE = Case(layers=2, moe_step=2, hidden=128, experts=3)
FUSED = ["feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj"]


@pytest.fixture
def base(tmp_path):
    return save_model(CASE, str(tmp_path / "base"))


def adapted(model, folder, **options):
    """Saves an adapter whose halves are both random; the model with it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(model, peft.LoraConfig(**{"r": 4, "lora_alpha": 6, **options}))
        generator = torch.Generator().manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.data += 0.05 * noise
        model.save_pretrained(folder)
    return model


KINDS = {
    "attention": {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]},
    "every linear layer": {"target_modules": "all-linear", "use_rslora": True},
    "patterns": {
        "target_modules": ["q_proj", "down_proj"],
        "rank_pattern": {"q_proj": 2, "^model.layers.0.feed_forward.down_proj": 3},
        "alpha_pattern": {"layers.1.self_attn.q_proj": 11, "shared_expert.down_proj": 0.5},
    },
    "fused experts": {"target_modules": ["router"], "target_parameters": FUSED},
    "one stack": {"target_modules": [], "target_parameters": FUSED[1:], "r": 2},
    "embeddings": {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
    "whole modules": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_merged_as_peft_merges_it(base, tmp_path, kind):
    ids, tiles = prompt(CASE)
    plain = hf_logits(base, ids, tiles)
    model = adapted(base, tmp_path / "adapter", **KINDS[kind])
    got = Llama4.from_pretrained(tmp_path / "base", lora=tmp_path / "adapter")
    want = hf_logits(model.merge_and_unload(), ids, tiles)
    assert (want - plain).abs().max() > 100 * TOLERANCE, "the adapter does something"
    assert (got.prompt_logits(ids, tiles) - want).abs().max() <= TOLERANCE


def test_of_a_model_with_images(tmp_path):
    case = Case(layers=2, vision=True, images=((1, 2),), length=40)
    ids, tiles = prompt(case)
    model = save_model(case, str(tmp_path / "base"))
    model = adapted(model, tmp_path / "adapter", target_modules="all-linear")
    got = Llama4.from_pretrained(tmp_path / "base", lora=str(tmp_path / "adapter"))
    want = hf_logits(model.merge_and_unload(), ids, tiles)
    assert (got.prompt_logits(ids, tiles) - want).abs().max() <= TOLERANCE


def test_experts_of_a_checkpoint_that_has_them_one_by_one(base, tmp_path):
    adapted(base, tmp_path / "adapter", **KINDS["fused experts"])
    file = tmp_path / "base" / "model.safetensors"
    ids, _ = prompt(CASE)
    options = {"lora": tmp_path / "adapter"}
    want = Llama4.from_pretrained(tmp_path / "base", **options).prompt_logits(ids)
    save_file(unfused(load_file(file)), file)
    got = Llama4.from_pretrained(tmp_path / "base", **options).prompt_logits(ids)
    assert torch.equal(got, want)


def test_one_expert_of_a_checkpoint_that_has_them_fused(base, tmp_path):
    folder = tmp_path / "adapter"
    adapted(base, folder, target_modules=["q_proj"])
    stem = "base_model.model.model.layers.1.feed_forward.experts.2."
    tensors, wide = {}, CASE.hidden
    for part, (n, k) in {"gate": (40, wide), "up": (40, wide), "down": (wide, 40)}.items():
        tensors[f"{stem}{part}_proj.lora_A.weight"] = torch.randn(4, k)
        tensors[f"{stem}{part}_proj.lora_B.weight"] = torch.randn(n, 4)
    save_file(tensors, folder / WEIGHTS)
    ids, _ = prompt(CASE)
    got = Llama4.from_pretrained(tmp_path / "base", lora=folder).prompt_logits(ids)
    file = tmp_path / "base" / "model.safetensors"
    base = load_file(file)
    for part, rows in {"gate": slice(40), "up": slice(40, 80), "down": slice(None)}.items():
        a, b = (tensors[f"{stem}{part}_proj.lora_{side}.weight"] for side in "AB")
        name = f"model.layers.1.feed_forward.experts.{'down' if part == 'down' else 'gate_up'}_proj"
        base[name][2, :, rows] += (6 / 4 * b @ a).t()
    save_file(base, file)
    want = Llama4.from_pretrained(tmp_path / "base").prompt_logits(ids)
    assert (got - want).abs().max() <= TOLERANCE


def test_several_adapters_add_up(base, tmp_path):
    kinds = [KINDS["attention"], KINDS["fused experts"]]
    merged = base
    for number, kind in enumerate(kinds):
        merged = adapted(merged, tmp_path / str(number), **kind).merge_and_unload()
    ids, tiles = prompt(CASE)
    folders = [tmp_path / "0", tmp_path / "1"]
    got = Llama4.from_pretrained(tmp_path / "base", lora=folders).prompt_logits(ids)
    assert (got - hf_logits(merged, ids, tiles)).abs().max() <= TOLERANCE


def test_on_the_command_line(base, tmp_path, capsys):
    folder = adapted(base, tmp_path / "adapter", **KINDS["attention"]) and tmp_path / "adapter"
    (folder / WEIGHTS).unlink()
    (folder / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    arguments = ["generate", "--model", str(CHECKPOINT), "--prompt", "a", "--lora", str(folder)]
    assert main(arguments) == 2
    assert "adapter_model.bin: pickled files can run anything" in capsys.readouterr().err


def test_what_is_said_of_a_checkpoint_is_one_line(tmp_path, capsys):
    """And not the place in the code that says it."""
    source = open_checkpoint(CHECKPOINT, Llama4Config.from_pretrained(CHECKPOINT))
    quantize(Job(source, Scheme.of("fp8")), tmp_path / "fp8")
    model = tmp_path / "fp8"
    arguments = ["generate", "--model", model, "--prompt", "a", "--max-new-tokens", "1"]
    assert main([*map(str, arguments), "--weights", "int4", "--json"]) == 0
    said = capsys.readouterr().err.splitlines()
    assert said and all(line.startswith(f"l4k: {model}: ") for line in said)


def config(**changes):
    def change(folder):
        file = folder / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return change


def tensors(edit):
    def change(folder):
        content = load_file(folder / WEIGHTS)
        edit(content)
        save_file(content, folder / WEIGHTS)

    return change


STEM = "base_model.model.model.layers.0.self_attn.q_proj."
A, B = f"{STEM}lora_A.weight", f"{STEM}lora_B.weight"


def outside(folder):
    (folder / WEIGHTS).rename(folder.parent / "elsewhere")
    (folder / WEIGHTS).symlink_to("../elsewhere")


def pipe(folder):
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)


REFUSED = {
    "another kind": (config(peft_type="LOHA"), "only peft_type = 'LORA' is supported, got 'LOHA'"),
    "no kind": (config(peft_type=None), "only peft_type = 'LORA' is supported, got None"),
    "DoRA": (config(use_dora=True), "adapters with use_dora cannot be merged here"),
    "bias": (config(bias="all"), "only bias = 'none' is supported, got 'all'"),
    "PiSSA": (config(init_lora_weights="pissa_niter_4"), "changed the base's weights, too"),
    "expression": (config(alpha_pattern={"(a+)+$": 2}), "expected names of modules or their ends"),
    "no number": (config(lora_alpha=float("nan")), "lora_alpha"),
    "patterns": (config(rank_pattern=[1]), "rank_pattern: expected an object, got"),
    "rank": (config(r=3), "lora_A.weight to have rank 3, as adapter_config.json says, got 4"),
    "rank 0": (config(r=0), "expected r to be a whole number in "),
    "no target": (
        tensors(
            lambda t: t.update({"base_model.model.model.layers.9.q.lora_A.weight": t[A].clone()})
        ),
        "1 modules that the adapter changes are not in the model: model.layers.9.q",
    ),
    "half": (tensors(lambda t: t.pop(B)), "q_proj.lora_A.weight has no other half"),
    "nothing": (tensors(lambda t: t.clear()), "holds no tensors"),
    "shape of A": (
        tensors(lambda t: t.update({A: torch.ones(4, 127)})),
        r"lora_A.weight to be \[4, 128\], got \[4, 127\]",
    ),
    "shape of B": (
        tensors(lambda t: t.update({B: torch.ones(3, 640, 4)})),
        r"lora_B.weight to be \[640, 4\], got \[3, 640, 4\]",
    ),
    "integers": (tensors(lambda t: t.update({B: t[B].int()})), "to be one of BF16.*, got 'I32'"),
    "replaced": (
        tensors(lambda t: t.update({f"{STEM}weight": torch.ones(640, 128)})),
        "q_proj.weight replaces a weight",
    ),
    "no part": (
        tensors(lambda t: t.update({f"{STEM}lora_magnitude_vector": torch.ones(640)})),
        "lora_magnitude_vector is no part of LoRA that can be merged",
    ),
    "cut": (lambda f: os.truncate(f / WEIGHTS, 5000), "not a complete safetensors file"),
    "a terabyte": (
        lambda f: (f / WEIGHTS).write_bytes((1 << 40).to_bytes(8, "little") + b"{}"),
        "not a complete safetensors file",
    ),
    "outside": (outside, "leads out of the checkpoint folder"),
    "pipe": (pipe, "not a regular file"),
    "no config": (
        lambda f: (f / "adapter_config.json").unlink(),
        "found no adapter_config.json; expected a PEFT adapter",
    ),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), f"found no {WEIGHTS}"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    adapted(save_model(CASE, str(folder / "base")), folder / "adapter", target_modules=["q_proj"])
    return folder


@pytest.mark.parametrize("kind", REFUSED)
def test_hostile_adapters_are_refused_by_name(made, tmp_path, monkeypatch, kind):
    folder = tmp_path / "adapter"
    folder.mkdir()
    for file in ("adapter_config.json", WEIGHTS):
        (folder / file).write_bytes((made / "adapter" / file).read_bytes())
    change, message = REFUSED[kind]
    change(folder)
    monkeypatch.setattr(Llama4, "__init__", lambda *a, **k: pytest.fail("a model was made"))
    started = time.monotonic()
    with pytest.raises((CheckpointError, ConfigError), match=message) as error:
        Llama4.from_pretrained(made / "base", lora=folder)
    assert time.monotonic() - started < 2 and str(folder) in str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_no_numbers(made, tmp_path, value):
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_bytes(
        (made / "adapter" / "adapter_config.json").read_bytes()
    )
    content = load_file(made / "adapter" / WEIGHTS)
    content[A][1, 1] = value
    save_file(content, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match=rf"{A} holds values that are NaN or infinite"):
        Llama4.from_pretrained(made / "base", lora=folder)


def test_sums_that_are_no_numbers(made, tmp_path):
    folder = shutil.copytree(made / "adapter", tmp_path / "adapter")
    content = load_file(folder / WEIGHTS)
    content[A] *= 1e38
    content[A.replace("lora_A", "lora_B")] *= 1e38
    save_file(content, folder / WEIGHTS)
    with pytest.raises(CheckpointError, match="it gives values too large for float32") as error:
        Llama4.from_pretrained(made / "base", lora=folder)
    assert str(folder) in str(error.value)


def test_tied_embeddings_are_not_told_apart(base, tmp_path):
    adapted(base, tmp_path / "adapter", **KINDS["embeddings"])
    file = tmp_path / "base" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "tie_word_embeddings": True}))
    with pytest.raises(CheckpointError, match="changes one of two weights that the model ties"):
        Llama4.from_pretrained(tmp_path / "base", lora=tmp_path / "adapter")


class Fp8(Unquantised):
    """q_proj in e4m3 with one scale, which the model keeps."""

    methods = ("one-scale",)

    def pieces_of(self, name, slot):
        if not name.endswith("q_proj.weight"):
            return super().pieces_of(name, slot)
        return {name: Piece(slot.shape, slot.axes, ("F8_E4M3",)), f"{name}_scale": Piece((1,), "-")}

    def form(self, name):
        return FORMATS["fp8" if len(self.pieces[name]) == 2 else "bf16"]

    def decode(self, name, read):
        if len(self.pieces[name]) == 1:
            return super().decode(name, read)
        return Fp8Codes(read(name), read(f"{name}_scale").expand(len(read(name))))


def test_into_codes(base, tmp_path, monkeypatch):
    """They are dequantised, added to and quantised again, and a note says so."""
    monkeypatch.setattr(formats, "READERS", (Fp8, *formats.READERS))
    adapted(base, tmp_path / "adapter", target_modules=["q_proj"])
    file, said = (tmp_path / "base" / n for n in ("model.safetensors", "config.json"))
    stored = load_file(file)
    for name in [n for n in stored if n.endswith("q_proj.weight")]:
        scale = stored[name].abs().max() / 448
        plain = (stored[name] / scale).to(torch.float8_e4m3fn)
        stored[name], stored[f"{name}_scale"] = plain.float() * scale, scale[None]
    save_file({n: t for n, t in stored.items() if not n.endswith("_scale")}, file)
    ids, _ = prompt(CASE)
    load = functools.partial(Llama4.from_pretrained, tmp_path / "base")
    want, plain = load(lora=tmp_path / "adapter").prompt_logits(ids), load().prompt_logits(ids)
    for name in [n for n in stored if n.endswith("q_proj.weight")]:
        stored[name] = (stored[name] / stored[f"{name}_scale"]).to(torch.float8_e4m3fn)
    save_file(stored, file)
    record = {"quantization_config": {"quant_method": "one-scale"}}
    said.write_text(json.dumps({**json.loads(said.read_text()), **record}))
    with pytest.warns(UserWarning, match="is merged into 2 quantised weights: they are dequan"):
        got = load(lora=tmp_path / "adapter", weights="bf16").prompt_logits(ids)
    assert (got - want).abs().max() <= TOLERANCE < (want - plain).abs().max() / 100
