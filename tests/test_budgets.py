"""The compiler's report of every kernel stays within its budget."""

import re

import pytest

from l4kernels._load import LIBRARY_PATH
from tools import budget
from tools.budget import KERNELS, Report, violations
from tools.nvcc import cuobjdump, output_of

NAMES = sorted(p.name for p in KERNELS.iterdir())


@pytest.mark.parametrize("kernel", NAMES)
def test_kernel_is_within_its_budget(kernel):
    budgets, reports = budget.load_budget(kernel), budget.reports(kernel)
    assert set(budgets) == set(reports), "budget.toml must name exactly the compiled kernels"
    problems = [
        p for name, report in reports.items() for p in violations(name, report, budgets[name])
    ]
    assert not problems, "\n".join(problems)


def test_the_library_stays_quick_to_compile():
    assert sum(len(budget.load_budget(kernel)) for kernel in NAMES) <= 60


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


def test_no_kernel_touches_memory_before_it_waits_for_its_predecessor():
    """In the machine code: a compiler may move a load that looks read-only over the wait."""
    access = re.compile(r"(LDG|STG|LDGSTS|LD|ST|ATOM|ATOMG|RED|REDG|UTMALDG|UTMASTG|UBLKCP)(\.|$)")
    kernels = output_of(cuobjdump(), "-sass", str(LIBRARY_PATH)).split("Function : ")[1:]
    assert len(kernels) > 40
    for text in kernels:
        name, body = text.split("\n", 1)
        opcodes = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*)", body, re.M)
        first = next(opcode for opcode in opcodes if opcode == "ACQBULK" or access.match(opcode))
        assert first == "ACQBULK", f"{name}: {first} before griddepcontrol.wait"
