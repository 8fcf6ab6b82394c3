"""Lines and tokens per line of each room, and what a change adds.

`make size` prints the table for the working tree; `make size SINCE=origin/main` also says what was
added since that revision. A room is a folder two levels deep, with everything below it. Only code
counts (see tools/source.py): blank lines, comments and docstrings are neither lines nor tokens of
it in any language, so that neither writing nor deleting them moves a room's density. How much is
in a room is for the reader of the table to judge; the house tests limit files, functions, density.
"""

import argparse
import io
import subprocess
import tarfile
from collections import defaultdict
from pathlib import PurePosixPath
from typing import NamedTuple

from tools.nvcc import ROOT
from tools.source import tokens

CPP_SUFFIXES = {".h", ".cuh", ".cu", ".cpp"}
SUFFIXES = {".py", *CPP_SUFFIXES}
NOT_OURS = ("build", ".")  # what is made here, and what tools keep here


class Size(NamedTuple):
    files: int = 0
    lines: int = 0
    tokens: int = 0

    def __add__(self, other: "Size") -> "Size":
        return Size(*(a + b for a, b in zip(self, other, strict=True)))

    @property
    def density(self) -> float:
        """Tokens per line of code."""
        return self.tokens / max(self.lines, 1)


def room(path: str) -> str:
    """The room of a file: `csrc/kernels` for csrc/kernels/gemm/gemm.cuh."""
    return "/".join(PurePosixPath(path).parent.parts[:2]) or "."


def size_of(suffix: str, text: str) -> Size:
    found = tokens(suffix, text)
    return Size(1, len({n for t in found for n in range(t.first, t.last + 1)}), len(found))


def rooms(sources: dict[str, str]) -> dict[str, Size]:
    """Sizes by room of sources given as text by path."""
    sizes: dict[str, Size] = defaultdict(Size)
    for path, text in sources.items():
        sizes[room(path)] += size_of(PurePosixPath(path).suffix, text)
    return dict(sorted(sizes.items()))


def is_source(path: str) -> bool:
    return PurePosixPath(path).suffix in SUFFIXES and not path.startswith(NOT_OURS)


def sources() -> dict[str, str]:
    """The sources of the working tree, as text by path."""
    found = [
        path
        for top in sorted(ROOT.iterdir())
        if not top.name.startswith(NOT_OURS)
        for path in ([top] if top.is_file() else sorted(top.rglob("*")))
    ]
    names = [path.relative_to(ROOT).as_posix() for path in found]
    return {name: (ROOT / name).read_text() for name in names if is_source(name)}


def sources_at(revision: str) -> dict[str, str]:
    """The sources of a git revision, as text by path."""
    command = ["git", "-C", str(ROOT), "archive", "--format=tar", revision]
    done = subprocess.run(command, capture_output=True)
    if done.returncode:
        said = done.stderr.decode().strip()
        raise SystemExit(f"make size: expected a git revision, got {revision!r} ({said})")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        return {
            member.name: archive.extractfile(member).read().decode()
            for member in archive.getmembers()
            if member.isfile() and is_source(member.name)
        }


def table(now: dict[str, Size], before: dict[str, Size] | None = None) -> str:
    head = f"{'room':24}{'files':>6}{'lines':>8}{'tokens a line':>15}"
    rows = [head + ("" if before is None else f"{'lines added':>13}{'tokens a line added':>21}")]
    for name in sorted({*now, *(before or {})}):
        rows.append(_row(name, now.get(name, Size()), before and before.get(name, Size())))
    totals = [sum(sizes.values(), Size()) for sizes in (now, before or {})]
    rows.append(_row("all", totals[0], before and totals[1]))
    return "\n".join(rows)


def _row(name: str, now: Size, before: Size | None) -> str:
    row = f"{name:24}{now.files:6}{now.lines:8}{now.density:15.1f}"
    if before is not None:
        added = now.density - before.density if now.lines and before.lines else 0.0
        row += f"{now.lines - before.lines:+13}{added:+21.1f}"
    return row


def main() -> None:
    parser = argparse.ArgumentParser(prog="make size", description=__doc__.splitlines()[0])
    parser.add_argument("since", nargs="?", help="a git revision to compare with")
    since = parser.parse_args().since
    before = None if since is None else rooms(sources_at(since))
    print(table(rooms(sources()), before))


if __name__ == "__main__":
    main()
