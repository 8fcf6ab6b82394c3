"""Sequences of different lengths and ages in one forward pass, and in the runner's steps."""

import doctest
import random
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from l4kernels import Llama4, Llama4Config, Sampling, demo, ops
from l4kernels.engine import pages as pages_module
from l4kernels.engine import runner as runner_module
from l4kernels.engine.images import PromptImages
from l4kernels.engine.kv_cache import CacheShape, KVCache, page_size_for
from l4kernels.engine.kv_cache import Pages as KVPages
from l4kernels.engine.scheduler import Scheduler
from l4kernels.engine.sequence import Choice, Sequence
from l4kernels.layers.attention import AttentionMetadata, LayerCache
from l4kernels.model import llama4
from tests.support import engines
from tests.support.checkpoints import ALIGNED, TEXT
from tests.support.parity import TOLERANCE
from tests.support.tensors import i32

PAGE = 16
CHUNK = 32
FORMATS = {
    "fp32": {},
    "bf16": {"dtype": "bfloat16"},
    "fp8 with an fp8 cache": {"dtype": "bfloat16", "weights": "fp8", "kv_dtype": "fp8"},
}


def make(form="fp32", **fields):
    """Three layers inside their chunk, one global."""
    config = {**TEXT, **ALIGNED, "attention_chunk_size": CHUNK, **fields}
    return Llama4.random(Llama4Config.from_dict(config), **FORMATS[form])


@pytest.fixture(scope="module", params=FORMATS)
def model(request):
    return make(request.param)


