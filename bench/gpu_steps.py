"""The steps of a GPU run in the order of their value, and what each may cost.

A step returns the timing of its row, if it has one, and what else the row holds; it raises when it
fails.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

from bench import ceilings, conformance, decode_step, micro, profilers, tune
from bench.checks import engine, gpu_checks
from bench.checks.edges import EDGES
from bench.checks.whole_model import CASES
from bench.gpu_run import Result
from bench.host.eager import eager_calls
from bench.peers import peers
from l4kernels import STATUS, ops
from l4kernels.bench import e2e
from l4kernels.bench.measure import measure
from l4kernels.bench.rows import current_gpu
from l4kernels.bench.shapes import FIRST_SIZES, PHASES, Call, benchmarked_ops, calls
from l4kernels.bench.timing import time_graph
from l4kernels.layers.weights import FORMATS
from l4kernels.planning.machine import gpu_problem

Step = Callable[[], Result | Iterator[Result]]

WHOLE_MODELS = (  # model, format, batch, prompt, new tokens, layers (None: as many as fit)
    ("demo", "fp8", 1, 128, 32, None),
    ("scout", "int4", 1, 8192, 64, None),  # whole on an H100, too: memory against the plan
    ("scout", "fp8", 1, 8192, 64, None),
    ("scout", "fp8", 64, 1024, 32, None),
    ("scout", "bf16", 1, 8192, 64, 8),
    ("maverick", "fp8", 1, 8192, 64, 8),
)
COSTS = {
    "smoke.": 0.2,
    "micro.": 4,
    "conformance.": 1,
    "clocks.": 4,
    "ceiling.": 0.3,
    "tune.": 2,
    "step.scout.fp8.whole": 14,
    "step.": 6,
    "host.": 6,
    "e2e.scout.int4": 60,
    "e2e.scout.fp8": 10,
    "e2e.": 5,
    "test.cupy": 7,
    "test.engine.": 3,
    "test.states": 3,
    "test.": 0.5,
    "bench.flash_prefill.scout.131072": 5,
    "peers.flash_prefill.scout.131072": 12,
    "peers.flash_prefill.maverick.131072": 12,
    "peers.": 0.4,
    "compiled.": 4,
    "sanitizer.": 40,
    "counters.": 20,
    "": 0.25,
}
"""Seconds of a step by the start of its key, the first that fits; measured on an H200, but for
e2e.scout.int4 (33 s of quantising at full bandwidth) and test.engine, which are counted."""
COUNTED = (
    "bf16_128x256_2x1",
    "fp8_256x128_1x2_promote",
    "bf16_swap_16x128",
    "fp8_swap_16x128_promote",
    "o",
)
"""What is run under ncu: configurations of the GEMM, and Scout's O at one token."""


def steps(gpu: str | None = None) -> Iterator[tuple[str, Step]]:
    """Every step with the key of its row, in the order that matters when time is short: of the GPU
    that is there, or, for looking at the list alone, of one by name."""
    formats = [name for name in FORMATS if gpu or gpu_problem(name) is None]
    gpu = gpu or current_gpu()
    for op in STATUS.kernels:
        yield f"smoke.{op}", functools.partial(_smoke, op)
    yield from micro.steps()
    yield from conformance.steps()
    for form in ("bf16", "fp8_fast"):
        yield f"clocks.{form}", functools.partial(ceilings.clocks_under_load, form)
    yield "ceiling.copy", ceilings.copy
    yield "ceiling.read", ceilings.read
    yield from tune.steps("scout")
    yield from tune.int4_steps("scout")
    first = list(_cases("scout", FIRST_SIZES))
    for case in first:
        yield case.key, functools.partial(measure, case, gpu)
    yield from decode_step.steps(gpu, formats)
    yield "host.scout", eager_calls
    found = [model for model in WHOLE_MODELS if model[1] in formats]
    models = [(e2e.key(*m[:4]), functools.partial(_whole_model, *m)) for m in found]
    yield from models[:3]
    yield from _correctness(formats)
    everything = {case.key: case for model in ("scout", "maverick") for case in _cases(model, {})}
    everything |= {case.key: case for case in first}
    order = dict.fromkeys([*(case.key for case in first), *everything])
    for case in map(everything.__getitem__, order):
        key = "peers" + case.key.removeprefix("bench")
        yield key, functools.partial(measured_with_peers, case, gpu)
    for tool in profilers.SANITIZERS:
        yield f"sanitizer.{tool}", functools.partial(profilers.sanitizer, tool)
    yield from models[3:]
    yield from _others(gpu)
    for what in COUNTED:
        yield f"counters.{what}", functools.partial(profilers.counters, what)


