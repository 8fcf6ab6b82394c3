"""Statistics of a model on a text, against what transformers' modules are seen to compute."""

from dataclasses import replace

import pytest
import torch
import transformers

from l4kernels import Llama4, Llama4Config
from l4kernels.demo import CHECKPOINT, held_out_chapters
from l4kernels.engine.calibrate import calibrate
from l4kernels.engine.perplexity import score
from l4kernels.prompt.tokenizer import Tokenizer

TEXT = held_out_chapters()[0][:1500]
WINDOW = 60
"""With the begin-of-text token within a chunk: beyond it keys are turned by other angles here."""
MODULES = {
    "attention.qkv_proj": "self_attn.v_proj",
    "attention.o_proj": "self_attn.o_proj",
    "feed_forward.gate_up_proj": "feed_forward.up_proj",
    "feed_forward.down_proj": "feed_forward.down_proj",
}


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(CHECKPOINT)


@pytest.fixture(scope="module")
def model():
    return Llama4.from_pretrained(CHECKPOINT)


@pytest.fixture(scope="module")
def seen(tokenizer):
    """Largest keys, values and inputs in transformers, layer by layer."""
    model = transformers.Llama4ForConditionalGeneration.from_pretrained(
        CHECKPOINT, dtype=torch.float32, attn_implementation="sdpa"
    )
    found = {"keys": {}, "values": {}, "inputs": {}}

    def note(kind, place, tensor):
        found[kind][place] = max(found[kind].get(place, 0.0), tensor.abs().max().item())

    class Cache(transformers.DynamicCache):
        def update(self, keys, values, layer, *rest, **more):
            note("keys", layer, keys)
            note("values", layer, values)
            return super().update(keys, values, layer, *rest, **more)

    for layer in range(0, 8, 2):  # the dense ones: both sides have one module
        for ours, theirs in MODULES.items():
            module = model.get_submodule(f"language_model.model.layers.{layer}.{theirs}")
            place = f"layers.{layer}.{ours}"
            module.register_forward_pre_hook(
                lambda module, inputs, place=place: note("inputs", place, inputs[0])
            )
    ids = torch.tensor([tokenizer.encode(TEXT)])
    with torch.inference_mode():
        for window in ids[0, 1:].split(WINDOW):
            piece = torch.cat([ids[0, :1], window])[None]
            model(piece, past_key_values=Cache(config=model.config.text_config), use_cache=True)
    return found


def test_statistics_are_those_of_transformers(model, tokenizer, seen):
    found = calibrate(model, tokenizer, TEXT, window=WINDOW)
    pieces = -(-len(tokenizer.encode(TEXT, bos=False)) // WINDOW)
    assert pieces > 2 and found.tokens == len(tokenizer.encode(TEXT)) + pieces - 1
    assert found.keys == pytest.approx(seen["keys"], rel=1e-4)
    assert found.values == pytest.approx(seen["values"], rel=1e-4)
    assert len(seen["inputs"]) == 16
    assert {n: found.inputs[n] for n in seen["inputs"]} == pytest.approx(seen["inputs"], rel=1e-4)
    assert len(found.inputs) == 8 * 4 + 4, "and of the experts and their routers"
    scales = {n: (k / 448, seen["values"][n] / 448) for n, k in seen["keys"].items()}
    for layer, pair in found.kv_scales().items():
        assert pair == pytest.approx(scales[layer], rel=1e-4)


def test_nothing_stays_behind(model, tokenizer):
    before = model.prompt_logits(torch.arange(9)[None])
    calibrate(model, tokenizer, TEXT[:50])
    assert not [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert torch.equal(model.prompt_logits(torch.arange(9)[None]), before)


def test_codes_count_as_what_they_stand_for(tokenizer):
    plain, fp8 = (
        calibrate(Llama4.from_pretrained(CHECKPOINT, weights=w), tokenizer, TEXT[:200])
        for w in ("bf16", "fp8")
    )
    assert plain.inputs.keys() | {"lm_head"} == fp8.inputs.keys() | {"lm_head"}
    name = "layers.0.attention.qkv_proj"  # the largest of a row is exact
    assert fp8.inputs[name] == pytest.approx(plain.inputs[name], rel=1e-6)


def test_what_is_no_calibration_is_refused(model, tokenizer):
    with pytest.raises(ValueError, match="the text is empty"):
        calibrate(model, tokenizer, "")
    with pytest.raises(ValueError, match="whose cache has the activations' type"):
        calibrate(Llama4.from_pretrained(CHECKPOINT, kv_dtype="fp8"), tokenizer, TEXT)
    broken = Llama4.from_pretrained(CHECKPOINT)
    broken.layers[3].input_layernorm.weight[5] = torch.nan
    with pytest.raises(ValueError, match="keys of 3 are not finite"):
        calibrate(broken, tokenizer, TEXT[:50])
    assert not [m for m in broken.modules() if m._forward_hooks]


def test_a_text_is_cut_where_the_context_ends():
    config = replace(Llama4Config.preset("demo"), max_position_embeddings=64, vision=None)
    model, tokenizer = Llama4.random(config), Tokenizer(CHECKPOINT)
    text = "And it came to pass in those days. " * 40
    whole, cut = (score(model, tokenizer, [text], window, 2) for window in (1 << 20, 63))
    assert whole == cut and whole.tokens > 200
