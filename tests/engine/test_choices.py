"""How an engine's requests choose their tokens, and when they end: on the demo checkpoint."""

import itertools

import pytest
import torch
from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor

from l4kernels import Llama4, Sampling, demo
from l4kernels.engine.engine import Engine
from l4kernels.engine.request import Request
from l4kernels.ops.philox import stream_seed
from l4kernels.prompt.tokenizer import Tokenizer

PROMPT = [1, 2, 100, 7, 300, 7, 12]
VOCAB = 1056


@pytest.fixture(scope="module")
def model():
    return Llama4.from_pretrained(demo.CHECKPOINT)


@pytest.fixture(scope="module", params=[0, 1], ids=["at once", "a step late"])
def engine(model, request):
    tokenizer = Tokenizer(demo.CHECKPOINT)
    with Engine(model, slots=4, context=256, kv_tokens=2048, tokenizer=tokenizer) as made:
        made._core.lag = request.param
        yield made


def run(engine, *args, **kwargs):
    """Of one sample: its tokens, and all outputs."""
    outputs = [*engine.add(Request(PROMPT, *args, **kwargs))]
    return [o.token_id for o in outputs if o.token_id is not None], outputs


def raw_logits(model, tokens):
    """`[n, V]`, from which each of the tokens was chosen."""
    return model.prompt_logits(torch.tensor([PROMPT + tokens[:-1]]))[0, len(PROMPT) - 1 :]


def changed(logits, before, sampling):
    """By the formulas of transformers and of OpenAI's API."""
    x = logits.clone()
    for token, bias in sampling.logit_bias.items():
        x[token] += bias
    processors = LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    x = processors(torch.tensor([PROMPT + before]), x[None])[0]
    for token in {*before}:
        count = before.count(token)
        x[token] -= count * sampling.frequency_penalty + (count > 0) * sampling.presence_penalty
    return x


PENALTIES = [
    Sampling(repetition_penalty=1.5),
    Sampling(repetition_penalty=0.7),
    Sampling(frequency_penalty=0.9),
    Sampling(presence_penalty=1.5),
    Sampling(frequency_penalty=-2.0, presence_penalty=0.3),
    Sampling(repetition_penalty=1.2, frequency_penalty=0.4, presence_penalty=0.2,
             logit_bias={9: 3.0, 12: -5.0}),
]  # fmt: skip


@pytest.mark.parametrize("sampling", PENALTIES, ids=range(len(PENALTIES)))
def test_penalties(model, engine, sampling):
    tokens, _ = run(engine, 20, sampling, stop_ids=())
    for step, logits in enumerate(raw_logits(model, tokens)):
        x = changed(logits, tokens[:step], sampling)
        assert x[tokens[step]] >= x.max() - 1e-4


def test_penalties_change_something(engine):
    plain, _ = run(engine, 20, stop_ids=())
    assert all(run(engine, 20, sampling, stop_ids=())[0] != plain for sampling in PENALTIES[::2])


@pytest.mark.parametrize("count", [0, 1, 5, 20])
def test_log_probabilities_are_those_of_the_models_logits(model, engine, count):
    """Whatever was drawn from: a temperature and penalties do not change them."""
    sampling = Sampling(1.3, seed=1, repetition_penalty=1.4, logit_bias={9: 5.0})
    for chosen in (Sampling(), sampling):
        tokens, outputs = run(engine, 10, chosen, stop_ids=(), logprobs=count)
        wanted = raw_logits(model, tokens).log_softmax(1)
        for output, row in zip(outputs, wanted, strict=True):
            assert abs(output.logprob - row[output.token_id]) <= 1e-4
            values = torch.tensor([p for _, p in output.top_logprobs])
            assert (values - row.topk(count).values).abs().le(1e-4).all()
            assert all(abs(row[i] - p) <= 1e-4 for i, p in output.top_logprobs)
            assert len({i for i, _ in output.top_logprobs}) == count


def test_no_log_probabilities_unless_asked(engine):
    beside = engine.add(Request(PROMPT, 20, stop_ids=(), logprobs=3))
    assert all(o.logprob is o.top_logprobs is None for o in run(engine, 10, stop_ids=())[1])
    assert all(len(o.top_logprobs) == 3 for o in beside)


