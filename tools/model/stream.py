"""Kernels that read weights once, as the memory sees them: dependent launches on all SMs.

Every CTA is simulated: it comes when its SM has room and the launch before has been triggered,
fills its ring (before `griddepcontrol.wait`, if weights are static), waits for its predecessor,
reads activations from L2, consumes stages, and hands the sums of each run to the warps that finish
it. Nothing about values; arithmetic is a number of cycles for each stage, counted in SASS.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from . import rates
from .engine import CHUNK, SM, Engine, Gate, Machine, Process, memory

CHAIN, FIRST, LAST = 8, 1, 6  # launches; the period is taken between two with neighbours
Runs = tuple[tuple[int, float], ...]
"""Of a CTA: bytes of weights of one result's sums, and the cycles that finish them."""


@dataclass(frozen=True)
class Kernel:
    """What one launch does, CTA by CTA."""

    shares: tuple[Runs, ...]
    stage: int  # bytes
    stages: int
    stage_cycles: float = 0.0  # from a full stage to its release
    run_change: float = 0.0  # cycles of the consumers between two runs
    finishers: int = 0  # warps that finish runs in turn; 0: the consumers do
    end: float = 0.0  # cycles from the last result to the CTA's end
    per_sm: int = 1  # CTAs that fit
    static: bool = False  # the ring fills before the wait
    trigger: str = (
        "start"  # of the next launch; or after the "wait", "loaded" by the last copy, "end"
    )
    activations: int = 0  # bytes that each CTA reads from L2 after the wait
    prefetch: int = 0  # bytes that each CTA asks of L2 before the wait
    cached: tuple[float, ...] = ()  # the part of each CTA's weights that was asked for by then


@dataclass(frozen=True)
class Answer:
    single_us: float  # one launch
    chained_us: float  # each launch of a dependent chain
    spread_us: float  # between the first and the last CTA's end


def machine(**changes: float) -> Machine:
    """An H200 by what was measured on one: [stream] of constants.toml goes before the rest."""
    own = {name: entry["value"] for name, entry in rates.constants()["stream"].items()} | changes
    clock = own.pop("stream_clock")
    facts = vars(rates.machine("h200", clock)) | own
    facts["dram_rate"] = facts["stream_rate"] * 1e6 / clock / facts["sms"]
    return Machine(**facts)


class Chain:
    """Launches, each dependent on the one before."""

    def __init__(self, launches: Sequence[Kernel], machine: Machine):
        self.launches, self.machine, self.engine = launches, machine, Engine()
        servers = memory(machine, machine.sms, machine.sms)
        self.sms = [SM(self.engine, one, servers) for one in near_and_far(machine)]
        self.freed = [Gate(self.engine) for _ in self.sms]
        self.taken: defaultdict[int, float] = defaultdict(float)  # of each SM's room
        self.triggered = [Gate(self.engine) for _ in launches]
        self.ended = [Gate(self.engine) for _ in launches]
        self.ends: list[list[float]] = [[] for _ in launches]
        for launch, kernel in enumerate(launches):
            for cta in range(len(kernel.shares)):
                self.engine.start(self._run(launch, cta))
        self.engine.run()

    def _run(self, launch: int, number: int) -> Process:
        kernel, m, engine = self.launches[launch], self.machine, self.engine
        place, room = number % len(self.sms), 1 / kernel.per_sm
        before = len(self.launches[launch - 1].shares) if launch else 0
        yield self.triggered[launch - 1], before
        while self.taken[place] + room > 1.001:
            yield self.freed[place], self.freed[place].value + 1
        self.taken[place] += room
        yield engine.now + m.cta_start
        cached = kernel.cached[number] if kernel.cached else 0.0
        cta = Cta(self.sms[place], kernel, kernel.shares[number], cached)
        if kernel.trigger == "start":
            self.triggered[launch].add()
        elif kernel.trigger == "loaded":
            engine.start(self._trigger(launch, cta), engine.now)
        engine.start(cta.prefetch(), engine.now)
        if kernel.static:
            engine.start(cta.produce(), engine.now)
        if launch:
            yield self.ended[launch - 1], before
            yield engine.now + m.hand_over
        if kernel.trigger == "wait":
            self.triggered[launch].add()
        if not kernel.static:
            engine.start(cta.produce(), engine.now)
        yield from cta.consume()
        yield engine.now + kernel.end
        self.taken[place] -= room
        self.freed[place].add()
        self.ends[launch].append(engine.now)
        self.ended[launch].add()
        if kernel.trigger == "end":
            self.triggered[launch].add()

    def _trigger(self, launch: int, cta: "Cta") -> Process:
        yield cta.copies, len(cta.sizes)
        self.triggered[launch].add()


