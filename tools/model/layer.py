"""The launches of a decode step's MoE layer, one after the other: what an early trigger and a
deeper prefetch are worth.

Products stream (streaming.py). The launches between them are not made of bytes: each is a time
after its wait, `[layer]` in constants.toml.
"""

from dataclasses import replace

from . import rates
from .engine import Machine
from .stream import Chain, Kernel
from .streaming import KB, STAGES, Format, Product, stream_gemm

LAYERS = 3
"""Simulated; the period is that of the last."""
EXPERTS = 2  # of a token: the routed one and the shared one


def small(
    name: str, machine: Machine, ctas: int, trigger: str, per_sm: int = 8, cached: float = 1.0
) -> Kernel:
    """A launch that waits for latencies. What it reads is in L2, if the launch before wrote it."""
    us = rates.constants()["layer"][name]["value"]
    run = (4 * KB, 0.0)
    return Kernel(
        shares=((run,),) * ctas,
        stage=4 * KB,
        stages=1,
        end=us * machine.clock_mhz,
        per_sm=per_sm,
        trigger=trigger,
        cached=(cached,) * ctas,
    )


def experts(form: Format, product: Product, m: int, machine: Machine, ahead: int) -> Kernel:
    """By expert: every CTA asks for `ahead` bytes of the shared one's weights, which come last."""
    kernel = stream_gemm(form, replace(product, experts=EXPERTS), m, machine)
    ctas = len(kernel.shares)
    own = product.weights(form) / ctas
    asked = min(1.0, ahead / own)
    shared = [max(0, min(EXPERTS, EXPERTS * (i + 1) - ctas)) / EXPERTS for i in range(ctas)]
    return replace(kernel, prefetch=int(asked * own), cached=tuple(asked * part for part in shared))


def decode_layer(
    form: Format, m: int, machine: Machine, early: bool = True, rings: float = 1.0
) -> list[Kernel]:
    """`early`: router and combine trigger before their wait. `rings`: how much of the shared
    expert's first weights is asked for ahead, in rings of a CTA; of its others one ring."""
    trigger = "start" if early else "wait"
    ring = STAGES * form.stage_units * form.unit
    qkv = Product("QKV", 7168, 5120)
    out = Product("O", 5120, 5120)
    gate_up = Product("gate-up", 16384, 5120)
    down = Product("down", 5120, 8192)
    return [
        stream_gemm(form, qkv, m, machine),
        small("attention", machine, machine.sms, "wait", per_sm=2, cached=0.0),
        stream_gemm(form, out, m, machine),
        small("router", machine, 8, trigger),
        experts(form, gate_up, m, machine, int(rings * ring)),
        experts(form, down, m, machine, ring),
        small("combine", machine, m, trigger),
    ]


def period_us(kernels: list[Kernel], machine: Machine) -> float:
    """Of a layer among others."""
    chain = Chain(kernels * LAYERS, machine)
    ends = [max(e) for e in chain.ends]
    cycles = ends[-1] - ends[-1 - len(kernels)]
    return float(cycles / machine.clock_mhz)
