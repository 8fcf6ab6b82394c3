"""What a consumer warp of a persistent product issues between two tiles, by kind of epilogue.

The way of a tile leads from the head of the loop over tiles back to it. Of all ways the one that
passes most of what a kind is made of is that kind's, of several the shortest. What the loop of
products in it issues is left out. tests/kernels/test_budgets.py holds the numbers to

    epilogue = { plain = "<= 300", residual_waits = "== 0" }

where `KIND` are instructions and `KIND_waits` how often they stand still for a load from global
memory: loads that are on their way together are waited for once. The timing model takes the
instructions from there.
"""

import re

from tools.sass import Flow, Instruction

PRODUCTS = ("HGMMA", "QGMMA")
KINDS = {  # opcodes and what they count
    "plain": {"UTMASTG": 100, "LDSM": -10},
    "scaled": {"UTMASTG": 100, "LDSM": -10, "LDG.E.64": 1},
    "biased": {"UTMASTG": 100, "LDSM": -10, "LDG": 1},
    "residual": {"UTMASTG": 100, "LDSM": 10},
    "swiglu": {"MUFU": 100, "UTMASTG": 100, "LDSM": -10},
    "codes": {"MUFU": 100, "F2FP.SATFINITE.E4M3": 100},
    "direct": {"LDG": 100, "STG": 100, "MUFU": -1000},
}


def facts_of(code: list[Instruction]) -> dict[str, int]:
    """What a budget may hold; nothing of a kernel whose results do not leave by TMA, or that has no
    loop over tiles."""
    if not {*PRODUCTS, "UTMASTG"} & {i.name for i in code} > {"UTMASTG"}:
        return {}
    flow = Flow(code)
    loops = {h: b for h, b in flow.loops().items() if any(_multiplies(flow, at) for at in b)}
    if not loops:
        return {}
    head = max(loops, key=lambda h: len(loops[h]))
    inner = set().union(*(blocks for h, blocks in loops.items() if h != head))
    facts = {}
    for kind, wanted in KINDS.items():
        blocks = [at for at in _way(flow, head, loops[head], wanted) if at not in inner]
        way = [i for at in blocks for i in flow.blocks[at]]
        if all(any(i.opcode.startswith(op) for i in way) for op, n in wanted.items() if n > 0):
            facts |= {kind: len(way), f"{kind}_waits": _waits(way)}
    return facts


def _multiplies(flow: Flow, at: int) -> bool:
    return any(i.opcode.startswith(PRODUCTS) for i in flow.blocks[at])


def _way(flow: Flow, head: int, body: set[int], wanted: dict[str, int]) -> list[int]:
    best: dict[int, tuple[int, int, list[int]]] = {}
    for at in reversed([b for b in flow.order if b in body]):
        successors, own = flow.successors[at], flow.blocks[at]
        ends = [(0, 0, [])] if head in successors else []
        ends += [best[w] for w in successors if w in best and not flow.is_back(at, w)]
        if ends:
            gain, cost, path = max(ends, key=lambda e: e[:2])
            gain += sum(n for i in own for op, n in wanted.items() if i.opcode.startswith(op))
            best[at] = gain, cost - len(own), [at, *path]
    return best[head][2]


def _waits(way: list[Instruction]) -> int:
    """How often a register is read that is still to come from global memory."""
    coming: set[int] = set()
    count = 0
    for i in way:
        registers = [int(r) for r in re.findall(r"\bR(\d+)", i.operands)]
        if coming & set(registers):
            count += 1
            coming.clear()
        if i.name == "LDG":
            width = 2 if ".64" in i.opcode else 4 if ".128" in i.opcode else 1
            coming |= set(range(registers[0], registers[0] + width))
    return count
