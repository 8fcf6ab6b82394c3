"""Checkpoints that transformers loads: each gives the same logits here, or says why it does not."""

import copy
import json
import os

import pytest
import torch
import transformers
from safetensors.torch import save_file

from l4kernels import Llama4, Llama4Config
from l4kernels.checkpoint.files import layout as weights
from l4kernels.checkpoint.files.reader import CheckpointError
from l4kernels.model.llama4 import rope_table
from tests.support import tiny
from tests.support.checkpoints import ALIGNED, TEXT, tensors_of, write

CONFIG = Llama4Config.from_dict(TEXT)
IDS = torch.arange(20).view(1, 20) * 7
EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"


@pytest.fixture(scope="module")
def tensors():
    return tensors_of(CONFIG)


def same_as_transformers(folder):
    """Our logits, after they were compared."""
    theirs = transformers.Llama4ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    logits = Llama4.from_pretrained(folder).prompt_logits(IDS)
    with torch.no_grad():
        torch.testing.assert_close(logits, theirs(IDS).logits, rtol=1e-4, atol=1e-4)
    return logits


BUFFERS = {
    "model.rotary_emb.inv_freq": torch.ones(64),
    "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(64),
    "model.layers.3.self_attn.rotary_emb.cos_cached": torch.ones(8, 128, dtype=torch.int64),
    "vision_model.embeddings.position_ids": torch.arange(9),
    "model.position_ids": torch.arange(9)[None],
    "vision_model.rotary_embedding.freqs_ci": torch.ones(17, 16, dtype=torch.complex64),
}


def test_buffers_of_older_versions_are_not_weights(tensors, tmp_path):
    plain = same_as_transformers(write(tmp_path / "plain", tensors))
    assert torch.equal(same_as_transformers(write(tmp_path / "old", tensors | BUFFERS)), plain)


def test_every_float_type_is_loaded(tensors, tmp_path):
    plain = Llama4.from_pretrained(write(tmp_path / "plain", tensors)).prompt_logits(IDS)
    wide = {n: t.double() for n, t in tensors.items()}
    assert torch.equal(same_as_transformers(write(tmp_path / "double", wide)), plain)
    half = {n: t.half() for n, t in tensors.items()}
    rounded = write(tmp_path / "rounded", {n: t.float() for n, t in half.items()})
    got = same_as_transformers(write(tmp_path / "half", half))
    assert torch.equal(got, Llama4.from_pretrained(rounded).prompt_logits(IDS))


@pytest.mark.parametrize("weights", ["bf16", "fp8", "int4"])
def test_every_float_type_is_quantised(tmp_path, weights):
    config = Llama4Config.from_dict({**TEXT, **ALIGNED})
    values = {n: t.half() for n, t in tensors_of(config).items()}
    want = None
    for dtype in (torch.float16, torch.float32, torch.float64):
        content = {n: t.to(dtype) for n, t in values.items()}
        folder = write(tmp_path / str(dtype), content, **ALIGNED)
        logits = Llama4.from_pretrained(folder, dtype="bfloat16", weights=weights).prompt_logits(
            IDS
        )
        want = logits if want is None else want
        assert torch.equal(logits, want)


@pytest.mark.parametrize(
    "stored, value, dtype, count",
    [
        (torch.float64, 1e39, "float32", 1),
        (torch.float64, -1e300, "bfloat16", 1),
        (torch.float32, 3.4e38, "bfloat16", 1),
        (torch.float64, 3.4e38, "bfloat16", 1),
        (torch.float64, 3.4e38, "float32", 0),
        (torch.float64, 1e-300, "float32", 0),
        (torch.float16, 65504.0, "bfloat16", 0),
    ],
)
def test_a_value_is_never_infinite_after_its_conversion(
    tensors, tmp_path, stored, value, dtype, count
):
    damaged = tensors[NORM].to(stored)
    damaged[3] = value
    write(tmp_path, {**tensors, NORM: damaged})
    if not count:
        loaded = Llama4.from_pretrained(tmp_path, dtype=dtype).norm.weight
        assert torch.equal(loaded, damaged.to(loaded.dtype)) and loaded.isfinite().all()
        return
    with pytest.raises(CheckpointError, match=f"{NORM} holds 1 values .* too large for {dtype}"):
        Llama4.from_pretrained(tmp_path, dtype=dtype)


@pytest.mark.parametrize(
    "dtype", ["bool", "uint8", "int8", "int32", "int64", "uint16", "complex64", "float8_e5m2"]
)
def test_other_types_are_refused_by_name(tensors, tmp_path, dtype):
    write(tmp_path, {**tensors, NORM: tensors[NORM].to(getattr(torch, dtype))})
    with pytest.raises(CheckpointError, match=f"expected {NORM} to be one of BF16, .*F64, got "):
        Llama4.from_pretrained(tmp_path)


