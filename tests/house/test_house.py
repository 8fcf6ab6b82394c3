"""The house rules on what lives where, what a kernel consists of, and what the product reads."""

import re

import pytest

from tools import budget
from tools.nvcc import ROOT
from tools.size import SUFFIXES

KERNELS = [folder for _, folder in sorted(budget.KERNELS.items())]
PAGE_HEADINGS = ["What", "Floor", "Design", "Compiled", "Measured", "Did not work", "Next"]


def sources(*folders: str):
    return [p for f in folders for p in sorted((ROOT / f).rglob("*")) if p.suffix in SUFFIXES]


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


@pytest.mark.parametrize("folder", KERNELS, ids=lambda p: p.name)
def test_kernel_folder_is_complete(folder):
    for suffix in ("h", "cuh", "cu"):
        assert (folder / f"{folder.name}.{suffix}").exists(), suffix
    assert (folder / "budget.toml").exists()
    page = (ROOT / "docs" / "kernels" / f"{folder.name}.md").read_text()
    assert re.findall(r"^## (.+)$", page, re.M) == PAGE_HEADINGS


def test_links_of_the_pages_lead_somewhere():
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    links = [(p, to) for p in pages for to in re.findall(r"\]\(([^)#:]+)\)", p.read_text())]
    assert links
    broken = [f"{p.name}: {to}" for p, to in links if not (p.parent / to).exists()]
    assert not broken, "\n".join(broken)


def test_a_binding_exists_for_every_kernel():
    bindings = "".join(p.read_text() for p in sources("csrc/bindings"))
    for folder in KERNELS:
        assert f'"{folder.parent.name}/{folder.name}/{folder.name}.h"' in bindings, folder.name


def test_the_product_reads_three_environment_variables():
    """And `l4k emulate` two more, of the emulator's."""
    asked = {True: set(), False: set()}
    for path in [*sources("csrc", "l4kernels"), ROOT / "setup.py"]:
        found = re.findall(r"(?:getenv|environ(?:\.get)?)[(\[]\s*[\"'](L4K_\w+)", path.read_text())
        asked["emulation" in path.parts].update(found)
    assert asked[False] <= {"L4K_LOG", "L4K_CHECK", "L4K_BUILD_CUDA"}, asked
    assert asked[True] <= {"L4K_EMU", "L4K_EMULATOR_LIBRARY"}, asked


def test_no_pickle_in_the_product():
    for path in sources("l4kernels"):
        text = path.read_text()
        assert not re.search(r"\bpickle\b|torch\.load\(|\beval\(|\bexec\(|shell=True", text), path


def test_hooks_and_ci_call_targets_of_the_makefile():
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
    for caller in (".pre-commit-config.yaml", ".ci/run"):
        called = re.findall(r"^(?: *entry: )?make ([\w-]+)$", (ROOT / caller).read_text(), re.M)
        assert called and {*called} <= {*targets}, caller
