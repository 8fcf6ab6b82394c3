"""`.pth` files that a stranger could give `l4k convert`: each is refused by name, and nothing is
written, nor run."""

import collections
import functools
import importlib
import io
import json
import operator
import os
import pickle
import re
import runpy
import shutil
import struct
import subprocess
import tempfile
import zipfile
from pathlib import Path

import pytest
import torch

from l4kernels.checkpoint.convert import convert
from l4kernels.checkpoint.convert.objects import stored_tensors
from tests.support import native
from tests.support.hostile import special_files
from tests.support.refusals import refusal
from tools.fixtures import meta

MARK = f"{tempfile.gettempdir()}/l4kernels-convert-{os.getpid()}"
PARAMS = meta.CASES["maverick"]


class Calls:
    def __init__(self, function, *arguments):
        self.made = function, arguments

    def __reduce__(self):
        return self.made


def program(value, protocol: int = 2) -> bytes:
    return pickle.dumps(value, protocol)


def archive(file: Path, listing: bytes, data: dict[str, bytes] | None = None, **options) -> Path:
    """A zip file as torch.save writes it, with a list of tensors of one's own."""
    with zipfile.ZipFile(file, "w", options.get("compression", zipfile.ZIP_STORED)) as made:
        made.writestr("archive/data.pkl", listing)
        for name, content in (data or {"data/0": bytes(64)}).items():
            made.writestr(f"archive/{name}", content)
    return file


def storage(kind: str = "FloatStorage", key: str = "0", count: int = 16) -> bytes:
    """The instructions that put a reference to bytes of the file on the stack."""
    number = struct.pack("<i", count) if count < 1 << 31 else b""
    size = b"J" + number if number else b"\x8a\x08" + struct.pack("<q", count)
    text = lambda t: b"X" + struct.pack("<I", len(t)) + t.encode()  # noqa: E731
    named = b"ctorch\n" + kind.encode() + b"\n"
    return b"(" + text("storage") + named + text(key) + text("cpu") + size + b"tQ"


def numbers(*values: int) -> bytes:
    parts = [b"\x8a\x08" + struct.pack("<q", value) for value in values]
    return b"(" + b"".join(parts) + b"t"


def described(shape, strides, offset=0, stored=None, function="torch._utils\n_rebuild_tensor_v2"):
    """A program that lists one tensor, x."""
    place = stored or storage()
    start = b"\x8a\x08" + struct.pack("<q", offset)
    arguments = b"(" + place + start + numbers(*shape) + numbers(*strides) + b"\x89Nt"
    entry = b"X\x01\x00\x00\x00x" + b"c" + function.encode() + b"\n" + arguments + b"R"
    return b"\x80\x02}" + entry + b"s."


@pytest.fixture
def source(tmp_path):
    folder = native.write(tmp_path / "in", PARAMS)
    (folder / "consolidated.00.pth").unlink()
    return folder


CALLS = {
    "posix.system": (os.system, f"touch {MARK}"),
    "__builtin__.eval": (eval, f"open({MARK!r}, 'w')"),
    "__builtin__.exec": (exec, f"open({MARK!r}, 'w')"),
    "__builtin__.getattr": (getattr, "os", "system"),
    "io.open": (io.open, MARK, "w"),
    "shutil.rmtree": (shutil.rmtree, MARK),
    "commands.Popen": (subprocess.Popen, ["touch", MARK]),
    "torch.serialization.load": (torch.load, MARK),
    "torch.hub.load": (torch.hub.load, "a/b", "c"),
    "torch._utils._rebuild_sparse_tensor": (torch._utils._rebuild_sparse_tensor, 1, 2),
    "functools.partial": (functools.partial, os.system),
    "operator.attrgetter": (operator.attrgetter, "system"),
    "importlib.import_module": (importlib.import_module, "os"),
    "runpy.run_path": (runpy.run_path, MARK),
    "builtins.__import__": (__import__, "os"),
}


@pytest.mark.parametrize("name", CALLS)
def test_programs_that_would_run_something(source, tmp_path, name):
    named = name.replace("builtins.", "__builtin__.")
    nested = {"a": [1, {"b": Calls(*CALLS[name])}]}
    for value in (Calls(*CALLS[name]), {"norm.weight": Calls(*CALLS[name])}, nested):
        archive(source / "consolidated.00.pth", program(value))
        message = refusal(source, tmp_path)
        kinds = (f"asks for '{named}'", "asks for", "holds an instruction EMPTY_LIST")
        assert kinds[0] in message or value is nested, message
        assert any(kind in message for kind in kinds) and "nothing of it was run" in message
    assert not Path(MARK).exists()


