"""Files that a stranger could give `l4k convert`: each is refused by name, soon, in little memory,
and nothing is written, nor run."""

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
import time
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from l4kernels.checkpoint.convert import convert
from l4kernels.checkpoint.convert.objects import stored_tensors
from l4kernels.checkpoint.files.reader import CheckpointError
from tests.support import native
from tests.support.hostile import special_files, time_limit
from tools.fixtures import meta

SECONDS, MEGABYTES = 2.0, 200
MARK = "/tmp/l4kernels-convert-was-here"
PARAMS = meta.CASES["maverick"]


def memory(name: str) -> float:
    """Of this process in megabytes: VmRSS now, VmHWM at the most."""
    line = next(s for s in Path("/proc/self/status").read_text().splitlines() if name in s)
    return int(line.split()[1]) / 1024


def refusal(source: Path, folder: Path) -> str:
    """The one line that refuses a source; nothing is left beside it."""
    there = {*folder.iterdir()}
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = memory("VmRSS")
    with time_limit(SECONDS), pytest.raises(CheckpointError) as caught:
        convert(source, folder / "out")
    assert memory("VmHWM") - before < MEGABYTES
    assert {*folder.iterdir()} == there
    message = str(caught.value)
    assert message.isprintable() and len(message) < 1000
    return message


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
    "names that are numbers": (program({3: 3}), "expected names of tensors to be text"),
    "unhashable name": (b"\x80\x02}}Ns.", "is damaged"),
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


def text(value: str | bytes) -> bytes:
    value = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(value)) + value


def head(tensors: int = 0, fields: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, fields)


def listed(kind: int, count: int, content: bytes = b"") -> bytes:
    return text("x") + struct.pack("<IIQ", 9, kind, count) + content


def record(name="x", dims=(32,), kind=0, offset=0, count=None) -> bytes:
    count = len(dims) if count is None else count
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", count, *dims, kind, offset)


def aligned(value: int, kind: int = 4) -> bytes:
    form = {4: "<I", 10: "<Q", 5: "<i"}[kind]
    return text("general.alignment") + struct.pack("<I", kind) + struct.pack(form, value)


PAD = bytes(4096)
GGUFS = {
    "empty": (b"GGUF"[:3], "reaches beyond the file's end|not a GGUF"),
    "other": (b"ABCD" + PAD, "not a GGUF file"),
    "version 1": (head(version=1) + PAD, "expected GGUF version 2 or 3, got 1"),
    "big-endian": (b"GGUF\0\0\0\3" + PAD, "got 50331648 of a big-endian machine"),
    "2^60 fields": (head(0, 1 << 60) + PAD, "expected at most 10,000 fields, got 1,152,921"),
    "2^60 tensors": (head(1 << 60) + PAD, "expected at most 100,000 tensors"),
    "10,000 fields": (head(0, 10_000) + text("a") + b"\0\0\0\0\1", "beyond the file's end|twice"),
    "fields of zeros": (head(0, 9_999) + PAD, "the field '' is there twice"),
    "name of 2^63": (head(0, 1) + struct.pack("<Q", 1 << 63) + PAD, "a field's name has 9,223"),
    "name of 1 kB": (head(0, 1) + text("x" * 1024) + PAD, "a field's name has 1,024 bytes"),
    "name of bytes": (head(0, 1) + text(b"\xff\xfe") + PAD, "a field's name is not UTF-8"),
    "text of 2^63": (
        head(0, 1) + text("x") + struct.pack("<IQ", 8, 1 << 63) + PAD,
        "the field 'x' has 9,223,372",
    ),
    "text beyond": (head(0, 1) + text("x") + struct.pack("<IQ", 8, 5000) + PAD, "beyond the file"),
    "unknown type": (head(0, 1) + text("x") + struct.pack("<I", 99) + PAD, "unknown type, 99"),
    "list of lists": (head(0, 1) + listed(9, 3) + PAD, "the field 'x' is a list of lists"),
    "list of what": (head(0, 1) + listed(77, 3) + PAD, "is a list of type 77"),
    "list of 2^60": (head(0, 1) + listed(4, 1 << 60) + PAD, "at most 1,500,000 entries"),
    "list of bytes": (head(0, 1) + listed(0, 1_400_000) + PAD, "beyond the file's end"),
    "list of texts": (head(0, 1) + listed(8, 1_400_000) + PAD, "beyond the file's end"),
    "many empty texts": (head(0, 1) + listed(8, 1_500_000, bytes(12_000_000)), "llama4, got None"),
    "alignment 0": (head(0, 1) + aligned(0) + PAD, "expected general.alignment to be"),
    "alignment 7": (head(0, 1) + aligned(7) + PAD, "expected general.alignment to be"),
    "alignment 2^60": (head(0, 1) + aligned(1 << 60, 10) + PAD, "general.alignment to be"),
    "alignment -32": (head(0, 1) + aligned(-32, 5) + PAD, "general.alignment to be"),
    "no dimensions": (head(1) + record(dims=()) + PAD, "have 1 to 4 dimensions, got 0"),
    "2^31 dimensions": (head(1) + record(count=1 << 31) + PAD, "1 to 4 dimensions, got 2147483648"),
    "zero dimension": (head(1) + record(dims=(32, 0)) + PAD, r"impossible size \[32, 0\]"),
    "2^40 x 2^40": (head(1) + record(dims=(1 << 40, 1 << 40)) + PAD, "impossible size"),
    "a terabyte": (head(1) + record(dims=(1 << 38,)) + PAD, "reaches to byte 1,099,511,6"),
    "tensor type": (head(1) + record(kind=777) + PAD, "is of an unknown type, 777"),
    "removed type": (head(1) + record(kind=4) + PAD, "is of an unknown type, 4"),
    "rows of a part": (head(1) + record(dims=(33,), kind=8) + PAD, "rows of a multiple of 32, got"),
    "offset 2^63": (head(1) + record(offset=1 << 63) + PAD, "reaches to byte 9,223,372,036"),
    "offset 1": (head(1) + record(offset=1) + PAD, "does not lie where a tensor can, at 1"),
    "overlapping": (head(2) + record("x") + record("y", offset=32) + PAD, "'y' does not lie where"),
    "same place": (head(2) + record("x") + record("y") + PAD, "'y' does not lie where"),
    "twice": (head(2) + record("x") + record("x", offset=128) + PAD, "two tensors 'x'"),
    "hostile name": (head(1) + record("\x1b[2J\n", kind=99) + PAD, r"'\\x1b\[2J\\n' is of an unk"),
    "no metadata": (head(1) + record() + PAD, "expected the architecture llama4, got None"),
}


