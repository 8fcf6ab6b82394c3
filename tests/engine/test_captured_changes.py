"""What is changed in a model while its steps are replayed: as if there were no replays."""

import copy
import pickle
from contextlib import contextmanager
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from l4kernels import Llama4, Llama4Config, ops
from l4kernels.engine.engine import Engine
from l4kernels.engine.graphs import as_it_is, cuda_graphs
from l4kernels.engine.pages import PagePool
from l4kernels.engine.request import Request
from l4kernels.ops import tape
from tests.support.checkpoints import ALIGNED, TEXT
from tests.support.deadlines import within

PROMPT = torch.tensor([[1, 5, 9, 2]])
NEW, BEFORE = 12, 6


def model():
    return Llama4.random(Llama4Config.from_dict({**TEXT, **ALIGNED}))


def changed_midway(change, capture):
    """Tokens of a generation in which the model changes after its steps are captured."""
    own = model()
    with mock.patch.object(tape, "capture", capture):
        steps = iter(own.stream(PROMPT, NEW, stop_ids=()))
        tokens = [int(next(steps)) for _ in range(BEFORE)]
        change(own)
        return tokens + [int(ids) for ids in steps]


def replace_a_weight(own):
    own.lm_head.weight = torch.nn.Parameter(own.lm_head.weight.flip(0), requires_grad=False)


def replace_a_module(own):
    own.norm = type(own.norm)(own.config.hidden_size, 1e-5, own.options.part("bf16"))
    own.norm.weight.data.copy_(torch.linspace(-1, 1, own.config.hidden_size))


def replace_a_buffer(own):
    own.cos_sin = own.cos_sin.flip(0)


def hook_that_changes(own):
    own.lm_head.register_forward_hook(lambda module, args, logits: logits.flip(1))


CHANGES = {
    "weight": replace_a_weight,
    "values": lambda own: own.lm_head.weight.data.copy_(own.lm_head.weight.flip(0)),
    "module": replace_a_module,
    "buffer": replace_a_buffer,
    "hook": hook_that_changes,
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_change_counts_from_the_next_step_on(kind):
    captured = changed_midway(CHANGES[kind], tape.capture)
    assert captured == changed_midway(CHANGES[kind], as_it_is)
    if kind != "buffer":  # rotations of the first positions hardly matter to a random model
        assert captured != changed_midway(lambda own: None, as_it_is)


@contextmanager
def everywhere(hook):
    handle = torch.nn.modules.module.register_module_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def of_a_layer(own, hook):
    handle = own.layers[0].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("where", ["everywhere", "of a layer"])
@pytest.mark.parametrize("way", ["generate", "engine"])
def test_a_hook_sees_every_step_and_may_read_values(where, way):
    own, seen = model(), []

    def hook(module, args, result):
        if module is own.layers[0]:
            seen.append(result[0].abs().max().item())

    with everywhere(hook) if where == "everywhere" else of_a_layer(own, hook):
        if way == "generate":
            own.generate(PROMPT, NEW, stop_ids=())
        else:
            with Engine(own, slots=1, context=64) as engine:
                engine.add(Request(PROMPT[0], NEW, stop_ids=())).result()
    assert len(seen) == 1 + NEW  # the prompt without its last token, and the steps


def test_an_engine_captures_again_when_hooks_have_gone():
    own, captured = model(), []

    def capture(step):
        captured.append(step)
        return tape.capture(step)

    with Engine(own, slots=1, context=64, capture=capture) as engine:
        with of_a_layer(own, lambda *_: None):
            engine.add(Request(PROMPT[0], NEW, stop_ids=())).result()
        assert not captured
        for _ in range(2):
            engine.add(Request(PROMPT[0], NEW, stop_ids=())).result()
        assert len(captured) == 1
        replace_a_weight(own)
        engine.add(Request(PROMPT[0], NEW, stop_ids=())).result()
        assert len(captured) == 2


class Graph:
    """Notes what would be captured; repeats nothing."""

    replays = 0

    def replay(self):
        Graph.replays += 1


@pytest.mark.parametrize("at", ["capture", "replay"])
def test_a_graph_does_not_stand_in_for_ops_that_a_block_sends_elsewhere(at):
    @contextmanager
    def graph(*_, **__):
        yield

    cuda = SimpleNamespace(graph_pool_handle=lambda: None, CUDAGraph=Graph, graph=graph)
    runs, Graph.replays = [], 0
    with mock.patch.object(torch, "cuda", cuda):
        capture = cuda_graphs()
        if at == "replay":
            again = capture(lambda: runs.append(1))
            assert len(runs) == 2  # done, and captured
            with ops.dispatch.reference():
                again()
            assert (len(runs), Graph.replays) == (3, 0)
            again()
            assert (len(runs), Graph.replays) == (3, 1)
            return
        with ops.dispatch.reference():
            again = capture(lambda: runs.append(1))
            assert len(runs) == 1
        again()
        again()
        assert (len(runs), Graph.replays) == (3, 1)


def test_a_step_that_was_watched_at_first_is_captured_later():
    x, runs = torch.ones(1, 4), []

    def step():
        runs.append(x.add_(ops.rms_norm(x, x[0])))

    with ops.dispatch.reference():
        again = tape.capture(step)
    for _ in range(3):
        again()
    assert len(runs) == 2


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda own: pickle.loads(pickle.dumps(own))])
def test_a_copy_of_a_model_takes_no_captures_with_it(copied):
    """What it generates is by its own weights."""
    own = model()
    wanted = own.generate(PROMPT, NEW, stop_ids=())
    other, fresh = copied(own), model()
    assert torch.equal(other.generate(PROMPT, NEW, stop_ids=()), wanted)
    for one in (other, fresh):
        one.lm_head.weight.data.copy_(one.lm_head.weight.flip(0))
    changed = other.generate(PROMPT, NEW, stop_ids=())
    assert torch.equal(changed, fresh.generate(PROMPT, NEW, stop_ids=()))
    assert torch.equal(own.generate(PROMPT, NEW, stop_ids=()), wanted)


def test_what_an_interrupted_step_has_left_serves_no_other_call(monkeypatch):
    own, allocate = model(), PagePool.allocate

    def interrupted(pool):
        allocate(pool)  # nobody will give it back
        raise KeyboardInterrupt

    wanted = own.generate(PROMPT, NEW, stop_ids=())
    with monkeypatch.context() as patch:
        patch.setattr(PagePool, "allocate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            own.generate(PROMPT, NEW, stop_ids=())
    found = within(30, lambda: own.generate(PROMPT, 120, stop_ids=()))
    assert torch.equal(found[:, : wanted.shape[1]], wanted)
