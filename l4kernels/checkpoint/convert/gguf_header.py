"""The header of a GGUF file: its metadata, and where each tensor lies.

Nothing in it is trusted: every count, length and place is held against the file's size and the
limits below before it is used.
"""

import math
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from l4kernels.checkpoint.files.reader import CheckpointError
from l4kernels.inputs.files import open_regular, shown

MAX_HEADER = 24 << 20  # bytes; Llama 4's tokens and merges take 13 MB
_MAX_FIELDS, _MAX_TENSORS = 10_000, 100_000
_MAX_ELEMENTS = 1_200_000  # of all lists together; Llama 4 has 850,000
_MAX_STRING, _MAX_NAME = 1 << 20, 128
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q"}
_SCALARS[12] = "d"
_STRING, _LIST = 8, 9
_MAX_LIST = 4096
_LONG = {f"tokenizer.ggml.{name}" for name in ("tokens", "merges", "token_type", "scores")}
"""Lists that may have more than `_MAX_LIST` entries."""


class Types(NamedTuple):
    """The library's table of tensor types: by number their name, and block and bytes by name."""

    names: dict[int, str]
    sizes: dict[str, tuple[int, int]]


class GgufTensor(NamedTuple):
    """A tensor's record."""

    file: Path
    start: int
    shape: tuple[int, ...]
    """Rows first, as numpy has it."""
    type: str

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass
class GgufHeader:
    file: Path
    fields: dict[str, Any]
    tensors: dict[str, GgufTensor]


def read_header(file: Path, types: Types) -> GgufHeader:
    """The header of a GGUF file.

    Raises:
        CheckpointError: the file is none, is damaged, or says what cannot be.
    """
    try:
        with open_regular(file, CheckpointError) as stream:
            size = os.fstat(stream.fileno()).st_size
            content = stream.read(MAX_HEADER)
    except FileNotFoundError:
        raise CheckpointError(f"{file}: not found") from None
    return _Reader(file, content, size, types).header()


class _Reader:
    def __init__(self, file: Path, content: bytes, size: int, types: Types):
        self._file, self._content, self._size, self._types = file, content, size, types
        self._at = self._elements = 0

    def header(self) -> GgufHeader:
        if self._take(4) != b"GGUF":
            self._fail("not a GGUF file")
        (version,) = self._numbers("<I")
        if version not in (2, 3):
            order = " of a big-endian machine" if version & 0xFFFF == 0 else ""
            self._fail(f"expected GGUF version 2 or 3, got {version}{order}")
        count, fields = self._numbers("<QQ")
        for what, got, most in (("tensors", count, _MAX_TENSORS), ("fields", fields, _MAX_FIELDS)):
            if got > most:
                self._fail(f"expected at most {most:,} {what}, got {got:,}")
        found: dict[str, Any] = {}
        for _ in range(fields):
            name = self._string(_MAX_NAME, "a field's name")
            if name in found:
                self._fail(f"the field {shown(name)} is there twice")
            found[name] = self._value(name)
        alignment = found.get("general.alignment", 32)
        if type(alignment) is not int or not 0 < alignment <= 1 << 16 or alignment % 8:
            self._fail(f"expected general.alignment to be 8, 16 ... 65,536, got {shown(alignment)}")
        records = [self._record() for _ in range(count)]
        begin = -(-self._at // alignment) * alignment
        return GgufHeader(self._file, found, dict(self._placed(records, begin, alignment)))

    def _fail(self, why: str) -> NoReturn:
        raise CheckpointError(f"{self._file}: {why}; expected a GGUF file of a Llama 4 text model")

    def _take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._content):
            if end <= self._size:
                self._fail(f"the header has more than {MAX_HEADER >> 20} MiB")
            self._fail("the header reaches beyond the file's end; copy or download it again")
        taken = self._content[self._at : end]
        self._at = end
        return taken

    def _numbers(self, form: str) -> tuple[Any, ...]:
        return struct.unpack(form, self._take(struct.calcsize(form)))

    def _string(self, limit: int, what: str) -> str:
        (length,) = self._numbers("<Q")
        if length > limit:
            self._fail(f"{what} has {length:,} bytes, more than {limit:,}")
        try:
            return self._take(length).decode()
        except UnicodeDecodeError:
            self._fail(f"{what} is not UTF-8 text")

    def _value(self, name: str) -> Any:
        (kind,) = self._numbers("<I")
        what = f"the field {shown(name)}"
        if kind == _STRING:
            return self._string(_MAX_STRING, what)
        if kind in _SCALARS:
            return self._numbers("<" + _SCALARS[kind])[0]
        if kind != _LIST:
            self._fail(f"{what} is of an unknown type, {kind}")
        kind, count = self._numbers("<IQ")
        self._elements += count
        if kind != _STRING and kind not in _SCALARS:
            self._fail(f"{what} is a list of {'lists' if kind == _LIST else f'type {kind}'}")
        if count > _MAX_LIST and name not in _LONG:
            self._fail(f"{what} has {count:,} entries, more than {_MAX_LIST:,}")
        if self._elements > _MAX_ELEMENTS:
            self._fail(f"expected at most {_MAX_ELEMENTS:,} entries in all lists, {what} has more")
        if kind == _STRING:
            return [self._string(_MAX_STRING, what) for _ in range(count)]
        return list(self._numbers(f"<{count}{_SCALARS[kind]}"))

    def _record(self) -> tuple[str, tuple[int, ...], str, int]:
        """Name, shape, type and place of a tensor."""
        name = self._string(_MAX_NAME, "a tensor's name")
        (count,) = self._numbers("<I")
        if not 1 <= count <= 4:
            self._fail(f"expected {shown(name)} to have 1 to 4 dimensions, got {count}")
        dims = self._numbers(f"<{count}Q")
        kind, offset = self._numbers("<IQ")
        if min(dims) < 1 or math.prod(dims) > 1 << 48:
            self._fail(f"{shown(name)} has the impossible size {list(dims)}")
        if kind not in self._types.names:
            self._fail(f"{shown(name)} is of an unknown type, {kind}")
        return name, dims[::-1], self._types.names[kind], offset

    def _placed(
        self, records: list[tuple[str, tuple[int, ...], str, int]], begin: int, alignment: int
    ) -> Iterator[tuple[str, GgufTensor]]:
        names: set[str] = set()
        end = 0
        for name, shape, kind, offset in sorted(records, key=lambda record: record[3]):
            block, size = self._types.sizes[kind]
            if shape[-1] % block:
                self._fail(
                    f"{shown(name)}: expected rows of a multiple of {block}, got {shape[-1]}"
                )
            if name in names:
                self._fail(f"there are two tensors {shown(name)}")
            if offset % alignment or offset < end:
                self._fail(f"{shown(name)} does not lie where a tensor can, at {offset:,}")
            end = offset + math.prod(shape) // block * size
            if begin + end > self._size:
                self._fail(
                    f"{shown(name)} reaches to byte {begin + end:,} of {self._size:,}; the file "
                    f"may be truncated: copy or download it again"
                )
            names.add(name)
            yield name, GgufTensor(self._file, begin + offset, shape, kind)
