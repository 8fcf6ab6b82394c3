"""A kernel's machine code: its instructions, its loops, and the way a warp takes around one.

`hot_loop` finds the loop of tensor-core products and tells what every turn issues from what a turn
issues now and then (a retried wait, the end of a row). The hot way is the shortest of those that
pass the most products: a turn cannot issue less. What the loop holds besides is counted as `rare`,
so that neither number can shrink by moving work from one to the other.
"""

import heapq
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

INSTRUCTION = re.compile(
    r"/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+) )?([A-Z]\w*(?:\.\w+)*)([^;]*);", re.M
)
PRODUCT = "HMMA"
WAITS = ("SYNCS.PHASECHK", "NANOSLEEP")
COPIES = ("LDGSTS", "UBLKCP", "UTMALDG")
JUMPS, ENDS = ("BRA", "JMP"), ("EXIT", "RET", "BPT", "KILL")
UNKNOWN_WAY = ("BRX", "JMX", "BRXU", "JMXU")
SUBSET = ("DIV", "CONV")  # BRA.DIV: taken if the lanes have parted


class Instruction(NamedTuple):
    at: int
    predicate: str  # empty: always
    opcode: str
    operands: str

    @property
    def name(self) -> str:
        return self.opcode.split(".")[0]

    @property
    def target(self) -> int | None:
        found = re.findall(r"0x([0-9a-f]+)", self.operands)
        return int(found[-1], 16) if self.name in JUMPS and found else None

    @property
    def falls_through(self) -> bool:
        if self.predicate or self.name not in JUMPS + ENDS:
            return True
        parts = self.opcode.split(".")
        return any(p in SUBSET for p in parts) or bool(re.match(r"\s*!?U?P\d", self.operands))


def kernels(disassembly: str) -> Iterator[tuple[str, list[Instruction]]]:
    """Mangled name and instructions of each kernel of a `cuobjdump -sass`."""
    for part in disassembly.split("Function : ")[1:]:
        name, _, body = part.partition("\n")
        yield name.strip(), instructions(body)


def instructions(text: str) -> list[Instruction]:
    return [Instruction(int(at, 16), *rest) for at, *rest in INSTRUCTION.findall(text)]


@dataclass(frozen=True)
class HotLoop:
    opcodes: list[str]  # of a turn, in order
    rare: int  # instructions of the loop that such a turn leaves out

    @property
    def products(self) -> int:
        return sum(op.startswith(PRODUCT) for op in self.opcodes)


class Flow:
    """Basic blocks from one entry: block -> instructions, successors, dominators."""

    def __init__(self, code: list[Instruction], product: str = PRODUCT):
        self.product = product
        starts = {code[0].at} | {i.target for i in code if i.target is not None}
        starts |= {b.at for a, b in pairwise(code) if ends_block(a)}
        self.blocks: dict[int, list[Instruction]] = {}
        block: list[Instruction] = []
        for i in code:
            if i.at in starts:
                block = self.blocks.setdefault(i.at, [])
            block.append(i)
        order = list(self.blocks)
        self.successors: dict[int, list[int]] = {}
        for at, following in zip(order, [*order[1:], None], strict=True):
            last = self.blocks[at][-1]
            ways = [following] if last.falls_through else []
            self.successors[at] = [w for w in (*ways, last.target) if w in self.blocks]
        self.order = self._reverse_post_order(code[0].at)
        self.dominators = self._dominators()

    def _reverse_post_order(self, entry: int) -> list[int]:
        order, seen, stack = [], {entry}, [(entry, iter(self.successors[entry]))]
        while stack:
            at, ways = stack[-1]
            fresh = next((w for w in ways if w not in seen), None)
            if fresh is None:
                order.append(at)
                stack.pop()
            else:
                seen.add(fresh)
                stack.append((fresh, iter(self.successors[fresh])))
        return order[::-1]

    def _dominators(self) -> dict[int, set[int]]:
        entry, before = self.order[0], self.predecessors()
        found = {at: set(self.order) for at in self.order} | {entry: {entry}}
        changed = True
        while changed:
            changed = False
            for at in self.order[1:]:
                new = {at} | set.intersection(*(found[p] for p in before[at]))
                changed |= new != found[at]
                found[at] = new
        return found

    def predecessors(self) -> dict[int, list[int]]:
        before: dict[int, list[int]] = {at: [] for at in self.order}
        for at in self.order:
            for way in self.successors[at]:
                before[way].append(at)
        return before

    def is_back(self, at: int, way: int) -> bool:
        return way in self.dominators[at]

    def loops(self) -> dict[int, set[int]]:
        """Header -> blocks of its natural loop."""
        before = self.predecessors()
        found: dict[int, set[int]] = {}
        for at in self.order:
            for header in (w for w in self.successors[at] if self.is_back(at, w)):
                body, todo = found.setdefault(header, {header}), [at]
                while todo:
                    if (block := todo.pop()) not in body:
                        body.add(block)
                        todo += before[block]
        return found

    def products(self, at: int) -> int:
        return sum(i.opcode.startswith(self.product) for i in self.blocks[at])


