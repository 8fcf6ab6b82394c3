"""The standard streams as `l4k` uses them: they may be closed, full, or unable to spell a text."""

import contextlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO

MAX_INPUT_BYTES = 64 << 20
_SPELLED = {
    code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"
}


class OutputError(OSError):
    """Standard output cannot be written."""


def escape(text: str) -> str:
    r"""`text` with its control characters (C0 and C1) spelled out, so that none steers a terminal.

    >>> escape("\x1b[2J and the end\n")
    '\\x1b[2J and the end\n'
    """
    return text.translate(_SPELLED)


class Output:
    """Standard output: spells with backslashes what the stream's encoding lacks."""

    def __init__(self, stream: TextIO):
        self._stream = stream
        self._error: OSError | None = None

    @property
    def drawable(self) -> TextIO:
        """The stream itself, for what steers a terminal on purpose, such as a progress bar."""
        return self._stream

    @property
    def encoding(self) -> str:
        return self._stream.encoding or "utf-8"

    @property
    def errors(self) -> str:
        """`input` edits lines only where a stream says this, too."""
        return self._stream.errors or "strict"

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def write(self, text: str) -> int:
        self._try(self._stream.write, fitting(text, self.encoding))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, action: Callable[..., Any], *arguments: str) -> None:
        if self._error is None:
            try:
                action(*arguments)
            except OSError as error:
                self._error = error
                # What is still in the buffer must not fail once more when the interpreter ends.
                with contextlib.suppress(OSError), open(os.devnull, "w") as nowhere:
                    os.dup2(nowhere.fileno(), self.fileno())
        if self._error is not None:  # each time: libraries try a stream out and say nothing
            self.failed(self._error)

    def failed(self, error: OSError) -> None:
        if isinstance(error, BrokenPipeError):
            raise error
        raise OutputError(f"standard output: {error.strerror or error}") from error


class Complaints(Output):
    """Standard error. It is read by people only, so control characters are spelled out in
    everything; what cannot be written is lost, the exit code remains."""

    def write(self, text: str) -> int:
        return super().write(escape(text))

    def failed(self, error: OSError) -> None:
        pass


def fitting(text: str, encoding: str) -> str:
    r"""`text` with what `encoding` lacks spelled out.

    >>> fitting("naïve ▄", "latin-1")
    'naïve \\u2584'
    """
    return text.encode(encoding, "backslashreplace").decode(encoding)


def json_line(value: Any) -> str:
    """`value` as JSON in printable ASCII: it fits every stream and steers no terminal."""
    return json.dumps(value).replace("\x7f", "\\u007f")


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Standard output and error are `Output` and `Complaints` in the block.

    They stay so if an exception leaves it, for the traceback that the interpreter prints then.
    """
    before = sys.stdout, sys.stderr
    # A closed stream is None, and print(..., file=None) is standard output: even for errors.
    sys.stdout = Output(sys.stdout or io.StringIO())
    sys.stderr = Complaints(sys.stderr or io.StringIO())
    yield
    sys.stdout, sys.stderr = before


def read_input() -> str:
    """All of standard input, as UTF-8 in every locale; `ValueError` if it is anything else."""
    if sys.stdin is None:
        raise ValueError("standard input is closed")
    if sys.stdin.isatty():
        print("l4k: reading the prompt from the terminal; Ctrl-D ends it", file=sys.stderr)
    data = sys.stdin.buffer.read(MAX_INPUT_BYTES + 1)
    if len(data) > MAX_INPUT_BYTES:
        raise ValueError(f"standard input: expected at most {MAX_INPUT_BYTES >> 20} MiB of text")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"standard input: not UTF-8 at byte {error.start}") from None
