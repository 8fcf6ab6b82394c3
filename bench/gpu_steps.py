"""The steps of a GPU run in the order of their value, and what each may cost.

A step returns the timing of its row, if it has one, and what else the row holds; it raises when it
fails.
"""

import csv
import functools
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from bench import captured, micro, tune
from bench.checks import gpu_checks
from bench.checks.edges import EDGES
from bench.checks.whole_model import CASES
from bench.gpu_run import Result
from bench.peers import peers
from l4kernels import STATUS, ops
from l4kernels.bench import e2e
from l4kernels.bench.measure import measure
from l4kernels.bench.shapes import FIRST_SIZES, PHASES, Call, benchmarked_ops, calls
from l4kernels.bench.timing import time_calls, time_graph
from l4kernels.env import gpu_problem
from l4kernels.layers.weights import FORMATS
from l4kernels.planning.gpus import current_gpu

Step = Callable[[], Result | Iterator[Result]]

WHOLE_MODELS = (  # model, format, batch, prompt, new tokens, layers (None: as many as fit)
    ("demo", "fp8", 1, 128, 32, None),
    ("scout", "fp8", 1, 8192, 64, None),
    ("scout", "fp8", 64, 1024, 32, None),
    ("scout", "bf16", 1, 8192, 64, 8),
    ("maverick", "fp8", 1, 8192, 64, 8),
)
COSTS = {
    "smoke.": 0.2,
    "micro.": 4,
    "clocks.": 4,
    "ceiling.": 0.3,
    "tune.": 2,
    "step.scout.fp8.whole": 10,
    "step.": 4,
    "e2e.scout.fp8": 10,
    "e2e.": 5,
    "test.cupy": 7,
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
"""Seconds that steps whose key starts so take, the first that fits: measured on an H200."""
SANITIZERS = ("memcheck", "racecheck", "synccheck")
CEILING_BYTES = 8 << 30
CLOCKS_TOKENS, CLOCKS_S = 8192, 3.0  # longer than clocks take to settle under load
COUNTED = ("row3", "row5", "row8", "row11", "o")
"""What is run under ncu: rows of the GEMM's table, and Scout's O at one token."""


def steps(gpu: str | None = None) -> Iterator[tuple[str, Step]]:
    """Every step with the key of its row, in the order that matters when time is short: of the GPU
    that is there, or, for looking at the list alone, of one by name."""
    runnable = [name for name, form in FORMATS.items() if not form.without_kernels]
    formats = [name for name in runnable if gpu or gpu_problem(name) is None]
    gpu = gpu or current_gpu()
    for op in STATUS.kernels:
        yield f"smoke.{op}", functools.partial(_smoke, op)
    yield from micro.steps()
    for form in ("bf16", "fp8_fast"):
        yield f"clocks.{form}", functools.partial(clocks_under_load, form)
    yield "ceiling.copy", copy_ceiling
    yield "ceiling.read", read_ceiling
    yield from tune.steps("scout")
    first = list(_cases("scout", FIRST_SIZES))
    for case in first:
        yield case.key, functools.partial(measure, case, gpu)
    yield from captured.steps(gpu, formats)
    found = [model for model in WHOLE_MODELS if model[1] in formats]
    models = [(e2e.key(*model[:4]), _check(e2e.run, "cuda", *model)) for model in found]
    yield from models[:2]
    yield from _correctness(formats)
    everything = {case.key: case for model in ("scout", "maverick") for case in _cases(model, {})}
    everything |= {case.key: case for case in first}
    order = dict.fromkeys([*(case.key for case in first), *everything])
    for case in map(everything.__getitem__, order):
        key = "peers" + case.key.removeprefix("bench")
        yield key, functools.partial(measured_with_peers, case, gpu)
    for tool in SANITIZERS:
        yield f"sanitizer.{tool}", functools.partial(sanitizer, tool)
    yield from models[2:]
    yield from _others(gpu)
    for what in COUNTED:
        yield f"counters.{what}", functools.partial(counters, what)


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
    yield "test.streams", _check(gpu_checks.two_streams)
    yield "test.states", _check(gpu_checks.references_in_every_state)
    yield "test.devices", _check(gpu_checks.another_device)
    for form, prompt in CASES:
        if form.split("_")[0] in formats:
            yield f"test.model.{form}.{prompt}", _check(gpu_checks.whole_model, form, prompt)
    yield "test.cupy", _check(gpu_checks.cupy_agrees)


def _others(gpu: str) -> Iterator[tuple[str, Step]]:
    """Routing with the gather behind it; torch.compile as a peer, which takes seconds a shape."""
    for tokens in PHASES["decode"]:
        yield f"bench.logits_to_rows.scout.{tokens}", functools.partial(logits_to_rows, tokens)
    for op in benchmarked_ops():
        if op in STATUS.kernels and op not in FIRST_SIZES:
            case = next(calls(op, ("scout",), ("decode",), {"decode": (64,)}))
            key = "compiled" + case.key.removeprefix("bench")
            yield key, functools.partial(measured_with_peers, case, gpu, compiled=True)


def measured_with_peers(case: Call, gpu: str, compiled: bool = False) -> Iterator[Result]:
    yield from measure(case, gpu, peers(case.op, compiled))


def _smoke(op: str) -> Iterator[Result]:
    for facts in gpu_checks.smoke(op):
        yield None, facts


def _check(function: Callable[..., dict[str, Any]], *args: Any) -> Step:
    return lambda: (None, function(*args))


def logits_to_rows(tokens: int) -> Result:
    two, sizes = ("moe_route", "moe_permute_fp8"), {"decode": (tokens,)}
    pair = [next(calls(op, ("scout",), ("decode",), sizes)) for op in two]
    ((logits, top_k), _), ((x, *_), _) = (case.make("cuda") for case in pair)
    timing = time_graph(
        [lambda: ops.moe_permute_fp8(x, ops.moe_route(logits, top_k).permutation, top_k)], chain=100
    )
    return timing, {"bytes": sum(case.work().bytes for case in pair)}


def clocks_under_load(form: str) -> Result:
    """A large product on random data again and again; the row's clocks were seen meanwhile."""
    sizes = {"prefill": (CLOCKS_TOKENS,)}
    case = next(c for c in calls("gemm", ("scout",), ("prefill",), sizes) if form in c.label)
    args, options = case.make("cuda")
    timing = time_calls(lambda: ops.gemm(*args, **options), repeats=10)
    repeats = max(1, int(CLOCKS_S * 1e6 / timing.median))
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(repeats):
        ops.gemm(*args, **options)
    end.record()
    torch.cuda.synchronize()
    settled = begin.elapsed_time(end) * 1e3 / repeats
    flops = case.work().flops
    return timing, {
        "call": case.key,
        "repeats_under_load": repeats,
        "us_under_load": settled,
        "flops_per_second": flops / (settled * 1e-6),
    }


def copy_ceiling() -> Result:
    """Device-to-device copy, bytes read and written."""
    source = torch.empty(CEILING_BYTES // 2, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    timing = time_calls(lambda: target.copy_(source))
    moved = 2 * source.numel()
    return timing, {"bytes": moved, "bytes_per_second": moved / (timing.median * 1e-6)}


def read_ceiling() -> Result:
    """16-byte loads of every byte."""
    data = torch.empty(CEILING_BYTES, dtype=torch.uint8, device="cuda").random_()
    timing = time_calls(lambda: ops.word_sum(data))
    rate = data.numel() / (timing.median * 1e-6)
    return timing, {"bytes": data.numel(), "bytes_per_second": rate}


def sanitizer(tool: str) -> Result:
    """One process per tool, which looks at our kernels only; without torch's cache of memory, which
    would hide an access behind a tensor's end."""
    program = shutil.which("compute-sanitizer")
    if program is None:
        return None, {"skipped": "no compute-sanitizer on this machine"}
    watched = [program, "--tool", tool, "--error-exitcode", "9", "--show-backtrace", "no"]
    watched += [
        "--kernel-name",
        "kernel_substring=l4k",
        sys.executable,
        "-m",
        "bench.checks.gpu_checks",
    ]
    env = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(
        watched, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env
    )
    lines = done.stdout.strip().splitlines() or ["no output"]
    reports = dict.fromkeys(line[:160] for line in lines if line.startswith("========="))
    shown = [line for line in reports if line.strip("= ")][:40]
    assert done.returncode == 0, f"exit {done.returncode}\n" + "\n".join(shown)
    return None, {"summary": lines[-1]}


def counters(what: str) -> Result:
    """Hardware counters of one launch, by ncu, which leaves the clocks alone."""
    program = shutil.which("ncu")
    if program is None:
        return None, {"skipped": "no ncu on this machine"}
    command = [program, "--clock-control", "none", "--set", "full", "--page", "raw", "--csv"]
    command += ["--kernel-name", "regex:gemm_kernel", "--launch-skip", "1", "--launch-count", "1"]
    script = Path(__file__).with_name("counted.py")
    done = subprocess.run(
        [*command, sys.executable, str(script), what], capture_output=True, text=True
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith('"')]
    assert done.returncode == 0 and len(lines) >= 3, done.stdout[-2000:] + done.stderr[-1000:]
    return None, {"counters": counted(lines)}


def counted(lines: list[str]) -> dict[str, str]:
    """Name -> value of ncu's raw page: a line of names, one of units, one of values."""
    names, units, values = list(csv.reader(lines))[:3]
    found = zip(names, units, values, strict=True)
    return {name: f"{value} {unit}".strip() for name, unit, value in found if value}
