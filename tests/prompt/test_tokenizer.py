"""The tokenizer against transformers: ids, added tokens of every kind, names, and limits."""

import doctest
import itertools
import json
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from l4kernels.demo import CHECKPOINT
from l4kernels.prompt import plain_encoder, stop_strings, tokenizer
from l4kernels.prompt.chat import Prompter
from l4kernels.prompt.tokenizer import Detokenizer
from l4kernels.prompt.tokenizer_file import TokenizerError
from tests.support import tiny
from tests.support.deadlines import cheaply

LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
WORDS = "the user's answer, isn't THE other's\n\n  there 1234 é日本語 <|x|> !!\r\n\tthink"
FLAGS = [
    dict(zip(("special", "normalized", "lstrip", "rstrip", "single_word"), flags, strict=True))
    for flags in itertools.product([False, True], repeat=5)
]
ADDED = [AddedToken(f"<t{i}>", **flags) for i, flags in enumerate(FLAGS)]


def train(split=None, normalizer=None, special=(), **model) -> Tokenizer:
    made = Tokenizer(models.BPE(**model))
    steps = [] if split is None else [pre_tokenizers.Split(Regex(split), behavior="isolated")]
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    made.pre_tokenizer = pre_tokenizers.Sequence([*steps, bytes_]) if steps else bytes_
    made.decoder = decoders.ByteLevel()
    if normalizer is not None:
        made.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=list(special),
        show_progress=False,
    )
    made.train_from_iterator([WORDS] * 9, trainer)
    return made


def extended(made: Tokenizer, *added: AddedToken) -> Tokenizer:
    made.add_tokens(list(added))
    return made


MADE = {
    "gpt2, specials in the vocabulary": lambda: extended(
        train(special=["<|endoftext|>", "<pad it>"]), *ADDED
    ),
    "llama 3, whole words, ordinary tokens added": lambda: extended(
        train(LLAMA_3, ignore_merges=True),
        *ADDED,
        AddedToken("the", special=False),
        AddedToken("think", single_word=True, special=False),
        AddedToken("日", special=True),
    ),
    "nfc": lambda: extended(train(LLAMA_3, normalizers.NFC()), *ADDED),
    "a pattern of its own": lambda: extended(train(r"\w+|\W"), *ADDED),
}


@pytest.fixture(scope="module", params=[*MADE, "demo"])
def pair(request, tmp_path_factory):
    """Ours and transformers' of the same folder."""
    from transformers import PreTrainedTokenizerFast

    folder = CHECKPOINT
    if request.param != "demo":
        folder = tmp_path_factory.mktemp("made")
        MADE[request.param]().save(str(folder / "tokenizer.json"))
    return tokenizer.Tokenizer(folder), PreTrainedTokenizerFast.from_pretrained(folder)


CONTROL = [*(f"<t{i}>" for i in range(32)), "<|eot|>", "<|patch|>", "<|endoftext|>", "<pad it>"]
ORDINARY = ["the", "think", " user", "日", " ", "\n", "\n\n", "x", "'s", "<", "|>", "e\u0301"]
pieces = st.sampled_from(CONTROL + ORDINARY)
texts = st.lists(pieces | st.text(max_size=4), max_size=12).map("".join)
quickly = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@quickly
@given(text=texts)
def test_ids_equal_those_of_transformers(pair, text):
    ours, theirs = pair
    want = theirs(text, add_special_tokens=False).input_ids
    assert ours.encode(text, bos=False, special=True) == want
    if not set(ours.special.values()) & set(want):
        assert ours.encode(text, bos=False) == want


@quickly
@given(text=texts)
def test_no_text_becomes_an_added_token(pair, text):
    ours, theirs = pair
    ids = ours.encode(text, bos=False)
    assert not set(ids) & set(ours.special.values())
    normalizer = theirs.backend_tokenizer.normalizer
    assert ours.decode(ids) == (normalizer.normalize_str(text) if normalizer else text)