def cost(key: str) -> float:
    return next(seconds for start, seconds in COSTS.items() if key.startswith(start))


def _cases(model: str, sizes: dict[str, dict[str, tuple[int, ...]]]) -> Iterator[Call]:
    """The first case of every op, then the second: a short run has seen each op."""
    found = [
        calls(op, (model,), tuple(PHASES), sizes.get(op))
        for op in STATUS.kernels
        if op in benchmarked_ops()
    ]
    yield from filter(None, itertools.chain.from_iterable(itertools.zip_longest(*found)))


def _correctness(formats: list[str]) -> Iterator[tuple[str, Step]]:
    yield "test.graph.dependent_launch", _check(gpu_checks.dependent_launches_in_a_graph)
    yield "test.graph.attention", _check(gpu_checks.attention_in_a_graph)
    yield "test.long_prefill", _check(gpu_checks.long_prefill_of_ones)
    for op in STATUS.kernels:
        yield f"test.{op}", _check(gpu_checks.kernel_is_right, op)
    for name in EDGES:
        yield f"test.edge.{name}", _check(gpu_checks.edge_is_right, name)
    for name, check in gpu_checks.LARGE.items():
        yield f"test.large.{name}", _check(check)
    yield "test.quantize_int4", _check(gpu_checks.quantiser_is_right)
    yield "test.streams", _check(gpu_checks.two_streams)
    yield "test.states", _check(gpu_checks.references_in_every_state)
    yield "test.devices", _check(gpu_checks.another_device)
    for form, prompt in CASES:
        if form.split("_")[0] in formats:
            yield f"test.model.{form}.{prompt}", _check(gpu_checks.whole_model, form, prompt)
    for form in formats:
        for settings in engine.SETTINGS:
            yield (
                f"test.engine.{form}.{settings}",
                _check(engine.captures_are_right, form, settings),
            )
    yield "test.cupy", _check(gpu_checks.cupy_agrees)


def _others(gpu: str) -> Iterator[tuple[str, Step]]:
    """Routing and the gather after it; torch.compile as a peer, which takes seconds a shape."""
    for tokens in PHASES["decode"]:
        yield f"bench.logits_to_rows.scout.{tokens}", functools.partial(logits_to_rows, tokens)
    for op in benchmarked_ops():
        if op in STATUS.kernels and op not in FIRST_SIZES:
            case = next(calls(op, ("scout",), ("decode",), {"decode": (64,)}))
            key = "compiled" + case.key.removeprefix("bench")
            yield key, functools.partial(measured_with_peers, case, gpu, compiled=True)


def measured_with_peers(case: Call, gpu: str, compiled: bool = False) -> Iterator[Result]:
    yield from measure(case, gpu, peers(case.op, compiled))


def _whole_model(*trial: Any) -> Iterator[Result]:
    for row in e2e.run(e2e.Trial("cuda", *trial)):
        yield None, row


def _smoke(op: str) -> Iterator[Result]:
    for facts in gpu_checks.smoke(op):
        yield None, facts


def _check(function: Callable[..., dict[str, Any]], *args: Any) -> Step:
    return lambda: (None, function(*args))


def logits_to_rows(tokens: int) -> Result:
    two, sizes = ("moe_route", "moe_permute_fp8"), {"decode": (tokens,)}
    pair = [next(calls(op, ("scout",), ("decode",), sizes)) for op in two]
    (routing, _), ((x, _, choices), _) = (case.make("cuda") for case in pair)
    timing = time_graph(
        [lambda: ops.moe_permute_fp8(x, ops.moe_route(*routing).permutation, choices)], chain=100
    )
    return timing, {"bytes": sum(case.work().bytes for case in pair)}
