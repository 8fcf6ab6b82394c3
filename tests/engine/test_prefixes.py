"""Prefixes that are shared: what is not computed again, and that nobody can tell."""

import threading

import pytest
import torch

from l4kernels import Llama4, Sampling, demo
from l4kernels.engine.engine import Engine
from l4kernels.engine.request import Request
from tests.support.checksums import PATCH, TILE_TOKENS, ChecksumModel, answer, contents
from tests.support.traffic import PICTURES, require_empty

PAGE = CHUNK = 64
SYSTEM = [(7 * i * i + i) % 1000 for i in range(7 * PAGE)]


@pytest.fixture(scope="module")
def model():
    return Llama4.from_pretrained(demo.CHECKPOINT)


def conversations(engine, count, turns, new, read):
    """A common system prompt, then what each says and is answered; the whole of each, and how many
    of the prompts' tokens had been there before."""
    whole, repeated = [list(SYSTEM) for _ in range(count)], 0
    for turn in range(turns):
        for number, ids in enumerate(whole):
            repeated += len(ids) if turn or number else 0
            ids += torch.randint(0, 1000, (20 + number % 5,)).tolist()
        streams = [engine.add(Request(ids, new, stop_ids=(), logprobs=0)) for ids in whole]
        for ids, stream in zip(whole, streams, strict=True):
            for output in stream:
                read(len(ids), ids, output)
                ids.append(output.token_id)
    return whole, repeated


def test_conversations_compute_what_is_new(model):
    """All 32 say their first word at once; each token and its probability as without the cache."""
    chosen = {}

    def read(position, ids, output):
        chosen.setdefault(id(ids), []).append((position, output.token_id, output.logprob))

    with Engine(model, slots=32, context=1024, kv_tokens=40 * 1024) as engine:
        whole, repeated = conversations(engine, 32, 4, 6, read)
        reused = engine.stats().reused_tokens
        require_empty(engine)
    assert reused >= 0.9 * repeated
    for ids in whole:
        logprobs = model.prompt_logits(torch.tensor([ids]))[0].log_softmax(1)
        assert len(chosen[id(ids)]) == 24
        for position, token, logprob in chosen[id(ids)]:
            before = logprobs[position - 1]
            assert abs(before[token] - logprob) <= 1e-4
            assert before[token] >= before.max() - 1e-4  # the likeliest, but for ties


@pytest.mark.parametrize("chunk", [16, 24, 96])
def test_prompts_that_come_together_are_computed_once(chunk):
    """But for the page that their ways part in."""
    model, size = ChecksumModel(chunk), 32 if chunk == 96 else 16
    prompts = [[1] * 100 + [i] * (1 + i) for i in range(20)]
    with Engine(model, slots=20, context=256) as engine:
        streams = [engine.add(Request(ids, 9, stop_ids=(), n=3)) for ids in prompts]
        for ids, stream in zip(prompts, streams, strict=True):
            assert stream.result() == [answer(ids, 9, chunk)] * 3
        stats = engine.stats()
        require_empty(engine)
    per_prompt = [len(ids) - 1 for ids in prompts]
    once = 100 // size * size
    assert stats.prompt_tokens == 3 * sum(per_prompt)
    assert stats.prompt_tokens - stats.reused_tokens <= once + sum(
        (n - once) + 2 * (n % size) for n in per_prompt
    )


@pytest.mark.parametrize("tokens", [0, 3, 16, 40])
def test_a_picture_is_known_by_its_content(tokens):
    """The same pixels in another tensor are the same prefix; other pixels are not."""
    model, text = ChecksumModel(24), [9] * tokens
    ids = [*text, *[PATCH] * TILE_TOKENS, *[4] * 30]
    size = len(ids)
    with Engine(model, slots=8, context=256) as engine:

        def reused(picture, ids=ids):
            before = engine.stats().reused_tokens
            stream = engine.add(Request(ids, 5, pixel_values=picture, stop_ids=()))
            assert stream.result() == [answer(contents(ids, picture), 5, 24)]
            return engine.stats().reused_tokens - before

        one, other = PICTURES[:1], PICTURES[1:2]
        full, common = (size - 1) // 16 * 16, tokens // 16 * 16
        assert reused(one) == 0
        assert reused(one.clone()) == full
        assert reused(other) == common
        assert reused(other.double()) == full
        both = [*ids[: tokens + TILE_TOKENS], *ids[tokens:]]
        assert reused(torch.cat([one, other]), both) <= (tokens + TILE_TOKENS) // 16 * 16
        assert reused(torch.cat([one, one]), both) < full  # the same tokens, another second tile
        assert reused(torch.cat([one, other]), both) == (len(both) - 1) // 16 * 16
        require_empty(engine)