class Pages:
    """Caches and block tables made by hand: the pages of global layers lie in reverse, those of
    chunked layers are a ring of one chunk."""

    def __init__(self, model, rows, logical=6):
        config, ring = model.config, CHUNK // PAGE
        self.chunked = [config.chunk(layer) > 0 for layer in range(config.num_hidden_layers)]
        order = torch.arange(rows * logical).flip(0).view(rows, logical)
        rings = torch.arange(rows)[:, None] * ring + torch.arange(logical) % ring
        self.tables = [order.int(), rings.int()]
        heads, head_dim = config.num_key_value_heads, config.head_dim
        one = torch.ones(heads) if model.kv_dtype == torch.float8_e4m3fn else None
        self.caches = []
        for chunked in self.chunked:
            shape = (rows * (ring if chunked else logical), PAGE, heads, head_dim)
            k, v = (torch.zeros(shape, dtype=model.kv_dtype) for _ in "kv")
            self.caches.append(LayerCache(k, v, one, one))

    def metadata(self, spans):
        """Of tokens `start ... stop - 1` of each sequence `row`."""
        spans = [(row, range(start, stop)) for row, start, stop in spans]
        rows = [row for row, _ in spans]
        lengths = [len(span) for _, span in spans]
        kinds = []
        for table in self.tables:
            slots = [int(table[r, p // PAGE]) * PAGE + p % PAGE for r, span in spans for p in span]
            kinds.append(
                AttentionMetadata(
                    positions=torch.tensor([p for _, span in spans for p in span]),
                    slots=torch.tensor(slots),
                    cu_seqlens_q=i32(0, *torch.tensor(lengths).cumsum(0).tolist()),
                    seqlens_k=i32(*(span.stop for _, span in spans)),
                    block_table=table[rows],
                    max_seqlen_q=max(lengths),
                )
            )
        return [kinds[chunked] for chunked in self.chunked]


# Row, first and end of the new tokens: nothing before and no boundary crossed, the end of a chunk
# after a long prefix, the first token of a chunk alone, one token in the midst of one.
TOGETHER = [(0, 0, 20), (1, 52, 64), (2, 64, 65), (3, 40, 41)]


def close(model, got, wanted):
    """Products of another size are summed in another order: a last bit, and of e4m3 a code."""
    bound = 0.1 if model.options.weights == "fp8" else 0.03
    bound = TOLERANCE if model.options.dtype == torch.float32 else bound
    return (got.float() - wanted.float()).norm() <= bound * wanted.float().norm()


def test_one_forward_over_sequences_of_different_lengths(model):
    generator = torch.Generator().manual_seed(3)
    texts = torch.randint(0, TEXT["vocab_size"], (len(TOGETHER), 65), generator=generator)
    pages = Pages(model, len(TOGETHER))
    for row, start, _ in TOGETHER:  # what came before, a chunk at a time
        for at in range(0, start, CHUNK):
            span = (row, at, min(at + CHUNK, start))
            model(texts[row, at : span[2]], pages.metadata([span]), pages.caches)
    alone = [
        model.prompt_logits(texts[row : row + 1, :stop])[0, start:] for row, start, stop in TOGETHER
    ]
    ids = torch.cat([texts[row, start:stop] for row, start, stop in TOGETHER])
    hidden = model(ids, pages.metadata(TOGETHER), pages.caches)
    assert hidden.shape == (len(ids), model.config.hidden_size)
    assert close(model, model.compute_logits(hidden), torch.cat(alone))
    embedded = model(model.embed(ids), pages.metadata(TOGETHER), pages.caches)
    assert torch.equal(embedded, hidden)
    with pytest.raises(ValueError, match="metadata and caches of 4 layers, got 3 and 4"):
        model(ids, pages.metadata(TOGETHER)[:3], pages.caches)


def test_what_came_before_matters():
    """The comparison above would notice a prefix that is not read, or a ring that is not there."""
    model = make()
    texts = torch.stack(texts_of([65]))
    wanted = model.prompt_logits(texts[:, :64])[0, 52:]
    pages = Pages(model, 1)
    got = model.compute_logits(model(texts[0, 52:64], pages.metadata([(0, 52, 64)]), pages.caches))
    assert not close(model, got, wanted)


KERNELS = {
    "one token of each": ([(0, 3, 4), (1, 7, 8)], "flash_decode_append"),
    "as many of each": ([(0, 3, 6), (1, 7, 10)], "flash_decode_append"),
    "the most that decoding takes": ([(0, 0, 16), (1, 1, 17)], "flash_decode_append"),
    "too many for decoding": ([(0, 0, 17), (1, 3, 20)], "flash_prefill"),
    "a token less in one": ([(0, 3, 6), (1, 8, 10)], "flash_prefill"),
    "a token and a prompt": ([(0, 3, 4), (1, 0, 10)], "flash_prefill"),
}


@pytest.mark.parametrize("name", KERNELS)
def test_which_kernel_attends(name, monkeypatch):
    spans, wanted = KERNELS[name]
    model = make()
    called = []

    def noted(kernel, run):
        return lambda *a, **o: called.append(kernel) or run(*a, **o)

    for kernel in ("flash_decode_append", "flash_prefill"):
        monkeypatch.setattr(ops, kernel, noted(kernel, getattr(ops, kernel)))
    pages = Pages(model, 2)
    tokens = sum(stop - start for _, start, stop in spans)
    model(torch.zeros(tokens, dtype=torch.int64), pages.metadata(spans), pages.caches)
    assert {*called} == {wanted}


def test_a_pass_is_planned_once_for_each_kind_of_layer(monkeypatch):
    """Two plans, whatever the number of layers, and none of their own."""
    model, plans, given = make(), [], []
    plan, prefill = ops.flash_prefill_plan, ops.flash_prefill

    def planned(*args, **options):
        plans.append(plan(*args, **options))
        return plans[-1]

    def attended(*args, **options):
        given.append(options["plan"])
        return prefill(*args, **options)

    monkeypatch.setattr(ops, "flash_prefill_plan", planned)
    monkeypatch.setattr(ops, "flash_prefill", attended)
    runner_module.run_whole(model, [mock.Mock(ids=[1] * 40, images=None)] * 2)
    assert len(given) == model.config.num_hidden_layers > len(plans) == 2
    assert {id(p) for p in given} == {id(p) for p in plans}


def texts_of(lengths, seed=5):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, TEXT["vocab_size"], (n,), generator=generator) for n in lengths]


@pytest.mark.parametrize("lengths", [(1, 33, 90, 32), (5,), (64, 64), (31, 1, 1)])
def test_sequences_run_together_as_alone(model, lengths):
    """A prompt of each, then token by token across boundaries of chunks."""
    whole = texts_of([n + 8 for n in lengths])
    got = engines.logits_of(model, [ids.tolist() for ids in whole], list(lengths))
    for ids, n, logits in zip(whole, lengths, got, strict=True):
        assert close(model, logits, model.prompt_logits(ids[None])[0, n - 1 : n + 7])


def test_a_step_is_in_tensors_that_were_there_before_it():
    """What a captured step needs: each value where the last one was. Only plans are the step's own,
    as activations are."""
    model, seen = make(), []

    def note(_module, arguments):
        ids, metadata, _caches = arguments
        if len(ids) == 2:
            fields = [item for m in metadata for item in vars(m).items()]
            tensors = {name: t for name, t in fields if isinstance(t, torch.Tensor)}
            assert tensors.pop("plan") is not None
            places = [t.data_ptr() for name, t in fields if name in tensors]
            seen.append((places, metadata[0].positions.tolist()))

    model.register_forward_pre_hook(note)
    texts = [ids.tolist() for ids in texts_of([36, 13])]
    engines.logits_of(model, texts, [31, 8])
    places, positions = zip(*seen, strict=True)
    assert all(place == places[0] for place in places)
    assert [*positions] == [[30 + step, 7 + step] for step in range(5)]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 300), st.integers(1, 20)), min_size=1, max_size=12),
    st.sampled_from([0, 7, 64, 100]),
    st.integers(1, 90),
    st.integers(1, 12),
)
def test_pieces_of_prompts(sizes, chunk, budget, slots):
    """All tokens but the last, in order, none across a boundary, and no more than was asked for."""
    shape = CacheShape(chunk, page_size_for(chunk), (0, int(chunk > 0)), KVPages(1, 1))
    cache = mock.Mock(spec=KVCache, shape=shape, releases=0)
    cache.has.return_value = True
    scheduler = Scheduler(cache, slots, budget, budget, reuse=False)
    choice = Choice(Sampling(), 0, frozenset(), 5)
    sequences = [Sequence([0] * length, choice) for length, _ in sizes]
    for sequence in sequences:
        scheduler.add(sequence)
    finished = []
    for _ in range(10_000):
        begun = [s.arrival for s in scheduler.admit()]
        assert begun == sorted(begun) and len(scheduler.prefilling) <= slots
        pieces = scheduler.pieces(scheduler.budget)
        assert sum(piece.end - piece.start for piece in pieces) <= budget
        for piece in pieces:
            assert piece.start == piece.sequence.computed < piece.end
            assert not chunk or piece.start // chunk == (piece.end - 1) // chunk
            piece.sequence.computed = piece.end
        for sequence in list(scheduler.prefilling):
            if sequence.computed == len(sequence.tokens) - 1:
                scheduler.begin_decoding(sequence)
                scheduler.finish(sequence, "length")
                finished.append(sequence)
        if scheduler.idle:
            break
    assert {*finished} == {*sequences}


