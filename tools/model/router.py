"""The way of many tokens to their experts: `moe_router`'s one launch beside the norm, the GEMM and
the two launches of routing. A closed form: bytes, round trips, launches.

What was measured (norm and routing) is taken as measured and interpolated; the GEMM is the model's.
"""

from itertools import pairwise
from math import ceil, log

from . import gemm, headers, rates
from .engine import Machine
from .streaming import newest_rows

WIDTH, ROW = 5120, 5120 * 2  # of a token and of an expert's weights
PLAN = headers.CSRC / "kernels" / "moe_router" / "plan.h"
TILE = headers.integer(PLAN, r"kRouterTileTokens = (\d+)")
WARPS = headers.integer(PLAN, r"kRouterThreads = (\d+)") // 32
SLICES = ceil(WIDTH / (64 * WARPS))
RANKED = 32 * headers.integer(headers.CSRC / "tile" / "route.cuh", r"kRankGroups = (\d+)")


def intake(tokens: int, experts: int, sms: int) -> int:
    """Bytes into the busiest SM: whole rows once for each CTA, then rows and weights by slices."""
    tiles = ceil(tokens / TILE)
    apart = ceil(SLICES * tiles / sms) * (TILE * ROW + (TILE + experts) * ROW // SLICES)
    return min(apart, ceil(tiles / sms) * (2 * TILE + experts) * ROW)


def one_launch_us(tokens: int, experts: int, machine: Machine) -> float:
    """What one token takes, the bytes of more, a second count of CTAs, and what ranks them all."""
    mhz, token = machine.clock_mhz, rates.constants()["layer"]["router"]["value"]
    memory = 2 * tokens * ROW / (machine.stream_rate * 1e6)
    loaded = max(intake(tokens, experts, machine.sms) / machine.l2_rate / mhz, memory)
    arrival = machine.run_meet / mhz if tokens > TILE else 0.0
    rounds = ceil(tokens / (WARPS * RANKED))
    ranked = 2 * rounds * (machine.l2_latency + machine.barrier_wake) / mhz
    return machine.hand_over / mhz + token + loaded + arrival + ranked


def measured_us(op: str, tokens: int) -> float:
    """Of Scout: the rows' straight lines between logarithms."""
    found = newest_rows()
    points = [(n, found[f"bench.{op}.scout.{n}"]["median"]) for n in (1, 64, 1024, 16384)]
    for (a, low), (b, high) in pairwise(points):
        if tokens <= b:
            return float(low * (high / low) ** (log(tokens / a) / log(b / a)))
    return float(points[-1][1] * tokens / points[-1][0])


def three_ops_us(tokens: int, experts: int, machine: Machine) -> float:
    found = headers.gemm(tokens, experts, WIDTH, 1, "bf16", None, machine.sms)
    assert found is not None
    product = gemm.estimate(*found[1:], rates.machine("h200", None)).us
    return measured_us("rms_norm", tokens) + product + measured_us("moe_route", tokens)
