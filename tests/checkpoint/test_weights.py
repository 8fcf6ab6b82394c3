"""Reading checkpoints: both layouts, every kind of damage, and the memory it takes."""

import contextlib
import io
import json
import os
import subprocess
import sys
import time

import pytest
import torch

from l4kernels import Llama4, Llama4Config
from l4kernels.checkpoint.files import reader as checkpoint
from l4kernels.checkpoint.files.reader import CheckpointError
from tests.support import row_fp8
from tests.support.checkpoints import ALIGNED, TEXT, tensors_of, unfused, write, write_index

CONFIG = Llama4Config.from_dict(TEXT)
DOWN = "model.layers.1.feed_forward.experts.down_proj"


@pytest.fixture(scope="module")
def tensors():
    return tensors_of(CONFIG)


@pytest.fixture(scope="module")
def ids():
    return torch.arange(20).view(1, 20) * 7


@pytest.fixture(scope="module")
def logits(tensors, ids, tmp_path_factory):
    return Llama4.from_pretrained(write(tmp_path_factory.mktemp("plain"), tensors)).prompt_logits(
        ids
    )


@contextlib.contextmanager
def refused(monkeypatch, match):
    """A clear error in under two seconds, before a module is made."""

    def not_yet(*args, **kwargs):
        raise AssertionError("weights were allocated before the checkpoint was checked")

    monkeypatch.setattr(Llama4, "__init__", not_yet)
    started = time.monotonic()
    with pytest.raises(CheckpointError, match=match):
        yield
    assert time.monotonic() - started < 2


def test_shards_prefix_and_unfused_experts_give_the_same_model(tensors, ids, logits, tmp_path):
    variants = {
        "sharded": (tensors, 3),
        "prefixed": ({f"language_model.{n}": t for n, t in tensors.items()}, 1),
        "unfused": (unfused(tensors), 2),
    }
    for name, (content, shards) in variants.items():
        model = Llama4.from_pretrained(write(tmp_path / name, content, shards))
        assert torch.equal(model.prompt_logits(ids), logits), name


def test_a_seeded_random_model_is_repeatable(ids):
    first, second = (Llama4.random(CONFIG, seed=3).prompt_logits(ids) for _ in range(2))
    assert torch.equal(first, second) and first.isfinite().all()
    assert not torch.equal(first, Llama4.random(CONFIG, seed=4).prompt_logits(ids))


def test_tied_embeddings(tensors, ids, tmp_path):
    tied = {n: t for n, t in tensors.items() if n != "lm_head.weight"}
    model = Llama4.from_pretrained(write(tmp_path / "tied", tied, tie_word_embeddings=True))
    assert model.lm_head.weight is model.embedding
    untied = {**tied, "lm_head.weight": tied["model.embed_tokens.weight"].clone()}
    same = Llama4.from_pretrained(write(tmp_path / "untied", untied))
    assert torch.equal(model.prompt_logits(ids), same.prompt_logits(ids))


def test_missing_tensor(tensors, tmp_path, monkeypatch):
    content = {n: t for n, t in tensors.items() if n != DOWN}
    write(tmp_path, content)
    with refused(monkeypatch, f"1 tensors are missing.*{DOWN}.*model.safetensors"):
        Llama4.from_pretrained(tmp_path)


def test_unexpected_tensor(tensors, tmp_path, monkeypatch):
    write(tmp_path, {**tensors, "model.layers.0.extra": torch.zeros(3)})
    with refused(monkeypatch, r"model\.layers\.0\.extra in model.safetensors"):
        Llama4.from_pretrained(tmp_path)


def test_misshapen_tensor(tensors, tmp_path, monkeypatch):
    write(tmp_path, {**tensors, DOWN: tensors[DOWN][:, 1:].contiguous()})
    with refused(monkeypatch, rf"model.safetensors: expected {DOWN} to be \[4, 40, 64\], got"):
        Llama4.from_pretrained(tmp_path)


@pytest.mark.parametrize("dtype", [torch.int32, torch.float8_e4m3fn])
def test_wrong_dtype(tensors, tmp_path, monkeypatch, dtype):
    write(tmp_path, {**tensors, DOWN: tensors[DOWN].to(dtype)})
    with refused(monkeypatch, f"expected {DOWN} to be one of BF16, F16, F32, F64"):
        Llama4.from_pretrained(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", [DOWN, "model.norm.weight"])
def test_non_finite_tensor(tensors, tmp_path, value, name):
    damaged = tensors[name].clone()
    damaged.view(-1)[-1] = value
    write(tmp_path, {**tensors, name: damaged})
    with pytest.raises(CheckpointError, match=f"model.safetensors: {name} holds 1 values"):
        Llama4.from_pretrained(tmp_path)


def test_large_finite_values_are_not_mistaken_for_damage(tensors, tmp_path):
    large = torch.full_like(tensors["model.norm.weight"], 3e38)
    Llama4.from_pretrained(write(tmp_path, {**tensors, "model.norm.weight": large}))


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, -1])
def test_truncated_file(tensors, tmp_path, monkeypatch, keep):
    write(tmp_path, tensors)
    file = tmp_path / "model.safetensors"
    size = file.stat().st_size
    os.truncate(file, int(size * keep) if isinstance(keep, float) else keep % size)
    with refused(monkeypatch, r"model\.safetensors: not a complete safetensors file"):
        Llama4.from_pretrained(tmp_path)


