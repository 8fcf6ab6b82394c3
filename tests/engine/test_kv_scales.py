"""Scales of an e4m3 KV cache that a checkpoint brings: what lies in the cache, what comes out."""

import pytest
import torch

from l4kernels import Llama4, Llama4Config
from l4kernels.engine.core import EngineCore
from l4kernels.engine.kv_cache import Pages
from tests.support import engines
from tests.support.checkpoints import ALIGNED, TEXT
from tests.support.fixtures import ROOT, expected

FP8 = torch.float8_e4m3fn
CONFIG = Llama4Config.from_dict({**TEXT, **ALIGNED})
LAYERS = range(CONFIG.num_hidden_layers)
IDS = torch.randint(0, 150, (1, 40), generator=torch.Generator().manual_seed(0))


def model(scales=None, kv_dtype="fp8"):
    made = Llama4.random(CONFIG, kv_dtype=kv_dtype)
    made.kv_scales = scales or {}
    return made


def caches(monkeypatch, of, ids=IDS):
    """Keys and values that each layer stores of a prompt, as codes, and what those stand for."""
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
        of.prompt_logits(ids)
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


def test_each_layer_has_its_own():
    scales = {1: (0.5, 0.125), 3: (0.01, 2.0)}
    core = EngineCore(model(scales), slots=1, context=64, pages=Pages(4, 4))
    for layer in LAYERS:
        own, (k, v) = core.cache.layers[layer], scales.get(layer, (1.0, 1.0))
        assert torch.equal(own.k_scale, torch.tensor([k])), layer
        assert torch.equal(own.v_scale, torch.tensor([v])), layer


def test_other_caches_have_none():
    core = EngineCore(model({0: (0.5, 0.5)}, None), slots=1, context=64, pages=Pages(4, 4))
    assert all(own.k_scale is None and own.v_scale is None for own in core.cache.layers)
    plain, scales = model(kv_dtype=None), model({0: (0.5, 0.5)}, None)
    assert torch.equal(plain.prompt_logits(IDS), scales.prompt_logits(IDS))


GOOD = dict.fromkeys(LAYERS, (0.02, 0.02))
SMALL = dict.fromkeys(LAYERS, (0.0001, 0.0001))


@pytest.mark.parametrize("way", ["prompt", "steps"])
def test_scales_that_fit_are_close_and_others_saturate(way):
    """Nothing in a cache is more than 448 times its scale: at 1e-4 keys and values are lost."""

    def logits(scales, kv_dtype="fp8"):
        made = model(scales, kv_dtype)
        if way == "prompt":
            return made.prompt_logits(IDS)[0]
        return engines.logits_of(made, [IDS[0].tolist()], [20])[0]

    exact = logits({}, None)

    def error(scales):
        """Of most tokens: a few change their experts."""
        return float(((logits(scales) - exact).norm(dim=-1) / exact.norm(dim=-1)).median())

    good, ones, small = map(error, (GOOD, {}, SMALL))
    assert max(good, ones) < 0.08 and good < 1.2 * ones, (good, ones)
    assert small > 1, small


def test_they_come_from_the_checkpoint(monkeypatch):
    """From a file of ModelOpt to the keys that its model stores."""
    folder = ROOT / "modelopt_fp8"
    with pytest.warns(UserWarning, match="input_scale"):
        of = {kv: Llama4.from_pretrained(folder, kv_dtype=kv) for kv in (None, "fp8")}
    ids = expected("modelopt_fp8")[0]
    exact, got = (caches(monkeypatch, m, ids)[0] for m in of.values())
    for kind in range(2):
        scale = of["fp8"].kv_scales[0][kind]
        assert torch.equal(got[kind][0], (exact[kind][0] / scale).to(FP8).float())
        # They are calibrated: the largest of many keys is at the end of e4m3's range.
        assert 100 < got[kind][0].abs().max() <= 448
