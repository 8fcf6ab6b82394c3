"""The house rules on imports and includes: which room may use which, and nothing in circles."""

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import PurePosixPath

import pytest

from tools.nvcc import ROOT
from tools.size import sources

# Rooms from the bottom of the house to its top. A room may import those named beside it and what
# they may import in turn; a module belongs to the innermost room that it lies in.
LAW = {
    "l4kernels.inputs": "",
    "l4kernels.emulation": "l4kernels.inputs",
    "l4kernels.ops": "l4kernels.inputs",
    "l4kernels.layers": "l4kernels.ops",
    "l4kernels.dropin": "l4kernels.ops",
    "l4kernels.testing": "l4kernels.ops",
    "l4kernels.model": "l4kernels.layers",
    "l4kernels.prompt": "l4kernels.model",
    "l4kernels.checkpoint": "l4kernels.model",
    "l4kernels.planning": "l4kernels.model",
    "l4kernels.engine": "l4kernels.checkpoint l4kernels.planning l4kernels.prompt",
    "l4kernels": "l4kernels.dropin l4kernels.engine",  # the public interface
    "l4kernels.integrations": "l4kernels",
    "l4kernels.server": "l4kernels",
    "l4kernels.demo": "l4kernels",
    "l4kernels.bench": "l4kernels l4kernels.planning l4kernels.testing",
    "l4kernels.cli": "l4kernels.bench l4kernels.demo l4kernels.emulation l4kernels.integrations"
    " l4kernels.server",
    "l4kernels.__main__": "l4kernels.cli",
    "tools": "l4kernels.emulation l4kernels.model",
    "setup": "tools",
    "examples": "l4kernels.demo l4kernels.server l4kernels.testing",
    "bench": "l4kernels.bench l4kernels.demo tools",
    "tests.support": "bench l4kernels.server",
    "tests": "tests.support l4kernels.cli",
}
COMING = {  # rooms that nobody has moved into
    "l4kernels.integrations",
}

SYSTEM = r"[a-z_]+|(cxxabi|dlfcn|immintrin|link|stddef|stdint)\.h"  # of C++ and of Linux

# A file under the prefix may include what matches; the first prefix that fits decides.
INCLUDES = [
    (r"csrc/ptx/.*", r"ptx/.*|cuda.*|cstdint|type_traits"),
    (r"csrc/tile/.*\.h", r"tile/.*\.h|c?std\w+|algorithm|array|climits|limits"),
    (r"csrc/tile/.*\.cuh", r"(tile|ptx)/.*|cuda.*|cstdint|type_traits"),
    (r"csrc/host/.*", r"(host|tile)/.*\.h|cuda.*|[a-z_]+|l4k_emulator\.h"),
    (r"csrc/(kernels|probes)/(\w+)/\w+\.h", r"\1/\2/.*\.h|tile/.*\.h|cuda_runtime\.h|[a-z_]+"),
    (r"csrc/(kernels|probes)/(\w+)/.*", r"\1/\2/.*|(host|tile|ptx)/.*|cuda.*|[a-z_]+"),
    (r"csrc/bindings/library\.cpp", r"(bindings|host|tile)/\w+\.h|[a-z_]+"),
    (
        r"csrc/bindings/.*",
        r"(kernels|probes)/\w+/\w+\.h|bindings/.*|host/(device|nonce)\.h|tile/\w+\.h"
        r"|torch/csrc/stable/.*|cuda_runtime\.h|[a-z_]+|l4k_emulator\.h",
    ),
    # The emulator, from below: formats and parser, shadow memory, the machine, the CUDA runtime.
    (r"emulator/(ptx|tensor|check)/.*", rf"\1/.*|{SYSTEM}"),
    (r"emulator/machine/core/.*", rf"(machine/core|check|ptx|tensor)/.*|{SYSTEM}"),
    (r"emulator/machine/isa/.*", rf"machine/(core|isa)/.*|tensor/.*|{SYSTEM}"),
    (r"emulator/machine/async/.*", rf"machine/(core|isa|async)/.*|tensor/.*|{SYSTEM}"),
    (r"emulator/machine/.*", rf"machine/.*|{SYSTEM}"),
    (
        r"emulator/(runtime|python|tools|include)/.*",
        r"machine/(core/machine|image)\.h|(ptx|tensor|runtime|pybind11)/.*"
        rf"|l4k_emulator\.h|cuda.*|{SYSTEM}",
    ),
    (r"emulator/tests/.*", r"(?!kernels/|probes/|bindings/|host/|tile/|ptx/.*\.cuh|torch/).*"),
]
INCLUDE_PATH = ("csrc", "emulator", "emulator/include")

SOURCES = sources()
INCLUDE = re.compile(r'^\s*#include [<"](.+)[>"]', re.MULTILINE)

Graph = dict[str, set[str]]


def module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


MODULES = {module_name(path): path for path in SOURCES if path.endswith(".py")}


def imported_modules(name: str) -> set[str]:
    """Our modules that a module imports: at its top, in a function, or for its types alone."""
    found = set()
    package = name if MODULES[name].endswith("/__init__.py") else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(SOURCES[MODULES[name]])):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: 1 - node.level or None] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                found.add(inner if inner in MODULES else base)
    return (found & MODULES.keys()) - {name}