def test_a_program_that_torch_would_have_run_is_one():
    """What is refused above does run where it is loaded as Python's objects are."""
    mark = Path(MARK)
    try:
        pickle.loads(program(Calls(*CALLS["posix.system"])))
        assert mark.exists()
    finally:
        mark.unlink(missing_ok=True)


PROGRAMS = {
    "newer protocol": (program({"x": 1}, 4), "holds an instruction"),
    "text protocol": (program({"x": 1}, 0), "holds an instruction"),
    "by its class": (b"(cos\nsystem\nX\x02\x00\x00\x00lso.", "asks for 'os.system'"),
    "instance": (b"(X\x02\x00\x00\x00lsios\nsystem\n.", "holds an instruction INST"),
    "an extension": (b"\x80\x02\x82\x01.", "holds an instruction EXT1"),
    "of names joined": (b"\x80\x02ctorch\nhub.load\n.", "asks for 'torch.hub.load'"),
    "of names split": (b"\x80\x02ctorch.hub\nload\n.", "asks for 'torch.hub.load'"),
    "memo": (b"\x80\x02}r\xff\xff\xff\x7fj\xff\xff\xff\x7f.", None),
    "unknown memo": (b"\x80\x02j\xff\xff\xff\x7f.", "is damaged"),
    "empty stack": (b"\x80\x02s.", "is damaged"),
    "no mark": (b"\x80\x02u.", "is damaged"),
    "nothing": (b"", "is damaged"),
    "no end": (b"\x80\x02}", "is damaged"),
    "text of 4 GB": (b"\x80\x02X\xff\xff\xff\xffabc.", "is damaged"),
    "bytes of 2^62": (b"\x80\x05\x8e" + struct.pack("<q", 1 << 62) + b".", "is damaged"),
    "number of 2 GB": (b"\x80\x02\x8b\xff\xff\xff\x7f1.", "is damaged"),
    "a million marks": (b"\x80\x02" + b"(" * 1_000_000 + b".", "more than 500,000 instructions"),
    "16 MiB of nothing": (b"\x80\x02" + b"}" * ((16 << 20) - 3) + b".", "more than 500,000"),
    "more than 16 MiB": (b"\x80\x02" + b"N" * (16 << 20) + b".", "at most 16,777,216 bytes"),
    "tuples in tuples": (b"\x80\x02N" + b"\x85" * 300_000 + b".", "got something else"),
    "twice twice": (
        b"\x80\x02Nq\x00" + b"h\x00\x86q\x00" * 60 + b".",
        "got something else|damaged",
    ),
    "a list": (program([torch.float32])[:3] + b".", "holds an instruction EMPTY_LIST"),
    "a number": (program({"x": 3}), "expected 'x' to be a tensor, got a int"),
    "a dictionary": (program({"x": {}}), "expected 'x' to be a tensor, got a dict"),
    "names that are numbers": (program({3: 3}), "names of tensors that are no text"),
    "unhashable name": (b"\x80\x02}}Ns.", "names of tensors that are no text"),
    "a deep name": (
        b"\x80\x02}N" + b"\x85" * 400_000 + b"Ns.",
        "names of tensors that are no text",
    ),
    "a name twice": (b"\x80\x02}X\x01\0\0\0xNsX\x01\0\0\0xNs.", "holds 'x' twice"),
    "OrderedDict of pairs": (
        program(Calls(collections.OrderedDict, (1, 2))),
        "in a way that torch",
    ),
    "a storage alone": (
        b"\x80\x02}X\x01\0\0\0x" + storage() + b"s.",
        "to be a tensor, got a Storage",
    ),
    "a name alone": (b"\x80\x02}X\x01\0\0\0xctorch\nFloatStorage\ns.", "a tensor, got a Name"),
    "a call of a storage": (
        b"\x80\x02}X\x01\0\0\0xctorch\nFloatStorage\n)Rs.",
        "calls torch.Float",
    ),
    "attributes": (described((2,), (1,))[:-2] + b"}bs.", "changes an object"),
    "a call of nothing": (b"\x80\x02N)R.", "calls what is no function"),
    "parameter of nothing": (
        b"\x80\x02ctorch._utils\n_rebuild_parameter\n)R.",
        "is damaged",
    ),
    "unknown storage": (
        described((2,), (1,), stored=storage("TypedStorage")),
        "asks for 'torch.T",
    ),
    "no such member": (
        described((2,), (1,), stored=storage(key="../0")),
        "in the file: '../0'",
    ),
    "a terabyte": (
        described((1 << 38,), (1,), stored=storage(count=1 << 38)),
        "data/0, which has 64",
    ),
    "too little": (described((2,), (1,), stored=storage(count=15)), "expects 15 numbers in data/0"),
    "beyond the end": (described((17,), (1,)), r"a tensor of \[17\] in data of 16"),
    "offset beyond": (described((2,), (1,), 15), r"a tensor of \[2\] in data of 16"),
    "stride beyond": (described((2, 2), (16, 1)), r"a tensor of \[2, 2\] in data of 16"),
    "expanded": (described((1 << 40,), (0,)), r"a tensor of \[1099511627776\] in data of 16"),
    "negative": (described((-2,), (1,)), "describes a tensor in a way"),
    "negative stride": (described((2,), (-1,)), "describes a tensor in a way"),
    "no strides": (described((2,), ()), "describes a tensor in a way"),
    "many dimensions": (described((1,) * 9, (1,) * 9), "describes a tensor in a way"),
    "numbers for names": (described((2,), (1,), stored=b"N"), "describes a tensor in a way"),
    "other builder": (
        described((2,), (1,), function="torch._utils\n_rebuild_qtensor"),
        "asks for 'torch._utils._rebuild_qtensor'",
    ),
    "nothing that params asks for": (described((2,), (1,)), "tok_embeddings.weight is missing"),
    "infinite size": (described((1 << 62, 1 << 62, 0), (1, 1, 1)), "missing"),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_lists_of_tensors(source, tmp_path, name):
    listing, what = PROGRAMS[name]
    archive(source / "consolidated.00.pth", listing)
    message = refusal(source, tmp_path)
    assert "consolidated.00.pth: " in message
    if what:
        assert re.search(what, message), message


GOOD = described((2,), (1,))


def named(name: str, *others: str):
    """A zip file with a member of this name beside the list."""

    def make(file: Path) -> None:
        with zipfile.ZipFile(file, "w") as made:
            made.writestr("archive/data.pkl", GOOD)
            for member in (name, *others):
                made.writestr(member, b"")

    return make


def changed(place: int, value: bytes):
    """A good zip file, but for bytes of the last entry of its list of members."""

    def make(file: Path) -> None:
        archive(file, GOOD)
        content = bytearray(file.read_bytes())
        at = content.rfind(b"PK\x01\x02") + place
        content[at : at + len(value)] = value
        file.write_bytes(content)

    return make


def bomb(file: Path) -> None:
    archive(file, GOOD, {"data/0": bytes(50 << 20)}, compression=zipfile.ZIP_DEFLATED)


def twice(file: Path) -> None:
    named("archive/data.pkx")(file)
    file.write_bytes(file.read_bytes().replace(b"data.pkx", b"data.pkl"))


def cut(file: Path) -> None:
    torch.save(meta.tensors(PARAMS), file)
    os.truncate(file, file.stat().st_size // 2)


def sparse(file: Path) -> None:
    file.write_bytes(b"PK\3\4")
    os.truncate(file, 1 << 40)


def script(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as made:
        made.writestr("model/constants.pkl", GOOD)


def shifted(file: Path) -> None:
    archive(file, GOOD)
    content = bytearray(file.read_bytes())
    content[-6:-2] = struct.pack("<I", 1 << 31)  # where its list of members begins
    file.write_bytes(content)


def legacy(file: Path) -> None:
    torch.save({}, file, _use_new_zipfile_serialization=False)


NUMBERED = [f"archive/data/{'x' * 40}{number}" for number in range(60_000)]
BIG_ENDIAN = {"byteorder": b"big"}
ZIPS = {
    "a bomb": (bomb, "is compressed"),
    "lying size": (changed(20, struct.pack("<II", 1 << 30, 1 << 30)), "beyond the data"),
    "compressed size": (changed(20, struct.pack("<I", 3)), "is compressed"),
    "encrypted": (changed(8, b"\x01"), "is encrypted"),
    "overlapping": (changed(42, struct.pack("<I", 0)), "does not lie where"),
    "nowhere": (changed(42, struct.pack("<I", 77)), "does not lie where"),
    "shifted": (shifted, "not a readable zip file|does not lie where"),
    "outside": (named("archive/../../x"), "'archive/../../x', expected a name below one folder"),
    "from the root": (named("/etc/passwd"), "'/etc/passwd', expected a name"),
    "other folder": (named("other/data/0"), "'other/data/0', expected a name"),
    "backslash": (named("archive\\..\\x"), "expected a name below one folder"),
    "zero byte": (changed(46 + 9, b"\0"), "expected a name below one folder|not a readable zip"),
    "twice": (twice, "two members 'data.pkl'"),
    "many": (named(*NUMBERED), "list of members has"),
    "script": (script, "a TorchScript program"),
    "legacy": (legacy, r"an old file of Python objects \(before torch 1\.6\)"),
    "bare": (lambda file: file.write_bytes(program(Calls(os.system, "true"))), "before torch 1.6"),
    "text": (lambda file: file.write_text("hello" * 100), "no zip file cannot be read"),
    "empty": (Path.touch, "no zip file cannot be read"),
    "cut": (cut, "has no end; it may be truncated"),
    "sparse": (sparse, "has no end; it may be truncated"),
    "big-endian": (lambda file: archive(file, GOOD, BIG_ENDIAN), "little-endian numbers"),
}


@pytest.mark.parametrize("name", ZIPS)
def test_zip_files(source, tmp_path, name):
    make, what = ZIPS[name]
    make(source / "consolidated.00.pth")
    message = refusal(source, tmp_path)
    assert "consolidated.00.pth: " in message and re.search(what, message), message


@pytest.mark.parametrize("file", ["consolidated.00.pth", "params.json", "tokenizer.model"])
def test_files_that_are_none(tmp_path, file):
    folder = native.write(tmp_path / "in", PARAMS)
    keep = (folder / file).read_bytes()
    for name, change in special_files(file):
        if "instead" in name or not (folder / file).exists():
            (folder / file).write_bytes(keep)
        try:
            change(folder)
        except FileExistsError:
            (folder / file).unlink()
            change(folder)
        message = refusal(folder, tmp_path)
        assert file.partition(".")[0] in message, (name, message)
        path = folder / file
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        path.write_bytes(keep)


@pytest.mark.parametrize(
    "content, what",
    [
        (b"", "of 256 to 900,000 tokens, got 0"),
        (b"AA== 0\nAA== 1\n", "in line 2, each token once"),
        (b"AA== 0 1\n", "in line 1"),
        (b"\xff\xfe", "expected UTF-8 text"),
        (b"A!A== 0\n", "a token in base64 and its rank in line 1"),
        (b"AA== " + b"9" * 5000, "ranks from 0 on without a gap"),
        (b"AA== -1", "in line 1"),
        (b"A" * 4000 + b" 0", "in line 1"),
        (b"".join(b"%s %d\n" % (b"AQID", i) for i in range(500_000)), "in line 2"),
        (b" " * (17 << 20), "expected at most 16 MiB"),
    ],
)
def test_token_lists(tmp_path, content, what):
    folder = native.write(tmp_path / "in", PARAMS)
    (folder / "tokenizer.model").write_bytes(content)
    assert what in refusal(folder, tmp_path)


def test_a_name_for_a_storage_that_ends_the_list(source, tmp_path):
    """A good list is good: the programs above fail because of what was changed."""
    file = archive(source / "consolidated.00.pth", described((2, 3), (3, 1), 4))
    stored = stored_tensors(file)["x"]
    assert (stored.shape, stored.strides, stored.offset) == ((2, 3), (3, 1), 4)


@pytest.mark.parametrize("end", ["interrupted", "failed"])
def test_a_run_that_ends_early_leaves_nothing(tmp_path, end):
    source = native.write(tmp_path / "in", PARAMS)
    kinds = {"interrupted": KeyboardInterrupt, "failed": RuntimeError}

    def stop(done, total):
        assert (tmp_path / "out.partial").is_dir() and not (tmp_path / "out").exists()
        if done > total // 2:
            raise kinds[end]

    with pytest.raises(kinds[end]):
        convert(source, tmp_path / "out", stop, shard_bytes=100_000)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    convert(source, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["hidden_size"] == 64
