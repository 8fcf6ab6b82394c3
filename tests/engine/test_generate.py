"""What generate, stream and prompt_logits take and refuse, and what they hand out."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from l4kernels import Llama4, Llama4Config, Sampling, demo
from tests.support.checkpoints import TEXT

VOCAB, PAD = TEXT["vocab_size"], TEXT["pad_token_id"]
IDS = torch.tensor([[1, 2, 100]])


@pytest.fixture(scope="module")
def model():
    return Llama4.random(Llama4Config.from_dict(TEXT))


@pytest.fixture(scope="module")
def free(model):
    """The first five tokens without a stop: the third is stopped at."""
    new = model.generate(IDS, 5)[0, 3:].tolist()
    assert new.index(new[2]) == 2
    return new


SPELLINGS = {
    "an int": int,
    "a NumPy int": np.int64,
    "a tensor without dimensions": torch.tensor,
    "a tensor": lambda i: torch.tensor([i]),
    "an int32 tensor": lambda i: torch.tensor([i], dtype=torch.int32),
    "an array": lambda i: np.array([i, 0]),
    "a list": lambda i: [i],
    "a tuple": lambda i: (0, i),
    "a set": lambda i: {i, 0},
    "a range": lambda i: range(i, i + 1),
    "a generator": lambda i: (j for j in (i,)),
    "NumPy ints": lambda i: [np.int32(i), np.uint8(0)],
    "tensors without dimensions": lambda i: list(torch.tensor([0, i])),
    "tensors of one element": lambda i: [torch.tensor([i])],
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_stop_ids_in_every_spelling(model, free, spelling):
    stop = SPELLINGS[spelling](free[2])
    assert model.generate(IDS, 5, stop_ids=stop)[0, 3:].tolist() == free[:3]


def test_no_stop_ids_never_stop(model, free):
    for none in ((), [], set(), torch.tensor([], dtype=torch.int64)):
        assert model.generate(IDS, 5, stop_ids=none)[0, 3:].tolist() == free


def test_the_demo_stops_at_a_tensor():
    model = Llama4.from_pretrained(demo.CHECKPOINT)
    assert model.generate(IDS, 5, stop_ids=torch.tensor([282])).tolist() == [[1, 2, 100, 282]]


NO_STOP_IDS = [
    [-1], [None], [VOCAB], VOCAB, -1, 1.0, [2.5], [2.0], True, [True], "5", ["5"], "the end", b"ab",
    bytearray(b"a"), {5: 1}, [[5]], [[1, 2], [3]], torch.tensor([[1, 2]]), torch.tensor([1.0]),
    torch.tensor([True]), torch.tensor([-1]), np.array([0.5]), np.array(["a"]), object(), math.nan,
    [10**30], [torch.tensor([1, 2])], memoryview(b"a"),
]  # fmt: skip


@pytest.mark.parametrize("stop", NO_STOP_IDS)
def test_what_cannot_be_stop_ids_is_refused(model, stop):
    with pytest.raises(ValueError, match=r"expected (every one of )?stop_ids to be "):
        model.stream(IDS, 5, stop_ids=stop)


GOOD = {
    "max_new_tokens": [1, np.int64(5), np.uint8(3), torch.tensor(2), 7],
    "temperature": [0, 0.0, 1, 1e6, np.float32(0.5), np.float64(0.5), np.int64(1), torch.tensor(1)],
    "top_k": [0, 1, 10**30, np.int64(3), torch.tensor(3)],
    "top_p": [1, 1.0, 1e-9, np.float32(0.5)],
    "min_p": [0, 0.0, 1, np.float32(0.5)],
    "seed": [None, 0, -1, -(1 << 63), (1 << 63) - 1, np.int64(-7), np.uint32(7)],
    "repetition_penalty": [1, 1.0, 0.5, 2, np.float32(1.5)],
    "frequency_penalty": [0, -2, 2.0, np.float32(0.5)],
    "presence_penalty": [0, -2, 2.0, np.float32(0.5)],
    "min_tokens": [0, 3, 10**30, np.int64(3)],
    "logit_bias": [None, {}, {0: 1}, {np.int64(5): np.float32(-2)}, {159: -math.inf}],
}
NEVER = [True, False, "3", b"3", [1], (1,), {1: 1.0}, math.nan, object(), 1j, np.array([1, 1]),
         torch.tensor([1, 1]), torch.tensor(math.nan), np.float64("nan")]  # fmt: skip
BAD = {
    "max_new_tokens": [None, 0, -1, 5.0, 2.5, np.float64(5), Fraction(5), 10**30, *NEVER],
    "temperature": [None, -1, -1e-9, math.inf, 1e39, 10**400, 10**5000, *NEVER],
    "top_k": [None, -1, 2.5, 2.0, np.float32(2), torch.tensor(2.0), *NEVER],
    "top_p": [None, 0, 0.0, -0.1, 1.1, math.inf, *NEVER],
    "min_p": [None, -0.1, 1.1, math.inf, *NEVER],
    "seed": [1 << 63, -(1 << 63) - 1, 0.0, 1.5, 10**5000, *NEVER],
    "repetition_penalty": [None, 0, -1, math.inf, 1e9, 1e-9, *NEVER],
    "frequency_penalty": [None, math.inf, 1e9, -1e9, *NEVER],
    "presence_penalty": [None, math.inf, 1e9, -1e9, *NEVER],
    "min_tokens": [None, -1, 2.5, 2.0, *NEVER],
    "logit_bias": [1, "5", [(5, 1)], {"5": 1}, {5.0: 1}, {True: 1}, {-1: 1}, {VOCAB: 1}, {5: "1"},
                   {5: None}, {5: True}, {5: math.nan}, {5: math.inf}, {5: 1e39}],
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_numbers_of_every_kind_are_taken(model, name):
    for value in GOOD[name]:
        options = {"max_new_tokens": 1, "temperature": 1.0, name: value}
        assert model.generate(IDS, **options).shape[1] == 3 + options["max_new_tokens"], value


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_such_number_is_refused_by_name(model, name):
    for value in BAD[name]:
        with pytest.raises(ValueError, match=name if name != "max_new_tokens" else "max_new|fit"):
            model.generate(IDS, **{"max_new_tokens": 1, name: value})


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["top_k", "temperature", "top_p", "min_p", "seed", "repetition_penalty"]),
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
    | st.lists(st.integers()),
)  # fmt: skip
def test_a_setting_is_what_was_given_or_an_error(name, value):
    try:
        kept = getattr(Sampling(**{name: value}), name)
    except ValueError as error:
        assert name in str(error)
    else:
        assert kept == value and not isinstance(value, bool)
        assert type(kept) is (
            int if name in ("top_k", "seed") and value is not None else type(kept)
        )


def test_what_is_not_there_is_not_ignored(model):
    for option in ({"stop": ["x"]}, {"num_beams": 4}, {"length_penalty": 1.0}, {"n": 2}):
        with pytest.raises(TypeError, match=next(iter(option))):
            model.generate(IDS, 2, **option)
    with pytest.raises(ValueError, match="expected sampling to be a Sampling"):
        model.stream(IDS, 2, sampling={"temperature": 1.0})


CALLS = {
    "prompt_logits": lambda model, ids, mask=None: model.prompt_logits(ids, attention_mask=mask),
    "generate": lambda model, ids, mask=None: model.generate(ids, 2, attention_mask=mask),
    "stream": lambda model, ids, mask=None: torch.stack(
        list(model.stream(ids, 2, attention_mask=mask))
    ),
}


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("call", CALLS)
def test_masks_of_ones_are_taken_and_no_masks_refused(model, call, batch):
    ids, run = torch.arange(1, 1 + 4 * batch).view(batch, 4), CALLS[call]
    wanted = run(model, ids)
    for dtype in (torch.int64, torch.int32, torch.bool, torch.uint8, torch.float32, torch.bfloat16):
        assert torch.equal(run(model, ids, torch.ones(batch, 4, dtype=dtype)), wanted)
    for other in (torch.full((batch, 4), math.nan), torch.full((batch, 4), 2)):
        with pytest.raises(ValueError, match="to be ones and zeros, got"):
            run(model, ids, other)
    nothing = torch.ones(batch, 4)
    nothing[-1] = 0
    with pytest.raises(ValueError, match=rf"the prompt of row {batch - 1} is empty"):
        run(model, ids, nothing)
    for shape in ((4,), (batch, 3), (batch, 5), (batch, 1, 1, 4), (batch + 1, 4)):
        with pytest.raises(ValueError, match=rf"attention_mask to be a tensor \[{batch}, 4\]"):
            run(model, ids, torch.ones(shape))
    for other in ([[1] * 4] * batch, np.ones((batch, 4)), "ones"):
        with pytest.raises(ValueError, match="attention_mask to be a tensor"):
            run(model, ids, other)


def padded(texts, side, fill):
    """Texts of several lengths, filled up on the left, on the right, or anywhere; and the mask."""
    width, generator = max(map(len, texts)) + 2, torch.Generator().manual_seed(1)
    ids = torch.full((len(texts), width), fill)
    mask = torch.zeros(len(texts), width, dtype=torch.int64)
    for row, text in enumerate(texts):
        at = torch.arange(len(text))
        if side == "left":
            at += width - len(text)
        elif side == "anywhere":
            at = torch.randperm(width, generator=generator)[: len(text)].sort().values
        ids[row, at], mask[row, at] = torch.tensor(text), 1
    return ids, mask


@pytest.mark.parametrize("fill", [PAD, 7], ids=["pad", "another token"])
@pytest.mark.parametrize("side", ["left", "right", "anywhere"])
def test_padding_is_left_out(model, side, fill):
    """Each row is what it is alone, across chunks of 8."""
    texts = [[*range(1, 20)], [5], [9, 8, 7, 6, 5, 4, 3, 2, 1]]
    ids, mask = padded(texts, side, fill)
    got = model.generate(ids, 6, stop_ids=(), attention_mask=mask)
    logits = model.prompt_logits(ids, attention_mask=mask)
    for row, text in enumerate(texts):
        alone = torch.tensor([text])
        wanted = model.generate(alone, 6, stop_ids=())[0, len(text) :]
        assert torch.equal(got[row, ids.shape[1] :], wanted)
        assert torch.equal(got[row, : ids.shape[1]], ids[row])
        at = mask[row].bool()
        assert (logits[row, at] - model.prompt_logits(alone)[0]).abs().max() <= 1e-4
        assert not logits[row, ~at].any()


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("call", CALLS)
def test_padding_without_a_mask_is_refused(model, call, batch):
    run, rest = CALLS[call], torch.arange(1, 5).repeat(batch, 1)
    for count in (1, 2):
        left, right = rest.clone(), rest.clone()
        left[-1, :count], right[-1, -count:] = PAD, PAD
        message = rf"row {batch - 1} of input_ids {{}} with the pad token \(id {PAD}\): pass an att"
        with pytest.raises(ValueError, match=message.format("begins")):
            run(model, left)
        run(model, left, torch.ones_like(left))  # meant as a token
        if call == "prompt_logits":  # what follows a token does not change its logits
            whole = model.prompt_logits(rest[:, :-count])
            assert (run(model, right)[:, :-count] - whole).abs().max() <= 1e-4
        else:
            with pytest.raises(ValueError, match=message.format("ends")):
                run(model, right)
    inside = rest.clone()
    inside[:, 2] = PAD
    run(model, inside)


@pytest.mark.parametrize("pad", [None, -1, 1, 5, 6], ids=["none", "-1", "BOS", "EOS", "second EOS"])
def test_a_pad_token_that_has_another_meaning_is_not_refused(pad):
    ends = {"bos_token_id": 1, "eos_token_id": [5, 6]}
    config = {**TEXT, **ends, "pad_token_id": pad, "num_hidden_layers": 1}
    model = Llama4.random(Llama4Config.from_dict(config))
    assert model.prompt_logits(torch.tensor([[pad if pad and pad > 0 else 0, 3]])).shape == (
        1,
        2,
        VOCAB,
    )


@pytest.mark.parametrize(
    "ids, message",
    [
        ([[1, 2], [3]], "fill them up to one length"),
        ([[1, 2], []], "fill them up to one length"),
        ([[1, 2], [3, 4]], r"a tensor \[batch, tokens\], got <class 'list'>"),
        ([torch.tensor([1]), torch.tensor([1, 2])], "fill them up to one length"),
        ("text", "a tensor"),
        (None, "a tensor"),
        (np.array([[1, 2]]), "a tensor"),
        (torch.ones(1, 2, dtype=torch.bool), "integers"),
        (torch.ones(1, 2, dtype=torch.uint8), "integers"),
        (torch.ones(1, 2, dtype=torch.complex64), "integers"),
        (torch.ones(1, 2), "integers"),
        (torch.ones(1, 2, 1, dtype=torch.int64), r"got \[1, 2, 1\]"),
    ],
    ids=lambda v: repr(v)[:40],
)
def test_prompts_of_another_kind(model, ids, message):
    for call in CALLS.values():
        with pytest.raises(ValueError, match=message):
            call(model, ids)


@pytest.mark.filterwarnings("ignore")  # torch's, about its prototypes
@pytest.mark.parametrize("argument", ["input_ids", "attention_mask", "pixel_values"])
def test_tensors_without_dense_data_are_refused_by_name(argument):
    model, ids = Llama4.from_pretrained(demo.CHECKPOINT), torch.tensor([[1, 2, 3]])
    good = torch.rand(1, 3, 32, 32) if argument == "pixel_values" else torch.ones_like(ids)
    kinds = {
        "meta": good.to("meta"),
        "sparse_coo": good.to_sparse(),
        "nested": torch.nested.nested_tensor(list(good)),
    }
    for kind, wrong in kinds.items():
        for call in (model.generate, model.prompt_logits, model.stream):
            with pytest.raises(ValueError, match=f"expected {argument} to be a dense .*{kind} one"):
                call(**{"input_ids": ids, argument: wrong})


def test_int32_ids_stay_int32(model):
    got = model.generate(IDS.int(), 3)
    assert got.dtype == torch.int32 and torch.equal(got.long(), model.generate(IDS, 3))


@pytest.fixture
def sick():
    """A model whose token 7 has an embedding of NaN."""
    model = Llama4.random(Llama4Config.from_dict(TEXT))
    with torch.no_grad():
        model.embedding[7] = math.nan
    return model


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nan_logits_are_an_error_that_names_row_and_step(sick, temperature):
    ids = torch.tensor([[1, 2], [3, 7], [4, 5]])
    assert (
        sick.prompt_logits(ids)[1, 1].isnan().all() and not sick.prompt_logits(ids)[0].isnan().any()
    )
    with pytest.raises(ValueError, match="row 1 has no next token at step 0: its logits are NaN"):
        sick.generate(ids, 3, temperature, seed=1)
    # Token 7 is chosen in step 0 and read in step 1.
    stream = sick.stream(ids[::2], 3, sampling=Sampling(temperature, logit_bias={7: 1e5}))
    first = next(steps := iter(stream))
    assert first.tolist() == [7, 7]
    with pytest.raises(ValueError, match="row 0 has no next token at step 1"):
        next(steps)


def test_a_row_of_which_every_token_is_banned_is_an_error(model):
    with pytest.raises(ValueError, match=r"row 0 has no next token at step 0: .* -inf"):
        model.generate(IDS, 3, logit_bias=dict.fromkeys(range(VOCAB), -math.inf))


def test_what_comes_out_are_ordinary_tensors(model):
    """Of use to autograd, whatever mode the call is made in."""
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with mode():
            logits, whole, items = (
                model.prompt_logits(IDS),
                model.generate(IDS, 3),
                list(model.stream(IDS, 3)),
            )
        for t in (logits, whole, *items):
            assert not t.is_inference() and not t.requires_grad
        weight = torch.zeros(VOCAB, requires_grad=True)
        (logits.requires_grad_() + weight).square().sum().backward()
        assert weight.grad is not None and logits.grad is not None
        embedded = torch.nn.functional.embedding(whole, torch.ones(VOCAB, 2, requires_grad=True))
        embedded.sum().backward()  # the ids are saved for this
        logits.detach().mul_(2)


def test_parameters_ask_for_no_gradient_and_are_ordinary():
    with torch.inference_mode():
        models = (
            Llama4.random(Llama4Config.from_dict(TEXT)),
            Llama4.from_pretrained(demo.CHECKPOINT),
        )
    for model in models:
        for name, parameter in (*model.named_parameters(), *model.named_buffers()):
            assert not parameter.requires_grad and not parameter.is_inference(), name
    assert not models[0].prompt_logits(IDS).requires_grad


def test_a_stream_leaves_its_callers_mode_alone(model):
    for _ in model.stream(IDS, 2):
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    seen = []
    model.generate(IDS, 2, streamer=lambda ids: seen.append(torch.is_grad_enabled()))
    assert seen == [True, True]


class Counting:
    """A function that is false, as everything with a length of 0 is."""

    calls = 0

    def __len__(self):
        return 0

    def __call__(self, ids):
        self.calls += 1


def test_an_argument_that_is_false_is_not_ignored(model):
    streamer = Counting()
    model.generate(IDS, 3, streamer=streamer)
    assert streamer.calls == 3
    nothing = [False, 0, "", [], (), torch.tensor([]), np.array([1, 2]), torch.tensor([1, 2])]
    for name in ("logit_bias", "streamer"):
        for value in nothing:
            with pytest.raises(ValueError, match=f"expected {name} to"):
                model.generate(IDS, 2, **{name: value})


@pytest.mark.parametrize("config", [0, {}, "", [], "demo", 3, TEXT, Llama4Config])
def test_what_is_no_config_is_refused(config):
    for make in (Llama4.random, lambda c: Llama4.from_pretrained(demo.CHECKPOINT, config=c)):
        with pytest.raises(ValueError, match="expected config to be a Llama4Config, got"):
            make(config)


def test_a_second_iteration_counts_anew(model):
    generation = model.stream(IDS, 4)
    for _ in range(2):
        assert len(list(generation)) == 4
        assert (generation.timings.decode_steps, generation.finish_reasons) == (3, ["length"])


def test_iterators_of_one_generation_do_not_meet(model):
    """One may be left halfway, or go on beside another at another step."""
    generation = model.stream(IDS.repeat(2, 1), 30, stop_ids=())
    wanted = torch.stack(list(generation))
    first, second = iter(generation), iter(generation)
    begun = [next(first) for _ in range(7)]
    beside = [token for pair in zip(first, second, strict=False) for token in pair]
    assert torch.equal(torch.stack([*begun, *beside[::2]]), wanted)
    assert torch.equal(torch.stack([*beside[1::2], *second]), wanted)
    assert generation.finish_reasons == ["length"] * 2


def test_generations_can_be_kept_in_sets_and_compared(model):
    first, second = (model.stream(IDS.repeat(2, 1), 2) for _ in range(2))
    assert {first, second} == {second, first} and first != second


FORMATS = {
    "dtype": ["bfloat16", torch.bfloat16],
    "kv_dtype": [None, "fp8", torch.float8_e4m3fn, "float32", torch.float32],
    "weights": [None, "bf16"],
    "seed": [-5, np.int64(3)],
}
NO_FORMATS = {
    "dtype": [None, [], {}, "", "fp16", torch.float16, np.float32, 32],
    "kv_dtype": [[], {}, "", "bfloat16", torch.bfloat16, 8],
    "weights": [[], {}, "", "BF16", 4, torch.bfloat16],
    "seed": [None, 1.5, "x", 1 << 63, True],
    "device": [None, [], "", "meta", "cuda:99", 1.5],
}


@pytest.mark.parametrize("name", NO_FORMATS)
def test_formats_of_a_model(name):
    config = Llama4Config.from_dict({**TEXT, "num_hidden_layers": 1})
    for value in FORMATS.get(name, []):
        assert Llama4.random(config, **{name: value}).prompt_logits(IDS).isfinite().all()
    for value in NO_FORMATS[name]:
        with pytest.raises(ValueError, match=rf"expected {name} to be|CUDA devices are visible"):
            Llama4.random(config, **{name: value})