def included_files(path: str) -> set[str]:
    """Our files that a file of C++ includes."""
    found = set()
    for name in INCLUDE.findall(SOURCES[path]):
        places = (PurePosixPath(path).parent.as_posix(), *INCLUDE_PATH)
        candidates = [(ROOT / place / name).resolve() for place in places]
        ours = [c.relative_to(ROOT).as_posix() for c in candidates if c.is_relative_to(ROOT)]
        found |= {*[file for file in ours if file in SOURCES][:1]}
    return found - {path}


IMPORTS: Graph = {name: imported_modules(name) for name in MODULES}
FILES: Graph = {
    **{MODULES[name]: {MODULES[to] for to in imported} for name, imported in IMPORTS.items()},
    **{path: included_files(path) for path in SOURCES if not path.endswith(".py")},
}


def folders(files: Graph) -> Graph:
    """What folders use; programs are left out, which are run and never imported."""
    found: Graph = {}
    for path, used in files.items():
        folder = PurePosixPath(path).parent.as_posix()
        if not path.endswith("/__main__.py"):
            uses = {PurePosixPath(to).parent.as_posix() for to in used}
            found.setdefault(folder, set()).update(uses - {folder})
    return found


def reachable(graph: Graph, start: str) -> set[str]:
    found, ahead = set(), [start]
    while ahead:
        new = graph.get(ahead.pop(), set()) - found
        found |= new
        ahead += new
    return found


def circle(graph: Graph) -> list[str]:
    """A circle of the graph, each member used by the next; empty if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def room(module: str) -> str:
    while module not in LAW:
        assert module, "expected a module in a room of LAW"
        module = module.rpartition(".")[0]
    return module


def test_imports_obey_the_law():
    below = {name: set(used.split()) for name, used in LAW.items()}
    assert not circle(below)
    broken = {
        (name, to)
        for name, imported in IMPORTS.items()
        for to in imported
        if room(to) not in {room(name), *reachable(below, room(name))}
    }
    assert sum(map(len, IMPORTS.values())) > 500
    assert not broken, f"unlawful, as (importer, imported): {broken}"
    assert {*LAW} - {room(name) for name in MODULES} == COMING, "COMING is out of date"


def test_no_test_imports_another():
    tests = {name for name in MODULES if name.startswith("tests.") and ".test_" in name}
    assert len(tests) > 80
    shared = {(name, to) for name in tests for to in IMPORTS[name] & tests}
    assert not shared, "what they share belongs into tests.support"


def test_includes_obey_the_law():
    broken = []
    for path, source in SOURCES.items():
        if path.endswith(".py") or not path.startswith(("csrc/", "emulator/")):
            continue
        match, allowed = next((m, b) for a, b in INCLUDES if (m := re.fullmatch(a, path)))
        for number, text in enumerate(match.groups(), 1):
            allowed = allowed.replace(rf"\{number}", text)
        names = INCLUDE.findall(source)
        broken += [f"{path} includes {name}" for name in names if not re.fullmatch(allowed, name)]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("graph", [FILES, folders(FILES)], ids=["files", "folders"])
def test_nothing_is_used_in_circles(graph):
    assert not circle(graph), "each is used by the next: " + " ".join(circle(graph))


def test_the_graph_sees_every_kind_of_import(monkeypatch):
    texts = {
        "a/__init__.py": "from . import b\nfrom .c import d as e, f\n",
        "a/b.py": "import os, a.c.d\ndef g():\n    from a.c import thing\n",
        "a/c/__init__.py": "from .. import b\nif TYPE_CHECKING:\n    from ..b import T\n",
        "a/c/d.py": "from ..b import x\nfrom ... import nothing\nfrom . import d\n",
        "a/c/f.py": "",
    }
    here = globals()
    monkeypatch.setitem(here, "SOURCES", texts)
    monkeypatch.setitem(here, "MODULES", {module_name(path): path for path in texts})
    assert {name: imported_modules(name) for name in here["MODULES"]} == {
        "a": {"a.b", "a.c.d", "a.c.f"},
        "a.b": {"a.c.d", "a.c"},
        "a.c": {"a.b"},
        "a.c.d": {"a.b"},
        "a.c.f": set(),
    }


def test_the_graph_sees_every_kind_of_include(monkeypatch):
    texts = {
        "csrc/tile/a.h": '#include "tile/b.h"\n#include <cuda.h>\n',
        "csrc/tile/b.h": "",
        "emulator/ptx/c.cpp": '#include "c.h"\n  #include "../../csrc/tile/a.h"\n',
        "emulator/ptx/c.h": "#include <l4k_emulator.h>\n",
        "emulator/include/l4k_emulator.h": "",
    }
    monkeypatch.setitem(globals(), "SOURCES", texts)
    assert {path: included_files(path) for path in texts} == {
        "csrc/tile/a.h": {"csrc/tile/b.h"},
        "csrc/tile/b.h": set(),
        "emulator/ptx/c.cpp": {"emulator/ptx/c.h", "csrc/tile/a.h"},
        "emulator/ptx/c.h": {"emulator/include/l4k_emulator.h"},
        "emulator/include/l4k_emulator.h": set(),
    }


def test_a_circle_is_found_and_told():
    assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert {*circle({"a": {"b"}, "b": {"c"}, "c": {"b"}})} == {"b", "c"}
    files = {"x/a.py": {"y/b.py"}, "y/b.py": set(), "y/c.py": {"x/d.py"}, "x/d.py": set()}
    assert not circle(files) and {*circle(folders(files))} == {"x", "y"}
    assert not circle(folders({**files, "y/__main__.py": {"x/d.py"}, "y/c.py": set()}))
