"""How `l4k chat` reads messages: of several lines, edited at a terminal, or through a pipe."""

import sys
from typing import NamedTuple, Protocol

from l4kernels.cli.streams import MAX_INPUT_BYTES

try:
    import readline
except ImportError:  # Python may have been built without: lines are then what the terminal edits
    readline = None  # type: ignore[assignment]

BLOCK = '"""'


class Lines(Protocol):
    def next(self, *, inside: bool) -> str:
        """The next line, without its end; `inside`: of a message that has begun. Raises
        `EOFError`."""


class Typed(NamedTuple):
    text: str
    block: bool
    """Between two `\"""`: then it is a message, however it begins."""


def read_message(lines: Lines) -> Typed:
    r'''What comes next: a line, lines that end in a backslash and the one after them, or a block
    between two `"""`.

    >>> given = iter(["one \\", "two", '"""a', '', 'b"""'])
    >>> class Given:
    ...     def next(self, *, inside):
    ...         return next(given)
    >>> read_message(Given()).text, read_message(Given()).text
    ('one \ntwo', 'a\n\nb')

    Raises:
        EOFError: nothing does.
        ValueError: the input ends within it.
    '''
    parts = [lines.next(inside=False)]
    block = parts[0].lstrip().startswith(BLOCK)
    if block:
        parts[0] = parts[0].lstrip().removeprefix(BLOCK)
    try:
        if not block:
            while parts[-1].endswith("\\"):
                parts[-1] = parts[-1][:-1]
                parts.append(lines.next(inside=True))
            return Typed("\n".join(parts), block)
        while not parts[-1].rstrip().endswith(BLOCK):
            parts.append(lines.next(inside=True))
    except EOFError:
        wanted = f"a line that ends with {BLOCK}" if block else "a line after the backslash"
        raise ValueError(f"the input ended within a message: expected {wanted}") from None
    return Typed("\n".join(parts).rstrip().removesuffix(BLOCK).strip("\n"), block)


class PipedLines:
    """Lines of standard input, as UTF-8 in every locale."""

    def __init__(self) -> None:
        self.number = 0

    def next(self, *, inside: bool) -> str:
        data = sys.stdin.buffer.readline(MAX_INPUT_BYTES + 1)
        if not data:
            raise EOFError
        self.number += 1
        if len(data) > MAX_INPUT_BYTES:
            raise ValueError(
                f"standard input: expected lines of at most {MAX_INPUT_BYTES >> 20} MiB"
            )
        try:
            return data.decode("utf-8").removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"standard input: line {self.number} is not UTF-8 at byte {error.start}"
            ) from None


class TerminalLines:
    """Lines that a person types, with line editing and a history in memory.

    Args:
        shown: whether standard output shows the prompt, or standard error.
    """

    def __init__(self, *, shown: bool) -> None:
        self.shown = shown
        self.draft = ""
        """What the next line holds from the start, for the person to send or to change."""
        if readline is not None and "libedit" not in (readline.__doc__ or ""):
            # Pasted lines are one message.
            readline.parse_and_bind("set enable-bracketed-paste on")

    @property
    def empty(self) -> bool:
        """Whether nothing is typed on the line that is being edited."""
        return readline is None or not readline.get_line_buffer()

    def next(self, *, inside: bool) -> str:
        prompt = "... " if inside else ">>> "
        if not self.shown:
            print(prompt, end="", file=sys.stderr, flush=True)
            return self._checked(input())
        if readline is not None and self.draft:
            readline.set_pre_input_hook(self._insert)
        try:
            return self._checked(input(prompt))
        finally:
            self.draft = ""
            if readline is not None:
                readline.set_pre_input_hook()

    def _insert(self) -> None:
        readline.insert_text(self.draft)
        readline.redisplay()

    def _checked(self, line: str) -> str:
        try:
            line.encode()
        except UnicodeEncodeError:
            raise ValueError("this is not UTF-8; it is not sent") from None
        return line
