"""The one way in which a text file of a checkpoint is read.

A checkpoint comes from a stranger: a file may be a pipe, a device, huge, in another encoding, or
JSON that no parser survives. Each is one error that names the file.
"""

import json
import os
import stat
from pathlib import Path
from typing import Any

MAX_TEXT_BYTES = 256 << 20


def read_text(file: Path, error: type[ValueError] = ValueError) -> str:
    """The text of a regular UTF-8 file, with or without a byte order mark.

    Raises:
        FileNotFoundError: there is no such file.
        error: it is no regular file, larger than `MAX_TEXT_BYTES`, unreadable, or not UTF-8.
    """
    try:
        # A pipe without a writer would block in open itself.
        with open(os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:
            facts = os.fstat(stream.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise error(f"{file}: expected a regular file, got a {_kind(facts.st_mode)}")
            content = stream.read(MAX_TEXT_BYTES + 1)
    except FileNotFoundError:
        raise
    except OSError as problem:
        raise error(f"{file}: cannot be read ({problem.strerror or problem})") from None
    if len(content) > MAX_TEXT_BYTES:
        raise error(f"{file}: expected at most {MAX_TEXT_BYTES >> 20} MiB")
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
