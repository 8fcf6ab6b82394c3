"""Sequences of different lengths and ages in one forward pass, and in the runner's steps."""

import doctest
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from l4kernels import Llama4, Llama4Config, ops
from l4kernels.engine import runner as runner_module
from l4kernels.engine.runner import Runner, prompt_pieces
from l4kernels.engine.sequence import Sequence
from l4kernels.layers.attention import AttentionMetadata, LayerCache
from l4kernels.model import llama4
from l4kernels.planning.footprint import MAX_PREFILL_TOKENS
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


def texts_of(lengths, seed=5):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, TEXT["vocab_size"], (n,), generator=generator) for n in lengths]


@pytest.mark.parametrize("lengths", [(1, 33, 90, 32), (5,), (64, 64), (31, 1, 1)])
def test_sequences_run_together_as_alone(model, lengths):
    """A prompt of each, then token by token across boundaries of chunks."""
    whole = texts_of([n + 8 for n in lengths])
    sequences = [Sequence(ids[:n]) for ids, n in zip(whole, lengths, strict=True)]
    runner = Runner(model, sequences, 8)
    got = [runner.prefill()]
    for step in range(7):
        got.append(
            runner.decode(
                torch.stack([ids[n + step] for ids, n in zip(whole, lengths, strict=True)])
            )
        )
    for row, (ids, n) in enumerate(zip(whole, lengths, strict=True)):
        wanted = model.prompt_logits(ids[None])[0, n - 1 : n + 7]
        assert close(model, torch.stack([logits[row] for logits in got]), wanted)
    assert [s.position for s in sequences] == [n + 7 for n in lengths]


def test_a_prompt_may_go_on_after_tokens_were_decoded():
    model, (ids, other) = make(), texts_of([70, 50])
    sequences = [Sequence(ids[:20]), Sequence(other[:3])]
    runner = Runner(model, sequences, 50)
    runner.prefill()
    runner.decode(torch.stack([ids[20], other[3]]))
    sequences[0].ids, sequences[1].ids = ids[:-1], other[:-1]
    got = torch.stack([runner.prefill(), runner.decode(torch.stack([ids[-1], other[-1]]))])
    for row, text in enumerate((ids, other)):
        assert close(model, got[:, row], model.prompt_logits(text[None])[0, -2:])


def test_a_step_begins_where_the_sequences_are():
    """Also after a step that failed, or after tokens that were taken back."""
    model, (ids,) = make(), texts_of([40])
    sequence = Sequence(ids[:-4])
    runner = Runner(model, [sequence], 4)
    runner.prefill()
    runner.decode(ids[-4:-3])
    wanted = runner.decode(ids[-3:-2])
    sequence.position -= 1
    assert torch.equal(runner.decode(ids[-3:-2]), wanted)
    with pytest.raises(IndexError):
        runner.decode(torch.tensor([1 << 20]))
    assert sequence.position == 38
    assert close(model, runner.decode(ids[-2:-1]), model.prompt_logits(ids[None])[0, -2:-1])
    failing = Sequence(torch.tensor([1, 1 << 20]))
    with pytest.raises(IndexError):
        Runner(model, [failing]).prefill()
    assert failing.position == 0


def test_nothing_to_run_is_refused():
    with pytest.raises(ValueError, match="capacity of at least one sequence, got none"):
        Runner(make(), [])


def test_a_step_is_in_tensors_that_were_there_before_it():
    """What a captured step needs: each value where the last one was, and nothing new between."""
    model, seen = make(), []
    runner = Runner(model, [Sequence(ids) for ids in texts_of([30, 7])], 8)
    runner.prefill()

    def note(_module, arguments):
        ids, metadata, _caches = arguments
        fields = [value for m in metadata for value in vars(m).values()]
        places = [t.data_ptr() for t in (ids, *fields) if isinstance(t, torch.Tensor)]
        seen.append((places, [*map(id, metadata)], metadata[0].positions.tolist()))

    model.register_forward_pre_hook(note)
    for _ in range(5):
        runner.decode(torch.tensor([1, 2]))
    places, objects, positions = zip(*seen, strict=True)
    assert all(place == places[0] for place in places) and len({*map(tuple, objects)}) == 1
    assert [*positions] == [[30 + step, 7 + step] for step in range(5)]


def test_steps_that_do_not_fit_are_refused():
    runner = Runner(make(), [Sequence(ids) for ids in texts_of([40, 70])])
    for counts, message in (
        ([33, 1], r"inside one chunk of 32 tokens, got positions 0 to 32"),
        ([0, 0], "expected 1 to 110 tokens in one step, got 0"),
        ([41, 0], r"at most 40 more tokens in this KV cache \(capacity 40, in use 0\), got 41"),
        ([40, 71], "expected 1 to 110 tokens in one step, got 111"),
    ):
        with pytest.raises(ValueError, match=message):
            runner.step(counts)
    assert [sequence.position for sequence in runner.sequences] == [0, 0]
    assert runner.step([32, 5]).shape[0] == 37
    with pytest.raises(ValueError, match="got positions 5 to 32"):
        runner.step([1, 28])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 20_000)), min_size=1, max_size=40),
    st.sampled_from([0, 7, 64, 1000, 8192]),
)
def test_pieces_of_prompts(spans, chunk):
    """All tokens, in order, none across a boundary, and no more in flight than was planned."""
    at, ends = [a for a, _ in spans], [a + n for a, n in spans]
    for counts in prompt_pieces(at, ends, chunk):
        assert 0 < sum(counts) <= max(MAX_PREFILL_TOKENS, len(spans))
        for start, count in zip(at, counts, strict=True):
            assert not chunk or not count or start // chunk == (start + count - 1) // chunk
        at = [start + count for start, count in zip(at, counts, strict=True)]
    assert at == ends


def test_images_and_text_go_together():
    """Features where a sequence has them, the table elsewhere, whatever the pieces are."""
    model, lengths = make(), (40, 9, 70)
    texts = texts_of(lengths)
    generator = random.Random(2)
    sequences, alone = [], []
    torch.manual_seed(2)
    for ids in texts[:2]:
        rows = torch.full((len(ids),), -1, dtype=torch.int32)
        places = generator.sample(range(len(ids)), 4)
        rows[sorted(places)] = torch.arange(4, dtype=torch.int32)
        features = torch.randn(4, model.config.hidden_size)
        sequences.append(Sequence(ids, features, rows))
        alone.append(Sequence(ids, features, rows))
    sequences.append(Sequence(texts[2]))
    alone.append(Sequence(texts[2]))
    together = Runner(model, sequences).prefill()
    for row, sequence in enumerate(alone):
        assert close(model, together[row], Runner(model, [sequence]).prefill()[0])
    assert not close(model, together[0], Runner(model, [Sequence(texts[0])]).prefill()[0])


@pytest.mark.parametrize("module", [llama4, runner_module])
def test_examples(module):
    result = doctest.testmod(module)
    assert result.attempted and not result.failed