class Cta:
    def __init__(self, sm: SM, kernel: Kernel, runs: Runs, cached: float = 0.0):
        engine, wake = sm.engine, sm.machine.barrier_wake
        self.sm, self.kernel, self.runs, self.engine = sm, kernel, runs, engine
        self.miss, self.fetched = 1 - cached, engine.now
        self.sizes = list(cut(sum(size for size, _ in runs), kernel.stage))
        self.full = [Gate(engine, wake) for _ in range(kernel.stages)]
        self.empty = [Gate(engine, wake) for _ in range(kernel.stages)]
        self.tokens = Gate(engine, wake)
        self.sums_full = [Gate(engine, wake) for _ in range(kernel.finishers)]
        self.sums_empty = [Gate(engine, wake) for _ in range(kernel.finishers)]
        self.finished, self.copies = Gate(engine), Gate(engine)

    def prefetch(self) -> Process:
        """From memory into L2, a chunk as often as the SM's port could take one."""
        for size in cut(self.kernel.prefetch, CHUNK):
            self.fetched = self.sm.dram.take(self.engine.now, size)
            yield self.engine.now + size / self.sm.machine.port_rate

    def produce(self) -> Process:
        stages = self.kernel.stages
        if self.miss < 1:
            yield self.fetched
        for i, size in enumerate(self.sizes):
            yield self.empty[i % stages], i // stages
            self.sm.load(size, self.miss, [(self.sm, self.full[i % stages])])
            self.copies.add()

    def consume(self) -> Process:
        kernel, engine = self.kernel, self.engine
        for finisher in range(kernel.finishers):
            engine.start(self._finish(finisher), engine.now)
        if kernel.activations:
            self.sm.load(kernel.activations, 0.0, [(self.sm, self.tokens)])
            yield self.tokens, 1
        index, left = 0, self.runs[0][0]
        for i, size in enumerate(self.sizes):
            yield self.full[i % kernel.stages], i // kernel.stages + 1
            while size:
                part = min(size, left)
                size, left = size - part, left - part
                yield engine.now + kernel.stage_cycles * part / kernel.stage
                if left == 0:
                    yield from self._hand_over(index)
                    index += 1
                    left = self.runs[index][0] if index < len(self.runs) else 0
            self.empty[i % kernel.stages].add()
        yield self.finished, len(self.runs)

    def _hand_over(self, index: int) -> Process:
        kernel = self.kernel
        yield self.engine.now + kernel.run_change
        if kernel.finishers:
            turn, finisher = divmod(index, kernel.finishers)
            yield self.sums_empty[finisher], turn
            self.sums_full[finisher].add()
        else:
            yield self.engine.now + self.runs[index][1]
            self.finished.add()

    def _finish(self, finisher: int) -> Process:
        step, read = self.kernel.finishers, self.sm.machine.sums_read
        for turn, index in enumerate(range(finisher, len(self.runs), step)):
            yield self.sums_full[finisher], turn + 1
            yield self.engine.now + read
            self.sums_empty[finisher].add()
            yield self.engine.now + self.runs[index][1]
            self.finished.add()


def near_and_far(machine: Machine) -> Iterator[Machine]:
    """SMs are not equally far from memory: none to all of `latency_spread` more, dealt out."""
    for i in range(machine.sms):
        more = machine.latency_spread * (i * 37 % machine.sms) / (machine.sms - 1)
        yield Machine(**vars(machine) | {"dram_latency": machine.dram_latency + more})


def cut(size: int, stage: int) -> Iterator[int]:
    for begin in range(0, size, stage):
        yield min(stage, size - begin)


def simulate(kernel: Kernel, machine: Machine) -> Answer:
    alone, chain = Chain([kernel], machine), Chain([kernel] * CHAIN, machine)
    ends = [max(e) for e in chain.ends]
    period = (ends[LAST] - ends[FIRST]) / (LAST - FIRST)
    apart = median(max(e) - min(e) for e in chain.ends[FIRST : LAST + 1])
    mhz = machine.clock_mhz
    return Answer(max(alone.ends[0]) / mhz + machine.launch, period / mhz, apart / mhz)
