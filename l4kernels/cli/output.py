"""How the verbs print: tables and facts for people, one JSON object for programs."""

import json
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

# Piped output is for files and other programs: no wrapping at 80 columns.
console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)


def print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False))


def table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Numbers to the right, the first column to the left."""
    grid = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 1))
    for index, column in enumerate(columns):
        grid.add_column(
            column, justify="right" if index else "left", style=None if index else "bold"
        )
    for row in rows:
        grid.add_row(*row)
    console.print(grid)


def facts(pairs: list[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        console.print(f"[bold]{name:<{width}}[/bold]  ", end="")
        console.print(value, markup=False, soft_wrap=True)


def stream(text: str) -> None:
    """Model output as it comes; control characters must not steer the terminal."""
    sys.stdout.write("".join(c for c in text if c.isprintable() or c in "\n\t"))
    sys.stdout.flush()


def tokens(value: int) -> str:
    for unit, size in (("M", 1 << 20), ("k", 1 << 10)):
        if value >= size:
            return f"{value / size:.4g}{unit}"
    return str(value)
