"""Checkpoints of compressed-tensors that are not what they say: each is refused by name."""

import shutil

import pytest
import torch

from tests.support.quantised_forms import (
    change_config,
    fp8,
    int4,
    refused,
    save,
    spoilt,
    write_compressed,
)

Q = "model.layers.0.self_attn.q_proj"


def edited(tensors, name, change):
    """`change` makes another tensor of it; None: without it."""
    rest = {n: t for n, t in tensors.items() if n != name}
    return rest if change is None else {**rest, name: change(tensors[name])}


TENSORS = {  # of an asymmetric int4 checkpoint in groups of 64: tensor, change, message
    "no scale": ("weight_scale", None, "1 tensors are missing .*weight_scale"),
    "other shape of scales": ("weight_scale", lambda t: t[:, :3], r"weight_scale to fit a weight"),
    "scales in groups of 32": (
        "weight_scale",
        lambda t: t.repeat_interleave(2, 1),
        "stored as int4 in groups of 32 and zero points, but config_groups .* groups of 64",
    ),
    "integer scales": ("weight_scale", lambda t: t.int(), "weight_scale to be one of BF16"),
    "zero scale": ("weight_scale", spoilt(0), "1 codes or scales that are NaN"),
    "NaN scale": ("weight_scale", spoilt(torch.nan), "1 codes or scales that are NaN"),
    "no zero points": ("weight_zero_point", None, "stored as int4 in groups of 64, but"),
    "zero points not packed": (
        "weight_zero_point",
        lambda t: t.repeat(8, 1),
        r"weight_zero_point to be \[32, 4\], got \[256, 4\]",
    ),
    "float zero points": ("weight_zero_point", lambda t: t.float(), "weight_zero_point to be"),
    "narrow codes": ("weight_packed", lambda t: t[:, :24], r"weight_packed to be \[256, 32\]"),
    "bytes": (
        "weight_packed",
        lambda t: t.repeat(1, 2),
        r"stored as int8 in groups of 64 and zero points, but",
    ),
    "float codes": ("weight_packed", lambda t: t.float(), "weight_packed to be one of I32"),
    "no codes": ("weight_packed", None, "1 tensors are missing .*weight"),
    "other shape": ("weight_shape", lambda t: t + 1, r"weight_shape to hold \[256, 256\]"),
    "long shape": ("weight_shape", lambda t: t.repeat(2), r"weight_shape to be \[2\], got \[4\]"),
}


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return write_compressed(tmp_path_factory.mktemp("packed"), int4(64, False))


@pytest.mark.parametrize("wrong", TENSORS)
def test_malformed_tensors(wrong, packed, tmp_path):
    part, change, message = TENSORS[wrong]
    name = f"{Q}.{part}"
    (tmp_path / "config.json").write_text((packed.folder / "config.json").read_text())
    tensors = edited(packed.tensors, name, change)
    save(tmp_path, {n: t.contiguous() for n, t in tensors.items()})
    refused(tmp_path, message)


FP8_TENSORS = {
    "no scale": ("weight_scale", None, "1 tensors are missing .*weight_scale"),
    "NaN code": ("weight", lambda t: spoilt(0x7F)(t.view(torch.uint8)).view(t.dtype), "1 codes or"),
    "other codes": ("weight", lambda t: t.float().to(torch.float8_e5m2), "to be one of F8_E4M3"),
    "float codes": ("weight", lambda t: t.float(), "weight to be one of F8_E4M3, got F32"),
    "half of the scales": ("weight_scale", lambda t: t[:128], "weight_scale to fit a weight"),
    "one scale": ("weight_scale", lambda t: t[:1], "as fp8 with one scale, but"),
    "infinite scale": ("weight_scale", spoilt(torch.inf), "1 codes or scales that are NaN"),
    "zero scale": ("weight_scale", spoilt(0), "1 codes or scales that are NaN"),
    "negative scale": ("weight_scale", spoilt(-1), "1 codes or scales that are NaN"),
}


