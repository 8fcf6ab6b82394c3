"""Matrix products as processes: what a CTA's warpgroups and its producer do, without the values.

Two kinds of program: "lockstep", whose warps issue their own loads some blocks ahead, and
"specialised", a producer and consumers around a ring of stages, alone or in clusters that share
boxes. A few SMs run a few tiles with a few blocks of K; both are extrapolated linearly.
"""

from dataclasses import dataclass, replace
from math import ceil

from .engine import SM, Engine, Gate, Machine, Process, Ring, memory

SIMULATED = 4  # SMs
TILES = 3
BLOCKS = (16, 32)


@dataclass(frozen=True)
class Program:
    """A CTA's tile and how it is computed."""

    kind: str  # lockstep or specialised
    block_m: int
    block_n: int
    stages: int = 1
    warpgroups: int = 2
    block_bytes: int = 128  # of K in a stage
    element: int = 2
    result: float = 2  # bytes of D for an element of the tile
    ctas_per_sm: int = 1
    ahead: int = 0  # lockstep: blocks asked for before the one that is multiplied
    overlap: bool = False  # lockstep: the next load is waited for under the products
    persistent: bool = False
    in_flight: int = 1  # specialised: groups of wgmma that may run when a stage is released
    store: str = "awaited"  # or read (staging has been read), direct (from registers)
    instructions: int = 0  # of a warp between two tiles, of SASS; 0: assumed by registers
    special: int = 0  # of them special functions
    load_waits: int = 0  # times that they stand still for a load, which L1 has
    residual: bool = False  # comes through the ring after a tile's blocks
    joint_store: bool = False  # one thread stores for all consumers, which wait before and after
    round_bytes: int = 0  # read: what the staging buffer of one warpgroup holds
    cluster_m: int = 1
    cluster_n: int = 1
    promote: bool = False
    swap: bool = False
    splits: int = 1
    slots: int = 0  # CTAs of a wave, if not all SMs
    rows_of_tiles: int = 16  # that one wave covers: what of A and B is asked for at once

    @property
    def cluster(self) -> int:
        return self.cluster_m * self.cluster_n

    @property
    def residual_stages(self) -> int:
        """128 columns each, of as many bytes of D as they have."""
        return ceil(self.block_n * self.result / 256) * self.residual

    @property
    def n(self) -> int:
        """Columns of a wgmma."""
        return min(256, self.block_m if self.swap else self.block_n)

    @property
    def sub_tiles(self) -> int:
        """wgmma of 64 rows and n columns that one warpgroup issues for 32 bytes of K."""
        right = self.block_m if self.swap else self.block_n
        left = self.block_n if self.swap else self.block_m
        return max(1, left // 64 // self.warpgroups) * ceil(right / self.n)


@dataclass(frozen=True)
class Problem:
    m: int
    n: int
    k: int
    experts: int = 1
    tiles: int = 0  # that the busiest CTA computes; 0: equal shares


@dataclass(frozen=True)
class Estimate:
    us: float
    tflops: float
    tensor_busy: float
    memory_us: float  # of its bytes alone


def misses(program: Program, problem: Problem, machine: Machine) -> tuple[float, float]:
    """Shares of A's and B's bytes that DRAM delivers: the first of the CTAs that want a box."""
    slots = program.slots or machine.sms * program.ctas_per_sm
    rows = max(1, min(ceil(problem.m / program.block_m), program.rows_of_tiles))
    columns = max(1, min(slots / program.splits / rows, ceil(problem.n / program.block_n)))
    if problem.experts > 1:  # an expert's rows decide how often a box of B is asked for
        rows = max(1, min(rows, ceil(problem.m / problem.experts / program.block_m)))
    return min(1.0, program.cluster_n / columns), min(1.0, program.cluster_m / rows)


class Cta(Ring):
    def __init__(self, sm: SM, program: Program, share: tuple[float, float]):
        super().__init__(sm, program.stages, program.warpgroups)
        self.program, self.share, self.peers = program, share, [self]
        self.staged = Gate(sm.engine, sm.machine.named_barrier)
        self.stored = Gate(sm.engine, sm.machine.named_barrier)

    def load(self, stage: int) -> None:
        """A stage's boxes. CTAs of a cluster load a slice each of the one they share."""
        p, width = self.program, self.program.block_bytes
        own = [(self.sm, self.full[stage])]
        everyone = [(c.sm, c.full[stage]) for c in self.peers]
        a, b = p.block_m * width / p.cluster_n, p.block_n * width / p.cluster_m
        self.sm.load(a, self.share[0], everyone if p.cluster_n > 1 else own)
        self.sm.load(b, self.share[1], everyone if p.cluster_m > 1 else own)

    def load_residual(self, stage: int) -> None:
        """In as many parts as boxes come into a stage."""
        p = self.program
        size = p.block_m * p.block_n * p.result / p.residual_stages
        for _ in range(1 + p.cluster):
            self.sm.load(size / (1 + p.cluster), 0.0, [(self.sm, self.full[stage])])

    def release(self, stage: int) -> None:
        """To every CTA that fills it."""
        for peer in self.peers:
            late = 0.0 if peer is self else self.machine.remote_arrive
            self.engine.at(self.engine.now + late, peer.empty[stage].add, 1)

    def all_done(self) -> Process:
        """Every wgmma of every warpgroup."""
        for warpgroup in self.warpgroups:
            yield warpgroup.done, warpgroup.issued
        yield self.engine.now + self.machine.group_wait


def lockstep(cta: Cta, tiles: int, blocks: int) -> Process:
    """All warps issue loads, wait for them, multiply; one process stands for them."""
    p, m, engine = cta.program, cta.machine, cta.engine
    fill = 0  # blocks multiplied before this tile
    for tile in range(tiles):
        for block in range(min(p.ahead, blocks)):
            cta.load((fill + block) % p.stages)
        for block in range(blocks):
            index = fill + block
            if block + p.ahead < blocks:
                cta.load((index + p.ahead) % p.stages)
            yield cta.full[index % p.stages], 2 * (index // p.stages + 1)
            if p.overlap:
                yield from cta.all_done()
            yield engine.now + m.fence
            for _ in range(p.block_bytes // 32 * p.sub_tiles):
                for warpgroup in cta.warpgroups:
                    yield from warpgroup.multiply(p.n, 1)
            if not p.overlap:
                yield from cta.all_done()
            yield engine.now + m.named_barrier
        fill += blocks
        yield from cta.all_done()
        yield from _finish(cta, p.warpgroups, tile)
        cta.ends.append(engine.now)
        if not p.persistent and tile + 1 < tiles:
            yield engine.now + m.cta_start


def _add_halves(cta: Cta, own: int) -> Process:
    """Two splits of K: one consumer stages its sums, the other one adds those of the other CTA."""
    m, engine = cta.machine, cta.engine
    registers = cta.program.n / 2
    yield engine.now + registers + m.named_barrier
    yield engine.now + 2 * m.remote_arrive  # a fence, and the arrival
    if own == 0:  # eight vectors of four sums in flight
        yield engine.now + (1 + registers / 32) * m.remote_arrive
    yield engine.now + m.named_barrier + m.remote_arrive


def _finish(cta: Cta, warpgroups: int, tile: int, own: int = 0) -> Process:
    """From accumulators to memory, for the rows of this many warpgroups."""
    p, m, engine = cta.program, cta.machine, cta.engine
    if p.splits > 1 and not p.swap:
        yield from _add_halves(cta, own)
        if own > 0:
            return
    bytes_left = p.block_m * p.block_n * p.result * warpgroups / p.warpgroups
    registers = p.n * p.sub_tiles / 2
    work = m.epilogue_register * registers
    if p.instructions:
        # A scheduler has a warp of each consumer: alone one of them waits for its own results, both
        # together share its slots and its special functions.
        slots = cta.sm.issue.take(engine.now, p.instructions)
        special = cta.sm.mufu.take(engine.now, p.special * m.exp_cycles)
        work = max(slots, special, engine.now + p.instructions * m.lone_issue) - engine.now
        work += p.load_waits * m.l1_latency
    if p.swap:  # staged sums, a cluster barrier, each CTA finishes its tokens
        yield engine.now + work + m.named_barrier
        if p.splits > 1:
            rounds = 1 + p.block_m / 8 / p.splits
            yield engine.now + 2 * m.remote_arrive + rounds * m.remote_arrive
        bytes_left /= p.splits
    rounds = max(1, round(bytes_left / p.round_bytes)) if p.store == "read" else 1
    read = 0.0
    for _ in range(rounds):
        yield max(read, engine.now) + work / rounds + m.named_barrier
        if p.joint_store:
            cta.staged.add()
            yield cta.staged, p.warpgroups * (tile + 1)
            if own > 0:
                break
            bytes_left *= p.warpgroups
        read = cta.sm.stores.take(engine.now, bytes_left / rounds)
    if p.store == "awaited" and own * p.joint_store == 0:
        yield read + m.store_latency
        cta.stored.add()
    if p.joint_store:
        yield cta.stored, tile + 1
    if p.store == "direct":
        yield read


def produce(cta: Cta, tiles: int, blocks: int) -> Process:
    p = cta.program
    releases, turn = p.warpgroups * p.cluster, blocks + p.residual_stages
    for index in range(tiles * turn):
        stage, phase = index % p.stages, index // p.stages
        yield cta.empty[stage], phase * releases
        if index % turn < blocks:
            cta.load(stage)
        else:
            cta.load_residual(stage)


def consume(cta: Cta, own: int, tiles: int, blocks: int) -> Process:
    p, m, engine, warpgroup = cta.program, cta.machine, cta.engine, cta.warpgroups[own]
    steps, turn = p.block_bytes // 32, blocks + p.residual_stages
    for tile in range(tiles):
        for block in range(blocks):
            index = tile * turn + block
            stage = index % p.stages
            yield cta.full[stage], (1 + p.cluster) * (index // p.stages + 1)
            if p.promote:
                for sub_tile in range(p.sub_tiles):
                    yield engine.now + m.fence
                    yield from warpgroup.multiply(p.n, steps)
                    yield from warpgroup.wait()
                    if sub_tile == p.sub_tiles - 1:
                        cta.release(stage)
                    yield engine.now + p.n / 2 + m.promote_fixed
                continue
            yield engine.now + m.fence
            yield from warpgroup.multiply(p.n, steps * p.sub_tiles)
            if p.in_flight == 0:
                yield from warpgroup.wait()
                cta.release(stage)
            elif block > 0:
                yield from warpgroup.wait(steps * p.sub_tiles)
                cta.release((index - 1) % p.stages)
        if not p.promote and p.in_flight:
            yield from warpgroup.wait()
            cta.release((tile * turn + blocks - 1) % p.stages)
        for index in range(tile * turn + blocks, (tile + 1) * turn):
            yield cta.full[index % p.stages], (1 + p.cluster) * (index // p.stages + 1)
            cta.release(index % p.stages)
        yield from _finish(cta, 1, tile, own)
        if own == 0:
            cta.ends.append(engine.now)


def simulate(
    program: Program, problem: Problem, machine: Machine, tiles: int, blocks: int
) -> tuple[float, float]:
    """Cycles to the end of the first tile, and of each further one."""
    engine = Engine()
    servers = memory(machine, SIMULATED, program.slots or machine.sms)
    share = misses(program, problem, machine)
    sms = [SM(engine, machine, servers) for _ in range(SIMULATED)]
    ctas = [Cta(sm, program, share) for sm in sms for _ in range(program.ctas_per_sm)]
    if program.cluster > 1:
        for i in range(0, len(ctas), 2):
            ctas[i].peers = ctas[i + 1].peers = ctas[i : i + 2]
    for i, cta in enumerate(ctas):
        roles = [lockstep(cta, tiles, blocks)]
        if program.kind == "specialised":
            consumers = [consume(cta, own, tiles, blocks) for own in range(program.warpgroups)]
            roles = [produce(cta, tiles, blocks), *consumers]
        for role in roles:
            engine.start(role, 200.0 * (i // program.cluster))
    engine.run()
    first = sum(c.ends[0] for c in ctas) / len(ctas)
    last = sum(c.ends[-1] for c in ctas) / len(ctas)
    return first, (last - first) / max(1, tiles - 1)


def k_blocks(program: Program, problem: Problem) -> int:
    return max(1, ceil(problem.k * program.element / program.block_bytes / program.splits))


def exposed(program: Program, problem: Problem, machine: Machine) -> float:
    """Share of a tile's cycles in which the tensor core has nothing because a tile ends and the
    next begins: what a tile takes beyond one whose epilogue takes no time."""
    blocks, tiles = k_blocks(program, problem), 2 * TILES
    free = replace(program, instructions=1, special=0, load_waits=0, result=1e-9, residual=False)
    own, least = (simulate(p, problem, machine, tiles, blocks)[1] for p in (program, free))
    return 1 - least / own


def estimate(program: Program, problem: Problem, machine: Machine) -> Estimate:
    """Time of a product: rounds of tiles, the start, and never faster than DRAM."""
    blocks, k_bytes = k_blocks(program, problem), problem.k * program.element
    rounds = float(problem.tiles)
    if not rounds:
        tiles = ceil(problem.m / program.block_m) * ceil(problem.n / program.block_n)
        slots = program.slots or machine.sms
        rounds = ceil(tiles / slots) / program.ctas_per_sm
    tiles = min(TILES, ceil(rounds))
    sampled = BLOCKS if blocks > BLOCKS[-1] else (blocks,)
    runs = [simulate(program, problem, machine, tiles, b) for b in sampled]
    beyond = (blocks - sampled[-1]) / (BLOCKS[1] - BLOCKS[0])
    first, step = (b + beyond * (b - a) for a, b in zip(runs[0], runs[-1], strict=True))
    cycles = machine.cta_start + first + max(0.0, rounds - 1) * step + machine.store_latency
    active = min(problem.experts, problem.m)
    moved = (problem.m + active * problem.n) * k_bytes + problem.m * problem.n * program.result
    floor = moved / (machine.dram_rate * machine.sms)
    us = max(cycles, floor) / machine.clock_mhz + machine.launch
    flops = 2.0 * problem.m * problem.n * problem.k
    peak = us * machine.clock_mhz * machine.sms * 4096 * 2 / program.element
    return Estimate(us, flops / us * 1e-6, flops / peak, floor / machine.clock_mhz)
