"""The text model against transformers, and against itself: caches, chunks, batches, sampling."""

import dataclasses
import threading
import time

import pytest
import torch

from l4kernels import Llama4, Llama4Config
from l4kernels.engine.kv_cache import CacheShape, chunk_pages, page_size_for
from l4kernels.engine.sampling import Sampling
from l4kernels.model import llama4
from l4kernels.model.llama4 import Llama4Model
from tests.support import engines
from tests.support.checkpoints import TEXT, tensors_of, write
from tests.support.parity import TOLERANCE, Case, difference, random_case

NAMED = {
    "scout": Case(length=37, batch=2),
    "maverick": Case(moe_step=2, qk_norm=False, scaled_rope=False, chunk=7, length=29),
    "top-2": Case(top_k=2, experts=8, length=20),
    "chunk 64": Case(chunk=64, length=150, scaled_rope=False),
    "chunk 4, four boundaries": Case(chunk=4, length=18, heads=(10, 2)),
    "one token": Case(length=1),
    "at a boundary": Case(chunk=8, length=16),
    "dense, RoPE everywhere, no chunks": Case(
        length=20,
        fields=(
            ("moe_layers", []),
            ("no_rope_layers", [1] * 4),
            ("layer_types", ["full_attention"] * 4),
        ),
    ),
    "chunks and RoPE apart": Case(
        length=20,
        fields=(
            ("no_rope_layers", [0, 1, 0, 1]),
            ("layer_types", ["chunked_attention", "full_attention"] * 2),
        ),
    ),
    "no temperature": Case(temperature_tuning=False, length=20, heads=(4, 2)),
}


@pytest.mark.parametrize("name", NAMED)
def test_named_cases_match_transformers(name):
    assert difference(NAMED[name]) <= TOLERANCE


@pytest.mark.parametrize("seed", range(10))
def test_random_cases_match_transformers(seed):
    case = dataclasses.replace(random_case(seed), images=(), vision=False)
    assert difference(case, new_tokens=6) <= TOLERANCE, case


@pytest.fixture(scope="module")
def model():
    return Llama4.random(Llama4Config.from_dict(TEXT))


@pytest.mark.parametrize("chunk", [4, 7, 8, 64])
@pytest.mark.parametrize("piece", [1, 5, 13, 30])
def test_split_prefill_and_decode_match_one_shot(chunk, piece):
    """Prompts in pieces of so many tokens, while answers of others are under way."""
    config = Llama4Config.from_dict({**TEXT, "attention_chunk_size": chunk})
    model = Llama4.random(config, seed=chunk)
    ids = torch.randint(0, config.vocab_size, (4, 30), generator=torch.Generator().manual_seed(1))
    whole, prompts = model.prompt_logits(ids), [1, 13, 22, 29]
    got = engines.logits_of(model, ids.tolist(), prompts, prefill_tokens=piece, slots=3)
    for logits, wanted, prompt in zip(got, whole, prompts, strict=True):
        assert (logits - wanted[prompt - 1 : -1]).abs().max() <= TOLERANCE


def test_the_rope_table_grows_for_layers_that_rotate_without_chunks_alone(model):
    """One of a chunk serves chunked layers at any length."""
    table = model.cos_sin
    model.rotate_up_to(100_000)
    assert model.cos_sin is table and len(table) == TEXT["attention_chunk_size"]
    unchunked = {**TEXT, "attention_chunk_size": None, "max_position_embeddings": 20_000}
    whole = Llama4Model(Llama4Config.from_dict(unchunked), model.options)
    first = whole.cos_sin
    whole.rotate_up_to(8192)
    assert whole.cos_sin is first and len(first) == 8192
    whole.rotate_up_to(9000)
    assert torch.equal(whole.cos_sin[:8192], first) and len(whole.cos_sin) == 9000
    assert not whole.cos_sin.is_inference() and "cos_sin" not in whole.state_dict()


