"""Meta's native form: what comes out of it, against what Meta's own code makes of it."""

import collections
import dataclasses
import io
import json

import pytest
import torch
import transformers
from safetensors.torch import load_file

import l4kernels
from l4kernels.checkpoint.convert import convert
from l4kernels.checkpoint.convert.meta_config import config_of
from l4kernels.checkpoint.convert.tokens import special_ids, special_tokens
from l4kernels.checkpoint.files.reader import CheckpointError
from l4kernels.model.config import RopeScaling
from l4kernels.prompt.image_processor import ImageProcessor
from l4kernels.prompt.tokenizer import Tokenizer
from tests.support import native
from tools.fixtures import meta

CASES = list(meta.CASES)
BASE = 2336 - 2048


def weights(folder):
    found = {}
    for file in folder.glob("*.safetensors"):
        found |= load_file(file)
    return found


def inputs(params):
    ids, is_patch, tile = meta.prompt(params)
    return torch.where(is_patch, BASE + special_tokens().index("<|patch|>"), ids), tile


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("ranks", [1, 2])
def test_the_logits_are_those_of_metas_model(tmp_path, case, ranks):
    stored = native.fixture(case)
    params = stored["params"]
    state = meta.tensors(params)
    states = [state] if ranks == 1 else native.split(params, state)
    if ranks == 2:  # the test's split is that of Meta's code
        digests = [{n: meta.digest(t) for n, t in rank.items()} for rank in states]
        assert digests == stored["ranks"]
    source = native.write(tmp_path / "native", params, states)
    convert(source, tmp_path / "out", shard_bytes=200_000)
    ids, tile = inputs(params)
    ours = l4kernels.Llama4.from_pretrained(tmp_path / "out", dtype=torch.float32)
    wanted = torch.tensor(stored["logits"])
    got = ours.prompt_logits(ids, tile)[0][:, :: meta.EVERY]
    assert (got - wanted).abs().max() <= 1e-4
    kinds = (transformers.AutoModelForCausalLM, transformers.AutoModelForImageTextToText)
    theirs = kinds[tile is not None].from_pretrained(
        tmp_path / "out", dtype=torch.float32, attn_implementation="sdpa"
    )
    images = {} if tile is None else {"pixel_values": tile}
    with torch.inference_mode():
        got = theirs(ids, **images).logits[0][:, :: meta.EVERY]
    assert (got - wanted).abs().max() <= 1e-4


def test_ranks_make_the_same_files(tmp_path):
    params = meta.CASES["scout"]
    state = meta.tensors(params)
    one = native.write(tmp_path / "one", params, [state])
    two = native.write(tmp_path / "two", params, native.split(params, state))
    for source in (one, two):
        convert(source, tmp_path / f"{source.name}-out")
    first, second = (weights(tmp_path / f"{name}-out") for name in ("one", "two"))
    assert first.keys() == second.keys() and len(first) > 80
    assert all(torch.equal(data, second[name]) for name, data in first.items())
    assert {data.dtype for data in first.values()} == {torch.bfloat16}
    gate_up = first["language_model.model.layers.1.feed_forward.experts.gate_up_proj"]
    at = "layers.1.feed_forward.experts."
    w1 = state[f"{at}moe_w_in_eD_F"].unflatten(0, (4, -1))
    assert torch.equal(gate_up[..., : w1.shape[-1]], w1)


def modules(params, state):
    """The names that the state_dict of Meta's model has, instead of those of published files."""
    renamed = {}
    head = params["dim"] // params["n_heads"]
    sizes = [n * head for n in (params["n_heads"], params["n_kv_heads"], params["n_kv_heads"])]
    experts = params["moe_args"]["num_experts"]
    for name, data in state.items():
        at, _, last = name.rpartition("feed_forward.")
        stacks = {"moe_w_in_eD_F": "w1", "moe_w_swiglu_eD_F": "w3", "moe_w_out_eF_D": "w2"}
        shared = {"w_in_shared_FD": "w1", "w_swiglu_FD": "w3", "w_out_shared_DF": "w2"}
        if name.endswith("wqkv.weight"):
            for kind, part in zip("qkv", data.split(sizes), strict=True):
                renamed[name.replace("wqkv", f"w{kind}")] = part
        elif name.endswith("wqkv.layer_norm_weight"):
            renamed[name.replace("attention.wqkv.layer_norm_weight", "attention_norm.weight")] = (
                data
            )
        elif at and last in ("norm.weight", "mlp.layer_norm_weight"):
            renamed[f"{at}ffn_norm.weight"] = data
        elif last.startswith("experts."):
            short = stacks[last.removeprefix("experts.")]
            renamed[f"{at}feed_forward.experts.{short}"] = data.unflatten(0, (experts, -1))
        elif last.removesuffix(".weight") in shared:
            short = shared[last.removesuffix(".weight")]
            renamed[f"{at}feed_forward.shared_expert.{short}.weight"] = data
        elif last == "mlp.fc1_weight":
            renamed[f"{at}feed_forward.w1.weight"], w3 = data.chunk(2)
            renamed[f"{at}feed_forward.w3.weight"] = w3
        elif last == "mlp.fc2_weight":
            renamed[f"{at}feed_forward.w2.weight"] = data
        elif "stats" not in name and name != "rope.freqs":
            renamed[name] = data
    return renamed


