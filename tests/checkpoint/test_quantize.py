"""Quantised checkpoints: what others read in them, what we read back, and runs that are ended."""

import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file

from l4kernels import Llama4, Llama4Config, ops
from l4kernels.checkpoint.files.planned import shards_of
from l4kernels.checkpoint.files.reader import Checkpoint, CheckpointError
from l4kernels.checkpoint.formats import open_checkpoint
from l4kernels.checkpoint.quantize.run import Job, quantize
from l4kernels.checkpoint.quantize.scheme import TARGETS, Scheme
from l4kernels.demo import CHECKPOINT
from l4kernels.inputs.fields import ConfigError
from tests.support.checkpoints import ALIGNED, TEXT, tensors_of, unfused, write
from tests.support.fixtures import ROOT as FIXTURES
from tests.support.parity import Case, hf_logits, load_hf, prompt, save_model

SIZES = (("intermediate_size", 128), ("intermediate_size_mlp", 256))
CASES = {
    "text": Case(hidden=128, heads=(2, 1), moe_step=2, fields=SIZES),
    "images": Case(hidden=128, heads=(2, 1), vision=True, images=((1, 2),), fields=SIZES),
}
KILLED = Path(__file__).parents[1] / "support" / "killed_quantise.py"
HEAD = ("lm_head.weight", "lm_head.scale")
"""In fp8 where `weights=` says int4 or fp8; in these files as it was."""


def opened(folder):
    return open_checkpoint(folder, Llama4Config.from_pretrained(folder))


def quantised(source, out, form="int4", *, keep_attention=False, shard_bytes=10**9, **job):
    scheme = Scheme.of(form, keep_attention=keep_attention)
    quantize(Job(opened(source), scheme, **job), out, shard_bytes=shard_bytes)
    return out


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    save_model(CASES[request.param], folder)
    return CASES[request.param], folder


@pytest.mark.parametrize("keep_attention", [False, True])
@pytest.mark.parametrize("form", TARGETS)
def test_transformers_reads_the_same_weights(form, keep_attention, case, tmp_path):
    case, source = case
    out = quantised(source, tmp_path / "out", form, keep_attention=keep_attention)
    # Only of weights: rounding of activations would hide a mistake in them.
    config = json.loads((out / "config.json").read_text())
    for group in config["quantization_config"]["config_groups"].values():
        assert group.pop("input_activations", None) is None or "fp8" in form
    (out / "config.json").write_text(json.dumps(config))
    ids, tiles = prompt(case)
    got = Llama4.from_pretrained(out, weights="bf16").prompt_logits(ids, tiles)
    assert (hf_logits(load_hf(case, out), ids, tiles) - got).abs().max() <= 1e-4
    plain = Llama4.from_pretrained(source).prompt_logits(ids, tiles)
    assert (plain - got).abs().max() > 1e-2, "it was quantised"


@pytest.mark.parametrize("form", TARGETS)
def test_transformers_finds_every_tensor_and_no_other(form, case, tmp_path):
    case, source = case
    out = quantised(source, tmp_path / "out", form)
    kind = (transformers.Llama4ForCausalLM, transformers.Llama4ForConditionalGeneration)[
        case.vision
    ]
    model, info = kind.from_pretrained(out, output_loading_info=True)
    assert {key: list(found) for key, found in info.items() if found} == {}
    # As `ignore` and `targets` say, and as the file has it.
    linear = {n for n, m in model.named_modules() if getattr(m, "quantization_scheme", None)}
    scales = {n.removesuffix(".weight_scale") for n in Checkpoint(out).entries if "_scale" in n}
    assert linear == scales


@pytest.mark.parametrize("form", TARGETS)
def test_what_is_read_back_is_what_loading_makes(form, tmp_path):
    out = quantised(CHECKPOINT, tmp_path / "out", form, shard_bytes=1_000_000)
    wanted = dict(Llama4.from_pretrained(CHECKPOINT, weights=form).named_parameters())
    got = dict(Llama4.from_pretrained(out).named_parameters())
    assert got.keys() | {*HEAD} == wanted.keys() | {*HEAD}
    assert len(got) > 80
    for name in got.keys() - {*HEAD}:
        assert torch.equal(got[name].view(torch.uint8), wanted[name].view(torch.uint8)), name


def test_int4_codes_are_the_librarys(tmp_path):
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    tensors = load_file(CHECKPOINT / "model.safetensors")
    stored = load_file(quantised(CHECKPOINT, tmp_path / "out") / "model.safetensors")
    layer = "language_model.model.layers.1."
    fused = tensors[f"{layer}feed_forward.experts.gate_up_proj"]
    for name, weight in (
        (f"{layer}self_attn.o_proj", tensors[f"{layer}self_attn.o_proj.weight"]),
        (f"{layer}feed_forward.experts.2.gate_proj", fused[2, :, :128].t()),
        (f"{layer}feed_forward.experts.2.up_proj", fused[2, :, 128:].t()),
    ):
        packed, scales = ops.quantize_int4(weight.contiguous())
        own = {n.removeprefix(f"{name}."): t for n, t in stored.items() if n.startswith(f"{name}.")}
        shape = own["weight_shape"]
        assert shape.dtype == torch.int64 and shape.tolist() == list(weight.shape)
        codes = unpack_from_int32(own["weight_packed"], 4, torch.Size(shape.tolist()))
        assert torch.equal(codes, ops.unpack_int4(packed))
        assert own["weight_scale"].dtype == torch.bfloat16
        assert torch.equal(own["weight_scale"], scales)
        assert (scales < 0).any(), "or the test lacks what few checkpoints have"


