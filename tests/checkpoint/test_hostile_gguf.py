"""GGUF files that a stranger could give `l4k convert`: each is refused by name, soon, in little
memory, and nothing is written."""

import os
import re
import struct
import time
from pathlib import Path

import gguf
import numpy as np
import pytest

from l4kernels.checkpoint.convert import convert
from l4kernels.checkpoint.files.reader import CheckpointError
from tests.support.refusals import refusal


def text(value: str | bytes) -> bytes:
    value = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(value)) + value


def head(tensors: int = 0, fields: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, fields)


def listed(kind: int, count: int, content: bytes = b"", name: str = "x") -> bytes:
    return text(name) + struct.pack("<IIQ", 9, kind, count) + content


def record(name="x", dims=(32,), kind=0, offset=0, count=None) -> bytes:
    count = len(dims) if count is None else count
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", count, *dims, kind, offset)


def aligned(value: int, kind: int = 4) -> bytes:
    form = {4: "<I", 10: "<Q", 5: "<i"}[kind]
    return text("general.alignment") + struct.pack("<I", kind) + struct.pack(form, value)


PAD = bytes(4096)
TOKENS = "tokenizer.ggml.tokens"
WIDE = "é€𝄞".encode() * 100_000
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
    "list of 2^60": (head(0, 1) + listed(4, 1 << 60) + PAD, "entries, more than 4,096"),
    "list of bytes": (
        head(0, 1) + listed(0, 1_100_000, name=TOKENS) + PAD,
        "beyond the file's end",
    ),
    "list of texts": (
        head(0, 1) + listed(8, 1_100_000, name=TOKENS) + PAD,
        "beyond the file's end",
    ),
    "many empty texts": (
        head(0, 1) + listed(8, 1_200_000, bytes(9_600_000), TOKENS),
        "llama4, got None",
    ),
    "tokens of 2^60": (head(0, 1) + listed(4, 1 << 60, name=TOKENS) + PAD, "at most 1,200,000"),
    "wide texts": (
        head(0, 20) + b"".join(text(f"{n}") + struct.pack("<I", 8) + text(WIDE) for n in range(20)),
        "expected the architecture llama4, got None",
    ),
    "a list instead of a text": (
        head(0, 1) + listed(8, 4096, text("\0" * 100) * 4096, "general.architecture"),
        r"expected the architecture llama4, got \['\\x00",
    ),
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
    assert "the header has more than 24 MiB" in refusal(file, tmp_path)


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
