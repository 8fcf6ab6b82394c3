"""The compiler's report of a kernel, and the budget it must stay within.

`python -m tools.budget NAME` compiles the .cu files of kernel NAME alone and prints registers,
spills, shared memory and SASS counts; tests/kernels/test_budgets.py compares them with budget.toml:

    [silu_mul_kernel]             # demangled name, template arguments included; the GEMM's by name
    threads = 128                 # per CTA, for the register pool
    registers = 32                # at most
    smem = 0                      # static bytes, exactly
    setmaxnreg = [40, 232, 232]   # per warpgroup, if the kernel reallocates registers
    sass = { "LDG.E.NA.128" = ">= 4", "HMMA" = "== 0" }   # instructions with that prefix
    turn = { "F2FP" = "<= 320" }  # instructions of a turn of the innermost loop around that prefix
    first_copy = "<= 150"         # instructions up to it, on the shortest way
    loop = { n_tiles = 1, slots_per_pair = "<= 3.6" }     # of the loop of products: tools/slots.py
    epilogue = { plain = "<= 300" }   # between the products of two tiles: tools/epilogue.py

Spills, stack and local memory are never allowed and need no line.
"""

import hashlib
import json
import re
import sys
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from l4kernels.emulation.toolchain import nvcc
from tools.epilogue import facts_of
from tools.gemm_configs import names_of_instances
from tools.nvcc import FLAGS, ROOT, cuobjdump, output_of
from tools.sass import first_copy, hot_loop, kernels, turn_of
from tools.slots import Slots, describe, slots_of

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

KERNELS = {p.name: p for room in ("kernels", "probes") for p in (ROOT / "csrc" / room).iterdir()}
"""The folder of each kernel."""

READERS = (
    "budget",
    "epilogue",
    "sass",
    "slots",
)  # what a cached report depends on besides the sources

# ptxas: setmaxnreg ignored (C7508); wgmma serialised for one reason or another (C7510 and on).
FORBIDDEN_NOTICES = ["C7508", *(f"C75{n}" for n in range(10, 30))]


@dataclass
class Report:
    """What ptxas and the disassembler say of one kernel."""

    registers: int = 0
    stack: int = 0
    spills: int = 0
    smem: int = 0
    notices: list[str] = field(default_factory=list)
    sass: dict[str, int] = field(default_factory=dict)
    turns: dict[str, int | None] = field(default_factory=dict)
    first_copy: int | None = None
    loop: Slots | None = None
    epilogue: dict[str, int] = field(default_factory=dict)

    def count(self, prefix: str) -> int:
        return sum(n for opcode, n in self.sass.items() if opcode.startswith(prefix))


def load_budget(kernel: str) -> dict[str, dict[str, Any]]:
    return tomllib.loads((KERNELS[kernel] / "budget.toml").read_text())


def reports(kernel: str) -> dict[str, Report]:
    """Demangled kernel name -> report, for every .cu of a kernel's folder. Cached by content."""
    found: dict[str, Report] = {}
    for source in sorted(KERNELS[kernel].glob("*.cu")):
        found |= _reports_of(source)
    return found


def violations(name: str, report: Report, budget: dict[str, Any]) -> list[str]:
    """Every way in which a kernel exceeds its budget, as sentences."""
    found = [f"{name}: ptxas notice {notice}" for notice in report.notices]
    for what, value in (("stack bytes", report.stack), ("spilled bytes", report.spills)):
        if value:
            found.append(f"{name}: {value} {what}, none allowed")
    for opcode in ("LDL", "STL"):
        if report.count(opcode):
            found.append(f"{name}: {report.count(opcode)} {opcode}, local memory is not allowed")
    if report.registers > budget["registers"]:
        found.append(f"{name}: {report.registers} registers, budget {budget['registers']}")
    if report.smem != budget["smem"]:
        found.append(f"{name}: {report.smem} bytes of static shared memory, not {budget['smem']}")
    for prefix, rule in budget.get("sass", {}).items():
        if not holds(report.count(prefix), rule):
            found.append(f"{name}: {report.count(prefix)} {prefix}, expected {rule}")
    for prefix, rule in budget.get("turn", {}).items():
        turn = report.turns.get(prefix)
        if turn is None or not holds(turn, rule):
            found.append(f"{name}: {turn} instructions a turn around {prefix}, expected {rule}")
    way, rule = report.first_copy, budget.get("first_copy")
    if rule and (way is None or not holds(way, rule)):
        found.append(f"{name}: {way} instructions to a copy, expected {rule}")
    found += [f"{name}: {problem}" for problem in _loop_violations(report, budget.get("loop"))]
    for what, rule in budget.get("epilogue", {}).items():
        if what not in report.epilogue or not holds(report.epilogue[what], rule):
            found.append(f"{name}: {report.epilogue.get(what)} {what} of its epilogue, not {rule}")
    if warpgroups := budget.get("setmaxnreg"):
        pool = round_up(report.registers, 8) * budget["threads"]
        if 128 * sum(warpgroups) > pool:
            found.append(f"{name}: setmaxnreg asks for {128 * sum(warpgroups)}, pool {pool}: hangs")
    return found


def holds(value: float, rule: str) -> bool:
    """Whether a number keeps a rule such as `>= 4`."""
    relation, number = rule.split()
    limit = float(number)
    return {">=": value >= limit, "==": value == limit, "<=": value <= limit}[relation]


