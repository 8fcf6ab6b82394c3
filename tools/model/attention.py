"""Attention as processes: a producer of K and V, and consumer warpgroups that take turns.

Each consumer has 64 rows of Q. While one warpgroup's products run, the others compute their
softmax; inside a warpgroup the scores of a tile and the weighted values of the one before are in
flight together. The scalar units are modelled as one warp of each quarter of the SM sees them.
"""

from dataclasses import dataclass
from math import ceil

from .engine import SM, Engine, Gate, Machine, Process, Ring, memory

SIMULATED = 2  # SMs
ITEMS = 3
KEY_TILES = (4, 12)
RAW = 2  # e4m3 tiles in shared memory


@dataclass(frozen=True)
class Attention:
    d: int
    warpgroups: int = 2
    keys: int = 128  # of a tile
    ring: int = 4  # tiles of K or V in shared memory
    awaited: bool = True  # the result has left before the next item's first product
    convert: float = 0  # cycles of a warp that makes a 16-bit tile of an e4m3 one; 0: there is none
    queries: float = 0  # cycles until Q of an item has become f16
    end: float = 0  # cycles from an item's last product to its last store; 0: by its registers
    early_q: bool = False  # Q is handed back after its last scores, not after their softmax
    pair: bool = False  # two SMs load one half of every tile of K and V each, for both


@dataclass(frozen=True)
class Work:
    """What the busiest SM has to do, and all of them together."""

    items: float
    key_tiles: float
    masked: float  # of them
    flops: float
    active: int
    pieces: int = 0  # of all items, which are cut and merged
    bytes: float = 0.0  # of keys and values, from DRAM once


def flash3(d: int, heads: int, keys: int, causal: bool, sms: int) -> tuple[Attention, Work]:
    """FlashAttention-3's forward over 16k tokens: its tiles, dealt to SMs as they come free."""
    shape = Attention(d, 3 if d == 64 else 2, {64: 128, 128: 128 if causal else 176, 256: 80}[d])
    rows, sequences = 64 * shape.warpgroups, 16384 // keys * heads
    ends = range(rows, keys + rows, rows)
    tiles = [ceil((min(keys, end) if causal else keys) / shape.keys) for end in ends]
    items = len(ends) * sequences / sms
    busiest = 1 + 0.5 / items if causal else ceil(items) / items
    masked = ceil(rows / shape.keys) if causal else int(keys % shape.keys > 0)
    counts = items, sum(tiles) * sequences / sms, items * masked
    flops = 4.0 * keys * keys * d * sequences * (0.5 if causal else 1.0)
    return shape, Work(*(count * busiest for count in counts), flops, sms)


class Block(Ring):
    def __init__(self, sm: SM, shape: Attention):
        super().__init__(sm, shape.ring, shape.warpgroups)
        engine, wake, self.shape = sm.engine, sm.machine.barrier_wake, shape
        self.q_full, self.q_empty = Gate(engine, wake), Gate(engine, wake)
        self.turns = [Gate(engine, sm.machine.named_barrier) for _ in range(shape.warpgroups)]
        self.turns[0].value = 1
        self.raw_full = [Gate(engine, wake) for _ in range(RAW)]
        self.raw_empty = [Gate(engine, wake) for _ in range(RAW)]
        self.sharing = [self]  # the blocks that load each other's tiles

    def tile_full(self, index: int) -> tuple[Gate, int]:
        slot, round_ = index % self.shape.ring, index // self.shape.ring
        return self.full[slot], (round_ + 1) * len(self.sharing)

    def tile_empty(self, index: int) -> tuple[Gate, int]:
        slot, round_ = index % self.shape.ring, index // self.shape.ring
        return self.empty[slot], round_ * self.shape.warpgroups * len(self.sharing)

    def release(self, index: int) -> None:
        for other in self.sharing:
            late = 0 if other is self else self.machine.remote_arrive
            self.engine.at(self.engine.now + late, other.empty[index % self.shape.ring].add, 1)


def produce(block: Block, items: int, tiles: int) -> Process:
    """Q, then K0 K1 V0 K2 V1 ... of every item."""
    shape, index = block.shape, 0
    for item in range(items):
        yield block.q_empty, item * shape.warpgroups
        block.sm.load(128 * shape.warpgroups * shape.d, 1.0, [(block.sm, block.q_full)])
        for _ in range(2 * tiles):
            size = shape.keys * shape.d * (1 if shape.convert else 2)
            if shape.convert:
                yield block.raw_empty[index % RAW], index // RAW
                targets = [(block.sm, block.raw_full[index % RAW])]
            else:
                yield block.tile_empty(index)
                slot = index % shape.ring
                targets = [(other.sm, other.full[slot]) for other in block.sharing]
            block.sm.load(size / len(targets), 0.0, targets)
            index += 1


def convert(block: Block, loads: int) -> Process:
    """A warp of each quarter: e4m3 is read, twice the bytes are written."""
    shape, m, engine, sm = block.shape, block.machine, block.engine, block.sm
    for index in range(loads):
        yield block.raw_full[index % RAW], index // RAW + 1
        yield block.tile_empty(index)
        for _ in range(8):
            moved = sm.shared.take(engine.now, 3 * shape.keys * shape.d / 8)
            yield max(moved, sm.alu.take(engine.now, shape.convert / 8))
        yield engine.now + m.fence
        block.raw_empty[index % RAW].add()
        block.full[index % shape.ring].add()


