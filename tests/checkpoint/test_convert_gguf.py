"""GGUF files that llama.cpp wrote, and some that its Python library writes here."""

import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

import l4kernels
from l4kernels.checkpoint.convert import convert
from l4kernels.checkpoint.files.reader import CheckpointError
from l4kernels.inputs.extras import MissingExtra
from l4kernels.model.config import RopeScaling
from l4kernels.prompt.tokenizer import Tokenizer
from tools.fixtures import llama_cpp as made

FIXTURES = Path(__file__).parent / "fixtures" / "gguf"


def original_name(name: str) -> str:
    """Of a tensor of llama.cpp, that in the checkpoint it was made of."""
    top = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    block = {
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "attn_output": "self_attn.o_proj",
        "ffn_gate_inp": "feed_forward.router",
    }
    stem = name.removesuffix(".weight")
    if stem in top:
        return f"{top[stem]}.weight"
    _, layer, part = stem.split(".")
    if part in block:
        part = block[part]
    elif part.startswith("attn_"):
        part = f"self_attn.{part[-1]}_proj"
    else:
        kind = part.split("_")[1]
        part = f"feed_forward.{'shared_expert.' if part.endswith('shexp') else ''}{kind}_proj"
    return f"model.layers.{layer}.{part}.weight"


def by_the_library(file: Path) -> dict[str, torch.Tensor]:
    """The weights in bfloat16 as the library reads them, under their names in a checkpoint."""
    found, experts = {}, {}
    for tensor in gguf.GGUFReader(file).tensors:
        data = torch.tensor(np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type)))
        if tensor.name.endswith("_exps.weight"):
            _, layer, part, _ = tensor.name.split(".")
            experts[layer, part] = data.transpose(1, 2)
        elif tensor.name != "rope_freqs.weight":
            found[original_name(tensor.name)] = data
    for (layer, part), data in experts.items():
        at = f"model.layers.{layer}.feed_forward.experts."
        if part == "ffn_down_exps":
            found[f"{at}down_proj"] = data
        elif part == "ffn_gate_exps":
            both = data, experts[layer, "ffn_up_exps"]
            found[f"{at}gate_up_proj"] = torch.cat(both, -1)
    return {name: data.bfloat16() for name, data in found.items()}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for file in folder.glob("*.safetensors"):
        found |= load_file(file)
    return found