def first_copy(code: list[Instruction]) -> int | None:
    """Instructions on the shortest way from the entry to a copy into shared memory, itself among
    them; None if no way leads to one. No warp gets there with fewer."""
    flow = Flow(code)
    reached, best = {flow.order[0]: 0}, None
    todo = [(0, flow.order[0])]
    while todo:
        before, at = heapq.heappop(todo)
        block = flow.blocks[at]
        copies = (n for n, i in enumerate(block, before + 1) if i.name in COPIES)
        if (found := next(copies, None)) is not None:
            best = found if best is None else min(best, found)
            continue
        after = before + len(block)
        for way in flow.successors[at]:
            if after < reached.get(way, after + 1):
                reached[way] = after
                heapq.heappush(todo, (after, way))
    return best


def ends_block(i: Instruction) -> bool:
    return i.name in JUMPS + ENDS + UNKNOWN_WAY


def hot_loop(code: list[Instruction]) -> HotLoop | None:
    """Of every loop's turns that stay out of the loops of products inside it, the one with the most
    products; of several the longest."""
    if not any(i.opcode.startswith(PRODUCT) for i in code):
        return None
    flow = Flow(code)
    loops = {h: body for h, body in flow.loops().items() if any(map(flow.products, body))}
    ways = []
    for header, body in loops.items():
        allowed = body.difference(*(loops[h] for h in loops.keys() & body - {header}))
        if (way := _way_around(flow, header, allowed)) and any(map(flow.products, way)):
            hot = [i for at in way for i in flow.blocks[at]]
            ways.append((sum(map(flow.products, way)), len(hot), header, hot, allowed))
    if not ways:
        return None
    _, _, header, hot, allowed = max(ways, key=lambda w: w[:2])
    _refuse_loops(flow, header, allowed)
    if unclear := [i for i in hot if i.name in (*UNKNOWN_WAY, "CALL")]:
        raise ValueError(f"{unclear[0].opcode} at {unclear[0].at:#x} in the loop of products")
    every = sum(len(flow.blocks[at]) for at in loops[header])
    return HotLoop([i.opcode for i in hot], every - len(hot))


def turn_of(code: list[Instruction], opcode: str) -> int | None:
    """Instructions of a turn of the innermost loop around an opcode: of those that pass the most of
    them, the shortest. None if no loop has any."""
    flow = Flow(code, opcode)
    loops = [
        (len(body), h, body) for h, body in flow.loops().items() if any(map(flow.products, body))
    ]
    if not loops:
        return None
    _, header, body = min(loops, key=lambda loop: loop[:2])
    return sum(len(flow.blocks[at]) for at in _way_around(flow, header, body))


def _way_around(flow: Flow, header: int, allowed: set[int]) -> list[int]:
    """From the header back to it: most products, then fewest instructions. Empty if none is."""
    best: dict[int, tuple[int, int, list[int]]] = {}
    for at in reversed([b for b in flow.order if b in allowed]):
        ways = flow.successors[at]
        ends = [(0, 0, [])] if header in ways else []
        ends += [best[w] for w in ways if w in best and not flow.is_back(at, w)]
        if ends:
            products, cost, path = max(ends, key=lambda e: e[:2])
            own = flow.blocks[at]
            best[at] = (products + flow.products(at), cost - len(own), [at, *path])
    return best[header][2] if header in best else []


def _refuse_loops(flow: Flow, header: int, allowed: set[int]) -> None:
    for inner, blocks in flow.loops().items():
        names = [i.opcode for at in blocks for i in flow.blocks[at]]
        if inner in allowed - {header} and not any(name.startswith(WAITS) for name in names):
            raise ValueError(
                f"a loop at {inner:#x} inside the one of products at {header:#x} waits for "
                "nothing: how often it turns is not known; unroll it"
            )
