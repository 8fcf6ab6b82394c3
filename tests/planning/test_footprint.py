"""Sizes against the published tables: parameters, weights, KV cache, bytes of a step."""

from dataclasses import replace

import pytest
import torch
from transformers import Llama4Config as HfConfig
from transformers import Llama4ForConditionalGeneration

from l4kernels import Llama4
from l4kernels.demo import CHECKPOINT
from l4kernels.layers.weights import FORMATS
from l4kernels.model.config import Llama4Config
from l4kernels.planning.footprint import (
    activation_bytes,
    active_params,
    blocks,
    kv_bytes,
    kv_read_bytes,
    reserve_bytes,
    weight_bytes,
    weight_read_bytes,
)
from l4kernels.planning.gpus import GPUS
from l4kernels.planning.plan import find_format
from tests.support import tiny

SCOUT, MAVERICK, BEHEMOTH = map(Llama4Config.preset, ("scout", "maverick", "behemoth"))
LENGTHS = (8_192, 131_072, 1_048_576, 10_485_760)

PARAMS = {
    "embedding": (1_034_485_760, 1_034_485_760),
    "lm_head": (1_034_485_760, 1_034_485_760),
    "attention": (3_019_898_880, 3_019_898_880),
    "routed": (96_636_764_160, 386_547_056_640),
    "shared": (6_039_797_760, 3_019_898_880),
    "dense": (0, 6_039_797_760),
    "router": (3_932_160, 15_728_640),
    "norms": (496_640, 496_640),
    "vision": (850_960_896, 850_960_896),
    "projector": (20_971_520, 20_971_520),
}


@pytest.mark.parametrize("index, config", [(0, SCOUT), (1, MAVERICK)])
def test_parameter_counts(index, config):
    counts = {name: block.params for name, block in blocks(config).items()}
    assert counts == {name: pair[index] for name, pair in PARAMS.items()}
    assert sum(counts.values()) == (108_641_793_536, 401_583_781_376)[index]
    assert active_params(config) / 1e9 == pytest.approx((16.138, 16.150)[index], abs=5e-4)


def test_behemoth_is_an_estimate_of_the_published_totals():
    assert BEHEMOTH.estimate
    counts = blocks(BEHEMOTH)
    active = active_params(BEHEMOTH) + counts["embedding"].params
    assert active / 1e9 == pytest.approx(287.2, abs=0.1)
    assert sum(b.params for b in counts.values()) / 1e12 == pytest.approx(2.01, abs=0.01)


def test_parameters_equal_a_built_model():
    """The same sum for the tiny model, counted on transformers' own modules."""
    text = {k: v for k, v in tiny.TEXT.items() if k != "model_type"}
    with torch.device("meta"):
        model = Llama4ForConditionalGeneration(
            HfConfig(text_config=text, vision_config=tiny.VISION)
        )
    ours = blocks(Llama4Config.from_dict(tiny.CONFIG))
    assert sum(b.params for b in ours.values()) == sum(p.numel() for p in model.parameters())


# GB, scales included where the source had them: hence 0.1 % or half a unit of the last digit.
SIZES = {
    "bf16": (217.28, 803.17, 4030),
    "fp8-experts": (120.7, 416.9, 2190),
    "fp8-ffn": (114.6, 407.6, 2070),
    "fp8-bf16head": (111.6, 404.5, 2020),
    "int4-ffn": (64.9, 215.9, 1120),
    "int4-bf16head": (60.4, 211.5, 1050),
    "int4-meta": (66.5, 231.0, None),
    "int4": (59.4, None, None),
    "int4+fp8attn": (60.8, None, None),
}


@pytest.mark.parametrize("name", SIZES)
def test_weight_sizes(name):
    for config, want in zip((SCOUT, MAVERICK, BEHEMOTH), SIZES[name], strict=True):
        if want is not None:
            got = weight_bytes(config, find_format(name)) / 1e9
            tolerance = 0.005 if config is BEHEMOTH else 0.001
            assert got == pytest.approx(want, rel=tolerance, abs=0.05)


def test_sizes_in_gibibytes():
    official = weight_bytes(MAVERICK, find_format("fp8-experts"))
    assert official / 2**30 == pytest.approx(388.3, abs=0.06)
    assert weight_bytes(SCOUT, find_format("bf16")) / 2**30 == pytest.approx(202.4, abs=0.06)


