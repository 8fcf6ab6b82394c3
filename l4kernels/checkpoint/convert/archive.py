"""The zip file that `torch.save` writes: where each member's bytes lie.

Members are stored as they are, so that they can be mapped; whatever else a zip file can be
(compressed, encrypted, with members over each other or outside the file) is refused.
"""

import os
import struct
import zipfile
from pathlib import Path
from typing import NamedTuple, NoReturn, Protocol

from l4kernels.checkpoint.files.reader import CheckpointError
from l4kernels.inputs.files import open_regular, shown

_MAX_DIRECTORY = 4 << 20
"""Bytes of the zip's own list of members; a published file's takes 0.2 MB."""
_END, _END64, _LOCAL = b"PK\x05\x06", b"PK\x06\x06", b"PK\x03\x04"


class Member(NamedTuple):
    """Bytes of the file."""

    start: int
    size: int


def members(file: Path) -> dict[str, Member]:
    """The members of a file that `torch.save` wrote, by their names without the top folder.

    Raises:
        CheckpointError: it is another kind of file, or a zip file that `torch.save` does not write.
    """

    def fail(why: str) -> NoReturn:
        raise CheckpointError(f"{file}: {why}; expected a file as torch.save writes it")

    try:
        size = _check_end(file, fail)
        with zipfile.ZipFile(file) as archive:
            entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
            end, directory = 0, archive.start_dir
    except FileNotFoundError:
        fail("not found")
    except CheckpointError:
        raise
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
        fail(f"not a readable zip file ({shown(str(error), 120)})")
    found: dict[str, Member] = {}
    top = entries[0].filename.partition("/")[0] if entries else ""
    with open_regular(file, CheckpointError) as stream:
        for entry in entries:
            name = _plain(entry, top, fail)
            stream.seek(max(0, entry.header_offset))
            header = stream.read(30)
            if entry.header_offset < end or len(header) < 30 or header[:4] != _LOCAL:
                fail(f"the member {shown(name)} does not lie where the zip file says")
            start = entry.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
            end = start + entry.file_size
            if end > min(directory, size):
                fail(f"the member {shown(name)} reaches beyond the data")
            if name in found:
                fail(f"there are two members {shown(name)}")
            found[name] = Member(start, entry.file_size)
    return found


def _check_end(file: Path, fail: "_Fail") -> int:
    """The file's size. Refuses a list of members that takes long to read."""
    with open_regular(file, CheckpointError) as stream:
        size = os.fstat(stream.fileno()).st_size
        first = stream.read(4)
        if first != _LOCAL:
            kind = (
                "an old file of Python objects (before torch 1.6)" if first[:1] == b"\x80" else ""
            )
            fail(f"{kind or 'no zip file'} cannot be read")
        stream.seek(max(0, size - 98))
        tail = stream.read()
    if tail[-22:-18] != _END:
        fail("the zip file has no end; it may be truncated: copy or download it again")
    count, length = struct.unpack("<HI", tail[-12:-6])
    if tail[-98:-94] == _END64:
        count, length = struct.unpack("<QQ", tail[-66:-50])
    if length > _MAX_DIRECTORY or count > _MAX_DIRECTORY // 46:
        fail(f"the zip file's list of members has {length:,} bytes, more than {_MAX_DIRECTORY:,}")
    return size


def _plain(entry: zipfile.ZipInfo, top: str, fail: "_Fail") -> str:
    """The member's name without the top folder."""
    # `filename` ends where a zero byte is; what the file says is `orig_filename`.
    name = entry.orig_filename
    parts = name.split("/")
    odd = not name.isprintable() or "\\" in name or len(name) > 255
    if odd or len(parts) < 2 or parts[0] != top or {"", ".", ".."} & {*parts}:
        fail(f"a member is called {shown(name)}, expected a name below one folder")
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
        fail(f"the member {shown(name)} is compressed")
    if entry.flag_bits & 1:
        fail(f"the member {shown(name)} is encrypted")
    return name.partition("/")[2]


class _Fail(Protocol):
    def __call__(self, why: str) -> NoReturn: ...
