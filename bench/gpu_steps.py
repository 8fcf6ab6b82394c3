"""The steps of a visit to a GPU: tests of every kernel, sanitizers, ceilings, measurements.

A step returns the timing of its row, if it has one, and what else the row holds; it raises when it
fails.
"""

import contextlib
import functools
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch

from l4kernels import STATUS, ops, take_device_error
from l4kernels.env import gpu_problem
from l4kernels.ops import OPS
from l4kernels.testing import assert_close
from tests.kernel_checks import check, kernel_cases, same_bits, tensors
from tests.making import Case
from tests.whole_model import CASES
from tests.whole_model import check as model_is_right

from . import e2e
from .measure import measure
from .peaks import gpu_key
from .shapes import PHASES, benchmarked_ops, calls
from .timing import Timing, capture, time_calls

Result = tuple[Timing | None, dict[str, Any]]
Step = Callable[[], Result]

REPEATS = 20
WHOLE_MODELS = (  # model, format, batch, prompt, new tokens, layers (None: as many as fit)
    ("demo", "fp8", 1, 128, 32, None),
    ("scout", "fp8", 1, 8192, 64, None),
    ("scout", "fp8", 64, 1024, 32, None),
    ("scout", "bf16", 1, 8192, 64, 8),
    ("maverick", "fp8", 1, 8192, 64, 8),
)
COSTS = {"e2e.scout.fp8": 120, "e2e.": 60, "sanitizer.": 60, "test.model.": 20}
"""Seconds that steps whose key starts so may take; a step that the budget does not cover waits."""
SANITIZERS = ("memcheck", "racecheck", "synccheck")


def steps() -> Iterator[tuple[str, Step]]:
    """Every step with the key of its row, in the order that matters when time is short."""
    yield "test.graph.dependent_launch", dependent_launches_in_a_graph
    if {"flash_decode", "flash_prefill"} <= set(STATUS.kernels):
        yield "test.graph.attention", attention_in_a_graph
    for op in STATUS.kernels:
        yield f"test.{op}", functools.partial(kernel_is_right, op)
    for form in ("bf16", "fp8"):
        if gpu_problem(form) is None:
            for case in CASES:
                if case[0].startswith(form):
                    yield f"test.model.{'.'.join(case)}", functools.partial(whole_model, *case)
    yield "ceiling.copy", copy_ceiling
    yield "ceiling.read", read_ceiling
    for model, form, batch, prompt, new, layers in WHOLE_MODELS:
        if gpu_problem(form) is None:
            run = functools.partial(e2e.run, "cuda", model, form, batch, prompt, new, layers)
            yield e2e.key(model, form, batch, prompt), lambda run=run: (None, run())
    for op in STATUS.kernels:
        if op in benchmarked_ops():
            for case in calls(op, ("scout", "maverick"), tuple(PHASES)):
                yield case.key, functools.partial(bench_case, case)
    for tool in SANITIZERS:
        yield f"sanitizer.{tool}", functools.partial(sanitizer, tool)


def cost(key: str) -> float:
    return next((seconds for start, seconds in COSTS.items() if key.startswith(start)), 0)


def whole_model(form: str, prompt: str) -> Result:
    """The demo checkpoint through the kernels: same greedy tokens as on the references."""
    errors = model_is_right(form, prompt, contextlib.nullcontext(), "cuda")
    take_device_error()
    return None, errors


def size(case: Case) -> int:
    return sum(t.nbytes for t in case.args if isinstance(t, torch.Tensor))


def kernel_is_right(op: str) -> Result:
    """All cases against the reference on the GPU; same bits on every run and in a graph."""
    cases = kernel_cases(op, "cuda")
    for case in cases:
        check(op, case)
    case = max(cases, key=size)
    if not list(OPS[op].overload._schema.arguments) or _writes(op):
        return None, {"cases": len(cases)}
    first = tensors(OPS[op](*case.args, **case.kwargs))
    for _ in range(REPEATS):
        again = tensors(OPS[op](*case.args, **case.kwargs))
        same = all(same_bits(a, b) for a, b in zip(first, again, strict=True))
        assert same, f"{op} [{case}]: other bits on another run"
    results: list[Any] = []
    graph = capture(lambda: results.append(OPS[op](*case.args, **case.kwargs)))
    graph.replay()
    torch.cuda.synchronize()
    replayed = tensors(results[-1])
    same = all(same_bits(a, b) for a, b in zip(first, replayed, strict=True))
    assert same, f"{op} [{case}]: other bits in a graph"
    return None, {"cases": len(cases), "repeats": REPEATS}


