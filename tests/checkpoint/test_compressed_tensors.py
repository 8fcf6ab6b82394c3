"""Checkpoints that the compressed-tensors library wrote: codes bit by bit, logits, refusals."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from safetensors.torch import load_file

from l4kernels import ops
from l4kernels.checkpoint.files import reader
from l4kernels.checkpoint.files.reader import CheckpointError
from l4kernels.checkpoint.formats.nibbles import reorder, unpacked
from l4kernels.layers.options import ModelOptions
from l4kernels.layers.weights import int4_format
from l4kernels.layers.weights.codes import Int4Codes
from tests.support.fixtures import read_by_ranks
from tests.support.parity import Case
from tests.support.quantised_forms import (
    CASE,
    FIELDS,
    change_config,
    formats,
    fp8,
    held,
    int4,
    load,
    nvfp4,
    quietly,
    refused,
    said,
    save,
    write_compressed,
)

ACT_ORDER = Path(__file__).parent / "fixtures" / "compressed_tensors_act_order"
ROUTED = r"re:.*experts\.\d+\..*_proj$"
ATTENTION = "re:.*self_attn.*"
USUAL = ("re:.*lm_head", "re:.*router")


def assert_int4_kept(written, model, slots):
    """All packed weights of these slots are in the model's tiles as they are stored."""
    checked = 0
    for name, slot in slots.items():
        module = name.removesuffix(".weight")
        packed = written.tensors.get(f"{name}_packed")
        if packed is None or not slot.block:
            continue
        got, scale = held(model, slot), written.tensors[f"{name}_scale"]
        assert torch.equal(
            ops.unpack_int4(got["packed"]), unpack_from_int32(packed, 4, slot.shape)
        ), name
        times = got["scales"].shape[1] // scale.shape[1]
        assert torch.equal(got["scales"], scale.bfloat16().repeat_interleave(times, 1)), name
        if "zeros" in got:
            points = written.tensors[f"{module}.weight_zero_point"]
            zeros = unpack_from_int32(points, 4, scale.shape, packed_dim=0).repeat_interleave(
                times, 1
            )
            assert torch.equal(got["zeros"].short() - 8, zeros.short()), name
        checked += 1
    assert checked


def assert_fp8_kept(written, model, slots):
    checked = 0
    for name, slot in slots.items():
        q = written.tensors.get(name)
        if q is None or q.dtype != torch.float8_e4m3fn:
            continue
        got, scale = held(model, slot), written.tensors[f"{name}_scale"]
        assert torch.equal(got["weight"].view(torch.uint8), q.view(torch.uint8)), name
        assert torch.equal(got["scale"], scale.double().flatten().expand(len(q)).float()), name
        assert got["scale"].dtype == torch.float32
        checked += 1
    assert checked


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [32, 64, 128, 0])
def test_packed_int4(group, symmetric, tmp_path):
    written = write_compressed(tmp_path, int4(group, symmetric))
    assert written.difference(weights="bf16") <= 1e-4
    source, model = written.source(), quietly(tmp_path)
    # Channels of 256 and 512 inputs have the same scale in each group of 128.
    name = int4_format(group or 128, zeros=not symmetric).name
    assert formats(model) == [name] * 4 + ["bf16"]
    assert_int4_kept(written, model, source.slots)
    assert said(tmp_path) == []
    read_by_ranks(source)


def test_nvfp4_is_dequantised(tmp_path):
    written = write_compressed(tmp_path, nvfp4(), scales=None)
    assert written.tensors["model.layers.0.self_attn.q_proj.weight_packed"].dtype == torch.uint8
    assert written.difference() <= 1e-4
    assert formats(quietly(tmp_path)) == ["bf16"] * 5
    assert said(tmp_path) == [
        "23 weights are stored as fp4 in groups of 16 and one scale for all, which no kernel "
        "multiplies by: they are dequantised"
    ]
    read_by_ranks(written.source())
    tensors, scale = load(tmp_path), "model.layers.0.self_attn.q_proj.weight_global_scale"
    for bad in (0.0, -1.0, torch.nan):
        save(tmp_path, {**tensors, scale: torch.tensor([bad])})
        refused(tmp_path, "q_proj.weight_packed has 1 codes or scales that are NaN")
    save(tmp_path, {n: t for n, t in tensors.items() if n != scale})
    refused(tmp_path, f"tensors are missing that config.json asks for: {scale}")