@pytest.mark.parametrize("case", CASES)
def test_names_of_the_model_in_memory(tmp_path, case):
    """Also transposed views, parameters, a state of other software, and `params` inside `model`."""
    params = meta.CASES[case]
    state = meta.tensors(params)
    convert(native.write(tmp_path / "published", params), tmp_path / "one")
    other = collections.OrderedDict(modules(params, state))
    assert not {*other} & {n for n in state if "wqkv" in n or "moe_w" in n or "fc1" in n}
    other["norm.weight"] = torch.nn.Parameter(other["norm.weight"].float())
    other["output.weight"] = other["output.weight"].t().contiguous().t()
    other["layers.0.attention.wo._extra_state"] = io.BytesIO(b"\xff\0state")
    other._metadata = {"": {"version": 1}}
    source = native.write(tmp_path / "modules", params, [other])
    (source / "params.json").write_text(json.dumps({"model": params}))
    (source / "consolidated.00.pth").rename(source / "consolidated.pth")
    convert(source, tmp_path / "two")
    first, second = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert first.keys() == second.keys()
    assert all(torch.equal(data, second[name]) for name, data in first.items())


def test_the_other_files(tmp_path):
    counts = []
    found = convert(
        native.write(tmp_path / "in", meta.CASES["scout"]),
        tmp_path / "out",
        lambda done, total: counts.append((done, total)),
    )
    assert found.kind == "Meta's native form, 1 rank" and len(found.notes) == 2
    assert (
        counts[-1][0] == counts[-1][1] == sum(t.nbytes for t in weights(tmp_path / "out").values())
    )
    config = l4kernels.Llama4Config.from_pretrained(tmp_path / "out")
    assert config.rope_scaling == RopeScaling(16.0, 1.0, 1.0, 8192)
    assert config.eos_token_ids == (BASE + 1, BASE + 7, BASE + 8)
    assert config.image_token_index == BASE + 92 and config.vision.image_size == 32
    assert config.rope_layers == (True, True, True, False) and config.use_qk_norm
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert (generation["temperature"], generation["top_p"]) == (0.6, 0.9)
    processor = ImageProcessor.from_pretrained(tmp_path / "out")
    assert (processor.tile_size, processor.max_tiles) == (32, 16)


@pytest.mark.parametrize("name", ["scout", "maverick"])
def test_the_published_params(tmp_path, name):
    """Sizes as Meta's code derives them are those of the published configs."""
    scout = name == "scout"
    image = {"image_size": {"height": 336, "width": 336}, "patch_size": {"height": 14, "width": 14}}
    vision = {"dim": 1408, "n_layers": 34, "n_heads": 16, "mlp_ratio": 4.0, "output_dim": 4096}
    sizes = {"dim": 5120, "n_layers": 48, "n_heads": 40, "n_kv_heads": 8, "vocab_size": 202048}
    moe = {"num_experts": 16 if scout else 128, "interleave_moe_layer_step": 1 if scout else 2}
    params = {
        **meta.CASES["maverick"],
        **sizes,
        "multiple_of": 2048,
        "attention_chunk_size": 8192,
        "use_scaled_rope": scout,
        "use_qk_norm": scout,
        "moe_args": {"capacity_factor": 1.0, "auto_scale_F": True, "top_k": 1, **moe},
        "vision_args": {**image, **vision, "pixel_shuffle_ratio": 0.5},
    }
    (tmp_path / "params.json").write_text(json.dumps(params))
    tokens = {token: token for token in range(200_000)}
    config, _, _ = config_of(tmp_path, special_ids(tokens))
    got, wanted = l4kernels.Llama4Config.from_dict(config), l4kernels.Llama4Config.preset(name)
    assert dataclasses.replace(got, name=name) == wanted


