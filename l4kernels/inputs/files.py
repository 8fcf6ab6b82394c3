"""The one way in which a text file of a checkpoint is read.

A checkpoint comes from a stranger: a file may be a pipe, a device, huge, in another encoding, or
JSON that no parser survives. Each is one error that names the file.
"""

import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

MAX_TEXT_BYTES = 16 << 20  # 256 MB of JSON that only repeats itself take 14 s and 5 GB


def open_regular(file: str | Path, error: type[ValueError] = ValueError) -> BinaryIO:
    """Opens a regular file for reading; the first byte that a pipe or a device holds is not read.

    Raises:
        FileNotFoundError: there is no such file.
        error: it is no regular file, or cannot be opened.
    """
    try:
        # A pipe without a writer would block in open itself.
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        handle = os.open(file, flags)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as problem:  # ValueError: no file can have this name
        why = getattr(problem, "strerror", None) or problem
        raise error(f"{file}: cannot be read ({why})") from None
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        raise error(f"{file}: expected a regular file, got a {_kind(mode)}")
    return open(handle, "rb")


def read_text(file: Path, error: type[ValueError] = ValueError, limit: int = MAX_TEXT_BYTES) -> str:
    """The text of a regular UTF-8 file of at most `limit` bytes, with or without a byte order mark.

    Raises:
        FileNotFoundError: there is no such file.
        error: it is no regular file, larger than `limit`, unreadable, or not UTF-8.
    """
    with open_regular(file, error) as stream:
        try:
            content = stream.read(limit + 1)
        except OSError as problem:
            raise error(f"{file}: cannot be read ({problem.strerror or problem})") from None
    if content is None:  # a log of the kernel calls itself a regular file, but would block
        raise error(f"{file}: expected a regular file, got one that waits for data")
    if len(content) > limit:
        raise error(f"{file}: expected at most {limit >> 20} MiB")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise error(f"{file}: expected UTF-8 text, got bytes that are not ({problem})") from None


def read_object(
    file: Path, error: type[ValueError] = ValueError, limit: int = MAX_TEXT_BYTES
) -> dict[str, Any]:
    """The object in a JSON file; raises like `read_text`, and `error` for any other content."""
    text = read_text(file, error, limit)
    try:
        content = json.loads(text, parse_int=_integer)
    except (ValueError, RecursionError) as problem:
        why = "nested too deeply" if isinstance(problem, RecursionError) else str(problem)
        raise error(f"{file}: not valid JSON ({why})") from None
    if not isinstance(content, dict):
        raise error(f"{file}: expected a JSON object, got {shown(content)}")
    return content


def shown(value: object, length: int = 80) -> str:
    """`value` for a message: on one line, of at most `length` characters, whatever it is.

    >>> shown("text"), shown(10**5000), shown(["x" * 1000])[-8:]
    ("'text'", 'a huge int', 'xxxxx...')
    """
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of 4,301 digits; nesting
        text = f"a huge {type(value).__name__}"
    return text if len(text) <= length else text[: length - 3] + "..."


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
