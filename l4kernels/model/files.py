"""The one way in which a stranger's file is read: the text files of a checkpoint, and images.

A file may be a pipe, a device, huge, in another encoding, or JSON that no parser survives. Each is
one error that names the file.
"""

import json
import os
import stat
from pathlib import Path
from typing import Any

MAX_TEXT_BYTES = 256 << 20


def read_bytes(file: str | Path, limit: int, error: type[ValueError] = ValueError) -> bytes:
    """The content of a regular file.

    Raises:
        FileNotFoundError: there is no such file.
        error: it is no regular file, larger than `limit` bytes, or unreadable.
    """
    try:
        # A pipe without a writer would block in open itself.
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            facts = os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode):
                raise error(f"{file}: expected a regular file, got a {_kind(facts.st_mode)}")
            content = None
            if facts.st_size <= limit:
                with open(descriptor, "rb", closefd=False) as stream:
                    content = stream.read(limit + 1)  # some file systems give no size
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise
    except OSError as problem:
        raise error(f"{file}: cannot be read ({problem.strerror or problem})") from None
    if content is None or len(content) > limit:
        raise error(f"{file}: expected at most {limit >> 20} MiB")
    return content


def read_text(file: Path, error: type[ValueError] = ValueError) -> str:
    """The text of a UTF-8 file, with or without a byte order mark.

    Raises like `read_bytes` with `MAX_TEXT_BYTES`, and `error` if it is not UTF-8.
    """
    content = read_bytes(file, MAX_TEXT_BYTES, error)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise error(f"{file}: expected UTF-8 text, got bytes that are not ({problem})") from None


def read_object(file: Path, error: type[ValueError] = ValueError) -> dict[str, Any]:
    """The object in a JSON file; raises like `read_text`, and `error` for any other content."""
    text = read_text(file, error)
    try:
        content = json.loads(text, parse_int=_integer)
    except (ValueError, RecursionError) as problem:
        why = "nested too deeply" if isinstance(problem, RecursionError) else str(problem)
        raise error(f"{file}: not valid JSON ({why})") from None
    if not isinstance(content, dict):
        raise error(f"{file}: expected a JSON object, got {content!r:.80}")
    return content


def _integer(digits: str) -> int | float:
    # No integer of a checkpoint needs more; a longer one would overflow wherever it is used.
    return int(digits) if len(digits) <= 19 else float(digits)


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "folder",
        stat.S_IFIFO: "pipe",
        stat.S_IFCHR: "device",
        stat.S_IFBLK: "device",
        stat.S_IFSOCK: "socket",
    }
    return kinds.get(stat.S_IFMT(mode), "special file")