def test_every_added_token_is_text_in_text(pair):
    ours, theirs = pair
    assert len(ours.special) >= 32 and ours.special == theirs.get_added_vocab()
    for token, id in ours.special.items():
        for text in (token, f" {token} ", f"x{token}x", f"{token}{token}\n"):
            assert id not in ours.encode(text, bos=False)
        assert id in ours.encode(f" {token} ", special=True)
        assert ours.id(token) == id
        assert ours.token_bytes(id, skip_special=False) == token.encode()


def test_an_added_token_that_bytes_spell_is_spelled_by_bytes(tmp_path):
    """`Ġuser` is what the vocabulary calls the text ` user`, and what merges lead to."""
    made = train(LLAMA_3)
    made.add_tokens(["Ġuser", "the", "x"])
    made.save(str(tmp_path / "tokenizer.json"))
    ours = tokenizer.Tokenizer(tmp_path)
    assert set(ours.special) <= made.get_vocab(with_added_tokens=False).keys()
    for text in ("the user", " users", "other"):
        ids = ours.encode(text)
        assert not set(ids) & set(ours.special.values()) and ours.decode(ids) == text
    with pytest.raises(TokenizerError, match="no ordinary token for the byte 0x78"):
        ours.encode("x")
    assert ours.encode("x", special=True) == [ours.id("x")]


def test_decoding_equals_the_library(pair):
    ours, theirs = pair
    ordinary = sorted(set(range(len(theirs))) - set(ours.special.values()))
    for start in range(0, len(ordinary), 7):
        ids = ordinary[start : start + 7]
        assert ours.decode(ids) == theirs.backend_tokenizer.decode(ids)


PARTS = [
    "the ",
    "User's",
    " x",
    "日本",
    "語。",
    " ",
    "  ",
    "\n",
    "\r\n\n",
    "ABC",
    "12345",
    "!?",
    "é",
    "'",
]


def test_long_texts_are_cut_where_it_does_not_show(pair, monkeypatch):
    ours, theirs = pair
    monkeypatch.setattr(plain_encoder, "PIECE_CHARS", 3)
    shuffled = np.random.default_rng(0).choice(PARTS, 4000).tolist()
    for text in ("".join(shuffled), "".join(PARTS) * 20, "word " * 500, "x\n" * 500):
        want = theirs(text, add_special_tokens=False).input_ids
        assert ours.encode(text, bos=False, special=True) == want
    published = ours._plain._published
    assert len(list(ours._plain._pieces("".join(shuffled)))) > 200 or not published


def test_which_tokenizers_are_cut():
    published = {
        name: plain_encoder._is_published(json.loads(make().to_str()))
        for name, make in MADE.items()
    }
    assert [*published.values()] == [True, True, False, False]
    assert plain_encoder._is_published(json.loads((CHECKPOINT / "tokenizer.json").read_text()))
    nothing = train(LLAMA_3, normalizers.Sequence([]))  # as DeepSeek's
    assert plain_encoder._is_published(json.loads(nothing.to_str()))
    # Without a word of any letters, or without white space, a cut would show.
    for split in (r"\p{N}|\s+", LLAMA_3.removesuffix(r"|\s+"), LLAMA_3 + "|x", LLAMA_3 + "(?=x)"):
        assert not plain_encoder._is_published(json.loads(train(split).to_str()))


def test_a_prompt_that_cannot_fit_is_refused_at_once(tmp_path):
    tiny.write_settings(tmp_path)
    prompter = Prompter(tmp_path)
    long = "the answer " * 1_000_000

    def refused():
        for call in (
            lambda: prompter.raw(long),
            lambda: prompter.tokenizer.encode(long, special=True, limit=5000),
            lambda: prompter.tokenizer.check_fits(long, 5000),
        ):
            with pytest.raises(TokenizerError, match="context of"):
                call()

    cheaply(1, refused)


@pytest.mark.parametrize("module", [tokenizer, stop_strings])
def test_examples_of_the_docstrings(module):
    result = doctest.testmod(module)
    assert result.attempted and not result.failed