@pytest.mark.parametrize("wrong", FP8_TENSORS)
def test_malformed_fp8(wrong, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fp8")
    part, change, message = FP8_TENSORS[wrong]
    written = write_compressed(folder, fp8())
    save(folder, edited(written.tensors, f"{Q}.{part}", change))
    refused(folder, message)


def weights(**changes):
    return lambda record: record["config_groups"]["group_0"]["weights"].update(changes)


CONFIGS = {  # of the same checkpoint
    "3 bits": (
        weights(num_bits=3),
        "weights of type 'int' in 3 bits cannot be read; supported: fp8",
    ),
    "mxfp4": (
        lambda r: r["config_groups"]["group_0"].update(format="mxfp4-pack-quantized"),
        "format 'mxfp4-pack-quantized' cannot be read; supported: float-quantized.*l4k quantize",
    ),
    "marlin": (lambda r: r.update(format="marlin-24"), "format 'marlin-24' cannot be read"),
    "a type": (weights(type=["int"]), r"weights of type \['int'\] in 4 bits"),
    "a strategy": (weights(strategy="token"), "expected weights of strategy tensor, channel"),
    "group -5": (weights(group_size=-5), "group_size"),
    "no group": (weights(group_size=None), "with group_size None"),
    "group 128": (weights(group_size=128), "but config_groups of the config says int4 in groups"),
    "symmetric": (weights(symmetric=True), "one of the two is wrong"),
    "symmetry": (weights(symmetric="no"), "expected symmetric to be true or false"),
    "no groups": (lambda r: r.update(config_groups={}), "expected config_groups to say"),
    "groups in a list": (lambda r: r.update(config_groups=[1]), "expected config_groups to say"),
    "preset": (lambda r: r.update(config_groups={"W4A16": ["Linear"]}), "expected an object"),
    "ignored": (lambda r: r["ignore"].append(Q), f"quantisation ignores {Q}; one of the two"),
    "sparse": (lambda r: r.update(sparsity_config={"format": "x"}), "sparsity_config is"),
    "many ways": (
        lambda r: r.update(
            config_groups={
                str(g): {"weights": {"num_bits": 4, "group_size": g}} for g in range(1, 99)
            }
        ),
        "at most 64 different ways to quantise weights, got 98",
    ),
    "pruned": (
        lambda r: r.update(moe_sparsity_config={"method": "prune"}),
        "moe_sparsity_config is",
    ),
    "rotated": (lambda r: r.update(transform_config={"u": {}}), "transform_config is"),
    "block": (
        weights(strategy="block", block_structure=[1, 2, 3]),
        "expected block_structure to be two sizes",
    ),
}


def test_floats_under_a_record_of_codes(packed, tmp_path):
    (tmp_path / "config.json").write_text((packed.folder / "config.json").read_text())
    packed.model.save_pretrained(tmp_path / "floats")
    shutil.copy(tmp_path / "floats" / "model.safetensors", tmp_path)
    refused(tmp_path, "quantised by compressed-tensors, but no file of the checkpoint holds codes")


@pytest.mark.parametrize("record", [None, {}, []])
def test_codes_without_a_record(record, packed, tmp_path):
    (tmp_path / "config.json").write_text((packed.folder / "config.json").read_text())
    change_config(tmp_path, lambda content: content.update(quantization_config=record))
    save(tmp_path, packed.tensors)
    refused(tmp_path, r"config.json: has no quantization_config, but the files hold \d+ parts of")


@pytest.mark.parametrize("wrong", CONFIGS)
def test_a_config_that_contradicts_its_tensors(wrong, packed, tmp_path):
    change, message = CONFIGS[wrong]
    (tmp_path / "config.json").write_text((packed.folder / "config.json").read_text())
    change_config(tmp_path, lambda content: change(content["quantization_config"]))
    save(tmp_path, packed.tensors)
    refused(tmp_path, message)


def test_an_order_that_names_no_group(packed, tmp_path):
    (tmp_path / "config.json").write_text((packed.folder / "config.json").read_text())
    order = torch.arange(256).int() // 64
    order[3] = 4
    save(tmp_path, {**packed.tensors, f"{Q}.weight_g_idx": order})
    refused(tmp_path, f"expected {Q}.weight_g_idx to name groups from 0 to 3, got 0 to 4")