def test_the_rope_table_never_shrinks(model, monkeypatch):
    """A thread that makes a shorter table, slowly, does not undo a longer one of another."""
    unchunked = {**TEXT, "attention_chunk_size": None, "max_position_embeddings": 20_000}
    whole = Llama4Model(Llama4Config.from_dict(unchunked), model.options)
    begun, rope_table = threading.Event(), llama4.rope_table

    def slow(config, rows):
        if rows == 9000:
            begun.set()
            time.sleep(0.2)
        return rope_table(config, rows)

    monkeypatch.setattr(llama4, "rope_table", slow)
    thread = threading.Thread(target=whole.rotate_up_to, args=(9000,), daemon=True)
    thread.start()
    assert begun.wait(10)
    whole.rotate_up_to(10_000)
    thread.join(10)
    assert len(whole.cos_sin) == 10_000


def test_a_token_of_the_chunk_before_is_not_seen():
    # One layer that looks inside its chunk only: what lies past the boundary must not matter.
    config = Llama4Config.from_dict({**TEXT, "num_hidden_layers": 1})
    model = Llama4.random(config)
    ids = torch.arange(16).view(1, 16)
    changed = ids.clone()
    changed[0, 7] = 99
    before, after = model.prompt_logits(ids), model.prompt_logits(changed)
    assert torch.equal(before[:, 8:], after[:, 8:]) and torch.equal(before[:, :7], after[:, :7])
    assert not torch.equal(before[:, 7], after[:, 7])


def test_batch_rows_do_not_see_each_other(model):
    ids = torch.randint(0, 160, (3, 21), generator=torch.Generator().manual_seed(2))
    together = model.prompt_logits(ids)
    for row in range(3):
        assert (together[row] - model.prompt_logits(ids[row : row + 1])[0]).abs().max() <= TOLERANCE


def test_temperature_follows_the_true_position():
    # A layer without RoPE: its only sense of position is the query temperature.
    options = {"num_hidden_layers": 1, "no_rope_layers": [0], "floor_scale": 4}
    on = Llama4.random(Llama4Config.from_dict({**TEXT, **options}))
    off = Llama4.random(
        Llama4Config.from_dict({**TEXT, **options, "attn_temperature_tuning": False})
    )
    ids = torch.randint(0, 160, (1, 9), generator=torch.Generator().manual_seed(3))
    same = (on.prompt_logits(ids) == off.prompt_logits(ids)).all(-1)[0].tolist()
    assert same == [True] * 3 + [False] * 6


def test_long_contexts_rotate_as_in_their_chunk(model):
    # In the first layers position p and p + chunk look alike: same rotation, same visible keys.
    config = Llama4Config.from_dict({**TEXT, "num_hidden_layers": 3})
    three = Llama4.random(config)
    ids = torch.randint(0, 160, (1, 8), generator=torch.Generator().manual_seed(4))
    assert torch.equal(*three.prompt_logits(ids.repeat(1, 2)).view(2, 8, -1))


def test_chunked_layers_keep_one_chunk():
    """And the first page of the next, where its first token is about to go."""
    config = Llama4Config.from_dict({**TEXT, "attention_chunk_size": 64, "num_hidden_layers": 4})
    shape = CacheShape.of(config, torch.float32)
    assert shape.needed(640) == (10, 2) and shape.needed(1280) == (20, 2)
    assert shape.page_bytes == (2 * 128 * 4 * 64, 3 * 2 * 128 * 4 * 64)


@pytest.mark.parametrize("chunk, page, pages", [(8192, 64, 128), (64, 64, 1), (48, 16, 3)])
def test_pages_are_exactly_one_chunk(chunk, page, pages):
    assert (page_size_for(chunk), chunk_pages(chunk, page)) == (page, pages)