@pytest.mark.parametrize("kind", ["neither", "equal", "different", "head only"])
def test_tied_embeddings_with_a_head_of_their_own(tensors, tmp_path, kind):
    content = dict(tensors)
    if kind == "equal":
        content[HEAD] = content[EMBEDDING].clone()
    elif kind == "head only":
        del content[EMBEDDING]
    elif kind == "neither":
        del content[HEAD]
    folder = write(tmp_path, content, tie_word_embeddings=True)
    same_as_transformers(folder)
    model = Llama4.from_pretrained(folder)
    assert (model.lm_head.weight is model.embedding) == (kind != "different")


@pytest.mark.parametrize("kind", ["equal", "different", "head only", "neither"])
def test_tied_embeddings_quantised(tmp_path, kind):
    """An fp8 head is that of the untied checkpoint with the same tensors."""
    content = tensors_of(Llama4Config.from_dict({**TEXT, **ALIGNED}))
    if kind != "different":
        content[HEAD] = content[EMBEDDING].clone()
    untied = Llama4.from_pretrained(write(tmp_path / "untied", content, **ALIGNED), weights="fp8")
    if kind in ("head only", "neither"):
        del content[EMBEDDING if kind == "head only" else HEAD]
    folder = write(tmp_path / "tied", content, tie_word_embeddings=True, **ALIGNED)
    assert torch.equal(
        Llama4.from_pretrained(folder, weights="fp8").prompt_logits(IDS), untied.prompt_logits(IDS)
    )


def test_a_text_config_over_a_multimodal_file(tmp_path):
    slots = weights.layout(Llama4Config.from_dict(tiny.CONFIG))
    shapes = {name: slot.shape for name, slot in slots.items()}
    generator = torch.Generator().manual_seed(0)
    content = {n: torch.randn(s, generator=generator) / 10 for n, s in shapes.items()}
    save_file(content, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(tiny.TEXT))
    logits = same_as_transformers(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(tiny.CONFIG))
    assert torch.equal(logits, Llama4.from_pretrained(tmp_path).prompt_logits(IDS))
    text_only = {n: t for n, t in content.items() if n.startswith("language_model")}
    save_file(text_only, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"tensors are missing .*vision_model"):
        Llama4.from_pretrained(tmp_path)


def test_a_path_that_is_no_text_is_refused_for_what_it_is(tensors, tmp_path):
    folder = write(tmp_path / os.fsdecode(b"\xff"), tensors)
    with pytest.raises(CheckpointError, match="path is not UTF-8; rename the folder"):
        Llama4.from_pretrained(folder)


def test_a_single_file_counts_before_an_index(tensors, tmp_path):
    plain = write(tmp_path / "plain", tensors)
    both = write(tmp_path / "both", {n: -t for n, t in tensors.items()}, shards=2)
    write(both, tensors)
    assert torch.equal(same_as_transformers(both), Llama4.from_pretrained(plain).prompt_logits(IDS))


@pytest.fixture(params=["dtype", "device", "autocast", "grad", "inference", "deterministic"])
def setting(request):
    """A process-wide setting of torch that must not reach a result."""
    kind = request.param
    if kind == "dtype":
        torch.set_default_dtype(torch.bfloat16)
        yield
        torch.set_default_dtype(torch.float32)
    elif kind == "device":
        torch.set_default_device("meta")
        yield
        torch.set_default_device(None)
    elif kind == "deterministic":
        torch.use_deterministic_algorithms(True)
        yield
        torch.use_deterministic_algorithms(False)
    else:
        block = {
            "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
            "grad": torch.enable_grad,
            "inference": torch.inference_mode,
        }[kind]()
        with block:
            yield


def test_rotation_tables_do_not_depend_on_the_process(setting):
    config = Llama4Config.from_dict(tiny.CONFIG)
    table = rope_table(config, 64)
    angles = torch.arange(64, dtype=torch.float64, device="cpu")[:, None] * torch.tensor(
        [config.rope_theta ** (-i / 64) for i in range(64)], dtype=torch.float64, device="cpu"
    )
    assert torch.equal(table, torch.cat([angles.cos(), angles.sin()], -1).to(torch.float32))


def parameters(folder, weights):
    config = Llama4Config.from_dict({**TEXT, **ALIGNED})
    loaded = Llama4.from_pretrained(folder, weights=weights)
    models = (loaded, Llama4.random(config, weights=weights, dtype="bfloat16"))
    return [copy.deepcopy(dict(m.named_parameters())) for m in models]


@pytest.fixture(scope="module")
def unset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("state")
    write(folder, tensors_of(Llama4Config.from_dict({**TEXT, **ALIGNED})), **ALIGNED)
    return folder, {weights: parameters(folder, weights) for weights in ("bf16", "fp8", "int4")}


@pytest.mark.parametrize("weights", ["bf16", "fp8", "int4"])
def test_loaded_and_random_weights_do_not_depend_on_the_process(unset, weights, setting):
    folder, wanted = unset
    for got, want in zip(parameters(folder, weights), wanted[weights], strict=True):
        assert got.keys() == want.keys()
        for name, parameter in want.items():
            same = got[name].view(torch.uint8), parameter.view(torch.uint8)
            assert got[name].device.type == "cpu" and torch.equal(*same), name
