"""Lines of code per part. `make size` prints the table; only the length of a file has a limit.

Documentation does not count towards a part: docstrings in Python and the comment that opens a C++
file are left out there. How long a file may be counts every line, since a reader reads them all.
"""

import ast
import itertools
from pathlib import Path

from tools.nvcc import ROOT

PARTS = {
    "csrc": ["csrc"],
    "l4kernels": ["l4kernels"],
    "emulator": ["emulator"],
    "bench": ["bench"],
    "tools": ["tools"],
}
SUFFIXES = {".py", ".h", ".cuh", ".cu", ".cpp"}


def files(folders: list[str]) -> list[Path]:
    """Sources of the given folders; the emulator's own tests count as tests."""
    found = [p for folder in folders for p in (ROOT / folder).rglob("*") if p.suffix in SUFFIXES]
    return sorted(p for p in found if "tests" not in p.relative_to(ROOT).parts)


def lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def code_lines(path: Path) -> int:
    text = path.read_text()
    if path.suffix != ".py":
        code = itertools.dropwhile(lambda line: line.startswith("//"), text.splitlines())
        return sum(1 for _ in code)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    strings = [
        node.body[0]
        for node in ast.walk(ast.parse(text))
        if isinstance(node, documented) and node.body and ast.get_docstring(node) is not None
    ]
    return lines(path) - sum(s.end_lineno - s.lineno + 1 for s in strings)


def cap(path: Path) -> int:
    """The longest a file may be: what can be read in one sitting."""
    device = path.suffix == ".cuh" or "emulator" in path.relative_to(ROOT).parts
    return 500 if device else 400


def main() -> None:
    for part, folders in PARTS.items():
        sources = files(folders)
        longest = max(sources, key=lines, default=None)
        where = f", longest {longest.relative_to(ROOT)} {lines(longest)}" if longest else ""
        total = sum(map(code_lines, sources))
        print(f"{part:16s} {total:6d}   {len(sources)} files{where}")


if __name__ == "__main__":
    main()