def mask_of(tokens):
    words = torch.zeros(VOCAB // 32, dtype=torch.int64)
    for token in tokens:
        words[token // 32] |= 1 << token % 32
    return words.to(torch.int32)


def test_a_mask_decides_what_may_follow(engine):
    """It sees each state of the answer, and holds for one token."""
    forced, seen = [31, 32, 1055, 0, 31, 500], []

    def mask(tokens):
        seen.append(tokens)
        return mask_of([forced[len(tokens)]]) if len(tokens) < len(forced) else None

    beside = engine.add(Request(PROMPT, 12, stop_ids=()))
    tokens, outputs = run(engine, 12, Sampling(1.0, seed=3), stop_ids=(), token_mask=mask)
    assert tokens[: len(forced)] == forced and len(tokens) == 12
    assert seen == [tokens[:n] for n in range(12)]
    assert all(o.logprob is None for o in outputs)
    assert beside.result() == [run(engine, 12, stop_ids=())[0]]


def test_a_mask_meets_penalties_and_stop_tokens(engine):
    """Of the tokens that it allows the likeliest by what is left after the penalties."""
    even = mask_of(range(0, VOCAB, 2))
    sampling = Sampling(repetition_penalty=1.3, min_tokens=2)
    tokens, _ = run(engine, 20, sampling, stop_ids=(), token_mask=lambda tokens: even)
    assert not any(token % 2 for token in tokens)
    only = mask_of([1025, 40])  # an end token, and another: the first may not come at once
    tokens, outputs = run(engine, 20, Sampling(min_tokens=3, logit_bias={1025: 50.0}),
                          token_mask=lambda tokens: only)  # fmt: skip
    assert tokens == [40, 40, 40, 1025] and outputs[-1].finish_reason == "stop"


@pytest.mark.parametrize("seed", [0, 5, -3])
def test_seeds_are_those_of_generate(model, engine, seed):
    drawn = engine.add(Request(PROMPT, 12, Sampling(1.0, seed=seed), stop_ids=(), n=3)).result()
    rows = model.generate(torch.tensor([PROMPT] * 3), 12, 1.0, seed=seed, stop_ids=())
    assert drawn == rows[:, len(PROMPT) :].tolist() and len({*map(tuple, drawn)}) == 3
    again = engine.add(Request(PROMPT, 12, Sampling(1.0, seed=seed), stop_ids=())).result()
    assert again == drawn[:1]
    assert len({stream_seed(seed, i) for i in range(3)}) == 3


def test_without_a_seed_every_request_draws_anew(engine):
    drawn = [run(engine, 12, Sampling(1.0), stop_ids=())[0] for _ in range(3)]
    assert len({*map(tuple, drawn)}) == 3
    torch.manual_seed(1)
    first, _ = run(engine, 12, Sampling(1.0), stop_ids=())
    torch.manual_seed(1)
    assert run(engine, 12, Sampling(1.0), stop_ids=())[0] == first


def test_stop_ids_and_the_least_number_of_tokens(engine):
    free, _ = run(engine, 20, stop_ids=())
    at = next(i for i in range(3, 20) if free.index(free[i]) == i)
    for stop in (free[at], [free[at]], {free[at], 0}):
        tokens, outputs = run(engine, 20, stop_ids=stop)
        assert tokens == free[: at + 1]
        assert [o.finish_reason for o in outputs] == [None] * at + ["stop"]
    tokens, outputs = run(engine, 20, Sampling(min_tokens=at + 1), stop_ids=free[at])
    assert tokens[:at] == free[:at] and tokens[at] != free[at]
    assert len(tokens) == 20 or tokens[-1] == free[at]
    tokens, outputs = run(engine, at + 1, stop_ids=free[at])  # both reasons at once
    assert tokens == free[: at + 1] and outputs[-1].finish_reason == "stop"


def texts(outputs, n=1):
    made = [""] * n
    for output in outputs:
        made[output.sample] += output.text
    return made


def test_text_ends_before_a_stop_string(engine):
    """Wherever it lies in the tokens; nothing comes after the output that says so."""
    free, outputs = run(engine, 40, stop_ids=())
    (text,) = texts(outputs)
    assert text == engine.tokenizer.decode(free) and len(text) > 30
    for begin, length in itertools.product((0, 5, 11, len(text) - 3), (1, 3, 9)):
        stop = text[begin : begin + length]
        wanted = text[: text.index(stop)]
        stream = engine.add(Request(PROMPT, 40, stop_ids=(), stop=stop, n=2))
        outputs = [*stream]
        assert texts(outputs, 2) == [wanted] * 2
        for sample in range(2):
            own = [o for o in outputs if o.sample == sample]
            assert [o.finish_reason for o in own] == [None] * (len(own) - 1) + ["stop"]
            tokens = [o.token_id for o in own]
            assert tokens == free[: len(tokens)]
            assert stop in engine.tokenizer.decode(tokens)
            assert stop not in engine.tokenizer.decode(tokens[:-1])
    _, outputs = run(engine, 40, stop_ids=(), stop=["no such", text[3:6], text[9:12]])
    assert texts(outputs) == [text[: min(text.index(text[3:6]), text.index(text[9:12]))]]


def test_a_stop_string_that_does_not_come_keeps_nothing_back(engine):
    _, outputs = run(engine, 20, stop_ids=())
    (text,) = texts(outputs)
    _, outputs = run(engine, 20, stop_ids=(), stop=text[-4:] + "and what never comes")
    assert texts(outputs) == [text] and outputs[-1].finish_reason == "length"


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0, "seed": 3}], ids=["greedy", "seed"])
def test_torchs_generator_stays_as_it_is_where_it_decides_nothing(model, engine, settings):
    before = torch.get_rng_state()
    engine.add(Request(PROMPT, 2, Sampling(**settings))).result()
    model.generate(torch.tensor([PROMPT]), 2, **settings)
    assert torch.equal(torch.get_rng_state(), before)
