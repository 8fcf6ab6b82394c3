"""fbgemm_fp8: names and shapes are those of transformers' own modules, which need a GPU to run."""

import contextlib
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from transformers.integrations import fbgemm_fp8 as library
from transformers.quantizers.quantizer_fbgemm_fp8 import FbgemmFp8HfQuantizer

from tests.support.fixtures import read_by_ranks
from tests.support.quantised_forms import (
    CASE,
    FUSED,
    Written,
    change_config,
    formats,
    held,
    quietly,
    random_model,
    refused,
    said,
    save,
    spoilt,
)

NOTE = (
    "activations are not clipped at activation_scale_ub = 1200: their scales are those of each "
    "token"
)
EXCLUDED = ["lm_head", "router"]


def by_row(x, *_):
    """What the library's op does to a matrix, without an upper bound."""
    scale = x.float().abs().amax(-1) / 448
    return (x.float() / scale[:, None]).to(torch.float8_e4m3fn), scale


def write(folder: Path, case=CASE, excluded=EXCLUDED, shards=1) -> Written:
    """Of a random model whose modules the library replaced, each tensor converted by its code."""
    plain, model = random_model(case), random_model(case)
    model.config.quantization_config = config = transformers.FbgemmFp8Config(
        modules_to_not_convert=[*excluded]
    )
    quantizer = FbgemmFp8HfQuantizer(config, pre_quantized=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "quantize_fp8_per_row", by_row, raising=False)
        patch.setattr(library, "get_quantize_fp8_per_row", lambda: by_row)
        patch.setattr(library, "on_device", lambda _: contextlib.nullcontext())
        model = library.replace_with_fbgemm_fp8_linear(model, excluded, config, pre_quantized=True)
        tensors = {}
        for name, data in plain.state_dict().items():
            own = {name: data}
            if quantised(model, name):
                own = library.FbgemmFp8Quantize(quantizer).convert({name: [data]}, model)
            tensors |= {n: t.detach().contiguous() for n, t in own.items()}
    for name, wanted in model.state_dict().items():
        assert tensors[name].shape == wanted.shape and tensors[name].dtype == wanted.dtype, name
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    save(folder, tensors, shards)
    values = {n: value_of(tensors, n) for n in tensors if not n.endswith("_scale")}
    plain.load_state_dict(values, strict=True)
    return Written(folder, tensors, plain, case=case)


def quantised(model, name):
    module, _, part = name.rpartition(".")
    owner = model.get_submodule(module)
    kinds = library.FbgemmFp8Linear, library.FbgemmFp8Llama4TextExperts
    return isinstance(owner, kinds) and part != "bias"


def value_of(tensors, name):
    scale = tensors.get(f"{name}_scale")
    if scale is None:
        return tensors[name]
    if name.endswith(FUSED):  # the library takes down's scales through a view
        scale = scale.reshape(len(scale), 1, -1)
    return tensors[name].float() * scale


@pytest.mark.parametrize("shards", [1, 3])
def test_logits_and_codes(shards, tmp_path):
    written = write(tmp_path, shards=shards)
    experts = "model.layers.1.feed_forward.experts."
    shapes = {
        "gate_up_proj": (3, 256, 512),
        "gate_up_proj_scale": (3, 1, 512),
        "down_proj": (3, 256, 256),
        "down_proj_scale": (3, 256, 1),
    }
    assert {n: tuple(written.tensors[experts + n].shape) for n in shapes} == shapes
    assert written.difference(weights="bf16") <= 1e-4
    model, source = quietly(tmp_path), written.source()
    assert formats(model) == ["fp8"] * 4 + ["bf16"] and said(tmp_path) == [NOTE]
    assert_kept(written, model, source)
    read_by_ranks(source)


def assert_kept(written, model, source):
    checked = 0
    for name, slot in source.slots.items():
        q = written.tensors[name]
        if q.dtype != torch.float8_e4m3fn or not slot.block:
            continue
        scale = written.tensors[f"{name}_scale"]
        for expert in range(len(q)) if slot.transposed else [None]:
            # One expert's gate and up lie in blocks of 8 beside each other.
            rows = q.view(torch.uint8) if expert is None else q[expert].t().view(torch.uint8)
            scales = scale.flatten() if expert is None else scale[expert].flatten()
            if slot.rows == "gate_up":
                rows, scales = (
                    torch.stack([*part.unflatten(0, (2, -1, 8))], 1).flatten(0, 2)
                    for part in (rows, scales)
                )
            if expert is not None:
                slot = slot._replace(expert=expert, shape=rows.shape)
            got = held(model, slot)
            assert torch.equal(got["weight"].view(torch.uint8), rows), name
            assert torch.equal(got["scale"], scales), name
            checked += 1
    assert checked == 8 + 3 + 2 * 3 + 3