def _writes(op: str) -> bool:
    return any(a.alias_info is not None for a in OPS[op].overload._schema.arguments)


def dependent_launches_in_a_graph() -> Result:
    """Two kernels, the second launched before the first has ended, replayed on new inputs."""
    x = torch.randn(4096, 16384, device="cuda", dtype=torch.bfloat16)
    results: list[torch.Tensor] = []
    graph = capture(lambda: results.append(ops.silu_mul(ops.silu_mul(x))))
    for _ in range(REPEATS):
        x.normal_()
        graph.replay()
        expected = ops.silu_mul.reference(ops.silu_mul.reference(x))
        assert_close(results[-1], expected, 5e-3, "chained silu_mul")
    return None, {"replays": REPEATS}


def attention_in_a_graph(device: str = "cuda", replays: int = 1000) -> Result:
    """Launches captured once follow the lengths on the device, to both sides of every chunk and
    between one piece and many, and give the bits that the same call gives outside of a graph."""
    batch, tokens, chunk, page, columns = 3, 2, 8192, 64, 260
    int32 = {"dtype": torch.int32, "device": device}
    caches = torch.randn(2, batch * columns, page, 8, 128, device=device, dtype=torch.bfloat16)
    q = torch.randn(batch, tokens, 40, 128, device=device, dtype=torch.bfloat16)
    table = torch.randperm(batch * columns).view(batch, columns).to(**int32)
    lengths, starts = torch.zeros(batch, **int32), torch.arange(batch + 1, **int32) * tokens
    options = {"softmax_scale": 128**-0.5, "chunk": chunk}

    def attend() -> list[torch.Tensor]:
        decoded = ops.flash_decode(q, *caches, lengths, table, **options)
        rows = (q.flatten(0, 1), *caches, starts, lengths, table)
        return [*decoded, *ops.flash_prefill(*rows, max_seqlen_q=tokens, **options)]

    results: list[list[torch.Tensor]] = []
    graph = capture(lambda: results.append(attend()))
    draw = torch.Generator().manual_seed(0)
    for _ in range(replays):
        edge = torch.randint(3, (batch,), generator=draw) * chunk
        near = edge + torch.randint(-3, 4, (batch,), generator=draw)
        far = torch.randint(columns * page + 1, (batch,), generator=draw)
        lengths.copy_(torch.where(torch.rand(batch, generator=draw) < 0.5, near, far).clamp(min=0))
        graph.replay()
        for replayed, eager in zip(results[-1], attend(), strict=True):
            assert same_bits(replayed, eager), f"other bits in a graph at {lengths.tolist()}"
    return None, {"replays": replays}


def copy_ceiling() -> Result:
    """Device-to-device copy, bytes read and written."""
    source = torch.empty(4 << 30, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    timing = time_calls(lambda: target.copy_(source))
    moved = 2 * source.numel()
    return timing, {"bytes": moved, "bytes_per_second": moved / (timing.median * 1e-6)}


def read_ceiling() -> Result:
    """16-byte loads over 8 GiB."""
    data = torch.empty(8 << 30, dtype=torch.uint8, device="cuda").random_()
    timing = time_calls(lambda: ops.word_sum(data))
    rate = data.numel() / (timing.median * 1e-6)
    return timing, {"bytes": data.numel(), "bytes_per_second": rate}


def bench_case(case: Any) -> Result:
    return measure(case, gpu_key(torch.cuda.get_device_name()))


def sanitizer(tool: str) -> Result:
    """One process per tool runs the smallest case of each kernel."""
    program = shutil.which("compute-sanitizer")
    if program is None:
        return None, {"skipped": "no compute-sanitizer on this machine"}
    done = subprocess.run(
        [program, "--tool", tool, "--error-exitcode", "9", sys.executable, "-m", "bench.gpu_steps"],
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, f"{tool}: exit {done.returncode}\n{done.stdout[-1500:]}"
    return None, {"summary": done.stdout.strip().splitlines()[-1]}


def smallest_cases() -> None:
    """What the sanitizers watch."""
    for op in STATUS.kernels:
        case = min((c for c in kernel_cases(op, "cuda") if size(c)), key=size).copy()
        OPS[op](*case.args, **case.kwargs)
        torch.cuda.synchronize()
        print(f"{op} [{case}]")


if __name__ == "__main__":
    smallest_cases()
