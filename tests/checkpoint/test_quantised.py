"""fp8 and int4: what is quantised, how, and that the quantised model computes the same function."""

import functools
from collections import Counter
from itertools import pairwise
from unittest import mock

import pytest
import torch

from l4kernels import Llama4, Llama4Config, ops
from l4kernels.layers.options import ModelOptions
from l4kernels.layers.weights import linear as linear_module
from l4kernels.layers.weights.linear import Linear
from tests.support.checkpoints import ALIGNED, TEXT, tensors_of, write

SIZES = {**ALIGNED, "num_local_experts": 3}
CONFIG = Llama4Config.from_dict({**TEXT, **SIZES})
FP8 = torch.float8_e4m3fn
quantize = ops.quantize_fp8


@pytest.fixture(scope="module")
def tensors():
    return tensors_of(CONFIG)


@pytest.fixture(scope="module")
def ids():
    return torch.randint(0, 160, (2, 40), generator=torch.Generator().manual_seed(0))


def load(tensors, folder, weights, dtype=torch.float32):
    return Llama4.from_pretrained(write(folder, tensors, **SIZES), weights=weights, dtype=dtype)


def linears(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, Linear)}


PARTS = {  # of attention, the feed-forward layers and lm_head
    "fp8": ("fp8", "fp8", "fp8"),
    "int4": ("int4", "int4", "fp8"),
    "int4+fp8attn": ("fp8", "int4", "fp8"),
}


@pytest.mark.parametrize("weights", PARTS)
def test_what_is_quantised(tensors, tmp_path, weights):
    model = load(tensors, tmp_path, weights, torch.bfloat16)
    attention, feed_forward, head = PARTS[weights]
    for name, linear in linears(model).items():
        wanted = feed_forward
        if name.endswith("router"):
            wanted = "bf16"
        elif name == "lm_head" or "attention" in name:
            wanted = head if name == "lm_head" else attention
        assert linear.name == wanted, name
    assert model.embedding.dtype == torch.bfloat16
    assert model.norm.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("weights", PARTS)
def test_norms_write_what_the_next_product_takes(tensors, tmp_path, ids, weights):
    """Nothing but attention's output is quantised by an op of its own."""
    model, quantised, seen = load(tensors, tmp_path, weights), [], Counter()
    attention, feed_forward, head = PARTS[weights]
    wanted = {"qkv_proj": attention, "gate_up_proj": feed_forward, "lm_head": head}

    def check(linear, args, name):
        seen[name] += 1
        assert isinstance(args[0], torch.Tensor) == (wanted[name] != "fp8"), name

    for name, linear in linears(model).items():
        if (kind := name.rpartition(".")[2]) in wanted:
            linear.register_forward_pre_hook(functools.partial(check, name=kind))
    with mock.patch.object(ops, "quantize_fp8", lambda x, s: quantised.append(x) or quantize(x, s)):
        model.generate(ids, 3)
    assert seen.keys() == wanted.keys()
    assert len(quantised) == (seen["qkv_proj"] if attention == "fp8" else 0)


def weights_of(linear):
    """The float32 values that a quantised weight stands for, `[(E,) N, K]`."""
    if linear.name == "int4":
        return ops.dequantize_int4(*ops.untile_int4(linear.tiles))
    if linear.name == "fp8":
        return linear.weight.float() * linear.scale.unsqueeze(-1)
    return linear.weight.float()


@pytest.mark.parametrize("weights, bound", [("fp8", 0.03), ("int4", 0.11), ("int4+fp8attn", 0.11)])
def test_weights_stay_close(tensors, tmp_path, weights, bound):
    exact, got = load(tensors, tmp_path, None), load(tensors, tmp_path, weights)
    for name, linear in linears(got).items():
        wanted = weights_of(linears(exact)[name])
        error = (weights_of(linear) - wanted).norm() / wanted.norm()
        assert error <= bound, name


def test_gate_and_up_alternate_in_blocks_of_eight(tensors, tmp_path):
    model = load(tensors, tmp_path, None)
    moe, name = model.layers[1].feed_forward, "model.layers.1.feed_forward."
    for expert in range(3):
        gate, up = tensors[f"{name}experts.gate_up_proj"][expert].t().chunk(2)
        wanted = ops.interleave_gate_up(gate, up)
        assert torch.equal(moe.gate_up_proj.weight[expert], wanted)
        down = tensors[f"{name}experts.down_proj"][expert].t()
        assert torch.equal(moe.down_proj.weight[expert], down)
    gate, up, down = (
        tensors[f"{name}shared_expert.{p}_proj.weight"] for p in ("gate", "up", "down")
    )
    assert torch.equal(moe.gate_up_proj.weight[3], ops.interleave_gate_up(gate, up))
    assert torch.equal(moe.down_proj.weight[3], down)
    assert moe.gate_up_proj.weight.shape[0] == moe.down_proj.weight.shape[0] == 4


