"""How the verbs print: tables and facts for people, one JSON object for programs.

A string is text: neither rich's markup nor a control character in it does anything. Style is given
beside the text, by `styled`.
"""

import sys
from typing import Any

from rich.console import Console
from rich.text import Text

from l4kernels.cli.streams import escape, fitting, json_line

Cell = str | Text


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # `main` knows what to do; rich would end the program


# Piped output is for files and other programs: no wrapping at 80 columns.
_console = _Console(highlight=False, width=None if sys.stdout.isatty() else 120)


def styled(text: str, style: str) -> Text:
    """`text` in one of rich's styles: "bold", "dim", "red"."""
    return Text(escape(text), style)


def _text(part: Cell) -> Text:
    return part if isinstance(part, Text) else Text(escape(part))


def line(*parts: Cell, end: str = "\n", wrap: bool = False) -> None:
    """Prints the parts one after the other; `wrap` breaks between words, for prose."""
    _console.print(Text.assemble(*map(_text, parts)), end=end, soft_wrap=not wrap)


def table(title: str, columns: list[str], rows: list[list[Cell]]) -> None:
    """Numbers to the right, the first column to the left; as wide as it is, on any terminal."""
    grid = [[styled(name, "bold") for name in columns], *([_text(c) for c in r] for r in rows)]
    widths = [max(cell.cell_len for cell in column) for column in zip(*grid, strict=True)]
    line(title)
    for row in grid:
        for index, (cell, width) in enumerate(zip(row, widths, strict=True)):
            cell.pad_left(width - cell.cell_len) if index else cell.pad_right(width - cell.cell_len)
        line(Text("  ").join(row))


def facts(pairs: list[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        line(styled(f"{name:<{width}}  ", "bold"), value)


def print_json(value: Any) -> None:
    print(json_line(value))


def stream(text: str) -> None:
    """Model output as it comes: exactly `text`, but a terminal is not steered by it."""
    sys.stdout.write(escape(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def can_print(text: str) -> bool:
    """Whether standard output can show these characters as they are."""
    return fitting(text, sys.stdout.encoding or "utf-8") == text


def tokens(value: int) -> str:
    for unit, size in (("M", 1 << 20), ("k", 1 << 10)):
        if value >= size:
            return f"{value / size:.4g}{unit}"
    return str(value)
