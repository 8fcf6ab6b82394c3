"""The steps of a visit to a GPU: tests of every kernel, sanitizers, ceilings, measurements.

A step returns the timing of its row, if it has one, and what else the row holds; it raises when it
fails.
"""

import functools
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch

from l4kernels import STATUS, ops
from l4kernels.env import gpu_problem
from tests import gpu_checks
from tests.edges import EDGES
from tests.whole_model import CASES

from . import e2e
from .gpu_suite import Result
from .measure import measure
from .peaks import gpu_key
from .shapes import PHASES, benchmarked_ops, calls
from .timing import time_calls, time_graph

Step = Callable[[], Result | Iterator[Result]]

WHOLE_MODELS = (  # model, format, batch, prompt, new tokens, layers (None: as many as fit)
    ("demo", "fp8", 1, 128, 32, None),
    ("scout", "fp8", 1, 8192, 64, None),
    ("scout", "fp8", 64, 1024, 32, None),
    ("scout", "bf16", 1, 8192, 64, 8),
    ("maverick", "fp8", 1, 8192, 64, 8),
)
COSTS = {"e2e.scout.fp8": 120, "e2e.": 60, "sanitizer.": 60, "test.model.": 20, "test.": 10, "own.": 2, "": 5}
"""Seconds that steps whose key starts so may take; a step that the budget does not cover waits."""
SANITIZERS = ("memcheck", "racecheck", "synccheck")
CEILING_BYTES = 8 << 30
FIRST = 120
"""Measurements before the slow steps: eight or more of every op."""


def steps() -> Iterator[tuple[str, Step]]:
    """Every step with the key of its row, in the order that matters when time is short."""
    for op in STATUS.kernels:
        yield f"smoke.{op}", functools.partial(_smoke, op)
    yield "ceiling.copy", copy_ceiling
    yield "ceiling.read", read_ceiling
    yield from _own_measurements("scout")
    yield "test.graph.dependent_launch", _check(gpu_checks.dependent_launches_in_a_graph)
    yield "test.graph.attention", _check(gpu_checks.attention_in_a_graph)
    for op in STATUS.kernels:
        yield f"test.{op}", _check(gpu_checks.kernel_is_right, op)
    for name in EDGES:
        yield f"test.edge.{name}", _check(gpu_checks.edge_is_right, name)
    for name, check in gpu_checks.LARGE.items():
        yield f"test.large.{name}", _check(check)
    yield "test.streams", _check(gpu_checks.two_streams)
    yield "test.devices", _check(gpu_checks.another_device)
    formats = [form for form in ("bf16", "fp8") if gpu_problem(form) is None]
    for form, prompt in CASES:
        if form.split("_")[0] in formats:
            yield f"test.model.{form}.{prompt}", _check(gpu_checks.whole_model, form, prompt)
    yield "test.cupy", _check(gpu_checks.cupy_agrees)
    found = [model for model in WHOLE_MODELS if model[1] in formats]
    models = [(e2e.key(*model[:4]), _check(e2e.run, "cuda", *model)) for model in found]
    yield from models[:2]
    measurements = [*_measurements("scout"), *_measurements("maverick")]
    yield from measurements[:FIRST]
    for tool in SANITIZERS:
        yield f"sanitizer.{tool}", functools.partial(sanitizer, tool)
    yield from models[2:]
    yield from measurements[FIRST:]


OWN = {"gemm": {"decode": (1, 64), "prefill": (1024, 8192)},
       "gemm_swiglu_fp8": {"decode": (1, 64), "prefill": (1024, 8192)},
       "flash_prefill": {"prefill": (8192, 32768)},
       "flash_decode": {"decode": (1024, 8192, 131072)},
       "rms_norm": {"decode": (1,), "prefill": (16384,)},
       "silu_mul": {"decode": (1,), "prefill": (16384,)},
       "moe_route": {"decode": (1, 64)},
       "sample": {"decode": (1, 64)}}


def _own_measurements(model: str) -> Iterator[tuple[str, Step]]:
    gpu = gpu_key(torch.cuda.get_device_name())
    for op, sizes in OWN.items():
        for case in calls(op, (model,), tuple(PHASES), sizes):
            if "head" in case.label or "fp8_mixed" in case.label:
                continue
            yield "own." + case.key, functools.partial(measure, case, gpu, with_peers=False)


def _smoke(op: str) -> Iterator[Result]:
    for facts in gpu_checks.smoke(op):
        yield None, facts


def _check(function: Callable[..., dict[str, Any]], *args: Any) -> Step:
    return lambda: (None, function(*args))


def _measurements(model: str) -> Iterator[tuple[str, Step]]:
    """The first case of every op, then the second: a short visit has seen each op."""
    for tokens in PHASES["decode"]:
        yield f"bench.logits_to_rows.{model}.{tokens}", lambda t=tokens: logits_to_rows(model, t)
    gpu = gpu_key(torch.cuda.get_device_name())
    found = [calls(op, (model,), tuple(PHASES)) for op in STATUS.kernels if op in benchmarked_ops()]
    for case in filter(None, itertools.chain.from_iterable(itertools.zip_longest(*found))):
        yield case.key, functools.partial(measure, case, gpu)


def cost(key: str) -> float:
    return next(seconds for start, seconds in COSTS.items() if key.startswith(start))


def logits_to_rows(model: str, tokens: int) -> Result:
    """Routing and the quantising gather behind it."""
    two, sizes = ("moe_route", "moe_permute_fp8"), {"decode": (tokens,)}
    pair = [next(calls(op, (model,), ("decode",), sizes)) for op in two]
    ((logits, top_k), _), ((x, *_), _) = (case.make("cuda") for case in pair)
    timing = time_graph(
        [lambda: ops.moe_permute_fp8(x, ops.moe_route(logits, top_k).permutation, top_k)], chain=100
    )
    return timing, {"bytes": sum(case.work().bytes for case in pair)}


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
    watched = [program, "--tool", tool, "--error-exitcode", "9"]
    watched += ["--kernel-name", "kernel_substring=l4k", sys.executable, "-m", "tests.gpu_checks"]
    env = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(
        watched, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env
    )
    lines = done.stdout.strip().splitlines() or ["no output"]
    reports = [line for line in lines if line.startswith("=========")][:25]
    assert done.returncode == 0, f"exit {done.returncode}\n" + "\n".join(reports + lines[-10:])
    return None, {"summary": lines[-1]}
