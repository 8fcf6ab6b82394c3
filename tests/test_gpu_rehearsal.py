"""The steps of a visit to a GPU, rehearsed at small sizes on a GPU that is none."""

import contextlib
import json
from types import SimpleNamespace
from unittest import mock

import pytest

from bench import gpu_steps, peers, shapes, timing
from l4kernels import STATUS, Llama4Config
from tests import edges, gpu_checks
from tests.fake_cuda import fake_cuda

pytestmark = pytest.mark.skipif(not STATUS.loaded, reason="no compiled kernels: run `make build`")

SMALL = {
    "REPEATS": 2,
    "CHAINED": (40, 512),
    "TOKENS": 150,
    "WIDTH": 256,
    "SAMPLED": (150, 512),
    "ROUTED": ((70, 16, 2),),
    "ROPE_HEADS": 1,
    "ROPE_PAGES": 3,
}


@contextlib.contextmanager
def rehearsal():
    """Small tensors of the demo's shapes, one repeat, peers as they are written."""
    demo = SimpleNamespace(preset=lambda name: Llama4Config.preset("demo"))
    sizes = {op: {phase: (128,) for phase in found} for op, found in shapes.SIZES.items()}
    with contextlib.ExitStack() as stack:
        for patch in (
            *(mock.patch.object(gpu_checks, name, value) for name, value in SMALL.items()),
            mock.patch.dict(edges.DRAWS, {"cuda": 400}),
            mock.patch.dict(shapes.PHASES, {"decode": (1,), "prefill": (5,)}),
            mock.patch.dict(shapes.SIZES, sizes),
            mock.patch.object(shapes, "Llama4Config", demo),
            mock.patch.object(peers.torch, "compile", lambda function: function),
            mock.patch.dict(timing.time_graph.__kwdefaults__, {"chain": 2, "repeats": 2}),
            mock.patch.dict(timing.time_calls.__kwdefaults__, {"repeats": 2, "warmup": 1}),
            mock.patch.object(
                gpu_steps,
                "WHOLE_MODELS",
                (("demo", "fp8", 1, 4, 2, 1), ("demo", "bf16", 1, 4, 2, 1)),
            ),
            fake_cuda(),
        ):
            stack.enter_context(patch)
        yield


def run(key):
    with rehearsal():
        returned = dict(gpu_steps.steps())[key]()
        results = [returned] if isinstance(returned, tuple) else list(returned)
    for _, facts in results:
        json.dumps(facts)
    return results[-1]


with rehearsal() if STATUS.loaded else contextlib.nullcontext():
    KEYS = [key for key, _ in gpu_steps.steps()] if STATUS.loaded else []


@pytest.mark.parametrize("key", KEYS)
def test_step(key):
    print(key, run(key))