def softmax(block: Block, masked: bool) -> Process:
    """Maximum, exponentials and sum of one warpgroup's scores, in eight parts."""
    m, engine, sm = block.machine, block.engine, block.sm
    registers = block.shape.keys / 2
    for part in range(2 if masked else 1):
        yield sm.alu.take(engine.now, registers * m.alu_cycles * (1 + part))
    yield engine.now + 4 * m.shuffle
    for _ in range(8):
        exps = sm.mufu.take(engine.now, registers / 8 * m.exp_cycles)
        yield max(exps, sm.alu.take(engine.now, registers / 8 * 3))


def consume(block: Block, own: int, items: int, tiles: int, masked: bool) -> Process:
    """One warpgroup; `index` counts the ring's tiles in the producer's order."""
    shape, m, engine = block.shape, block.machine, block.engine
    warpgroup, count = block.warpgroups[own], shape.warpgroups
    score_steps, value_steps = shape.d // 16, ceil(shape.keys / 16)
    index = round_ = 0

    def scores() -> Process:
        yield engine.now + m.fence
        yield from warpgroup.multiply(shape.keys, score_steps)

    for item in range(items):
        yield block.q_full, item + 1
        yield engine.now + shape.queries
        yield block.tile_full(index)
        yield from scores()
        yield from warpgroup.wait()
        block.release(index)
        yield from softmax(block, masked)
        for tile in range(1, tiles):
            k, v = index + 2 * tile - 1, index + 2 * tile
            yield block.tile_full(k)
            yield block.tile_full(v)
            yield block.turns[own], round_ + 1
            round_ += 1
            yield from scores()
            yield from warpgroup.multiply(shape.d, value_steps, from_registers=True)
            block.turns[(own + 1) % count].add()
            yield from warpgroup.wait(value_steps)
            block.release(k)
            if shape.early_q and tile == tiles - 1:
                block.q_empty.add()
            yield from softmax(block, False)
            yield from warpgroup.wait()
            block.release(v)
            rescale = shape.d / 2 + shape.keys / 4 * m.alu_cycles
            yield block.sm.alu.take(engine.now, rescale) + m.attention_fixed
        if not shape.early_q or tiles == 1:
            block.q_empty.add()
        index += 2 * tiles
        yield block.tile_full(index - 1)
        yield engine.now + m.fence
        yield from warpgroup.multiply(shape.d, value_steps, from_registers=True)
        yield from warpgroup.wait()
        block.release(index - 1)
        yield engine.now + (shape.end or shape.d / 2 * m.epilogue_register + m.named_barrier)
        stored = block.sm.stores.take(engine.now, 64 * shape.d * 2)
        yield stored + (m.store_latency if shape.awaited else 0)
        if own == count - 1:
            block.ends.append(engine.now)


def simulate(shape: Attention, machine: Machine, active: int, tiles: int, masked: bool) -> float:
    """Cycles of one item of this many tiles of keys, in the middle of others."""
    engine = Engine()
    servers = memory(machine, SIMULATED, active)
    blocks = [Block(SM(engine, machine, servers), shape) for _ in range(SIMULATED)]
    for i, block in enumerate(blocks):
        if shape.pair:
            block.sharing = blocks
        if shape.convert:
            engine.start(convert(block, 2 * tiles * ITEMS), 200.0 * i)
        engine.start(produce(block, ITEMS, tiles), 200.0 * i)
        for own in range(shape.warpgroups):
            engine.start(consume(block, own, ITEMS, tiles, masked), 200.0 * i)
    engine.run()
    return sum(b.ends[-1] - b.ends[0] for b in blocks) / len(blocks) / (ITEMS - 1)


def estimate(shape: Attention, work: Work, machine: Machine) -> tuple[float, float]:
    """Time in us and TFLOP/s: so much an item and so much a tile of keys."""
    few, many = (simulate(shape, machine, work.active, t, False) for t in KEY_TILES)
    tile = (many - few) / (KEY_TILES[1] - KEY_TILES[0])
    item = few - KEY_TILES[0] * tile
    mask = simulate(shape, machine, work.active, KEY_TILES[0], True) - few
    cycles = work.items * item + work.key_tiles * tile + work.masked * mask
    start = machine.cta_start + machine.dram_latency + machine.store_latency
    cycles = max(cycles, work.bytes / (machine.dram_rate * machine.sms))
    us = (cycles + start) / machine.clock_mhz + machine.launch
    if work.pieces:
        us += merge(shape, work, machine)
    return us, work.flops / us * 1e-6


def merge(shape: Attention, work: Work, machine: Machine) -> float:
    """us of partial results, stored by all CTAs beside each other and read by the last launch."""
    rows = 64 * shape.warpgroups
    stored, own = rows * (shape.d * 4 + 8), rows * shape.d * 2
    rounds = ceil(work.pieces / machine.sms)
    leave = rounds * (stored - own) / machine.store_rate
    fetch = work.pieces * stored / (machine.l2_rate * machine.sms)
    waits = machine.cta_start + 4 * machine.l2_latency + machine.store_latency
    return machine.launch + (leave + fetch + waits) / machine.clock_mhz