def test_a_header_that_claims_more_than_the_file_holds(tensors, tmp_path, monkeypatch):
    write(tmp_path, tensors)
    (tmp_path / "model.safetensors").write_bytes((1 << 40).to_bytes(8, "little") + b"{}")
    with refused(monkeypatch, "not a complete safetensors file"):
        Llama4.from_pretrained(tmp_path)


def test_a_file_that_the_system_does_not_map(tensors, tmp_path, monkeypatch):
    def too_large(*args, **kwargs):
        raise RuntimeError("unable to mmap 524843486258 bytes: Cannot allocate memory (12)")

    monkeypatch.setattr(checkpoint, "safe_open", too_large)
    write(tmp_path, tensors)
    with refused(monkeypatch, r"model\.safetensors: cannot be mapped .* in more shards"):
        Llama4.from_pretrained(tmp_path)


OUTSIDE = [
    "parent",
    "back again",
    "absolute",
    "symlink",
    "folder symlink",
    "number",
    "null",
    "long",
]


@pytest.mark.parametrize("kind", OUTSIDE)
def test_files_outside_the_folder(tensors, tmp_path, monkeypatch, kind):
    outside = write(tmp_path / "outside", tensors) / "model.safetensors"
    inside = tmp_path / "inside"
    write(inside, tensors)
    (inside / "model.safetensors").unlink()
    name = {"parent": "../outside/model.safetensors", "absolute": str(outside), "number": 7}
    name |= {"back again": "../inside/linked.safetensors", "null": "\0", "long": "m" * 9999}
    if kind == "symlink":
        (inside / "linked.safetensors").symlink_to(outside)
    elif kind == "folder symlink":
        (inside / "sub").symlink_to(outside.parent)
    place = name.get(kind, "sub/model.safetensors" if "folder" in kind else "linked.safetensors")
    write_index(inside, dict.fromkeys(tensors, place))
    with refused(monkeypatch, "inside the checkpoint|leads out of the checkpoint folder"):
        Llama4.from_pretrained(inside)


def test_a_single_file_that_links_out(tensors, tmp_path, monkeypatch):
    outside = write(tmp_path / "outside", tensors) / "model.safetensors"
    inside = write(tmp_path / "inside", tensors)
    (inside / "model.safetensors").unlink()
    (inside / "model.safetensors").symlink_to(outside)
    with refused(monkeypatch, "leads out of the checkpoint folder"):
        Llama4.from_pretrained(inside)


def test_a_snapshot_of_the_hub_cache_links_to_its_own_blobs(tensors, ids, logits, tmp_path):
    blobs = tmp_path / "models--x" / "blobs"
    snapshot = write(tmp_path / "models--x" / "snapshots" / "abc", tensors)
    blobs.mkdir()
    (snapshot / "model.safetensors").rename(blobs / "123")
    (snapshot / "model.safetensors").symlink_to("../../blobs/123")
    assert torch.equal(Llama4.from_pretrained(snapshot).prompt_logits(ids), logits)


def test_index_that_does_not_match_its_files(tensors, tmp_path, monkeypatch):
    write(tmp_path, tensors, shards=2)
    first, second = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    write_index(tmp_path, {n: (first, second)[n == DOWN] for n in tensors})
    with refused(monkeypatch, "which model.safetensors.index.json places in"):
        Llama4.from_pretrained(tmp_path)
    write_index(tmp_path, dict.fromkeys(tensors, "gone.safetensors"))
    with refused(monkeypatch, r"gone\.safetensors: the file is missing"):
        Llama4.from_pretrained(tmp_path)
    os.mkfifo(tmp_path / "gone.safetensors")
    with refused(monkeypatch, r"gone\.safetensors: .* not a regular file"):
        Llama4.from_pretrained(tmp_path)
    for text in ("{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": [1]}}'):
        (tmp_path / "model.safetensors.index.json").write_text(text)
        with refused(monkeypatch, r"model\.safetensors\.index\.json: "):
            Llama4.from_pretrained(tmp_path)


def test_an_index_that_promises_more_than_its_files_hold(tensors, tmp_path, monkeypatch):
    write(tmp_path, tensors, shards=2)
    index = tmp_path / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    write_index(tmp_path, weight_map | {"ghost": weight_map[DOWN]})
    with refused(monkeypatch, "places 1 tensors in files that do not hold them: ghost in model-"):
        Llama4.from_pretrained(tmp_path)


