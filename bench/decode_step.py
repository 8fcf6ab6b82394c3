"""The engine's decode step, captured as it captures it, and replayed without the host in between.

Each replay is the step after the one before: its token is the one that the step before it drew.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from l4kernels import Llama4
from l4kernels.bench import shapes
from l4kernels.bench.e2e import layers_that_fit, shortened
from l4kernels.bench.timing import Timing, time_replays
from l4kernels.engine.core import EngineCore
from l4kernels.engine.graphs import Step, cuda_graphs
from l4kernels.engine.kv_cache import CacheShape
from l4kernels.engine.request import Request
from l4kernels.engine.runner import Piece
from l4kernels.engine.state import StepKind
from l4kernels.ops.step import RUNNING
from l4kernels.planning.plan import plan
from l4kernels.testing import serial_launches

CONTEXTS = 1024, 8000
FEW = 8
REPLAYS = 30
ROOM = 64  # tokens: every replay takes one


def steps(
    gpu: str, formats: list[str]
) -> Iterator[tuple[str, Callable[[], Iterator[tuple[Timing, dict[str, Any]]]]]]:
    """A few layers, whose number is the same on every GPU, and all of Scout where it fits."""
    for form in formats:
        yield f"step.scout.{form}.layers{FEW}", lambda f=form: measured("scout", f, gpu, FEW)
    config = shapes.Llama4Config.preset("scout")
    if "fp8" in formats and plan(config, "fp8", gpu, CONTEXTS[-1] + ROOM, 1).spare > 8e9:
        yield "step.scout.fp8.whole", lambda: measured("scout", "fp8", gpu, None)


def measured(
    model: str, form: str, gpu: str, layers: int | None
) -> Iterator[tuple[Timing, dict[str, Any]]]:
    """Timing of the last context's step; by context the medians and the plan's floors."""
    whole = shapes.Llama4Config.preset(model)
    layers = layers or layers_that_fit(whole, form, gpu, CONTEXTS[-1] + ROOM, 1)
    config = shortened(whole, layers)
    network = Llama4.random(config, "cuda", torch.bfloat16, form)
    facts: dict[str, Any] = {"model": model, "format": form, "layers": layers, "contexts": {}}
    for context in CONTEXTS:
        timing = step_time(network, context)
        planned = plan(config, form, gpu, context, 1)
        facts["contexts"][str(context)] = {
            "us": timing.median,
            "floor_us": planned.step_floor_ms * 1e3,
            "bytes_per_second": planned.bytes_per_step / (timing.median * 1e-6),
        }
        if context == CONTEXTS[0]:  # what it is worth that launches overlap
            with serial_launches():
                serial = step_time(network, context)
            facts["contexts"][str(context)]["serial_us"] = serial.median
        yield timing, facts


def step_time(network: Llama4, context: int) -> Timing:
    """Of one sequence whose first replay, after some eager steps, has about `context` keys."""
    ids = torch.randint(network.config.vocab_size, (context,))
    (sequence,) = Request(ids, max_new_tokens=ROOM, stop_ids=()).sequences(network)
    replays: list[Step] = []

    def capture(step: Step) -> Step:
        replays.append(cuda_graphs()(step))
        return replays[-1]

    pages = CacheShape.of(network.config, network.kv_dtype).needed(context + ROOM)
    core = EngineCore(network, slots=1, context=context + ROOM, pages=pages, capture=capture)
    runner, state = core.runner, core.state
    with torch.inference_mode():
        core.cache.extend(sequence, 0, sequence.capacity)
        for kind, pages in enumerate(sequence.pages):
            state.set_pages(kind, 0, 0, pages)
        state.flush()
        chunk = core.cache.shape.chunk or context
        for start in range(0, context - 1, chunk):
            runner.prefill([Piece(sequence, 0, start, min(start + chunk, context - 1))])
        state.start(0, sequence)
        while not replays:
            runner.step(1, StepKind())
        timing = time_replays(replays[0], repeats=REPLAYS)
    if int(state.results[1, 0]) != RUNNING:
        raise RuntimeError(f"the sequence ended within {ROOM} steps: {state.results.tolist()}")
    return timing