@pytest.mark.parametrize("chunk", range(1, 70))
def test_a_chunk_has_pages_wherever_it_starts(chunk):
    page = page_size_for(chunk)
    used = [
        len({position // page for position in range(start, start + chunk)})
        for start in range(0, 20 * chunk, chunk)
    ]
    assert max(used) <= chunk_pages(chunk, page) <= max(used) + 1


def test_fp8_cache_is_close_and_half_the_size():
    config = Llama4Config.from_dict(TEXT)
    plain = Llama4.random(config, dtype=torch.bfloat16)
    small = Llama4.random(config, dtype=torch.bfloat16, kv_dtype="fp8")
    sizes = [sum(CacheShape.of(config, m.kv_dtype).page_bytes) for m in (small, plain)]
    assert sizes[0] * 2 == sizes[1]
    ids = torch.randint(0, 160, (1, 30), generator=torch.Generator().manual_seed(5))
    exact, got = plain.prompt_logits(ids), small.prompt_logits(ids)
    assert not torch.equal(exact, got)
    assert (got - exact).norm() / exact.norm() < 0.1
    (last,) = engines.logits_of(small, [[*ids[0].tolist(), 0]], [30], prefill_tokens=13)
    assert (last[-1] - got[0, -1]).abs().max() <= 0.05 * got.abs().max()


def test_generate_stops_and_pads(model):
    ids = torch.randint(0, 160, (2, 11), generator=torch.Generator().manual_seed(6))
    free = model.generate(ids, 12)
    assert free.shape == (2, 23) and torch.equal(free[:, :11], ids)
    stop = free[0, 14].item()
    seen = []
    got = model.generate(ids, 12, stop_ids=[stop], streamer=lambda t: seen.append(t.tolist()))
    assert seen == got[:, 11:].t().tolist()
    for row in range(2):
        new = free[row, 11:].tolist()
        end = new.index(stop) + 1 if stop in new else len(new)
        padded = new[:end] + [model.config.pad_token_id] * (got.shape[1] - 11 - end)
        assert got[row, 11:].tolist() == padded
    stream = model.stream(ids[:1], 12, stop_ids=[stop])
    steps = len(list(stream))
    assert stream.finish_reasons == ["stop"] and stream.timings.decode_steps == steps - 1
    assert stream.timings.prefill_s > 0


def test_sampling_is_seeded_and_independent_of_the_batch(model):
    ids = torch.randint(0, 160, (1, 5), generator=torch.Generator().manual_seed(7))
    draw = {"max_new_tokens": 16, "temperature": 1.5, "top_k": 50, "top_p": 0.95, "seed": 11}
    first = model.generate(ids, **draw)
    assert torch.equal(first, model.generate(ids, **draw))
    assert not torch.equal(first, model.generate(ids, **{**draw, "seed": 12}))
    both = model.generate(ids.repeat(2, 1), **draw)
    assert torch.equal(both[:1], first) and not torch.equal(both[0], both[1])
    assert not torch.equal(first, model.generate(ids, 16))
    assert torch.equal(model.generate(ids, 16), model.generate(ids, 16, 1.0, top_k=1, seed=1))


@pytest.mark.parametrize(
    "ids, options, message",
    [
        (torch.zeros(1, 0, dtype=torch.int64), {}, "the prompt is empty"),
        (torch.zeros(0, 4, dtype=torch.int64), {}, "the prompt is empty"),
        (torch.zeros(4, dtype=torch.int64), {}, r"\[batch, tokens\]"),
        (torch.zeros(1, 4), {}, "integers"),
        (torch.full((1, 4), 160), {}, r"token ids in \[0, 160\), got 160"),
        (torch.full((1, 4), -1), {}, "got -1"),
        (torch.zeros(1, 500, dtype=torch.int64), {"max_new_tokens": 13}, "context of 512"),
        (
            torch.zeros(1, 4, dtype=torch.int64),
            {"pixel_values": torch.zeros(1, 3, 32, 32)},
            "text-only",
        ),
    ],
)
def test_bad_prompts(model, ids, options, message):
    with pytest.raises(ValueError, match=message):
        model.generate(ids, **options)


def test_the_whole_context_can_be_used():
    model = Llama4.random(Llama4Config.from_dict({**TEXT, "max_position_embeddings": 20}))
    ids = torch.zeros(1, 15, dtype=torch.int64)
    assert model.generate(ids, 5).shape == (1, 20)
    assert model.prompt_logits(torch.zeros(1, 20, dtype=torch.int64)).shape == (1, 20, 160)
    with pytest.raises(ValueError, match="context of 20"):
        model.prompt_logits(torch.zeros(1, 21, dtype=torch.int64))


def test_sampling_defaults_to_greedy():
    assert Sampling().temperature == 0.0


def test_config_and_tensors_agree(tmp_path):
    config = Llama4Config.from_dict(TEXT)
    model = Llama4.from_pretrained(write(tmp_path, tensors_of(config, seed=9)))
    ids = torch.arange(9)[None]
    assert torch.equal(model.prompt_logits(ids), Llama4.random(config, seed=9).prompt_logits(ids))
