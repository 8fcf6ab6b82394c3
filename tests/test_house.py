"""The house rules: who may include whom, how long a file may be, what a kernel consists of."""

import ast
import re

import pytest

from tools import budget
from tools.nvcc import ROOT
from tools.size import PARTS, SUFFIXES, cap, code_lines, files, lines

KERNELS = [folder for _, folder in sorted(budget.KERNELS.items())]
PAGE_HEADINGS = ["What", "Floor", "Design", "Compiled", "Measured", "Did not work", "Next"]

# A file under the prefix may include what matches; the first prefix that fits decides.
INCLUDES = [
    (r"csrc/ptx/.*", r"ptx/.*|cuda.*|cstdint|type_traits"),
    (r"csrc/tile/.*\.h", r"tile/.*\.h|c?std\w+|algorithm|array|climits|limits"),
    (r"csrc/tile/.*\.cuh", r"(tile|ptx)/.*|cuda.*|cstdint|type_traits"),
    (r"csrc/host/.*", r"(host|tile)/.*\.h|cuda.*|[a-z_]+"),
    (r"csrc/((?:kernels|probes)/\w+)/\w+\.h", r"\1/.*\.h|tile/.*\.h|cuda_runtime\.h|[a-z_]+"),
    (r"csrc/((?:kernels|probes)/\w+)/.*", r"\1/.*|(host|tile|ptx)/.*|cuda.*|[a-z_]+"),
    (r"csrc/bindings/library\.cpp", r"(bindings|host|tile)/\w+\.h|[a-z_]+"),
    (
        r"csrc/bindings/.*",
        r"(kernels|probes)/\w+/\w+\.h|bindings/.*|host/device\.h|tile/\w+\.h|torch/csrc/stable/.*"
        r"|cuda_runtime\.h|[a-z_]+|l4k_emulator\.h",
    ),
    (r"emulator/.*", r"(?!kernels/|probes/|bindings/|host/|tile/|ptx/.*\.cuh|torch/).*"),
]

# A module under the prefix may import package modules that match; the first that fits decides.
IMPORTS = [
    (r"l4kernels\.ops\b", r"l4kernels\.ops\b.*"),
    (r"l4kernels\._load", r"l4kernels\.ops\b.*"),
    (r"l4kernels\.testing", r"l4kernels\.(ops\b.*|_load\.STATUS)"),
    (r"l4kernels\.layers\b", r"l4kernels\.(ops|layers)\b.*"),
    (r"l4kernels\.dropin\b", r"l4kernels\.(ops|dropin)\b.*"),
    (r"l4kernels\.model\b", r"l4kernels\.(ops|layers|model|_load)\b.*"),
    (r"l4kernels\b", r"l4kernels\b.*"),
    (r"(bench\.gpu_steps|tools\.emulate)", r"(l4kernels|bench|tests)\b.*"),
    (r"(bench|tools)\b", r"(l4kernels|bench|tools)\b.*"),
]


def sources(*folders: str):
    return [p for f in folders for p in sorted((ROOT / f).rglob("*")) if p.suffix in SUFFIXES]


def test_includes_obey_the_import_law():
    broken = []
    for path in sources("csrc", "emulator"):
        name = path.relative_to(ROOT).as_posix()
        rule = next(((re.fullmatch(a, name), b) for a, b in INCLUDES if re.fullmatch(a, name)))
        allowed = rule[0].expand(rule[1]) if "\\1" in rule[1] else rule[1]
        for included in re.findall(r'^\s*#include [<"](.+)[>"]', path.read_text(), re.M):
            if not re.fullmatch(allowed, included):
                broken.append(f"{name} includes {included}")
    assert not broken, "\n".join(broken)


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_imports_obey_the_import_law():
    broken = []
    for path in sources("l4kernels", "bench", "tools"):
        if path.suffix != ".py":  # microbenchmarks
            continue
        name = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        allowed = next(b for a, b in IMPORTS if re.match(a, name))
        for module in imported_modules(path):
            ours = re.match(r"(l4kernels|bench|tools|tests|emulator)\b", module)
            if ours and not re.fullmatch(allowed, module):
                broken.append(f"{name} imports {module}")
    assert not broken, "\n".join(broken)


def test_torch_is_a_guest_of_the_bindings_only():
    for path in sources("csrc"):
        if "bindings" not in path.parts:
            assert "torch" not in re.findall(r"#include [<\"](\w+)", path.read_text()), path


def test_assembly_lives_in_ptx_only():
    for path in sources("csrc"):
        if "ptx" not in path.relative_to(ROOT).parts:
            assert not re.search(r"\basm\b", path.read_text()), path


def test_integer_headers_are_plain_cpp():
    for path in sources("csrc/tile"):
        if path.suffix == ".h":
            assert "#include <cuda" not in path.read_text(), f"{path} must compile under g++"


@pytest.mark.parametrize("part", PARTS)
def test_files_can_be_read_in_one_sitting(part):
    sources = files(PARTS[part])
    assert sum(map(code_lines, sources)) > 0
    long = [f"{p.relative_to(ROOT)}: {lines(p)}" for p in sources if lines(p) > cap(p)]
    assert not long, "\n".join(long)


def test_tests_can_be_read_in_one_sitting():
    long = [str(p) for p in sources("tests") if lines(p) > 400]
    assert not long, "\n".join(long)


@pytest.mark.parametrize("folder", KERNELS, ids=lambda p: p.name)
def test_kernel_folder_is_complete(folder):
    for suffix in ("h", "cuh", "cu"):
        assert (folder / f"{folder.name}.{suffix}").exists(), suffix
    assert (folder / "budget.toml").exists()
    page = (ROOT / "docs" / "kernels" / f"{folder.name}.md").read_text()
    assert re.findall(r"^## (.+)$", page, re.M) == PAGE_HEADINGS


def test_links_of_the_pages_lead_somewhere():
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    links = [(p, to) for p in pages for to in re.findall(r"\]\(([^)#:]+)\)", p.read_text())]
    assert links
    broken = [f"{p.name}: {to}" for p, to in links if not (p.parent / to).exists()]
    assert not broken, "\n".join(broken)


def test_a_binding_exists_for_every_kernel():
    bindings = "".join(p.read_text() for p in sources("csrc/bindings"))
    for folder in KERNELS:
        assert f'"{folder.parent.name}/{folder.name}/{folder.name}.h"' in bindings, folder.name


def test_the_product_reads_three_environment_variables():
    text = "".join(p.read_text() for p in [*sources("csrc", "l4kernels"), ROOT / "setup.py"])
    asked = set(re.findall(r"(?:getenv|environ(?:\.get)?)[(\[]\s*[\"'](L4K_\w+)", text))
    assert asked <= {"L4K_LOG", "L4K_CHECK", "L4K_BUILD_CUDA"}, asked


def test_no_pickle_in_the_product():
    for path in sources("l4kernels"):
        text = path.read_text()
        assert not re.search(r"\bpickle\b|torch\.load\(|\beval\(|\bexec\(|shell=True", text), path