def test_fp8_codes_are_those_of_the_op(tmp_path):
    name = "language_model.model.layers.0.feed_forward.down_proj.weight"
    weight = load_file(CHECKPOINT / "model.safetensors")[name]
    stored = load_file(quantised(CHECKPOINT, tmp_path / "out", "fp8") / "model.safetensors")
    q, scale = ops.quantize_fp8(weight, "row")
    assert torch.equal(stored[name].view(torch.uint8), q.view(torch.uint8))
    assert torch.equal(stored[f"{name}_scale"], scale[:, None])


def test_all_else_stays_as_it_is(tmp_path):
    out = quantised(CHECKPOINT, tmp_path / "out", keep_attention=True)
    before, after = (load_file(f / "model.safetensors") for f in (CHECKPOINT, out))
    kept = [name for name in before if name in after]
    assert {
        n for n in before if "proj" in n and "vision" not in n and "self_attn" not in n
    }.isdisjoint(n for n in kept if "multi_modal" not in n)
    assert len(kept) == 97
    for name in kept:
        assert before[name].dtype == after[name].dtype and torch.equal(before[name], after[name])
    for file in ("tokenizer.json", "generation_config.json", "preprocessor_config.json"):
        assert (out / file).read_bytes() == (CHECKPOINT / file).read_bytes()
    said, was = (json.loads((f / "config.json").read_text()) for f in (out, CHECKPOINT))
    assert said.pop("quantization_config") and said == was


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_fused_and_single_experts_give_the_same_file(dtype, tmp_path):
    tensors = tensors_of(Llama4Config.from_dict({**TEXT, **ALIGNED}), dtype=dtype)
    single = write(tmp_path / "single", unfused(tensors), shards=3, **ALIGNED)
    fused = write(tmp_path / "fused", tensors, shards=2, **ALIGNED)
    for form in TARGETS:
        one, other = (
            load_file(quantised(f, tmp_path / f"{f.name}-{form}", form) / "model.safetensors")
            for f in (single, fused)
        )
        assert one.keys() == other.keys()
        assert all(torch.equal(one[n].view(torch.uint8), other[n].view(torch.uint8)) for n in one)
        assert one["model.norm.weight"].dtype == dtype


def test_a_quantised_source_is_quantised_again_or_refused(tmp_path):
    fp8 = quantised(CHECKPOINT, tmp_path / "fp8", "fp8", keep_attention=True)
    with pytest.raises(CheckpointError, match="is already quantised to int4"):
        quantised(quantised(CHECKPOINT, tmp_path / "int4"), tmp_path / "again")
    # What is in the format already stays bit by bit, the rest joins it.
    both = quantised(fp8, tmp_path / "both", "fp8")
    whole = quantised(CHECKPOINT, tmp_path / "whole", "fp8")
    one, other = (load_file(f / "model.safetensors") for f in (both, whole))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[n].view(torch.uint8), other[n].view(torch.uint8)) for n in one)
    ids = torch.arange(40)[None]
    logits = Llama4.from_pretrained(quantised(both, tmp_path / "from fp8")).prompt_logits(ids)
    plain = Llama4.from_pretrained(CHECKPOINT).prompt_logits(ids)
    assert 0 < (logits - plain).abs().mean() < 0.5