def test_everything_may_be_converted(tmp_path):
    """The router, too, which is no product in fp8 here; the vision tower keeps its biases."""
    case = replace(CASE, vision=True, images=((1, 1),), length=20)
    written = write(tmp_path, case, excluded=["nothing"])
    assert written.tensors["language_model.lm_head.weight"].dtype == torch.float8_e4m3fn
    router = "language_model.model.layers.1.feed_forward.router.weight"
    assert written.tensors[router].dtype == torch.float8_e4m3fn
    assert written.difference(weights="bf16") <= 1e-4
    assert formats(quietly(tmp_path)) == ["fp8"] * 5


def test_bounds_that_older_files_hold_are_not_read(tmp_path):
    written = write(tmp_path)
    bound = {
        f"model.layers.0.{name}.input_scale_ub": torch.tensor([1200.0])
        for name in ("self_attn.q_proj", "feed_forward.experts")
    }
    save(tmp_path, {**written.tensors, **bound})
    assert written.difference(weights="bf16") <= 1e-4


EXPERTS, Q = "model.layers.1.feed_forward.experts.", "model.layers.0.self_attn.q_proj.weight"


TENSORS = {
    "no scale": (f"{EXPERTS}down_proj_scale", None, "1 tensors are missing .*down_proj_scale"),
    "no scale of a linear layer": (f"{Q}_scale", None, "1 tensors are missing .*_scale"),
    "turned scale": (
        f"{EXPERTS}down_proj_scale",
        lambda t: t.transpose(1, 2),
        r"down_proj_scale to be \[3, 256, 1\], got \[3, 1, 256\]",
    ),
    "turned experts": (
        f"{EXPERTS}gate_up_proj",
        lambda t: t.transpose(1, 2),
        r"gate_up_proj to be \[3, 256, 512\], got \[3, 512, 256\]",
    ),
    "float codes": (Q, lambda t: t.float(), "to be one of F8_E4M3, got F32"),
    "other codes": (f"{EXPERTS}down_proj", lambda t: t.float().to(torch.float8_e5m2), "F8_E5M2"),
    "integer scale": (f"{Q}_scale", lambda t: t.int(), "_scale to be one of BF16"),
    "zero scale": (f"{EXPERTS}gate_up_proj_scale", spoilt(0), "gate_up_proj has 1 codes or"),
    "negative scale": (f"{Q}_scale", spoilt(-1), "1 codes or scales"),
    "NaN scale": (f"{Q}_scale", spoilt(torch.nan), "1 codes or scales"),
    "NaN code": (Q, lambda t: spoilt(0x7F)(t.view(torch.uint8)).view(t.dtype), "1 codes or scales"),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return write(tmp_path_factory.mktemp("good"))


@pytest.mark.parametrize("wrong", TENSORS)
def test_malformed_tensors(wrong, good, tmp_path):
    name, change, message = TENSORS[wrong]
    (tmp_path / "config.json").write_text((good.folder / "config.json").read_text())
    tensors = {n: t for n, t in good.tensors.items() if n != name}
    if change is not None:
        tensors[name] = change(good.tensors[name]).contiguous()
    save(tmp_path, tensors)
    refused(tmp_path, message)


CONFIGS = {
    "excluded": (
        {"modules_to_not_convert": [Q.removesuffix(".weight")]},
        "modules_to_not_convert of the config excludes",
    ),
    "bound": ({"activation_scale_ub": "high"}, "activation_scale_ub"),
    "method": ({"quant_method": "fbgemm_fp4"}, "quantised by 'fbgemm_fp4' cannot be read"),
}


@pytest.mark.parametrize("wrong", CONFIGS)
def test_a_config_that_contradicts_its_tensors(wrong, good, tmp_path):
    fields, message = CONFIGS[wrong]
    (tmp_path / "config.json").write_text((good.folder / "config.json").read_text())
    change_config(tmp_path, lambda content: content["quantization_config"].update(fields))
    save(tmp_path, good.tensors)
    refused(tmp_path, message)


def test_floats_under_a_record_of_codes(good, tmp_path):
    (tmp_path / "config.json").write_text((good.folder / "config.json").read_text())
    good.model.save_pretrained(tmp_path / "floats")
    shutil.copy(tmp_path / "floats" / "model.safetensors", tmp_path)
    refused(tmp_path, "quantised by fbgemm_fp8, but no file of the checkpoint holds e4m3 codes")