@pytest.mark.parametrize("weights", ["fp8", "int4"])
@pytest.mark.parametrize("rows", [slice(0, 640), "all", "gate_up"])
def test_storing_in_pieces_equals_quantising_at_once(weights, rows, monkeypatch):
    monkeypatch.setattr(linear_module, "_MIN_PART", 24 * 256)
    monkeypatch.setattr(linear_module, "_MAX_PART", 24 * 256)
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(640, 256, generator=generator)
    linear = ModelOptions(torch.float32, torch.device("cpu"), weights).linear(256, 640, experts=2)
    linear.store(weight, rows, expert=1)
    whole = ops.interleave_gate_up(*weight.chunk(2)) if rows == "gate_up" else weight
    if weights == "int4":
        assert torch.equal(linear.tiles[1], ops.tile_int4(*ops.quantize_int4(whole)))
    else:
        q, scale = ops.quantize_fp8(whole, "row")
        assert torch.equal(linear.weight[1].float(), q.float())
        assert torch.equal(linear.scale[1], scale)


@pytest.mark.parametrize("weights", ["bf16", "fp8", "int4"])
@pytest.mark.parametrize("cuts", [(5, 48), (8, 16), (16, 33), (47,)])
def test_rows_that_arrive_apart_lie_side_by_side(weights, cuts):
    """Also where they share a tile with others."""
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(1))
    options = ModelOptions(torch.float32, torch.device("cpu"), weights)
    whole, apart = (options.linear(128, 64) for _ in range(2))
    whole.store(weight)
    for first, end in reversed([*pairwise((0, *cuts, 64))]):
        apart.store(weight[first:end], slice(first, end))
    for name, parameter in whole.named_parameters():
        assert torch.equal(apart.get_parameter(name).view(torch.uint8), parameter.view(torch.uint8))


def dequantised(model, tensors, folder):
    """An unquantised model whose weights are exactly what `model`'s codes stand for."""
    twin = load(tensors, folder, None)
    for name, linear in linears(model).items():
        linears(twin)[name].weight.copy_(weights_of(linear))
    return twin


def test_int4_model_equals_its_dequantised_twin(tensors, tmp_path, ids):
    model = load(tensors, tmp_path, "int4")
    twin = dequantised(model, tensors, tmp_path)
    # lm_head's activations are fp8 per token, so compare what its norm takes.
    hidden = {}
    for name, m in (("model", model), ("twin", twin)):
        m.norm.register_forward_pre_hook(lambda _m, x, name=name: hidden.update({name: x[0]}))
        m.prompt_logits(ids)
    assert (hidden["model"] - hidden["twin"]).abs().max() <= 1e-4


@pytest.mark.parametrize("weights", ["fp8", "int4+fp8attn"])
def test_fp8_products_equal_a_twin_that_rounds_its_activations(tensors, tmp_path, ids, weights):
    model = load(tensors, tmp_path, weights)
    twin = dequantised(model, tensors, tmp_path)

    def rounded(scaling):
        def hook(module, args):
            q, scale = ops.quantize_fp8(args[0], scaling)
            return (ops.dequantize_fp8(q, scale, scaling), *args[1:])

        return hook

    for name, linear in linears(twin).items():
        if linears(model)[name].name == "fp8":
            # What SwiGLU writes has a scale per block of 128; all else has one per token.
            scaling = "1x128" if name.endswith("down_proj") else "row"
            linear.register_forward_pre_hook(rounded(scaling))
    exact, got = twin.prompt_logits(ids), model.prompt_logits(ids)
    # The median, because a value on the edge between two codes may round to the other one.
    error = (got - exact).norm(dim=-1) / exact.norm(dim=-1)
    assert error.median() <= 1e-3


@pytest.mark.parametrize("weights, bound", [("fp8", 0.2), ("int4", 0.5), ("int4+fp8attn", 0.5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quantised_logits_stay_near(tensors, tmp_path, ids, weights, bound, dtype):
    exact = load(tensors, tmp_path, None).prompt_logits(ids)
    got = load(tensors, tmp_path, weights, dtype).prompt_logits(ids)
    assert got.dtype == torch.float32 and not torch.equal(got, exact)
    error = (got - exact).norm(dim=-1) / exact.norm(dim=-1)
    assert error.median() <= bound


@pytest.mark.parametrize("weights", PARTS)
def test_split_prefill_and_decode_match_one_shot(tensors, tmp_path, ids, weights):
    model = load(tensors, tmp_path, weights)
    out = model.generate(ids, 6)
    logits = model.prompt_logits(out[:, :-1])[:, ids.shape[1] - 1 :]
    first, second = logits.topk(2)[0].unbind(-1)
    assert (first - second).min() > 0.02  # one e4m3 code that rounds the other way: 1e-4
    assert torch.equal(logits.argmax(-1), out[:, ids.shape[1] :])


def test_all_tokens_to_one_expert_and_empty_experts(tmp_path, ids):
    content = tensors_of(CONFIG, seed=5)
    for name in content:
        if "router" in name:
            content[name] = torch.zeros_like(content[name])  # ties: expert 0 takes every token
    for weights in (None, *PARTS):
        logits = load(content, tmp_path, weights).prompt_logits(ids)
        assert logits.isfinite().all()


def test_tied_embeddings_quantise_the_head_only(tensors, tmp_path):
    content = {n: t for n, t in tensors.items() if n != "lm_head.weight"}
    folder = write(tmp_path, content, **SIZES, tie_word_embeddings=True)
    model = Llama4.from_pretrained(folder, weights="int4")
    wanted = tensors["model.embed_tokens.weight"]
    assert torch.equal(model.embedding, wanted) and model.lm_head.weight.dtype == FP8
    assert (weights_of(model.lm_head) - wanted).norm() / wanted.norm() <= 0.03
