"""The writer of checkpoint folders: whole or absent, and going on where a run ended."""

import json
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from l4kernels.checkpoint.files import writer as module
from l4kernels.checkpoint.files.planned import Planned
from l4kernels.checkpoint.files.reader import CheckpointError
from l4kernels.checkpoint.files.writer import CheckpointWriter

SHAPES = {"a": (4, 2), "b": (2, 3), "c": (5,), "d": ()}
DTYPES = (torch.bfloat16, torch.float32, torch.float8_e4m3fn, torch.uint8)
PLAN = {n: Planned(s, d) for (n, s), d in zip(SHAPES.items(), DTYPES, strict=True)}
DATA = {n: torch.arange(9)[: p.size // p.dtype.itemsize].reshape(p.shape) for n, p in PLAN.items()}
DATA = {n: data.to(PLAN[n].dtype) for n, data in DATA.items()}


def write(out, *, names=tuple(PLAN), finish=True, **options):
    """The names that had to be written."""
    written = []
    with CheckpointWriter(out, PLAN, **options) as writer:
        for name in names:
            if not writer.has(name):
                writer.write(name, DATA[name])
                written.append(name)
        writer.add("config.json", "{}")
        if finish:
            writer.finish()
    return written


def read(out):
    tensors = {}
    for file in out.glob("*.safetensors"):
        tensors |= load_file(file)
    return {name: (str(data.dtype), data.tolist()) for name, data in tensors.items()}


WANTED = {name: (str(data.dtype), data.tolist()) for name, data in DATA.items()}


@pytest.mark.parametrize("shard_bytes, files", [(1 << 20, 1), (40, 2), (1, 4)])
def test_the_tensors_are_there_bit_by_bit(tmp_path, shard_bytes, files):
    counts = []
    out = tmp_path / "out"
    write(out, shard_bytes=shard_bytes, progress=lambda done, total: counts.append((done, total)))
    assert read(out) == WANTED
    assert len(list(out.glob("*.safetensors"))) == files
    assert counts[-1] == (46, 46) and counts == sorted(counts)
    index = out / "model.safetensors.index.json"
    assert index.exists() == (files > 1)
    if files > 1:
        content = json.loads(index.read_text())
        assert content["metadata"] == {"total_size": 46}
        for name, file in content["weight_map"].items():
            with safe_open(out / file, "pt") as opened:
                assert name in opened.keys()  # noqa: SIM118
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_tensor_may_come_in_parts(tmp_path):
    with CheckpointWriter(tmp_path / "out", {"a": Planned((4, 2))}) as writer:
        writer.write("a", (DATA["a"][i] for i in range(4)))
        writer.finish()
    assert read(tmp_path / "out") == {"a": WANTED["a"]}


def test_without_an_identity_nothing_is_left(tmp_path):
    with pytest.raises(KeyboardInterrupt), CheckpointWriter(tmp_path / "out", PLAN) as writer:
        writer.write("a", DATA["a"])
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_run_goes_on_where_an_earlier_one_ended(tmp_path):
    out, same = tmp_path / "out", {"shard_bytes": 1, "identity": "one"}
    write(out, names=("a", "b"), finish=False, **same)
    assert not out.exists()
    counts = []
    again = write(out, **same, progress=lambda done, total: counts.append(done))
    assert again == ["c", "d"] and counts == [45, 46]
    assert read(out) == WANTED
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_shard_half_written_is_written_again(tmp_path):
    out, same = tmp_path / "out", {"shard_bytes": 40, "identity": "one"}
    write(out, names=("a",), finish=False, **same)
    assert list(tmp_path.iterdir()) == []  # the first shard has b, too
    assert write(out, **same) == list(PLAN)


@pytest.mark.parametrize("change", ["identity", "size", "bytes"])
def test_shards_of_another_run_are_written_again(tmp_path, change):
    out, same = tmp_path / "out", {"shard_bytes": 1, "identity": "one"}
    write(out, names=("a", "b"), finish=False, **same)
    if change == "bytes":
        file = tmp_path / "out.partial" / "model-00001-of-00004.safetensors"
        file.write_bytes(file.read_bytes()[:-1] + b"\7")
    same |= {"identity": {"identity": "two"}, "size": {"shard_bytes": 40}}.get(change, {})
    assert write(out, **same) == (["a", "c", "d"] if change == "bytes" else list(PLAN))
    assert read(out) == WANTED


def test_places_that_are_taken(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    (tmp_path / "other.partial").mkdir()
    (tmp_path / "other.partial" / "mine").touch()
    for out, what in {
        "file": "expected a new or an empty folder, got a file",
        "full": "expected a new or an empty folder, got one with files",
        "other": "expected what an earlier run left, got a folder with other files",
        "file/x": "cannot be written",
    }.items():
        with pytest.raises(CheckpointError, match=what):
            write(tmp_path / out)
    assert (tmp_path / "other.partial" / "mine").exists()
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty")
    assert read(tmp_path / "empty") == WANTED


def test_two_runs_at_once(tmp_path):
    with CheckpointWriter(tmp_path / "out", PLAN) as first:
        with pytest.raises(CheckpointError, match="another run is writing here"):
            write(tmp_path / "out")
        for name in PLAN:
            first.write(name, DATA[name])
        first.finish()
    assert read(tmp_path / "out") == WANTED


@pytest.mark.parametrize("how", ["finished", "gone", "anew"])
def test_a_run_that_ends_while_another_begins(how, tmp_path, monkeypatch):
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    real = module.fcntl.flock

    def late(handle, kind):
        if how == "finished":
            os.rename(partial, out)
            (out / "model.safetensors").touch()
        else:
            partial.rmdir()
        if how == "anew":  # by a third run
            partial.mkdir()
        real(handle, kind)

    monkeypatch.setattr(module.fcntl, "flock", late)
    message = "got one with files" if how == "finished" else "another run ended here"
    with pytest.raises(CheckpointError, match=message):
        write(out, identity="one")
    left = {"finished": ["out"], "gone": [], "anew": ["out.partial"]}[how]
    assert [path.name for path in tmp_path.iterdir()] == left


def test_a_run_that_is_killed_in_its_first_journal(tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "partial.json.unfinished").write_text('{"ru')
    write(tmp_path / "out", identity="one")
    assert read(tmp_path / "out") == WANTED
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_run_that_ends_at_the_very_end_goes_on(tmp_path, monkeypatch):
    """Bringing all of it to the disk takes seconds, in which a user may lose patience."""
    out, real = tmp_path / "out", module._sync

    def impatient(path):
        if path == tmp_path / "out.partial":
            raise KeyboardInterrupt
        real(path)

    monkeypatch.setattr(module, "_sync", impatient)
    with pytest.raises(KeyboardInterrupt):
        write(out, identity="one")
    monkeypatch.undo()
    assert not out.exists() and write(out, identity="one") == []
    assert read(out) == WANTED


def test_a_disk_that_is_full(tmp_path, monkeypatch):
    plan = {"a": Planned((1 << 50,))}
    with pytest.raises(
        CheckpointError, match=r"expected 2,251,799,813\.7 MB of free disk space, got"
    ):
        CheckpointWriter(tmp_path / "out", plan)
    assert list(tmp_path.iterdir()) == []

    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.CheckpointWriter, "_put", full)
    with pytest.raises(CheckpointError, match=r"out: cannot be written \(No space left on device"):
        write(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_the_plan(tmp_path):
    for name, data, what in (
        ("b", DATA["b"], "expected the plan's next tensor, a, got 'b'"),
        ("a", DATA["a"].float(), "a: expected torch.bfloat16, got torch.float32"),
        ("a", DATA["a"][:1], "a: expected 16 bytes, got 4"),
        ("a", [DATA["a"], DATA["a"]], "a: expected 16 bytes, got 32 or more"),
    ):
        with pytest.raises(ValueError, match=what), CheckpointWriter(tmp_path / "o", PLAN) as w:
            w.write(name, data)
    with pytest.raises(ValueError, match="b and maybe others have not been written"):
        write(tmp_path / "o", names=("a",))
    with pytest.raises(ValueError, match="b: expected a place that its type divides"):
        CheckpointWriter(tmp_path / "o", {"a": Planned((3,), torch.uint8), "b": Planned((3,))})
    assert list(tmp_path.iterdir()) == []
