"""A decode step as one CUDA graph, replayed: what an engine without host gaps would take.

Each replay is the step after the one before, positions and all, but always of the same token, so
what it says means nothing; the work, and the memory it touches, are those of a real step.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from l4kernels import Llama4
from l4kernels.bench import shapes
from l4kernels.bench.e2e import layers_that_fit, shortened
from l4kernels.bench.timing import Timing, capture, time_replays
from l4kernels.engine.runner import Runner
from l4kernels.engine.sequence import Sequence
from l4kernels.planning.plan import plan

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
        yield timing, facts


def step_time(network: Llama4, context: int) -> Timing:
    ids = torch.randint(network.config.vocab_size, (context,)).to(network.device)
    with torch.inference_mode():
        runner = Runner(network, [Sequence(ids)], ROOM)
        runner.prefill()
        graph = capture(lambda: runner.decode(ids[-1:]))
        return time_replays(graph, repeats=REPLAYS)