def test_templates_in_a_folder_of_their_own_come_along(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(CHECKPOINT, source)
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    (source / "notes.json").write_text("{}")
    out = quantised(source, tmp_path / "out")
    assert (out / "additional_chat_templates" / "tool_use.jinja").read_text() == "{{ tools }}"
    assert not (out / "notes.json").exists()
    (source / "chat_template.jinja").symlink_to("/etc/hostname")
    with pytest.raises(CheckpointError, match="leads out of the checkpoint folder"):
        quantised(source, tmp_path / "other")


def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="expected format to be one of fp8, int4"):
        Scheme.of("bf16")
    odd = write(tmp_path / "odd", tensors_of(Llama4Config.from_dict(TEXT)))
    with pytest.raises(CheckpointError, match=r"o_proj|q_proj|k_proj"):
        quantised(odd, out)
    with pytest.raises(CheckpointError, match=r"feed_forward\S+ is 72 by 64; fp8 needs multiples"):
        quantised(odd, out, "fp8", keep_attention=True)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**6))
    with pytest.raises(CheckpointError, match=r"expected 3\.1 MB of free disk space, got 1\.0"):
        quantised(CHECKPOINT, out)
    monkeypatch.undo()
    assert not out.exists() and not Path(f"{out}.partial").exists()
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="expected a new or an empty folder"):
        quantised(CHECKPOINT, out)
    assert [f.name for f in out.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("form", ["int4", "fp8"])
def test_a_run_that_is_killed_goes_on_where_it_stopped(form, tmp_path):
    shard_bytes = 1_200_000
    whole = quantised(CHECKPOINT, tmp_path / "whole", form, shard_bytes=shard_bytes)
    shards = shards_of(Job(opened(CHECKPOINT), Scheme.of(form)).plan(), shard_bytes)
    assert len(shards) > 2
    ends = [0, *itertools.accumulate(shard.size for shard in shards)]
    limits, finished = [], []
    for number, (begin, end) in enumerate(itertools.pairwise(ends)):
        # In the middle, with the last byte of a shard, and with the first tensor of the next one.
        limits += [(begin + end) // 2, end, end + 1]
        finished += [number, number, number + 1]
    limits, finished = limits[:-1], finished[:-1]
    out = tmp_path / "out"
    command = [sys.executable, KILLED, CHECKPOINT, out, form, shard_bytes, *limits, -1]
    printed = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=True
    ).stdout
    *killed, last = map(json.loads, printed.splitlines())
    kept = 0
    for state, count in zip(killed, finished, strict=True):
        files = [name for name in state["files"] if name.endswith(".safetensors")]
        assert (state["signal"], state["out"]) == (9, False)
        assert files == [shard.file for shard in shards[:count]]
        assert "config.json" not in state["files"]
        assert ends[kept] < state["began"], "finished shards are not written again"
        kept = count
    assert last == {"signal": 0, "began": last["began"], "out": True, "files": []}
    assert last["began"] > ends[-2]
    names = sorted(file.name for file in whole.iterdir())
    assert names == sorted(file.name for file in out.iterdir())
    assert all((out / n).read_bytes() == (whole / n).read_bytes() for n in names)


def test_a_run_goes_on_only_where_codes_are_read_as_before(tmp_path):
    """The files of GPTQ's two versions look the same, and their zero points differ by one."""
    folder = shutil.copytree(FIXTURES / "gptq_zeros", tmp_path / "gptq")
    before = Job(opened(folder), Scheme.of("fp8")).identity()
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["checkpoint_format"] = "gptq_v2"
    (folder / "config.json").write_text(json.dumps(config))
    assert Job(opened(folder), Scheme.of("fp8")).identity() != before


def test_what_an_ended_run_leaves_is_no_checkpoint(tmp_path):
    class Enough(Exception):
        pass

    def until(limit):
        def progress(done, total):
            if done >= limit * total:
                raise Enough

        return progress

    job, partial = Job(opened(CHECKPOINT), Scheme.of("int4")), tmp_path / "out.partial"
    for limit in (0.4, 0.99, 1.0):
        with pytest.raises(Enough):
            quantize(job, tmp_path / "out", shard_bytes=1_000_000, progress=until(limit))
        assert [f.name for f in tmp_path.iterdir()] == [partial.name]
        with pytest.raises(CheckpointError, match=r"found neither model\.safetensors nor"):
            Checkpoint(partial)
        with pytest.raises(ConfigError, match="not found"):
            Llama4.from_pretrained(partial)
    # Another format does not go on with what this one left.
    quantize(Job(opened(CHECKPOINT), Scheme.of("fp8")), tmp_path / "out", shard_bytes=1_000_000)
    with safe_open(tmp_path / "out" / "model-00001-of-00005.safetensors", "pt") as file:
        assert not [name for name in file.keys() if "packed" in name]  # noqa: SIM118


def test_scales_of_the_cache_are_written_and_carried_over(tmp_path):
    scales = {layer: (0.01 + layer, 0.5 / (1 + layer)) for layer in range(8)}
    out = quantised(CHECKPOINT, tmp_path / "fp8", "fp8", kv_scales=scales)
    again = quantised(out, tmp_path / "int4")
    wanted = {n: pytest.approx(pair, rel=1e-6) for n, pair in scales.items()}
    for folder in (out, again):
        assert dict(opened(folder).kv_scales) == wanted
        said = json.loads((folder / "config.json").read_text())["quantization_config"]
        assert said["kv_cache_scheme"]["num_bits"] == 8
    model, info = transformers.Llama4ForConditionalGeneration.from_pretrained(
        again, output_loading_info=True
    )
    # The library wants scales of every attention, of the vision model's, too, which has no cache.
    assert all(name.startswith("vision_model.") for name in info.pop("missing_keys"))
    assert {key: list(found) for key, found in info.items() if found} == {}
    attention = model.get_submodule("language_model.model.layers.2.self_attn")
    assert attention.k_scale.item() == pytest.approx(scales[2][0], rel=1e-2)