def test_a_folder_without_weights(tensors, tmp_path, monkeypatch):
    write(tmp_path, tensors)
    (tmp_path / "model.safetensors").unlink()
    with refused(monkeypatch, r"found neither model\.safetensors nor"):
        Llama4.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"weights": "int3"}, "bf16, fp8, int4"),
        ({"dtype": torch.float16}, "float32 or bfloat16"),
        ({"dtype": "float16"}, "float32 or bfloat16, got float16"),
        ({"kv_dtype": "int8"}, "kv_dtype"),
        ({"device": "mps"}, "cpu, cuda or cuda:N, got 'mps'"),
        ({"device": "gpu"}, "cpu, cuda or cuda:N, got 'gpu'"),
        ({"device": None}, "cpu, cuda or cuda:N, got 'None'"),
        ({"device": "cuda:99"}, "device cuda:99: .* CUDA devices are visible"),
        ({"weights": "fp8"}, "multiples of 128, got 64"),
        ({"weights": "int4"}, "multiples of 128, got 64"),
    ],
)
def test_options_that_cannot_be(tensors, tmp_path, options, message):
    write(tmp_path, tensors)
    with pytest.raises(ValueError, match=message):
        Llama4.from_pretrained(tmp_path, **options)


def test_a_model_stays_where_it_was_loaded(tensors, tmp_path):
    model = Llama4.from_pretrained(write(tmp_path, tensors))
    assert model.device == torch.device("cpu")
    assert Llama4.from_pretrained(tmp_path, dtype="bfloat16").embedding.dtype == torch.bfloat16
    assert model.to("cpu").float().eval().to(torch.float32) is model
    for move in (model.bfloat16, lambda: model.to("meta"), model.half):
        with pytest.raises(RuntimeError, match=r"stays there; load it with from_pretrained"):
            move()


def test_progress_only_on_a_terminal(tensors, tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    write(tmp_path, tensors)
    for stream, wanted in ((io.StringIO(), False), (Terminal(), True)):
        monkeypatch.setattr(sys, "stderr", stream)
        Llama4.from_pretrained(tmp_path)
        assert ("Loading" in stream.getvalue()) == wanted
    assert "GB" in stream.getvalue() and stream.getvalue().endswith("\n")


MEASURE = """
import re, sys, torch
from l4kernels import Llama4
from l4kernels.checkpoint import formats
from tests.support.row_fp8 import RowFp8
formats.READERS = (RowFp8, *formats.READERS)
torch.set_num_threads(1)
def resident(name):
    return int(re.search(name + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1]) << 10
def load(folder):
    return Llama4.from_pretrained(folder, dtype=torch.bfloat16, weights=sys.argv[3] or None)
load(sys.argv[2])  # code, thread pools and buffers that the first call of anything brings in
open("/proc/self/clear_refs", "w").write("5")  # the high-water mark starts over
before = resident("VmRSS")
model = load(sys.argv[1])
print(resident("VmHWM") - before, sum(p.nbytes for p in model.parameters()))
"""


STORED = {"bf16": (dict, {}), "one by one": (unfused, {}), "fp8": (row_fp8.quantised, row_fp8.SAID)}


@pytest.mark.parametrize(
    "stored, weights",
    [
        ("bf16", "bf16"),
        ("bf16", "fp8"),
        ("bf16", "int4"),
        ("one by one", "bf16"),
        ("fp8", ""),
        ("fp8", "bf16"),
    ],
)
def test_peak_memory_of_loading(tmp_path, stored, weights):
    big = {**ALIGNED, "hidden_size": 768, "intermediate_size": 768, "num_hidden_layers": 4}
    big |= {"vocab_size": 24_576, "num_local_experts": 4}
    change, said = STORED[stored]
    if said:  # half the size: a process's own few megabytes would be 5 %
        big["num_hidden_layers"] = 8
    for name, sizes, shards in (("big", big, 3), ("small", ALIGNED, 1)):
        config = Llama4Config.from_dict({**TEXT, **sizes})
        content = change(tensors_of(config, dtype=torch.bfloat16))
        write(tmp_path / name, content, shards, **sizes, **said)
    folders = [str(tmp_path / "big"), str(tmp_path / "small")]
    command = [sys.executable, "-c", MEASURE, *folders, weights]
    # glibc's allocator otherwise keeps up to 16 MB of what was given back, more or less at random.
    env = {**os.environ, "MALLOC_TRIM_THRESHOLD_": f"{128 << 10}"}
    output = subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout
    used, final = map(int, output.split())
    shard = max(f.stat().st_size for f in (tmp_path / "big").glob("*.safetensors"))
    assert used <= 1.05 * (final + shard), f"{used=} {final=} {shard=}"
