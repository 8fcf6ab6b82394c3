"""The way of many tokens to their experts: `moe_router`'s one launch beside the norm, the GEMM and
the two launches of routing. A closed form: bytes, round trips, launches.

What was measured (norm and routing) is taken as measured and interpolated; the GEMM is the model's.
"""

from itertools import pairwise
from math import ceil, log

from . import gemm, headers, rates
from .engine import Machine
from .streaming import newest_rows

WIDTH = 5120
ROW = 2 * WIDTH
"""Bytes of a token and of an expert's weights."""

PLAN = headers.CSRC / "kernels" / "moe_router" / "plan.h"
TILE = headers.integer(PLAN, r"kRouterTileTokens = (\d+)")
WARPS = headers.integer(PLAN, r"kRouterThreads = (\d+)") // 32
SLICES = ceil(WIDTH / (64 * WARPS))

RANKED = 32 * headers.integer(headers.CSRC / "tile" / "route.cuh", r"kRankGroups = (\d+)")
"""Choices of a warp whose ids are on their way together."""

MEASURED = (1, 64, 1024, 16384)
"""Tokens."""


def intake(tokens: int, experts: int, sms: int) -> int:
    """Bytes into the busiest SM: whole rows once for each CTA, then rows and weights by slices."""
    tiles = ceil(tokens / TILE)
    sliced = TILE * ROW + (TILE + experts) * ROW // SLICES
    whole = TILE * ROW + (TILE + experts) * ROW
    apart = ceil(SLICES * tiles / sms)
    together = ceil(tiles / sms)
    return min(apart * sliced, together * whole)


def one_launch_us(tokens: int, experts: int, machine: Machine) -> float:
    """What one token takes, the bytes of more, a second count of CTAs, and what ranks them all."""
    cycles = machine.hand_over
    cycles += rates.constants()["layer"]["router"]["value"] * machine.clock_mhz
    from_l2 = intake(tokens, experts, machine.sms) / machine.l2_rate
    from_memory = 2 * tokens * ROW / (machine.dram_rate * machine.sms)
    cycles += max(from_l2, from_memory)
    if tokens > TILE:
        cycles += machine.run_meet
    rounds = ceil(tokens / (WARPS * RANKED))
    cycles += 2 * rounds * (machine.l2_latency + machine.barrier_wake)
    return float(cycles / machine.clock_mhz)


def measured_us(op: str, tokens: int) -> float:
    """Of Scout: straight lines between the rows' logarithms."""
    found = newest_rows()
    points = [(n, found[f"bench.{op}.scout.{n}"]["median"]) for n in MEASURED]
    for (left, low), (right, high) in pairwise(points):
        if tokens <= right:
            part = log(tokens / left) / log(right / left)
            return float(low * (high / low) ** part)
    last, us = points[-1]
    return float(us * tokens / last)


def three_ops_us(tokens: int, experts: int, machine: Machine) -> float:
    found = headers.gemm(tokens, experts, WIDTH, 1, "bf16", None, machine.sms)
    assert found is not None
    board = rates.machine("h200", None)
    product = gemm.estimate(*found[1:], board).us
    return measured_us("rms_norm", tokens) + product + measured_us("moe_route", tokens)