def _loop_violations(report: Report, rules: dict[str, Any] | None) -> list[str]:
    if rules is None:
        return []
    if report.loop is None:
        return ["no loop of products, but a budget for one"]
    facts = report.loop.facts(rules["n_tiles"])
    return [
        f"{facts[what]:.2f} {what}, expected {rule}"
        for what, rule in rules.items()
        if what != "n_tiles" and not holds(facts[what], rule)
    ]


def round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def _reports_of(source: Path) -> dict[str, Report]:
    compiler, disassembler = nvcc(), cuobjdump()
    if compiler is None or disassembler is None:
        raise RuntimeError("expected nvcc and cuobjdump; `make venv` brings both")
    headers = sorted(p for p in (ROOT / "csrc").rglob("*.*h") if p.suffix in (".h", ".cuh"))
    inputs = b"".join(p.read_bytes() for p in [*headers, *sorted(source.parent.glob("*")), source])
    inputs += b"".join(Path(ROOT, "tools", f"{name}.py").read_bytes() for name in READERS)
    key = hashlib.sha256(inputs + str((source, FLAGS, compiler)).encode()).hexdigest()[:16]
    folder = ROOT / "build" / "budget"
    cache = folder / f"{source.stem}.{key}.json"
    if cache.exists():
        return {name: _report(facts) for name, facts in json.loads(cache.read_text()).items()}
    folder.mkdir(parents=True, exist_ok=True)
    cubin = folder / f"{source.stem}.{key}.cubin"
    log = output_of(compiler, *FLAGS, "-Xptxas=-v", "-cubin", str(source), "-o", str(cubin))
    found = _parse_ptxas(log)
    budgets = load_budget(source.parent.name).values()
    around = {prefix for budget in budgets for prefix in budget.get("turn", {})}
    _read_sass(output_of(disassembler, "-sass", str(cubin)), found, around)
    demangled = output_of("c++filt", *found).splitlines()
    named = {_short(d): r for d, r in zip(demangled, found.values(), strict=True)}
    cubin.unlink()
    cache.write_text(json.dumps({name: asdict(r) for name, r in named.items()}))
    return named


def _report(facts: dict[str, Any]) -> Report:
    """A report from the cache."""
    loop = facts.pop("loop")
    return Report(**facts, loop=loop and Slots(**loop))


def _short(demangled: str) -> str:
    """`void l4k::gemm_kernel<0>(l4k::GemmParams)` -> `gemm_kernel<bf16_128x256>`"""
    name = demangled.removeprefix("void ").split("(")[0]
    if instance := re.fullmatch(r"l4k::(gemm_kernel|w4_gemm_kernel)<(\d+)>", name):
        return f"{instance[1]}<{names_of_instances()[instance[1]][int(instance[2])]}>"
    return name.rsplit("l4k::", 1)[-1] if "<" not in name else name.removeprefix("l4k::")


def _parse_ptxas(log: str) -> dict[str, Report]:
    found: dict[str, Report] = {}
    current: Report | None = None
    for line in log.splitlines():
        if match := re.search(r"Compiling entry function '(\w+)'", line):
            current = found.setdefault(match.group(1), Report())
        elif current is None:
            continue
        elif match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores", line):
            current.stack, current.spills = int(match.group(1)), int(match.group(2))
        elif match := re.search(r"Used (\d+) registers", line):
            current.registers = int(match.group(1))
            if smem := re.search(r"(\d+) bytes smem", line):
                current.smem = int(smem.group(1))
    for notice in re.findall(r"\((C75\d\d)\)[^\n]*?'(\w+)'", log):
        if notice[0] in FORBIDDEN_NOTICES and notice[1] in found:
            found[notice[1]].notices.append(notice[0])
    # A notice that names no kernel counts against all of them.
    for code in set(re.findall(r"\((C75\d\d)\)", log)) & set(FORBIDDEN_NOTICES):
        if not any(code in r.notices for r in found.values()):
            for r in found.values():
                r.notices.append(code)
    return found


def _read_sass(text: str, found: dict[str, Report], around: set[str]) -> None:
    for name, code in kernels(text):
        if report := found.get(name):
            report.sass = dict(Counter(i.opcode for i in code))
            report.turns = {prefix: turn_of(code, prefix) for prefix in around}
            report.first_copy = first_copy(code)
            loop = hot_loop(code)
            report.loop = loop and slots_of(loop)
            report.epilogue = facts_of(code)


def main(names: list[str]) -> int:
    failed = 0
    if unknown := sorted(set(names) - set(KERNELS)):
        print(f"no such kernel: {', '.join(unknown)}; there are: {', '.join(sorted(KERNELS))}")
        return 2
    for kernel in names or sorted(KERNELS):
        budgets = load_budget(kernel) if (KERNELS[kernel] / "budget.toml").exists() else {}
        for name, report in reports(kernel).items():
            print(
                f"{name}: {report.registers} registers, {report.spills} spilled, "
                f"{report.smem} bytes static smem"
            )
            if report.loop:
                tiles = budgets.get(name, {}).get("loop", {}).get("n_tiles", 1)
                print(f"    {describe(report.loop, tiles)}")
            if report.epilogue:
                print(f"    epilogue: {report.epilogue}")
            for prefix, turn in report.turns.items():
                print(f"    {turn} instructions a turn around {prefix}")
            for opcode, n in sorted(report.sass.items(), key=lambda item: -item[1])[:24]:
                print(f"    {n:5d} {opcode}")
            problems = violations(name, report, budgets[name]) if name in budgets else []
            failed += len(problems)
            print("\n".join(problems) or f"    within budget: {name in budgets}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
