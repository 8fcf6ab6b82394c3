"""What a request gets does not depend on the others: 64 together against each of them alone."""

import itertools
import random

import pytest
import torch

from l4kernels import Llama4, Sampling, demo
from l4kernels.engine.engine import Engine
from l4kernels.engine.request import Request
from tests.support.traffic import require_empty

TOLERANCE = 1e-4
TILE_TOKENS, CHUNK = 4, 64


@pytest.fixture(scope="module")
def model():
    return Llama4.from_pretrained(demo.CHECKPOINT)


def make_request(model, draw: random.Random) -> Request:
    """Text of any length around the chunks, some after a common beginning, some with images."""
    vocab, patch = 1000, model.config.image_token_index
    common = [*range(1, 101)]
    ids = common[: draw.choice([0, 0, 30, 64, 100])]
    ids += [draw.randrange(vocab) for _ in range(draw.choice([1, 57, 60, 63, 64, 65, 124]))]
    tiles = draw.choice([0, 0, 0, 1, 2])
    pixels = None
    if tiles:
        pixels = torch.rand(tiles, 3, 32, 32, generator=torch.Generator().manual_seed(tiles))
        at = draw.choice([0, len(ids) // 2, len(ids)])
        ids[at:at] = [patch] * (TILE_TOKENS * tiles)
    sampling = draw.choice(
        [
            Sampling(),
            Sampling(),
            Sampling(0.8, seed=draw.randrange(1000)),
            Sampling(1.2, top_k=20, top_p=0.9, min_p=0.01, seed=3),
            Sampling(0.7, repetition_penalty=1.3, logit_bias={5: 2.0}, min_tokens=3, seed=4),
            Sampling(frequency_penalty=0.7, presence_penalty=0.4),
        ]
    )
    new, stop = draw.choice([1, 2, 5, 9, 13, 30]), draw.choice([None, (), (1031, 7)])
    samples, logprobs = draw.choice([1] * 6 + [2, 3]), draw.choice([None, None, 0, 3])
    return Request(ids, new, sampling, pixels, stop, n=samples, logprobs=logprobs)


@pytest.fixture(scope="module")
def requests(model):
    draw = random.Random(7)
    return [make_request(model, draw) for _ in range(64)]


def outputs_of(stream, n):
    samples = [[] for _ in range(n)]
    for output in stream:
        samples[output.sample].append(output)
    return samples


@pytest.fixture(scope="module")
def alone(model, requests):
    """Of each request, from an engine that has nothing else to do."""
    found = []
    for request in requests:
        size = len(request.prompt) + request.max_new_tokens
        with Engine(model, slots=1, context=size, kv_tokens=size, prefix_cache=False) as engine:
            found.append(outputs_of(engine.add(request), request.n))
    return found


def require_equal(got, wanted):
    for samples in zip(got, wanted, strict=True):
        one, other = ([(o.token_id, o.finish_reason) for o in sample] for sample in samples)
        assert one == other
        for one, other in zip(*samples, strict=True):
            assert (one.logprob is None) == (other.logprob is None)
            if one.logprob is not None:
                assert abs(one.logprob - other.logprob) <= TOLERANCE
                values = zip(one.top_logprobs, other.top_logprobs, strict=True)
                assert all(abs(a[1] - b[1]) <= TOLERANCE for a, b in values)


def cancelled(engine, request, after):
    """What is left of a request that is given up after so many outputs."""
    stream = engine.add(request)
    begun = [*itertools.islice(stream, after)]
    engine.cancel(stream)
    samples = [[] for _ in range(request.n)]
    for output in itertools.chain(begun, stream):
        if output.token_id is not None:
            samples[output.sample].append(output.token_id)
    return samples


@pytest.mark.parametrize(
    "slots, kv_tokens, lag", [(32, 16_384, 0), (24, 576, 1)], ids=["many pages", "few pages"]
)
def test_64_requests_get_what_each_gets_alone(model, requests, alone, slots, kv_tokens, lag):
    """They arrive while others run, and some are given up."""
    order = random.Random(lag).sample(range(64), 64)
    with Engine(model, slots=slots, context=512, kv_tokens=kv_tokens, prefill_tokens=100) as engine:
        engine._core.lag = lag
        streams = {}
        for place, number in enumerate(order):
            request = requests[number]
            streams[number] = engine.add(request)
            if place % 8 == 7:  # the others have got so far by now
                for tokens, wanted in zip(
                    cancelled(engine, request, place // 16), alone[number], strict=True
                ):
                    assert tokens == [o.token_id for o in wanted][: len(tokens)]
        for number, stream in streams.items():
            require_equal(outputs_of(stream, requests[number].n), alone[number])
        stats = engine.stats()
        require_empty(engine)
    assert stats.preemptions >= 3 if kv_tokens < 1000 else stats.preemptions == 0
    assert stats.reused_tokens > 0


def test_generate_gets_the_same(model, requests, alone):
    """The samples of a request are rows of a batch."""
    for request, wanted in [*zip(requests, alone, strict=True)][:16]:
        ids, pixels = torch.tensor([request.prompt] * request.n), request.pixel_values
        if pixels is not None:
            pixels = pixels.repeat(request.n, 1, 1, 1)
        new, stop = request.max_new_tokens, request.stop_ids
        whole = model.stream(ids, new, pixels, request.sampling, stop)
        rows = torch.stack(list(whole), 1).tolist()
        for row, sample, reason in zip(rows, wanted, whole.finish_reasons, strict=True):
            assert row[: len(sample)] == [o.token_id for o in sample]
            assert reason == sample[-1].finish_reason
