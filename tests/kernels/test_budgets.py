"""The compiler's report of every kernel stays within its budget."""

import re

import pytest

from l4kernels.ops.library import LIBRARY_PATH
from tools import budget
from tools.budget import KERNELS, Report, violations
from tools.nvcc import cuobjdump, output_of

NAMES = sorted(KERNELS)


@pytest.mark.parametrize("kernel", NAMES)
def test_kernel_is_within_its_budget(kernel):
    budgets, reports = budget.load_budget(kernel), budget.reports(kernel)
    assert set(budgets) == set(reports), "budget.toml must name exactly the compiled kernels"
    problems = [
        p for name, report in reports.items() for p in violations(name, report, budgets[name])
    ]
    assert not problems, "\n".join(problems)


def test_the_library_stays_quick_to_compile():
    assert sum(len(budget.load_budget(kernel)) for kernel in NAMES) <= 81


def test_every_kind_of_violation_is_seen():
    bad = Report(
        registers=168, stack=8, spills=4, smem=16, notices=["C7510"], sass={"LDL.64": 1, "HMMA": 2}
    )
    limits = {
        "threads": 384,
        "registers": 160,
        "smem": 0,
        "setmaxnreg": [24, 248, 248],
        "sass": {"HGMMA": ">= 1", "HMMA": "== 0"},
    }
    found = "\n".join(violations("k", bad, limits))
    for expected in (
        "notice C7510",
        "8 stack bytes",
        "4 spilled bytes",
        "1 LDL",
        "168 registers, budget 160",
        "16 bytes of static shared memory",
        "0 HGMMA, expected >= 1",
        "2 HMMA, expected == 0",
        "setmaxnreg asks for 66560, pool 64512",
    ):
        assert expected in found


ACCESS = re.compile(r"(LDG|STG|LDGSTS|LD|ST|ATOM|ATOMG|RED|REDG|UTMALDG|UTMASTG|UBLKCP)(\.|$)")


@pytest.fixture(scope="module")
def machine_code():
    """Opcodes of every kernel of the library, in their order."""
    kernels = output_of(cuobjdump(), "-sass", str(LIBRARY_PATH)).split("Function : ")[1:]
    assert len(kernels) > 40
    opcode = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*)", re.M)
    return {name: opcode.findall(body) for name, body in (k.split("\n", 1) for k in kernels)}


def test_no_kernel_touches_memory_before_it_waits_for_its_predecessor(machine_code):
    """A compiler may move a load that looks read-only over the wait."""
    for name, opcodes in machine_code.items():
        first = next(op for op in opcodes if op == "ACQBULK" or ACCESS.match(op))
        assert first == "ACQBULK", f"{name}: {first} before griddepcontrol.wait"


def test_no_kernel_takes_memory_for_constant(machine_code):
    """ld.global.nc: a predecessor may still write when the kernel is resident already."""
    for name, opcodes in machine_code.items():
        constant = {op for op in opcodes if op.startswith("LDG") and "CONSTANT" in op}
        assert not constant, f"{name}: {constant}"


def test_no_cluster_starts_with_a_fence_as_wide_as_the_gpu(machine_code):
    clusters = 0
    for name, opcodes in machine_code.items():
        if "UCGABAR_ARV" not in opcodes:
            continue
        clusters += 1
        before = opcodes[: opcodes.index("UCGABAR_WAIT")]
        assert not [op for op in before if op.startswith("MEMBAR") and "CTA" not in op], name
    assert clusters > 10