def test_what_weights_asks_for(tmp_path):
    """Codes of the kind that is asked for stay; all others are quantised anew."""
    folder = write_compressed(tmp_path, int4(32)).folder
    wanted = {"bf16": "bf16", "fp8": "fp8", "int4": "int4-g32"}
    for weights, name in wanted.items():
        model = quietly(folder, weights=weights)
        head = "bf16" if weights == "bf16" else "fp8"
        assert formats(model) == [name] * 4 + [head], weights
    head = "1 weights of lm_head are stored as bf16 and held as fp8"
    assert said(folder, weights="int4") == [head]
    assert said(folder, weights="fp8") == [
        head,
        "8 weights of attention are stored as int4-g32 and held as fp8",
        "15 weights of feed_forward are stored as int4-g32 and held as fp8",
    ]


def test_the_official_maverick_quantises_routed_experts_alone(tmp_path):
    written = write_compressed(tmp_path, fp8(targets=(ROUTED,)), scales=torch.bfloat16, shards=4)
    assert written.tensors["model.layers.1.feed_forward.experts.0.up_proj.weight_scale"].shape == (
        256,
        1,
    )
    assert written.difference(weights="bf16") <= 1e-4
    model = quietly(tmp_path)
    assert formats(model) == ["bf16", "bf16", "bf16", "fp8", "bf16"]
    assert_fp8_kept(written, model, written.source().slots)
    assert said(tmp_path) == [  # those of the shared expert
        "3 weights of feed_forward are stored as bf16 and held as fp8"
    ]
    read_by_ranks(written.source())


def test_experts_may_stay_one_tensor(tmp_path):
    written = write_compressed(tmp_path, fp8(targets=(ATTENTION,)), split=False)
    assert "model.layers.1.feed_forward.experts.gate_up_proj" in written.tensors
    assert written.difference(weights="bf16") <= 1e-4
    assert formats(quietly(tmp_path)) == ["fp8", "bf16"] * 2 + ["bf16"]


@pytest.mark.parametrize("scales", [torch.bfloat16, torch.float16, torch.float32])
def test_fp8_dynamic_without_attention(scales, tmp_path):
    written = write_compressed(
        tmp_path, fp8(), (*USUAL, ATTENTION), scales=scales, prefix="language_model."
    )
    assert written.difference(weights="bf16") <= 1e-4
    model = quietly(tmp_path)
    assert formats(model) == ["bf16", "fp8", "bf16", "fp8", "bf16"] and said(tmp_path) == []
    assert_fp8_kept(written, model, written.source().slots)


def test_fp8_with_one_scale_for_weights_and_one_for_activations(tmp_path):
    static = {"num_bits": 8, "type": "float", "strategy": "tensor"}
    written = write_compressed(tmp_path, fp8("tensor", inputs=static), scales=torch.float32)
    assert written.tensors["model.layers.0.self_attn.q_proj.input_scale"].shape == (1,)
    assert written.difference(weights="bf16") <= 1e-4
    model = quietly(tmp_path)
    assert formats(model) == ["fp8"] * 4 + ["bf16"]
    assert_fp8_kept(written, model, written.source().slots)
    assert said(tmp_path) == [
        "static scales of activations are not used: activations are quantised per token"
    ]
    read_by_ranks(written.source())
    tensors = {  # a scale may be no vector
        n: t.reshape(()) if n.endswith("weight_scale") else t for n, t in load(tmp_path).items()
    }
    save(tmp_path, tensors)
    assert_fp8_kept(written, quietly(tmp_path), written.source().slots)


def test_scales_per_channel_may_be_vectors(tmp_path):
    written = write_compressed(tmp_path, fp8())
    tensors = load(tmp_path)
    save(tmp_path, {n: t.flatten() if n.endswith("_scale") else t for n, t in tensors.items()})
    assert_fp8_kept(written, quietly(tmp_path), written.source().slots)
    read_by_ranks(written.source())