def test_the_tokenizer(tmp_path):
    convert(native.write(tmp_path / "in", meta.CASES["maverick"]), tmp_path / "out")
    ours = Tokenizer(tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    # By hand: every byte its value, " the" 258, "er" 260.
    text = " the other é"
    wanted = [258, 32, ord("o"), 262, ord("r"), 32, 0xC3, 0xA9]
    assert ours.encode(text) == [BASE, *wanted] == theirs.encode(text)
    assert ours.decode(wanted) == text
    chat = "<|header_start|>user<|header_end|>\n\nhi<|eot|>"
    ids = ours.encode(chat, bos=False, special=True)
    assert ids[0] == BASE + 5 and ids[-1] == BASE + 8
    assert ids == theirs.encode(chat, add_special_tokens=False)
    assert ours.special["<|reserved_special_token_903|>"] == 2335
    assert theirs.bos_token == "<|begin_of_text|>" and theirs.pad_token_id == BASE + 18


@pytest.mark.parametrize(
    "changes, what",
    [
        ({"dim": 192, "n_heads": 6}, r"expected tok_embeddings.weight to be \[2336, 192\], got"),
        ({"n_layers": 3}, r"\d+ tensors are unexpected: 'layers\.3\."),
        ({"n_layers": 5}, r"layers\.4\.attention_norm\.weight is missing"),
        ({"n_kv_heads": 4}, r"expected layers\.0\.attention\.wqkv\.weight to be \[384, 128\], got"),
        ({"vocab_size": 2400}, "expected vocab_size = 2400 to equal the tokens of tokenizer.model"),
        ({"n_heads": 3}, "expected n_heads = 3 to divide 128"),
        ({"multiple_of": 96}, r"w_in_shared_FD\.weight to be \[96, 128\], got \[64, 128\]"),
        ({"moe_args": None}, r"layers\.0\.feed_forward\.w1\.weight is missing"),
        ({"vision_args": None}, r"tok_embeddings|vision_embeddings\."),
        (
            {"dim": 10**9},
            r"params\.json: expected dim to be a whole number in \[1, 65536\], got 1000000000",
        ),
        ({"n_layers": "four"}, "expected n_layers to be a whole number"),
        ({"quantization_args": {"scheme": "int4"}}, "with quantization_args cannot be read"),
    ],
)
def test_params_that_disagree_with_the_tensors(tmp_path, changes, what):
    source = native.write(tmp_path / "in", meta.CASES["scout"])
    (source / "params.json").write_text(json.dumps({**meta.CASES["scout"], **changes}))
    with pytest.raises(CheckpointError, match=what):
        convert(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_ranks_that_are_not_one_checkpoint(tmp_path):
    params = meta.CASES["maverick"]
    ranks = native.split(params, meta.tensors(params))
    source = native.write(tmp_path / "in", params, ranks)

    def refused(what):
        with pytest.raises(CheckpointError, match=what):
            convert(source, tmp_path / "out")
        assert [path.name for path in tmp_path.iterdir()] == ["in"]

    (source / "consolidated.01.pth").rename(source / "consolidated.02.pth")
    refused(r"consolidated\.01\.pth is missing")
    (source / "consolidated.02.pth").unlink()
    refused(r"expected tok_embeddings\.weight to be \[2336, 64\], got \[1168, 64\]")
    native.write(source, params, [ranks[0], {**ranks[1], "norm.weight": torch.ones(64)}])
    refused(r"01\.pth: expected norm\.weight to be the same on all ranks")
    native.write(source, params, [*ranks, ranks[1]])
    refused("n_kv_heads|cannot be shared by 3 ranks")
    (source / "consolidated.02.pth").unlink()
    native.write(source, params, [ranks[0], {k: v for k, v in ranks[1].items() if "wo" not in k}])
    refused(r"01\.pth: layers\.0\.attention\.wo\.weight is missing")
    integers = {**ranks[1], "norm.weight": torch.ones(64, dtype=torch.int64)}
    native.write(source, params, [ranks[0], integers])
    refused(r"expected norm\.weight to be of a float type, got int64")
    nan = ranks[1]["output.weight"].clone()
    nan[7, 7] = float("nan")
    native.write(source, params, [ranks[0], {**ranks[1], "output.weight": nan}])
    refused(r"lm_head\.weight holds values that are NaN")
    (source / "fp8_scales_0.pt").touch()
    refused(r"quantised in Meta's native form \(fp8_scales_0\.pt\) cannot be read")


def test_the_command_line(tmp_path, capsys):
    from l4kernels.cli import main

    source = native.write(tmp_path / "in", meta.CASES["maverick"])
    out = tmp_path / "out"
    assert main(["generate", "--model", str(source), "--prompt", "hi"]) == 2
    assert f"run `l4k convert {source} OUT`" in capsys.readouterr().err
    assert main(["convert", str(source), str(out), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["files"].keys() == {path.name for path in out.iterdir()}
    assert report["weight_bytes"] == (out / "model.safetensors").stat().st_size
    assert main(["generate", "--model", str(out), "--prompt", "the", "--max-new-tokens", "2"]) == 0
    capsys.readouterr()
    assert main(["convert", str(source), str(out)]) == 2
    assert "expected a new or an empty folder, got one with files" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "nothing"), str(tmp_path / "x"), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"].endswith("nothing: not found")
    assert main(["convert", str(source), str(tmp_path / "y")]) == 0
    assert "of bf16 in 1 file" in capsys.readouterr().out