def test_images_and_text_go_together():
    """Features where a sequence has them, the table elsewhere, whatever the pieces are."""
    model, lengths = make(), (40, 9, 70)
    texts = [ids.tolist() for ids in texts_of(lengths)]
    generator = random.Random(2)
    torch.manual_seed(2)

    def images_of(ids):
        rows = [-1] * len(ids)
        for row, place in enumerate(sorted(generator.sample(range(len(ids) - 2), 4))):
            rows[place] = row
        images = PromptImages(torch.zeros(1, 1), rows, 4)
        images.features = torch.randn(4, model.config.hidden_size)
        return images

    images = [images_of(texts[0]), images_of(texts[1]), None]
    alone = []
    for ids, own in zip(texts, images, strict=True):
        one = engines.sequence(model, ids, len(ids) - 1, own)
        alone.append(engines.run(engines.engine_for(model, [one]), [one])[one])
    together = [
        engines.sequence(model, ids, len(ids) - 1, own)
        for ids, own in zip(texts, images, strict=True)
    ]
    core = engines.engine_for(model, together, prefill_tokens=11)
    for logits, own in zip(engines.run(core, together).values(), alone, strict=True):
        assert close(model, logits, own)
    plain = engines.logits_of(model, texts[:1], [len(texts[0]) - 1])[0]
    assert not close(model, plain, alone[0])


def test_a_prompt_may_end_in_an_image():
    """Its last token is a step's, which then takes a row of features and no embedding."""
    model, (text, *_) = Llama4.from_pretrained(demo.CHECKPOINT), texts_of([40])
    patches, patch = model.config.vision.tokens_per_tile, model.config.image_token_index
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    ids = torch.cat([text, torch.full((patches,), patch)]).repeat(2, 1)
    wanted = model.prompt_logits(ids, pixels)[:, -1].argmax(-1)
    assert torch.equal(model.generate(ids, 1, pixel_values=pixels)[:, -1], wanted)
    swapped = model.generate(ids, 1, pixel_values=pixels.flip(0))[:, -1]
    assert torch.equal(swapped, wanted.flip(0))
    shown = next(iter(model.stream(ids, 3, pixels)))
    assert torch.equal(shown, wanted)


@pytest.mark.parametrize("module", [llama4, pages_module, runner_module])
def test_examples(module):
    result = doctest.testmod(module)
    assert result.attempted and not result.failed