INT8_INPUTS = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True}
INT8 = {"num_bits": 8, "type": "int"}
OTHERS = {
    "fp8 in blocks of 128x128": fp8("block", block_structure=[128, 128]),
    "fp8 in blocks of 64x128": fp8("block", block_structure=[64, 128]),
    "fp8 in blocks of 96x128": fp8("block", block_structure=[96, 128]),
    "fp8 in blocks of 1x64": fp8("block", block_structure=[1, 64]),
    "fp8 in groups of 128": fp8("group", group_size=128),
    "int8 with a scale per channel": int4(0, bits=8)
    | {"w8a8": {"targets": [ATTENTION], "weights": INT8, "input_activations": INT8_INPUTS}},
    "int8 in groups of 64 and zero points": int4(64, False, bits=8),
    "int4 in groups of 16": int4(16),
}
OTHERS["int8 with a scale per channel"]["w8a8"]["weights"] = {**INT8, "strategy": "channel"}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_no_kernel_multiplies_by_is_dequantised(kind, tmp_path):
    written = write_compressed(tmp_path, OTHERS[kind])
    assert written.difference(weights="bf16") <= 1e-4
    assert formats(quietly(tmp_path)) == ["bf16"] * 5
    assert said(tmp_path) == [
        f"23 weights are stored as {kind}, which no kernel multiplies by: they are dequantised"
    ]
    if "x" not in kind or "64x128" in kind:  # 128 keys and values cannot be cut
        read_by_ranks(written.source())


@pytest.mark.parametrize("symmetric", [True, False])
def test_int8_beside_its_zero_points(symmetric, tmp_path):
    weights = {**INT8, "strategy": "channel", "symmetric": symmetric}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": INT8_INPUTS}
    written = write_compressed(tmp_path, {"w8a8": group}, scales=torch.float32)
    assert written.tensors["model.layers.0.self_attn.q_proj.weight"].dtype == torch.int8
    assert ("model.layers.0.self_attn.q_proj.weight_zero_point" in written.tensors) != symmetric
    assert written.difference(weights="bf16") <= 1e-4


def test_mixed_precision(tmp_path):
    """Attention in fp8, and of the experts' products int4 in groups of 64."""
    groups = fp8(targets=(ATTENTION,)) | int4(64, targets=(r"re:.*(gate|up|down)_proj$",))
    written = write_compressed(tmp_path, groups, shards=3)
    content = json.loads((tmp_path / "config.json").read_text())
    assert content["quantization_config"]["format"] == "mixed-precision"
    assert written.difference(weights="bf16") <= 1e-4
    model = quietly(tmp_path)
    assert formats(model) == ["fp8", "int4-g64"] * 2 + ["bf16"] and said(tmp_path) == []
    assert_int4_kept(written, model, written.source().slots)
    assert_fp8_kept(written, model, written.source().slots)


def test_everything_may_be_packed(tmp_path):
    """lm_head stays int4; embedding and router, which are never quantised here, do not."""
    case = replace(CASE, experts=9)
    groups = int4(128, False, targets=("Linear", "Embedding"))
    written = write_compressed(tmp_path, groups, (), case=case)
    assert "model.layers.1.feed_forward.router.weight_packed" in written.tensors
    assert "model.embed_tokens.weight_packed" in written.tensors
    assert written.difference(weights="bf16") <= 1e-4
    model = quietly(tmp_path)
    assert formats(model) == ["int4-g128-zeros"] * 5
    assert_int4_kept(written, model, written.source().slots)
    assert said(tmp_path)[0].startswith("2 weights are stored as int4 in groups of 128 and zero")


def test_a_packed_vision_tower_is_dequantised(tmp_path):
    case = replace(CASE, vision=True, images=((1, 1),), length=20)
    written = write_compressed(tmp_path, int4(16), case=case)
    assert any("vision_model" in name and "packed" in name for name in written.tensors)
    assert written.difference(weights="bf16") <= 1e-4


@pytest.mark.parametrize("trivial", ["in order", "-1"])
def test_a_trivial_order_keeps_codes(trivial, tmp_path):
    written = write_compressed(tmp_path, int4(64))
    tensors = load(tmp_path)
    for name in [*tensors]:
        if name.endswith("weight_packed"):
            k = 8 * tensors[name].shape[1]
            order = torch.arange(k) // 64 if trivial == "in order" else torch.full((k,), -1)
            tensors[name.replace("packed", "g_idx")] = order.int()
    save(tmp_path, tensors)
    model = quietly(tmp_path)
    assert formats(model) == ["int4-g64"] * 4 + ["bf16"] and said(tmp_path) == []
    assert_int4_kept(written, model, written.source().slots)
    read_by_ranks(written.source())


