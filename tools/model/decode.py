"""Decode attention as a sum of phases: what a launch costs besides its bytes, and what of it the
launch before hides.

The phases of the form that planned in every CTA are its timeline (docs/kernels/flash_decode.md);
those of the present form are priced with constants of [stream] and counts of its code. Nothing here
simulates: contention, and the CTAs' different ends, are in the timeline's numbers alone.
"""

from dataclasses import dataclass
from math import ceil

from .engine import Machine

HEADS, KV_HEADS, DIM, TILE = 40, 8, 128, 64


@dataclass(frozen=True)
class Form:
    """Of one kernel, in us unless it says otherwise; `ring` in bytes a CTA."""

    plan: float  # from the wait to the first address
    queries: float  # from the wait to rotated queries; at once with the plan and the first tile
    first: float  # from the first address to the first tile
    merge: float  # of the warps
    store: float  # of a partial result
    count: float  # its fences and atomic
    combine: float  # for each round of rows
    rounds: int  # of rows: five a KV head, a warp each
    ring: int
    early: bool  # plan and first tiles before the wait


def before(board: Machine) -> Form:
    """Medians of the timeline at 8,192 keys."""
    return Form(3.4, 0.0, 2.63, 2.0, 0.59, 2.53, 5.3, 1, 160 << 10, early=False)


def after(board: Machine) -> Form:
    """Two exchanges of sums where there were three; one atomic with its fence, as `run_meet` has
    without what it assumes; one trip to L2 for a round of rows, 16 values deep."""
    us = 1 / board.clock_mhz
    trip = (board.l2_latency + 16 * 512 / board.port_rate) * us
    return Form(
        plan=0.0,
        queries=(board.l2_latency + 1200) * us,  # a load, two barriers, 400 instructions
        first=2.63,
        merge=2.0 * 2 / 3,
        store=0.59,
        count=1705 * us,  # micro.grid_barrier
        combine=trip + 0.25,
        rounds=2,
        ring=80 << 10,
        early=True,
    )


@dataclass(frozen=True)
class Prediction:
    floor_us: float
    alone_us: float  # nothing before the wait: behind a launch that leaves no room
    chained_us: float  # beside the one before, by what the ring holds before the wait


def predict(form: Form, board: Machine, batch: int, keys: int, key_bytes: int) -> Prediction:
    """One layer of Scout, one token of each of `batch` sequences of so many keys."""
    read = batch * keys * KV_HEADS * 2 * DIM * key_bytes
    rate = board.read_ceiling * 1e6  # bytes a us
    items = batch * KV_HEADS
    tiles = items * ceil(keys / TILE)
    splits = 1 if items <= board.sms and tiles >= board.sms else ceil(min(4, tiles / board.sms))
    alone_item = items >= board.sms * splits
    finish = form.merge + form.store
    last = 0.0 if alone_item else form.count + form.rounds * form.combine
    # Of a split that is not the last, what the copies of the ring do not cover.
    between = max(0.0, finish + form.count - board.sms * form.ring / rate)
    hand_over = board.hand_over / board.clock_mhz
    start = form.plan + max(form.first, form.queries)
    fixed = (splits - 1) * between + finish + last
    alone = hand_over + start + read / rate + fixed
    if not form.early:
        return Prediction(read / rate, alone, alone)
    there = min(read, board.sms * form.ring)
    chained = hand_over + form.queries + (read - there) / rate + fixed
    return Prediction(read / rate, alone, chained)


@dataclass(frozen=True)
class Issue:
    """Issue slots that the warps of an SM need for a tile of 64 keys, counted in SASS."""

    consumer: int  # a warp's turn of a key block, and of the tile around it
    producer: int  # a warp's key block of keys and of values
    warps: int = 4

    def share(self, board: Machine, key_bytes: int) -> float:
        """Of the slots of four schedulers while the tile's bytes come at the read ceiling."""
        rate = board.read_ceiling * 1e6 / board.sms / board.clock_mhz
        cycles = TILE * 2 * DIM * key_bytes / rate
        return self.warps * (self.consumer + self.producer) / (4 * cycles)


ISSUE = {"bf16": Issue(208 + 52, 122), "fp8": Issue(256 + 48, 105)}
"""Of flash_decode_append: `hot_loop`'s turn, the rest of the tile's loop, the producer's loop."""