def test_a_patch_token_without_a_picture_is_another_prefix():
    ids = [PATCH] * TILE_TOKENS + [4] * 30
    with Engine(ChecksumModel(16), slots=1, context=256) as engine:
        assert engine.add(Request(ids, 5)).result() == [answer(ids, 5, 16)]
        stream = engine.add(Request(ids, 5, pixel_values=PICTURES[:1]))
        assert stream.result() == [answer(contents(ids, PICTURES[:1]), 5, 16)]
        assert engine.stats().reused_tokens == 0


def test_a_salt_keeps_prefixes_apart():
    ids = [3] * 50
    with Engine(ChecksumModel(16), slots=1, context=256) as engine:
        for salt, reused in (("", 0), ("a", 0), ("b", 0), ("a", 48), ("", 48), ("b", 48)):
            before = engine.stats().reused_tokens
            stream = engine.add(Request(ids, 5, stop_ids=(), cache_salt=salt))
            assert stream.result() == [answer(ids, 5, 16)]
            assert engine.stats().reused_tokens - before == reused


def test_an_answer_is_reused_too_and_without_a_cache_nothing_is():
    ids = [3] * 20
    whole = ids + answer(ids, 60, 24)
    for cached in (True, False):
        with Engine(ChecksumModel(24), slots=2, context=256, prefix_cache=cached) as engine:
            engine.add(Request(ids, 60, stop_ids=())).result()
            stream = engine.add(Request(whole, 9, stop_ids=(), n=2))
            assert stream.result() == [answer(whole, 9, 24)] * 2
            stats = engine.stats()
            # The last token of an answer has no keys; the prompt's full pages are known twice.
            assert stats.reused_tokens == (64 + 64 if cached else 0)
            assert cached or stats.kv_tokens_cached == 0


def test_samples_of_a_picture_share_it(model):
    """It is looked at once, and greedy samples are one another's equals."""
    patch = model.config.image_token_index
    ids = [*range(70), *[patch] * 4, *range(70)]
    pixels = torch.rand(1, 3, 32, 32)
    seen = []
    hook = model.vision.register_forward_hook(lambda *_: seen.append(1))
    with Engine(model, slots=4, context=256, kv_tokens=2048) as engine:
        many = Sampling(0.9, seed=5)
        greedy = engine.add(Request(ids, 8, pixel_values=pixels, stop_ids=(), n=4)).result()
        drawn = engine.add(Request(ids, 8, many, pixels, stop_ids=(), n=4)).result()
        assert engine.stats().reused_tokens == 7 * 128
    hook.remove()
    assert seen == [1, 1] or seen == [1]
    assert greedy == [greedy[0]] * 4 and len({*map(tuple, drawn)}) == 4
    rows = torch.tensor([ids] * 4), 8, 0.9, pixels.repeat(4, 1, 1, 1)
    assert drawn == model.generate(*rows, seed=5, stop_ids=())[:, len(ids) :].tolist()


def test_samples_that_share_no_pages_share_a_picture(model):
    ids = [3, *[model.config.image_token_index] * 4, 5, 6]
    tiles = []
    hook = model.vision.register_forward_hook(lambda _, args, __: tiles.append(len(args[0])))
    with Engine(model, slots=4, context=64, prefix_cache=False) as engine:
        engine.add(Request(ids, 2, pixel_values=torch.rand(1, 3, 32, 32), n=4)).result()
    hook.remove()
    assert tiles == [1]


def test_a_picture_is_what_it_was_when_its_request_was_added():
    """The caller may put the next one into the same tensor."""
    model, pixels = ChecksumModel(24), PICTURES[:1].clone()
    ids = [9] * 3 + [PATCH] * TILE_TOKENS + [4] * 30
    wanted = answer(contents(ids, pixels), 5, 24)
    with Engine(model, slots=1, context=256) as engine:
        gate = threading.Event()
        engine.add(Request([1], 2, stop_ids=(), on_output=lambda _: gate.wait()))
        stream = engine.add(Request(ids, 5, pixel_values=pixels, stop_ids=()))
        pixels.copy_(PICTURES[1:2])
        gate.set()
        assert stream.result() == [wanted]