def test_a_limit_is_exact(pair):
    ours, _ = pair
    text = "the user <t3> answers 1234 <|eot|> x" * 3
    for special in (False, True):
        ids = ours.encode(text, special=special)
        assert ours.encode(text, special=special, limit=len(ids)) == ids
        for limit in (0, 1, len(ids) - 1):
            with pytest.raises(TokenizerError, match=f"context of {limit} tokens"):
                ours.encode(text, special=special, limit=limit)


def test_counting_stops_soon_after_the_limit(monkeypatch):
    ours, seen = tokenizer.Tokenizer(CHECKPOINT), []
    encode = ours._plain._encode
    monkeypatch.setattr(ours._plain, "_encode", lambda text: seen.append(len(text)) or encode(text))
    with pytest.raises(TokenizerError, match="context of 100000 tokens"):
        ours.encode("a b " * 200_000, limit=100_000)
    assert sum(seen) < 300_000


def test_what_cannot_be_cut_has_a_bound(pair, monkeypatch):
    ours, _ = pair
    monkeypatch.setattr(plain_encoder, "MAX_PIECE_CHARS", 1000)
    for text in (" " * 200_000, "a" * 200_000, "\n" * 200_000):
        with pytest.raises(TokenizerError, match="1,000 characters"):
            ours.encode(text)


def test_what_is_searched_at_once_has_the_same_bound(pair, monkeypatch):
    """A text with control tokens is searched whole: by a normalizer at 60 bytes a character."""
    ours, _ = pair
    published = ours._plain._published
    longest = plain_encoder.MAX_TEXT_CHARS if published else plain_encoder.MAX_PIECE_CHARS
    assert ours._plain.max_chars == longest
    monkeypatch.setattr(ours._plain, "max_chars", 1000)
    special = partial(ours.encode, special=True)
    for call in (ours.encode, special, ours.find, ours.split, lambda t: ours.check_fits(t, 10**6)):
        with pytest.raises(TokenizerError, match=r"at most 1,000 characters, .* got 1,001"):
            list(call("a" * 1001))
    assert ours.encode("a" * 1000, special=True)


def test_long_runs_are_linear(pair):
    for char in " a\n":
        assert len(pair[0].encode(char * 100_000)) > 1000


@pytest.mark.parametrize("text", [b"the", None, 5, ["the"], torch.tensor([1]), bytearray(b"the")])
def test_what_is_no_text_is_refused(pair, text):
    for call in (pair[0].encode, pair[0].split, pair[0].find):
        with pytest.raises(TokenizerError, match=r"expected text \(str\), got"):
            list(call(text))
    for special in (False, True):
        with pytest.raises(TokenizerError, match="not valid Unicode at character 2"):
            pair[0].encode("é \udcff", special=special)


@pytest.mark.parametrize(
    "id", [-1, 1 << 20, 2**70, 1.0, "1", None, True, b"1", [1], torch.arange(2), torch.tensor(1.5)]
)
def test_what_is_no_id_is_refused(pair, id):
    for call in (pair[0].token_bytes, Detokenizer(pair[0]).push, lambda id: pair[0].decode([id])):
        with pytest.raises(TokenizerError, match="expected a token id"):
            call(id)


@pytest.mark.parametrize("ids", ["12", b"12", 5, None, torch.tensor(5), np.int64(5)])
def test_what_is_no_list_of_ids_is_refused(pair, ids):
    with pytest.raises(TokenizerError, match="expected a list of token ids"):
        pair[0].decode(ids)


def test_ids_of_every_integer_type(pair):
    ours, _ = pair
    ids = ours.encode("the answer", bos=False)
    for form in (ids, tuple(ids), iter(ids), torch.tensor(ids), np.array(ids, np.uint16)):
        assert ours.decode(form) == "the answer"
    for one in (ids[0], torch.tensor(ids[0]), np.int32(ids[0])):
        assert Detokenizer(ours).push(one) == ours.decode(ids[:1]) != ""
    assert ours.decode([len(ours.special) + 5000, *ids]) == "the answer"  # pads the vocabulary
