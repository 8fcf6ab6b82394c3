"""What pages, docstrings and comments name is there: files, folders and names of the package."""

import ast
import functools
import importlib
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

import l4kernels
from tools.nvcc import ROOT
from tools.size import is_source

SKIPPED = ("build", "dist", "__pycache__")  # and what begins with a dot
NOT_STORED = ("l4kernels/lib",)  # made by a build
EXAMPLES = {"handoff.cu", "program.cu"}  # a page's own programs


def stored() -> list[str]:
    names = (p.relative_to(ROOT) for top in ROOT.iterdir() if kept(top.name) for p in tree(top))
    return sorted(name.as_posix() for name in names if all(map(kept, name.parts)))


def kept(name: str) -> bool:
    return not name.startswith(".") and name not in SKIPPED and not name.endswith(".egg-info")


def tree(top: Path) -> Iterator[Path]:
    yield top
    if top.is_dir() and not top.is_symlink():
        yield from top.rglob("*")


PATHS = stored()
HAVE, BASENAMES = {*PATHS}, {PurePosixPath(path).name for path in PATHS}
TOP = "|".join(sorted(re.escape(p.name) for p in ROOT.iterdir() if p.is_dir() and kept(p.name)))
PLACEHOLDER = re.compile(r"\b(?:NAME|FILE|DIR|OP)\b")
# A path from the root, complete: no placeholder, no pattern, no part of a longer one.
PATH = re.compile(rf"(?<![\w/.<>{{}}*-])((?:{TOP})/[\w./-]*\w)(?![\w<>{{}}*])")
FILE = re.compile(r"`([\w-]+\.(?:py|h|cuh|cu|cpp|toml|cmake|md))`")
TARGETS = {*re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)}
NAME = re.compile(r"(?<![\w./@-])l4kernels((?:\.[A-Za-z_]\w*)+)(?![\w/*<])")


@functools.cache
def prose(path: str) -> str:
    """A page, or the comments and docstrings of a source."""
    text = (ROOT / path).read_text()
    if path.endswith(".md"):
        return text
    if not path.endswith(".py"):
        return "\n".join(re.findall(r"//.*", text))
    documented = [
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
    ]
    docstrings = [ast.get_docstring(node) or "" for node in documented]
    return "\n".join([*re.findall(r"(?<!\S)# .*", text), *docstrings])


def missing_paths(text: str) -> set[str]:
    """Paths that lead nowhere."""
    paths = {path for path in PATH.findall(text) if not PLACEHOLDER.search(path)}
    return {p for p in paths if p not in HAVE and not p.startswith(NOT_STORED)}


def missing_files(text: str) -> set[str]:
    """Names of files that no folder has."""
    missing = {*FILE.findall(text)} - BASENAMES - EXAMPLES
    return {name for name in missing if not PLACEHOLDER.search(name)}


def missing_targets(text: str) -> set[str]:
    """Verbs of `make` that the Makefile lacks, in inline code or at the start of a line of it."""
    commands = re.findall(r"`(make [a-z-]+)", text)
    for block in re.findall(r"^```\n(.*?)^```$", text, re.M | re.S):
        commands += re.findall(r"^(?:\$ )?(make [a-z-]+)", block, re.M)
    return {command.removeprefix("make ") for command in commands} - TARGETS


def missing_names(text: str) -> set[str]:
    """Dotted names that the package lacks; `l4kernels.<op>` is how errors name an op."""
    return {name for name in NAME.findall(text) if not answers(name[1:].split("."))}


def answers(parts: list[str]) -> bool:
    if parts[0] in l4kernels.ops.OPS:
        return len(parts) == 1
    found, module = l4kernels, "l4kernels"
    for part in parts:
        module += f".{part}"
        if not hasattr(found, part):
            try:
                importlib.import_module(module)
            except ModuleNotFoundError:
                return False
        found = getattr(found, part)
    return True


DESCRIBED = [
    path
    for path in PATHS
    if (ROOT / path).is_file()
    and (is_source(path) or path.endswith(".md"))
    and path not in ("docs/decisions.md", "CHANGELOG.md")  # of their time
]


@pytest.mark.parametrize("find", [missing_paths, missing_files, missing_names, missing_targets])
def test_what_is_named_is_there(find):
    assert not {path: names for path in DESCRIBED if (names := find(prose(path)))}


def test_a_stale_name_is_found():
    text = "See `csrc/tile/mask.h`, docs/nowhere.md and tests/NAME/x, csrc/kernels/<op>/<op>.cu."
    assert missing_paths(text) == {"docs/nowhere.md"}
    assert missing_paths("[here](../docs/tour.md) and l4kernels/lib/x.so, build/cmake") == set()
    assert missing_files("`mask.h` of `tile`, `nowhere.h`, `handoff.cu`") == {"nowhere.h"}
    text = "`make demo`, `make soup K=x`\n```\nmake gpu OUT=x\n$ make tea\n```\nmake sure"
    assert missing_targets(text) == {"soup", "tea"}
    text = "`l4kernels.ops.gemm`, l4kernels.gemm, l4kernels.nothing, torch.ops.l4kernels.gone,"
    text += " l4kernels.testing.emulator.serial_launches, l4kernels.ops.gone."
    assert missing_names(text) == {".nothing", ".ops.gone"}
