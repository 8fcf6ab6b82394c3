"""What a server needs beside tokens: ends, functions between steps, masks and log-probabilities."""

import threading

import pytest
import torch

from l4kernels import Engine, EngineClosed, Llama4, Request
from l4kernels.demo import CHECKPOINT
from l4kernels.engine.logprobs import prompt_logprobs
from l4kernels.ops.step import pack_bits
from tests.support.checksums import VOCAB, ChecksumModel


@pytest.fixture
def engine():
    with Engine(ChecksumModel(), slots=4, context=256) as one:
        yield one


def ends(engine, **fields):
    """What `on_end` was told, how often, and by which thread."""
    told, over = [], threading.Event()

    def note(error):
        told.append((error, threading.current_thread().name))
        over.set()

    stream = engine.add(Request([1, 2], on_end=note, stop_ids=(), **fields))
    return stream, told, over


def test_the_end_is_told_once(engine):
    stream, told, over = ends(engine, max_new_tokens=3, n=2)
    assert over.wait(10)
    engine.cancel(stream)
    stream.result()
    assert told == [(None, "l4kernels")]


def test_the_end_comes_after_the_last_output(engine):
    seen = []
    request = Request([1], 5, stop_ids=(), on_output=lambda o: seen.append(o.finish_reason),
                      on_end=lambda error: seen.append("end"))  # fmt: skip
    engine.add(request).result()
    engine.close()
    assert seen == [None] * 4 + ["length", "end"]


def test_an_error_and_a_cancellation_are_told(engine):
    def refuse(output):
        raise KeyError("mine")

    stream, told, over = ends(engine, max_new_tokens=3, on_output=refuse)
    assert over.wait(10) and isinstance(told[0][0], KeyError)
    stream, told, over = ends(engine, max_new_tokens=200)
    engine.cancel(stream)
    assert over.wait(10) and told[0][0] is None
    stream, told, over = ends(engine, max_new_tokens=200)
    engine.close()
    assert over.wait(10) and isinstance(told[0][0], EngineClosed)


def test_a_function_between_steps(engine):
    stream = engine.add(Request([1, 2], 100, stop_ids=()))
    names = [engine.between_steps(lambda: threading.current_thread().name) for _ in range(3)]
    assert [name.result(10) for name in names] == ["l4kernels"] * 3
    failed = engine.between_steps(lambda: {}["none"])
    assert isinstance(failed.exception(10), KeyError)
    assert len(stream.result()[0]) == 100, "and it harms no request"
    with pytest.raises(ValueError, match="function"):
        engine.between_steps(3)


def test_a_closed_engine_says_so(engine):
    assert engine.closed is None
    engine.close(drain=True)
    assert "closed" in engine.closed
    with pytest.raises(EngineClosed):
        engine.between_steps(dict)


def test_each_sample_has_its_mask(engine):
    masks = [lambda tokens, i=i: pack_bits([10 * i + len(tokens)], VOCAB) for i in range(3)]
    stream = engine.add(Request([1, 2], 4, n=3, token_mask=masks, stop_ids=()))
    assert stream.result() == [[10 * i + k for k in range(4)] for i in range(3)]
    for wrong in ([], masks[:2], [*masks[:2], 3], 5):
        with pytest.raises(ValueError, match="token_mask"):
            engine.add(Request([1, 2], 4, n=3, token_mask=wrong))


def test_log_probabilities_of_a_prompt():
    model = Llama4.from_pretrained(CHECKPOINT)
    ids = torch.randint(1024, (300,), generator=torch.Generator().manual_seed(1))  # over slices
    expected = model.prompt_logits(ids[None])[0].log_softmax(-1)
    found = prompt_logprobs(model, ids, 3)
    assert len(found) == 299 and len(prompt_logprobs(model, ids[:1])) == 0
    own = expected[torch.arange(299), ids[1:]]
    assert [token.logprob for token in found] == pytest.approx(own.tolist(), abs=1e-4)
    best = expected.topk(3)
    for row, token in enumerate(found):
        assert [i for i, _ in token.top] == best.indices[row].tolist()
        assert [v for _, v in token.top] == pytest.approx(best.values[row].tolist(), abs=1e-4)
    for wrong in ([1] * 8193, [], [5000]):
        with pytest.raises(ValueError, match="expected"):
            prompt_logprobs(model, wrong)
    with pytest.raises(ValueError, match="top"):
        prompt_logprobs(model, ids, 21)