def theirs_of(config: dict, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """The logits of transformers with these weights, in float32."""
    config = {k: v for k, v in config.items() if k not in ("architectures", "model_type")}
    with torch.device("meta"):
        model = transformers.Llama4ForCausalLM(transformers.Llama4TextConfig(**config))
    state = {name: data.float() for name, data in tensors.items()}
    model = transformers.Llama4ForCausalLM(transformers.Llama4TextConfig(**config)).eval()
    model.load_state_dict(state, strict=True)
    with torch.inference_mode():
        return model(made.prompt()[None]).logits[0]


@pytest.mark.parametrize("name", made.FILES)
def test_files_of_llama_cpp(tmp_path, name):
    model, _ = made.FILES[name]
    found = convert(FIXTURES / f"{name}.gguf", tmp_path / "out", shard_bytes=50_000)
    assert found.kind.startswith("GGUF, ")
    got, wanted = weights(tmp_path / "out"), by_the_library(FIXTURES / f"{name}.gguf")
    assert got.keys() == wanted.keys() == made.tensors(made.MODELS[model]).keys()
    for tensor, data in wanted.items():
        assert torch.equal(got[tensor], data), tensor
    ours = l4kernels.Llama4.from_pretrained(tmp_path / "out", dtype=torch.float32)
    logits = ours.prompt_logits(made.prompt()[None])[0]
    assert (logits - theirs_of(made.MODELS[model], wanted)).abs().max() <= 1e-4


def test_the_logits_are_those_of_llama_cpp(tmp_path):
    """Unquantised, in its own arithmetic: what the metadata leave out is as in its code."""
    convert(FIXTURES / "scout-bf16.gguf", tmp_path / "out")
    got = weights(tmp_path / "out")
    for name, data in made.tensors(made.SCOUT).items():
        assert torch.equal(got[name], data), name
    ours = l4kernels.Llama4.from_pretrained(tmp_path / "out", dtype=torch.float32)
    wanted = torch.tensor(json.loads((FIXTURES / "logits.json").read_text()))
    got = ours.prompt_logits(made.prompt()[None])[0][:, :: made.EVERY]
    assert (got - wanted).abs().max() <= 1e-4


def test_k_quants_are_close_to_what_they_were_made_of(tmp_path):
    convert(FIXTURES / "maverick-q4_k_m.gguf", tmp_path / "out")
    got = weights(tmp_path / "out")
    types = {t.tensor_type.name for t in gguf.GGUFReader(FIXTURES / "maverick-q4_k_m.gguf").tensors}
    assert {"Q4_K", "Q6_K", "Q5_0", "Q8_0", "F32"} <= types
    for name, data in made.tensors(made.MAVERICK).items():
        cosine = torch.cosine_similarity(got[name].flatten().float(), data.flatten().float(), 0)
        assert cosine > 0.99, name


def test_config_and_other_files(tmp_path):
    shutil.copy(FIXTURES / "scout-bf16.gguf", tmp_path / "model.gguf")
    (tmp_path / "mmproj-model.gguf").touch()
    found = convert(tmp_path, tmp_path / "out")
    assert "mmproj-model.gguf (images) is left out" in found.notes[1]
    config = l4kernels.Llama4Config.from_pretrained(tmp_path / "out")
    assert config.rope_scaling == RopeScaling(16.0, 1.0, 1.0, 8192)
    assert config.eos_token_ids == (291, 294, 295) and config.pad_token_id == 296
    assert config.attention_chunk_size == 8192 and config.rms_norm_eps == 1e-5
    assert config.rope_layers == (True, True, True, False) and config.use_qk_norm
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_the_tokenizer(tmp_path):
    convert(FIXTURES / "scout-bf16.gguf", tmp_path / "out")
    made.write_tokenizer(tmp_path)
    ours, before = Tokenizer(tmp_path / "out"), Tokenizer(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    # The split of Llama 4 is another one than the small tokenizer's, but not of these texts.
    for text in ("the user said that", "x = 12;\n\n", "é ü 日本", ""):
        assert ours.encode(text) == before.encode(text) == theirs.encode(text)
    assert ours.special == before.special and ours.names["bos_token"] == "<|begin_of_text|>"
    chat = [{"role": "user", "content": "hi"}]
    assert theirs.apply_chat_template(chat, tokenize=False).startswith("<|begin_of_text|><|header_")


def own_file(file: Path, kind: str, config: dict = made.SCOUT, **options) -> Path:
    """A GGUF file written here: another way to the same form."""
    changes = options.pop("changes", {})
    writer = gguf.GGUFWriter(str(file), "llama4", **options)
    reader = gguf.GGUFReader(FIXTURES / "scout-bf16.gguf")
    for name, field in reader.fields.items():
        if name.startswith(("llama4.", "tokenizer.")) and name not in changes:
            kinds = field.types
            sub = kinds[1] if kinds[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), kinds[0], sub)
    for name, (value, value_kind) in changes.items():
        if value is not None:
            writer.add_key_value(name, value, value_kind)
    quantised = gguf.GGMLQuantizationType[kind]
    for tensor in reader.tensors:
        data = np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        if data.ndim == 1:
            writer.add_tensor(tensor.name, data)
            continue
        stored = gguf.quants.quantize(data, quantised)
        writer.add_tensor(tensor.name, stored, raw_dtype=quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.mark.parametrize("kind", ["F32", "F16", "Q4_1", "Q5_0", "Q5_1"])
def test_other_types(tmp_path, kind):
    file = own_file(tmp_path / "own.gguf", kind)
    convert(file, tmp_path / "out")
    got, wanted = weights(tmp_path / "out"), by_the_library(file)
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[name], data) for name, data in wanted.items())
    if kind in ("F32", "F16"):
        exact = made.tensors(made.SCOUT)
        worst = max((got[n].float() - t.float()).abs().max().item() for n, t in exact.items())
        assert worst <= (0 if kind == "F32" else 1e-5)


