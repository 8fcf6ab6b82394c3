"""Scales of an e4m3 KV cache that a checkpoint brings: what lies in the cache, what comes out."""

import pytest
import torch

from l4kernels import Engine, Llama4, Llama4Config, Sampling
from l4kernels.engine import runner
from l4kernels.engine.kv_cache import KVCache, Pages, layer_cache, scaled
from tests.support.checkpoints import ALIGNED, TEXT

FP8 = torch.float8_e4m3fn
CONFIG = Llama4Config.from_dict({**TEXT, **ALIGNED})
LAYERS = range(CONFIG.num_hidden_layers)
IDS = torch.randint(0, 150, (1, 40), generator=torch.Generator().manual_seed(0))


def model(scales=None, kv_dtype="fp8"):
    made = Llama4.random(CONFIG, kv_dtype=kv_dtype)
    made.kv_scales = scales or {}
    return made


def caches(monkeypatch, of):
    """Keys and values that each layer stores of IDS, as codes, and what those stand for."""
    seen, plain = [], of.layers[0].attention.__class__.forward

    def forward(self, x, residual, metadata, cache, cos_sin):
        out = plain(self, x, residual, metadata, cache, cos_sin)
        codes = [c.flatten(0, 1)[metadata.slots].float() for c in (cache.k, cache.v)]
        scales = (cache.k_scale, cache.v_scale)
        seen.append(
            [(c, c if s is None else c * s[:, None]) for c, s in zip(codes, scales, strict=True)]
        )
        return out

    with monkeypatch.context() as patch:
        patch.setattr(of.layers[0].attention.__class__, "forward", forward)
        of.prompt_logits(IDS)
    return seen


def test_codes_are_keys_over_their_scales(monkeypatch):
    """The first layer's keys do not depend on any cache."""
    scales = {0: (0.01, 0.25)}
    exact, ones, got = (
        caches(monkeypatch, m)[0] for m in (model(kv_dtype=None), model(), model(scales))
    )
    for kind in range(2):
        key, scale = exact[kind][0], scales[0][kind]
        assert torch.equal(got[kind][0], (key / scale).to(FP8).float())
        assert torch.equal(ones[kind][0], key.to(FP8).float())
        assert not torch.equal(got[kind][0], ones[kind][0])
        assert (got[kind][1] - key).norm() < 0.04 * key.norm()


def test_each_layer_has_its_own(monkeypatch):
    scales = {1: (0.5, 0.125), 3: (0.01, 2.0)}
    made = model(scales)
    device = {"device": torch.device("cpu")}
    cache = KVCache(CONFIG, Pages(2, 2), dtype=FP8, scales=scales, **device)
    with_engine = Engine(made, context=64, memory=1 << 22).core.cache if False else cache
    for layer in LAYERS:
        k, v = scales.get(layer, (1.0, 1.0))
        own = with_engine.layers[layer]
        assert own.k_scale.tolist() == [k] and own.v_scale.tolist() == [v]
    plain = layer_cache(CONFIG, 2, torch.float32, **device)
    assert scaled(plain, 1, scales) is plain and plain.k_scale is None