@pytest.mark.parametrize("name", GGUFS)
def test_gguf_headers(tmp_path, name):
    content, what = GGUFS[name]
    file = tmp_path / "x.gguf"
    file.write_bytes(content)
    message = refusal(file, tmp_path)
    assert str(file) in message and re.search(what, message), message


def test_a_gguf_header_without_an_end(tmp_path):
    file = tmp_path / "x.gguf"
    file.write_bytes(head(0, 10_000))
    os.truncate(file, 1 << 40)
    assert "the field '' is there twice" in refusal(file, tmp_path)
    fields = [text(f"{n}") + struct.pack("<IQ", 8, 1 << 20) + bytes(1 << 20) for n in range(70)]
    file.write_bytes(head(0, 70) + b"".join(fields))
    assert "the header has more than 64 MiB" in refusal(file, tmp_path)


def test_gguf_scales_that_are_not_finite(tmp_path):
    good = Path(__file__).parent / "fixtures" / "gguf" / "scout-q8_0.gguf"
    content = bytearray(good.read_bytes())
    tensor = next(t for t in gguf.GGUFReader(good).tensors if t.name == "blk.1.attn_q.weight")
    content[tensor.data_offset : tensor.data_offset + 2] = np.float16("nan").tobytes()
    (tmp_path / "x.gguf").write_bytes(content)
    message = refusal(tmp_path / "x.gguf", tmp_path)
    assert "model.layers.1.self_attn.q_proj.weight holds values that are NaN, infinite" in message


def test_gguf_files_that_are_cut(tmp_path):
    good = (Path(__file__).parent / "fixtures" / "gguf" / "scout-q4_0.gguf").read_bytes()
    file = tmp_path / "x.gguf"
    for size in (*range(0, 4000, 97), len(good) // 2, len(good) - 1):
        file.write_bytes(good[:size])
        refusal(file, tmp_path)


def test_gguf_headers_with_a_byte_changed(tmp_path):
    """Refused, or converted: never another error. The first 30 kB are the header."""
    good = (Path(__file__).parent / "fixtures" / "gguf" / "scout-q4_0.gguf").read_bytes()
    file = tmp_path / "x.gguf"
    random = np.random.default_rng(0)
    ends = {"written": 0, "refused": 0}
    started = time.monotonic()
    while time.monotonic() - started < 3:
        content = bytearray(good)
        content[random.integers(8, 1500 if ends["written"] % 2 else 30_000)] = random.integers(256)
        file.write_bytes(content)
        try:
            convert(file, tmp_path / "out")
            ends["written"] += 1
            for path in (tmp_path / "out").iterdir():
                path.unlink()
            (tmp_path / "out").rmdir()
        except CheckpointError:
            ends["refused"] += 1
        assert [path.name for path in tmp_path.iterdir()] == ["x.gguf"]
    assert min(ends.values()) > 3, ends


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
