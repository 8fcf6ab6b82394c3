"""`l4k inspect`: what is in a checkpoint, from headers alone."""

import json
import time

import pytest

from l4kernels import Llama4
from l4kernels.checkpoint.files.layout import layout
from l4kernels.checkpoint.files.planned import Planned, shards_of
from l4kernels.checkpoint.formats import open_checkpoint
from l4kernels.checkpoint.quantize.run import Job, quantize
from l4kernels.checkpoint.quantize.scheme import Scheme
from l4kernels.cli import main
from l4kernels.demo import CHECKPOINT
from l4kernels.model.config import Llama4Config
from l4kernels.planning.footprint import weight_bytes
from l4kernels.planning.formats import all_formats
from tests.support.checkpoints import TEXT, write_index

SCOUT = {
    **TEXT,
    "vocab_size": 202048,
    "hidden_size": 5120,
    "num_hidden_layers": 48,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "intermediate_size": 8192,
    "intermediate_size_mlp": 16384,
    "num_local_experts": 16,
    "interleave_moe_layer_step": 1,
    "attention_chunk_size": 8192,
    "max_position_embeddings": 10485760,
}


@pytest.fixture
def l4k(capsys):
    """Runs the command in this process: (exit code, standard output, standard error)."""

    def run(*arguments) -> tuple[int, str, str]:
        code = main(["inspect", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def inspect(l4k):
    def run(folder) -> dict:
        code, out, err = l4k(folder, "--json")
        assert (code, err) == (0, ""), out
        return json.loads(out)

    return run


def holes(folder, shard_bytes):
    """A checkpoint of Scout's size of which only the headers are on the disk."""
    folder.mkdir()
    plan = {n: Planned(slot.shape) for n, slot in layout(Llama4Config.from_dict(SCOUT)).items()}
    placed = {}
    for shard in shards_of(plan, shard_bytes):
        with open(folder / shard.file, "wb") as stream:
            stream.write(shard.header())
            stream.truncate(len(shard.header()) + shard.size)
        placed |= dict.fromkeys(shard.tensors, shard.file)
    write_index(folder, placed)
    (folder / "config.json").write_text(json.dumps(SCOUT))
    return folder


def test_what_the_shipped_checkpoint_holds(inspect, l4k):
    found = inspect(CHECKPOINT)
    assert found["architecture"]["experts"] == 4 and found["architecture"]["vision_layers"] == 2
    assert found["quantisation"] is None and found["notes"] == []
    stored = found["stored"]
    assert {name: kind["tensors"] for name, kind in stored.items()} == {
        "embedding": 1,
        "norms": 17,
        "lm_head": 1,
        "attention": 32,
        "dense layers": 12,
        "router": 4,
        "shared experts": 12,
        "routed experts": 8,
        "vision": 42,
    }
    assert all([*kind["formats"]] == ["bf16"] for kind in stored.values())
    size = sum(kind["bytes"] for kind in stored.values())
    assert found["weight_bytes"] == {"bfloat16": size, "float32": 2 * size}
    config = Llama4Config.from_pretrained(CHECKPOINT)
    assert size == weight_bytes(config, all_formats()["bf16"])
    code, out, err = l4k(CHECKPOINT)
    assert (code, err) == (0, "")
    assert "8, 4 of them with 4 experts (1 per token)" in out
    assert "loads as bf16: feed_forward of 8 layers" in out
    assert "h200, 4k tokens, bf16 cache: fits, 145.99 GB to spare" in out


@pytest.mark.parametrize("form", ["int4", "fp8", "int4+fp8attn"])
def test_codes_are_named_and_loaded_as_they_are(form, inspect, l4k, tmp_path):
    source = open_checkpoint(CHECKPOINT, Llama4Config.from_pretrained(CHECKPOINT))
    scales = dict.fromkeys(range(8), (0.5, 0.25))
    quantize(Job(source, Scheme.of(form), scales), tmp_path / "out", shard_bytes=1_000_000)
    found = inspect(tmp_path / "out")
    main_form, _, attention = form.partition("+")
    assert found["quantisation"] == "compressed-tensors" and found["kv_scales"] == 8
    for name in ("dense layers", "shared experts", "routed experts"):
        assert [*found["stored"][name]["formats"]] == [main_form]
    assert [*found["stored"]["attention"]["formats"]] == ["fp8" if attention else main_form]
    loaded = {(x["block"], x["format"]): x["count"] for x in found["loaded"]}
    assert loaded["feed_forward", main_form] == 8 and loaded["lm_head", "bf16"] == 1
    model = Llama4.from_pretrained(tmp_path / "out", dtype="bfloat16")
    # Rows and columns that fill up tiles are not counted.
    held = sum(p.nbytes for p in model.parameters())
    assert found["weight_bytes"]["bfloat16"] == pytest.approx(held, rel=0.01)
    assert len(found["files"]) == len([*(tmp_path / "out").glob("*.safetensors")]) > 2
    assert "scales for an fp8 cache of 8 layers" in l4k(tmp_path / "out")[1]


def test_fifty_shards_take_no_time(inspect, tmp_path):
    folder = holes(tmp_path / "scout", 4_300_000_000)
    started = time.perf_counter()
    found = inspect(folder)
    assert time.perf_counter() - started < 2
    assert len(found["files"]) >= 50
    assert found["weight_bytes"]["bfloat16"] == pytest.approx(215.5e9, rel=0.01)
    short, large = found["fits"]
    assert not any(short["fits"].values()) and not any(large["fits"].values())
    assert large["spare"]["bf16"] < 0 and large["spare"]["fp8"] > large["spare"]["bf16"]


def test_what_cannot_be_read_is_one_line(l4k, tmp_path):
    code, out, err = l4k(tmp_path / "gone")
    assert (code, out) == (2, "") and "no such checkpoint folder" in err
    code, out, err = l4k(tmp_path)
    assert (code, out) == (2, "") and "config.json: not found" in err