def test_act_order_is_dequantised(tmp_path):
    want = load_file(ACT_ORDER / "expected.safetensors")
    got = quietly(ACT_ORDER, weights="bf16").prompt_logits(want["ids"])
    assert (got - want["logits"]).abs().max() <= 1e-4
    assert said(ACT_ORDER) == [
        "13 weights are stored as int4 in groups of 32 by act-order, which no kernel multiplies "
        "by: they are dequantised"
    ]


def test_ranks_share_columns_by_act_order(tmp_path):
    written = write_compressed(tmp_path, int4(32, False))
    tensors = load(tmp_path)
    for name in [*tensors]:
        if name.endswith("weight_packed"):
            k = 8 * tensors[name].shape[1]
            tensors[name.replace("packed", "g_idx")] = (torch.randperm(k) // 32).int()
    save(tmp_path, tensors)
    read_by_ranks(written.source())


def test_zero_points_that_are_not_packed(tmp_path):
    """As files of 2024 have them."""
    written = write_compressed(tmp_path, int4(64, False))
    tensors = load(tmp_path)
    for name in [*tensors]:
        if name.endswith("zero_point"):
            shape = tensors[name.replace("zero_point", "scale")].shape
            tensors[name] = unpack_from_int32(tensors[name], 4, shape, packed_dim=0).contiguous()
    save(tmp_path, tensors)
    assert_int4_kept(written, quietly(tmp_path), written.source().slots)
    read_by_ranks(written.source())
    name = next(name for name in tensors if name.endswith("zero_point"))
    tensors[name] = torch.full_like(tensors[name], 8)
    save(tmp_path, tensors)
    with pytest.raises(CheckpointError, match=rf"expected {name} from -8 to 7, got 8 to 8"):
        quietly(tmp_path)


@pytest.mark.parametrize("scales", [torch.float16, torch.float32])
def test_int4_scales_are_rounded_with_a_line(scales, tmp_path):
    written = write_compressed(tmp_path, int4(32), scales=scales)
    assert written.difference(weights="bf16") <= 1e-4
    dtype = {torch.float16: "F16", torch.float32: "F32"}[scales]
    assert said(tmp_path) == [
        f"23 weights have int4 scales in {dtype}, which kernels hold in BF16: rounded"
    ]
    assert_int4_kept(written, quietly(tmp_path), written.source().slots)


CACHE = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False}


def test_scales_of_the_cache(tmp_path):
    written = write_compressed(tmp_path, fp8(), cache=CACHE)
    names = [f"model.layers.{layer}.self_attn.{part}_scale" for layer in range(2) for part in "kv"]
    values = [float(written.tensors[name]) for name in names]
    assert len(set(values)) == 4
    source = written.source()
    assert source.kv_scales == {0: tuple(values[:2]), 1: tuple(values[2:])}
    assert source.notes == []
    assert written.difference(weights="bf16") <= 1e-4
    tensors = load(tmp_path)
    older = {
        n.replace("_scale", "_proj.output_scale") if n in names else n: t
        for n, t in tensors.items()
    }
    save(tmp_path, older)
    assert written.source().kv_scales == source.kv_scales
    for bad in (0.0, -1.0, torch.nan, torch.inf):
        save(tmp_path, {**tensors, names[1]: torch.tensor([bad])})
        with pytest.raises(CheckpointError, match=f"{names[1]} to be finite and above 0, got"):
            written.source()
    save(tmp_path, {n: t for n, t in tensors.items() if n != names[1]})
    with pytest.raises(CheckpointError, match=f"holds {names[0]}, but no v_scale of that layer"):
        written.source()


@pytest.mark.parametrize("groups", [{}, None])
def test_the_cache_alone_may_be_quantised(groups, tmp_path):
    written = write_compressed(tmp_path, {}, cache=CACHE)
    change_config(tmp_path, lambda c: c["quantization_config"].update(config_groups=groups))
    assert sorted(written.source().kv_scales) == [0, 1]
    assert formats(quietly(tmp_path)) == ["bf16"] * 5 and said(tmp_path) == []
    change_config(tmp_path, lambda c: c["quantization_config"].update(kv_cache_scheme=None))
    refused(tmp_path, "expected config_groups to say how weights are quantised")