@pytest.mark.parametrize(
    "context, bf16, fp8",
    zip(LENGTHS, (1.611, 7.650, 52.748, 516.604), (0.805, 3.825, 26.374, 258.302), strict=True),
)
def test_kv_cache(context, bf16, fp8):
    for config in (SCOUT, MAVERICK):
        assert kv_bytes(config, context, 2) / 1e9 == pytest.approx(bf16, abs=5e-4)
        assert kv_bytes(config, context, 1) / 1e9 == pytest.approx(fp8, abs=5e-4)


def test_kv_cache_grows_by_196608_bytes_in_the_first_chunk_and_49152_after():
    def growth(n):
        return kv_bytes(SCOUT, n + 1) - kv_bytes(SCOUT, n)

    assert [growth(n) for n in (0, 8191, 8192, 100_000)] == [196_608, 196_608, 49_152, 49_152]


def test_kv_reads_are_a_sawtooth():
    token = 4096
    assert kv_read_bytes(SCOUT, 8192) == 48 * token * 8192
    assert kv_read_bytes(SCOUT, 8193) == token * (12 * 8193 + 36)
    reads = [kv_read_bytes(SCOUT, n) / 1e9 for n in (1024, 8192, 131_072, 1_048_576)]
    assert reads == pytest.approx([0.201, 1.611, 7.65, 52.7], rel=2e-3)


STEPS = {  # GB read by one decode step at batch 1, 8, 32, 128
    ("scout", "bf16"): (32.28, 98.1, 189.0, 213.4),
    ("scout", "fp8-bf16head"): (17.18, 50.1, 95.5, 107.8),
    ("scout", "fp8-ffn"): (20.20, 53.1, 98.5, 110.8),
    ("scout", "int4-bf16head"): (9.86, 26.8, 50.3, 56.6),
    ("scout", "int4-ffn"): (14.35, 31.3, 54.7, 61.1),
    ("scout", "int4"): (8.83, 25.8, 49.2, 55.5),
    ("maverick", "bf16"): (32.30, 73.3, 197.9, 516.1),
    ("maverick", "fp8-bf16head"): (17.20, 37.7, 100.0, 259.1),
    ("maverick", "fp8-experts"): (29.28, 49.8, 112.1, 271.2),
    ("maverick", "int4-bf16head"): (9.89, 20.5, 52.6, 134.6),
    ("maverick", "int4-ffn"): (14.37, 24.9, 57.1, 139.1),
}
DECISIONS = {("scout", "fp8"): 16.1, ("scout", "int4+fp8attn"): 10.29}


@pytest.mark.parametrize("model, name", STEPS)
def test_bytes_per_decode_step(model, name):
    config = Llama4Config.preset(model)
    got = [weight_read_bytes(config, find_format(name), b) / 1e9 for b in (1, 8, 32, 128)]
    assert got == pytest.approx(STEPS[model, name], rel=1.2e-3, abs=0.051)


@pytest.mark.parametrize("model, name", DECISIONS)
def test_bytes_per_token_of_our_formats(model, name):
    got = weight_read_bytes(Llama4Config.preset(model), find_format(name)) / 1e9
    assert got == pytest.approx(DECISIONS[model, name], abs=0.06)


def test_reserve_grows_with_what_it_must_hold():
    small = reserve_bytes(SCOUT, GPUS["h100"], 8192, 1)
    assert small == 4.5e9
    assert reserve_bytes(SCOUT, GPUS["h100"], 8192, 4096) > small
    # The tokens of all sequences count, up to what the cache lets into one step.
    text = replace(SCOUT, vision=None)
    one, many, more = (
        activation_bytes(text, 96, batch) - batch * 8 * SCOUT.vocab_size for batch in (1, 64, 128)
    )
    assert many == 64 * one and more == activation_bytes(text, 8192, 1) - 8 * 202_048


@pytest.mark.parametrize("weights", FORMATS)
def test_weights_of_a_plan_are_those_of_the_loaded_model(weights):
    model = Llama4.from_pretrained(CHECKPOINT, dtype=torch.bfloat16, weights=weights)
    loaded = sum(p.nbytes for p in model.parameters())
    planned = weight_bytes(model.config, find_format(weights))
    # Padded beside what is planned: rows of the routers, columns of the patch embedding.
    padding = 2 * (4 * 4 * 128 + 64 * 128)
    assert loaded - padding == pytest.approx(planned, abs=1)
