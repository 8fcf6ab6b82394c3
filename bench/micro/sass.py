"""The loops of a program's machine code, held against what `programs` says of them."""

import re
from pathlib import Path

from tools.nvcc import cuobjdump, output_of
from tools.sass import instructions

from .programs import LOCAL, Code

Opcodes = list[str]


class Kernel:
    """A kernel's instructions by address."""

    def __init__(self, text: str):
        self.name = text.split(maxsplit=1)[0]
        found = instructions(text)
        self.opcodes: Opcodes = [i.opcode for i in found]
        self.loops: list[Opcodes] = []
        for last in found:
            if last.target is not None and last.target < last.at:
                self.loops.append([i.opcode for i in found if last.target <= i.at <= last.at])
        self.loops.sort(key=len)


def is_a(opcode: str, prefix: str) -> bool:
    return opcode == prefix or opcode.startswith(prefix + ".")


def count(opcodes: Opcodes, prefix: str) -> int:
    return sum(is_a(opcode, prefix) for opcode in opcodes)


def kernels(program: Path) -> list[Kernel]:
    disassembler = cuobjdump()
    if disassembler is None:
        raise RuntimeError("expected cuobjdump: `make venv` brings it")
    text = output_of(disassembler, "-sass", str(program))
    return [Kernel(part) for part in text.split("Function : ")[1:]]


def problems(found: list[Kernel], code: tuple[Code, ...]) -> list[str]:
    """Every way in which the machine code is not what the program says of it."""
    wrong = [f"{k.name}: {op}" for k in found for op in LOCAL if count(k.opcodes, op)]
    for fact in code:
        fitting = [kernel for kernel in found if re.search(fact.kernel, kernel.name)]
        wrong += [f"no kernel is called {fact.kernel}"] * (not fitting)
        for kernel in fitting:
            wrong += [f"{kernel.name}: {problem}" for problem in _problems_of(kernel, fact)]
    return wrong


def _problems_of(kernel: Kernel, fact: Code) -> list[str]:
    wanted = [opcode for opcode, n in fact.holds.items() if n]
    parts = [kernel.opcodes] if fact.whole else kernel.loops
    part = next((p for p in parts if all(count(p, opcode) for opcode in wanted)), None)
    if part is None:
        return [f"no loop with {', '.join(wanted)}"]
    counts = {opcode: count(part, opcode) for opcode in fact.holds}
    wrong = [f"{n} {op}, not {fact.holds[op]}" for op, n in counts.items() if n != fact.holds[op]]
    wrong += [f"{opcode} in the timed part" for opcode in fact.without if count(part, opcode)]
    order = " ".join(key for op in part for key in fact.holds if is_a(op, key))
    if fact.order and order != fact.order:
        wrong.append(f"the order is {order}")
    return wrong