def test_scales_of_a_cache_that_is_not_e4m3_are_not_used(tmp_path):
    written = write_compressed(tmp_path, fp8(), cache={**CACHE, "type": "int"})
    assert written.source().kv_scales == {}
    assert "its scales are not used" in said(tmp_path)[0]
    heads = replace(CASE, heads=(2, 2))
    by_head = {**CACHE, "strategy": "attn_head"}
    written = write_compressed(tmp_path, fp8(), case=heads, cache=by_head)
    assert written.tensors["model.layers.0.self_attn.k_scale"].shape == (2, 1, 1)
    assert written.source().kv_scales == {}
    assert "by head are not used" in said(tmp_path)[0]


def test_the_older_key_of_the_config(tmp_path):
    written = write_compressed(tmp_path, fp8())

    def rename(content):
        content["compression_config"] = content.pop("quantization_config")
        del content["compression_config"]["quant_method"]
        sparsity = {"format": "dense", "global_sparsity": 0.1, "targets": []}
        content["compression_config"]["sparsity_config"] = sparsity

    change_config(tmp_path, rename)
    assert written.difference(weights="bf16") <= 1e-4


def test_sizes_that_tiles_do_not_take(tmp_path):
    """Inputs of 96 in groups of 32: no format of ours, but the values are the same."""
    case = Case(layers=2, hidden=96, heads=(2, 1), moe_step=2, experts=2, length=9, fields=FIELDS)
    written = write_compressed(tmp_path, int4(32, False), case=case)
    assert written.difference() <= 1e-4 or formats(quietly(tmp_path)) != ["bf16"] * 5
    assert written.difference(weights="bf16") <= 1e-4


def test_the_librarys_own_order_of_nibbles():
    """Ours is another; the codes are the same."""
    codes = torch.randint(-8, 8, (5, 64)).to(torch.int8)
    packed = pack_to_int32(codes, 4)
    assert torch.equal(reorder(packed), ops.pack_int4(codes))
    assert torch.equal(unpacked(packed, 4).short() - 8, codes.short())
    codes = torch.randint(-128, 128, (5, 64)).to(torch.int8)
    assert torch.equal(unpacked(pack_to_int32(codes, 8), 8).short() - 128, codes.short())


def test_rows_that_are_still_to_come_may_hold_anything():
    """Memory that nothing was written to yet has no zero points."""
    form = int4_format(64, zeros=True)
    linear = ModelOptions(torch.float32, torch.device("cpu"), form).linear(128, 32)
    linear.tiles.fill_(-1)
    packed = torch.randint(-(2**31), 2**31, (32, 16)).int()
    zeros = torch.randint(0, 16, (32, 2), dtype=torch.uint8)
    codes = Int4Codes(packed, torch.full((32, 2), 0.5), zeros)
    linear.store(codes.rows(0, 24), slice(0, 24))
    linear.store(codes.rows(24, 32), slice(24, 32))
    got = ops.untile_int4(linear.tiles)
    assert torch.equal(got.packed, packed) and torch.equal(got.zeros, zeros)


def test_files_that_hold_scales_of_others_are_opened_once(tmp_path, monkeypatch):
    written = write_compressed(tmp_path, int4(32, symmetric=False), shards=3)
    source, opened = written.source(), []
    open_file = reader.safe_open

    def counted(file, **options):
        opened.append(file)
        return open_file(file, **options)

    monkeypatch.setattr(reader, "safe_open", counted)
    assert sum(1 for _ in source.tensors(torch.float32)) > 23
    assert len(opened) <= 3 * 3


@pytest.mark.parametrize("group", [128, 16])
def test_scales_below_zero(group, tmp_path):
    """As AutoRound writes about half of them."""
    written = write_compressed(tmp_path, int4(group))
    values = dict(plain_tensors(written.source()))
    negated = {n: -t if n.endswith("_scale") else t for n, t in written.tensors.items()}
    save(tmp_path, negated)
    for name, data in plain_tensors(written.source()):
        assert torch.equal(data, -values[name] if f"{name}_scale" in negated else values[name])


def plain_tensors(source):
    for name, _, data in source.tensors(torch.float32):
        yield name, data if isinstance(data, torch.Tensor) else data.dequantized()