def test_a_model_in_several_files(tmp_path):
    own_file(tmp_path / "own.gguf", "F32", split_max_tensors=20)
    parts = sorted(tmp_path.glob("own-*.gguf"))
    assert [part.name for part in parts] == [f"own-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    convert(tmp_path, tmp_path / "out")
    convert(FIXTURES / "scout-bf16.gguf", tmp_path / "one")
    one, got = weights(tmp_path / "one"), weights(tmp_path / "out")
    assert got.keys() == one.keys() and all(torch.equal(got[n], t) for n, t in one.items())
    with pytest.raises(CheckpointError, match=r"name the first, own-00001-of-00003\.gguf"):
        convert(parts[1], tmp_path / "two")
    parts[0].rename(tmp_path / "renamed.gguf")
    with pytest.raises(CheckpointError, match="the first of several files, whose names"):
        convert(tmp_path / "renamed.gguf", tmp_path / "two")
    (tmp_path / "renamed.gguf").rename(parts[0])
    shutil.copy(parts[1], parts[2])
    with pytest.raises(CheckpointError, match=r"expected part 2 of 3, got \(1, 3\)"):
        convert(parts[0], tmp_path / "two")
    parts[2].unlink()
    with pytest.raises(CheckpointError, match=r"of which own-00003-of-00003\.gguf is missing"):
        convert(parts[0], tmp_path / "two")


U32, STRING = gguf.GGUFValueType.UINT32, gguf.GGUFValueType.STRING


@pytest.mark.parametrize(
    "changes, what",
    [
        (
            {"llama4.expert_count": (3, U32)},
            r"blk\.0\.ffn_gate_inp\.weight to be \[3, 32\]",
        ),
        ({"llama4.block_count": (3, U32)}, r"13 tensors are unexpected: 'blk\.3\."),
        ({"llama4.block_count": (5, U32)}, r"blk\.4\.attn_norm\.weight is missing"),
        ({"llama4.block_count": (None, U32)}, "llama4: block_count is missing"),
        ({"llama4.embedding_length": (64, U32)}, r"expected token_embd\.weight to be \[320, 64\]"),
        (
            {"llama4.vocab_size": (300, U32)},
            "llama4.vocab_size to be the number of tokens",
        ),
        ({"llama4.attention.sliding_window": (0, U32)}, "expected attention.sliding_window to be"),
        ({"llama4.rope.freq_base": (1.0, gguf.GGUFValueType.FLOAT32)}, "rope_freqs|factors"),
        ({"llama4.rope.scaling.type": ("yarn", STRING)}, "rope.scaling.type = 'yarn' is not"),
        ({"tokenizer.ggml.pre": ("qwen2", STRING)}, "expected tokenizer.ggml.pre to be llama4 or"),
        ({"tokenizer.ggml.model": ("llama", STRING)}, "expected tokenizer.ggml.model to be gpt2"),
        ({"tokenizer.ggml.bos_token_id": (999, U32)}, "bos_token_id to be a token, got 999"),
        ({"tokenizer.ggml.bos_token_id": (7, U32)}, "to be a control token"),
        ({"tokenizer.ggml.merges": ("a b", STRING)}, "merges to be a list of texts"),
    ],
)
def test_metadata_that_disagree(tmp_path, changes, what):
    file = own_file(tmp_path / "own.gguf", "F32", changes=changes)
    with pytest.raises(CheckpointError, match=what):
        convert(file, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["own.gguf"]


def test_what_is_no_text_model(tmp_path):
    for architecture, what in {
        "clip": r"holds what reads images \(mmproj\); of GGUF the text model is converted",
        "llama": "expected the architecture llama4, got 'llama'",
    }.items():
        writer = gguf.GGUFWriter(str(tmp_path / "x.gguf"), architecture)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with pytest.raises(CheckpointError, match=what):
            convert(tmp_path / "x.gguf", tmp_path / "out")
    shutil.copy(tmp_path / "x.gguf", tmp_path / "y.gguf")
    with pytest.raises(
        CheckpointError, match=r"holds 2 GGUF models \('x.gguf, y.gguf'\); name one"
    ):
        convert(tmp_path, tmp_path / "out")
    (tmp_path / "images").mkdir()
    (tmp_path / "x.gguf").rename(tmp_path / "images" / "mmproj-x.gguf")
    with pytest.raises(CheckpointError, match=r"mmproj-x\.gguf: expected the architecture llama4"):
        convert(tmp_path / "images", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_the_library(tmp_path, monkeypatch):
    from l4kernels.checkpoint.convert import gguf as module

    def missing(name, extra):
        raise MissingExtra(f"{name} {extra}")

    monkeypatch.setattr(module, "require", missing)
    with pytest.raises(MissingExtra, match="gguf convert"):
        convert(FIXTURES / "scout-bf16.gguf", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_command_line(tmp_path, capsys):
    from l4kernels.cli import main

    file, out = FIXTURES / "scout-q8_0.gguf", tmp_path / "out"
    for model in (file, FIXTURES):
        assert main(["generate", "--model", str(model), "--prompt", "hi"]) == 2
        assert f"This is GGUF: run `l4k convert {model} OUT`" in capsys.readouterr().err
    with pytest.raises(ValueError, match="This is GGUF: run `l4k convert"):
        l4kernels.Llama4.from_pretrained(file)
    assert main(["convert", str(file), str(out)]) == 0
    printed = capsys.readouterr()
    assert "GGUF, 99% Q8_0, 1% F32" in printed.out and "sampling defaults" in printed.err
    answer = ["generate", "--model", str(out), "--prompt", "hi", "--chat", "--max-new-tokens", "2"]
    assert main([*answer, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["prompt_tokens"] > 8
