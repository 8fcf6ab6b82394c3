"""Who runs next, and who has to wait for whom."""

import pytest

from l4kernels import Sampling
from l4kernels.engine.core import EngineCore
from l4kernels.engine.engine import Engine
from l4kernels.engine.graphs import as_it_is
from l4kernels.engine.kv_cache import Pages
from l4kernels.engine.request import Request
from l4kernels.engine.sequence import Choice, Sequence
from tests.support.checksums import ChecksumModel, answer
from tests.support.traffic import require_empty

CHUNK = 24


def test_prompts_that_do_not_fit_together_wait_instead_of_pushing_each_other_out():
    """Six out of ten pages each: one after the other, and nothing is computed twice."""
    prompts = [[i] * 960 for i in range(8)]
    with Engine(ChecksumModel(CHUNK, "both", 1024), slots=8, kv_tokens=1600) as engine:
        streams = [engine.add(Request(ids, 40, stop_ids=())) for ids in prompts]
        for ids, stream in zip(prompts, streams, strict=True):
            assert stream.result() == [answer(ids, 40, CHUNK)]
        require_empty(engine)
        stats = engine.stats()
    assert stats.preemptions == 0
    assert stats.prompt_tokens == sum(len(ids) - 1 for ids in prompts)


def make_core(model, **kwargs):
    pages = Pages(64, 64)
    return EngineCore(model, **{"slots": 4, "context": 512, "pages": pages, **kwargs})


def sequence(tokens, new, **kwargs):
    return Sequence(list(tokens), Choice(Sampling(), 0, frozenset(), new), **kwargs)


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("budget", [1, 7, 16, 40])
def test_a_running_stream_gets_a_token_at_every_step(budget, lag):
    """However long the prompts beside it are, of which no step computes more than the budget."""
    core = make_core(ChecksumModel(CHUNK), prefill_tokens=budget, lag=lag)
    running, long = sequence([5] * 9, 450), sequence([6] * 300, 5)
    core.add(running)
    while not running.new_tokens:
        core.step()
    core.add(long)
    while not long.new_tokens:
        before, computed = len(running.tokens), long.computed
        core.step()
        assert len(running.tokens) == before + 1
        assert long.computed - computed <= budget + 1  # and the token that is a step's
    assert running.tokens[9:] == answer([5] * 9, len(running.new_tokens), CHUNK)


def test_prompts_use_all_of_a_step_while_nobody_waits_for_one():
    core = make_core(ChecksumModel(CHUNK), prefill_tokens=1)
    one = sequence([5] * 300, 3)
    core.add(one)
    core.step()
    assert len(one.new_tokens) == 1


def test_a_lower_priority_number_goes_first():
    """Among those that wait; who runs is not pushed out for it."""
    core, ended = make_core(ChecksumModel(CHUNK), slots=1), []
    first = sequence([5] * 9, 20)
    core.add(first)
    core.step()
    others = [sequence([i] * 9, 2, priority=p) for i, p in enumerate((1, 0, 2, 0, -1))]
    for one in others:
        core.add(one)
    while not core.idle:
        ended += [event.sequence for event in core.step() if event.finish_reason]
    assert ended == [first, *(others[i] for i in (4, 1, 3, 0, 2))]


@pytest.mark.parametrize("lag", [0, 1])
def test_the_youngest_is_pushed_out_and_goes_on_where_it_was(lag):
    """Four that grow beyond the pages; the oldest is never touched, all get what they must."""
    core = make_core(ChecksumModel(CHUNK), pages=Pages(12, 12), lag=lag)
    grown = [sequence([i] * 20, 100) for i in range(4)]
    for one in grown:
        core.add(one)
    events = []
    while not core.idle:
        events += core.step()
    for i, one in enumerate(grown):
        assert one.new_tokens == answer([i] * 20, 100, CHUNK)
        assert [e.token for e in events if e.sequence is one] == one.new_tokens
    preemptions = [one.preemptions for one in grown]
    assert preemptions[0] == 0 < preemptions[3] and core.scheduler.counts.preemptions > 2
    ends = [e.sequence for e in events if e.finish_reason]
    assert ends == grown  # first come, first served


@pytest.mark.parametrize("lag", [0, 1, 2])
def test_slots_close_up_while_steps_are_under_way(lag):
    """A step of fewer rows does as soon as few are left, in whatever order the others end."""
    core = make_core(ChecksumModel(CHUNK), slots=8, lag=lag, capture=as_it_is)
    lengths = [3, 40, 5, 4, 60, 3, 80, 9]
    made = [sequence([i] * 9, n) for i, n in enumerate(lengths)]
    for one in made:
        core.add(one)
    while not core.idle:
        core.step()
    for i, (one, n) in enumerate(zip(made, lengths, strict=True)):
        assert one.new_tokens == answer([i] * 9, n, CHUNK)
    assert {count for count, _ in core.runner._replays} >= {1, 2, 4}
