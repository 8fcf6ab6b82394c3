"""Files of a tokenizer that are odd or hostile: names as transformers finds them, or one error."""

import copy
import json
import os
import time

import pytest

from l4kernels.prompt import plain_encoder
from l4kernels.prompt.chat import Prompter
from l4kernels.prompt.tokenizer import Detokenizer, Tokenizer
from l4kernels.prompt.tokenizer_file import TokenizerError, guarded
from tests.support import tiny
from tests.support.tiny import ID

BOS, EOM, END = "<|begin_of_text|>", "<|eom|>", "<|end_of_text|>"
NEXT = tiny.BPE_TOKENS + len(tiny.SPECIAL)
FILES = ("tokenizer.json", "tokenizer_config.json", "config.json")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("original")
    tiny.write_settings(folder)
    return {name: json.loads((folder / name).read_text()) for name in FILES}


@pytest.fixture
def write(original, tmp_path):
    """Writes the tiny checkpoint's files; per file the fields to change, None to leave out."""

    def write(changes):
        for name in {*FILES, *changes}:
            content = copy.deepcopy(original.get(name, {}))
            for key, value in changes.get(name, {}).items():
                content[key] = value
                if value is None:
                    del content[key]
            (tmp_path / name).write_text(json.dumps(content))
        return tmp_path

    return write


NO_POST = {"tokenizer.json": {"post_processor": None}}
NO_NAME = {"tokenizer_config.json": {"bos_token": None}}
CONFIG = "tokenizer_config.json"
AN_OBJECT = {"__type": "AddedToken", "lstrip": False}
TEXT_BOS = {**tiny.TEXT, "bos_token_id": ID[END]}
# changes, the begin-of-text token, whether a text begins with it, whether transformers agrees
NAMES = {
    "as published": ({}, BOS, True, True),
    "named by no config": (NO_NAME, BOS, True, True),
    "known to the post-processor": (
        {**NO_NAME, "config.json": {"text_config": TEXT_BOS}}, BOS, True, True,
    ),
    "known to the text config": ({**NO_NAME, **NO_POST}, BOS, True, False),
    "known to a text-only config": (
        {**NO_NAME, **NO_POST, "config.json": {"text_config": None, "bos_token_id": ID[EOM]}},
        EOM, True, False,
    ),
    "text config before the outer one": (
        {**NO_NAME, **NO_POST, "config.json": {"bos_token_id": ID[EOM]}}, BOS, True, False,
    ),
    "known to the generation config": (
        {**NO_NAME, **NO_POST, "config.json": {"text_config": None},
         "generation_config.json": {"bos_token_id": ID[EOM]}},
        EOM, True, False,
    ),
    "an id of an ordinary token": (
        {**NO_NAME, **NO_POST, "config.json": {"text_config": None, "bos_token_id": 1}},
        None, False, True,
    ),
    "an object": ({CONFIG: {"bos_token": {**AN_OBJECT, "content": BOS}}}, BOS, True, True),
    "named in the map": (
        {**NO_NAME, **NO_POST, "special_tokens_map.json": {"bos_token": EOM}}, EOM, True, False,
    ),
    "the map comes later": (
        {**NO_POST, "special_tokens_map.json": {"bos_token": {"content": EOM}}}, EOM, True, False,
    ),
    "no map beside a table": (
        {CONFIG: {"added_tokens_decoder": {}}, "special_tokens_map.json": {"bos_token": EOM}},
        BOS, True, True,
    ),
    "new names": (
        {**NO_POST, CONFIG: {"bos_token": "<s>", "pad_token": "<p>", "image_token": "<i>",
                             "extra_special_tokens": ["<e>", {**AN_OBJECT, "content": "<f>"}]}},
        "<s>", True, False,
    ),
    "new names, the standard ones last": (
        {CONFIG: {"image_token": "<a>", "mask_token": "<b>", "pad_token": "<c>"}}, BOS, True, True,
    ),
    "new tokens in a table": (
        {CONFIG: {"added_tokens_decoder": {f"{NEXT + 1}": {"content": "<b>", "special": False},
                                           f"{NEXT}": {"content": "<a>", "lstrip": True}},
                  "extra_special_tokens": {"x_token": "<c>"}}},
        BOS, True, True,
    ),
    "not to be added": ({**NO_POST, CONFIG: {"add_bos_token": False}}, BOS, False, True),
    "added all the same": ({CONFIG: {"add_bos_token": False}}, BOS, True, True),
}  # fmt: skip


@pytest.mark.parametrize("case", NAMES)
def test_names(case, write):
    """`agrees`: with transformers on raw text; a Llama model needs the token where it adds none."""
    from transformers import PreTrainedTokenizerFast

    changes, bos, begins, agrees = NAMES[case]
    folder = write(changes)
    ours, theirs = Tokenizer(folder), PreTrainedTokenizerFast.from_pretrained(folder)
    assert ours.names.get("bos_token") == bos
    assert ours.bos_id == (None if bos is None else ours.id(bos))
    assert ours.special == theirs.get_added_vocab()
    assert {**theirs.special_tokens_map, "bos_token": bos} == {"bos_token": bos, **ours.names}
    plain = ours.encode("the <b>", bos=False)
    assert ours.encode("the <b>") == [ours.bos_id] * begins + plain
    if agrees:
        assert ours.encode("the") == theirs("the").input_ids
    spelled = "<a> the<b> <c><s><e>" + END
    want = theirs(spelled, add_special_tokens=False).input_ids
    assert ours.encode(spelled, bos=False, special=True) == want


def test_a_token_beyond_the_model_is_named_when_it_is_used(write):
    prompter = Prompter(write({**NO_POST, CONFIG: {"bos_token": "<s>"}, "config.json": {
        "text_config": tiny.TEXT | {"vocab_size": NEXT}}}))  # fmt: skip
    with pytest.raises(ValueError, match=f"produced id {NEXT}, the model has {NEXT} tokens"):
        prompter.raw("the")


def deep(levels: int = 100_000) -> str:
    return '{"a":' * levels + "1" + "}" * levels


HOSTILE_NAMES = {
    "contradiction": ({CONFIG: {"bos_token": EOM}}, "begins a text with"),
    "no flag": ({CONFIG: {"add_bos_token": "no"}}, "add_bos_token to be true or false"),
    "no token": ({CONFIG: {"eos_token": 5}}, "eos_token to be a token"),
    "empty": ({CONFIG: {"pad_token": ""}}, "pad_token to be a token"),
    "half a character": ({CONFIG: {"bos_token": "\ud800"}}, "bos_token to be a token"),
    "no list": ({CONFIG: {"extra_special_tokens": 5}}, "extra special tokens"),
    "no list of tokens": ({CONFIG: {"extra_special_tokens": [5]}}, "extra special tokens"),
    "no table": ({CONFIG: {"added_tokens_decoder": [5]}}, "added_tokens_decoder to map"),
    "no id": ({CONFIG: {"added_tokens_decoder": {"x": {"content": "x"}}}}, "to map ids"),
    "another id": ({CONFIG: {"added_tokens_decoder": {"9999": {"content": "<a>"}}}}, "9999"),
    "a long token": ({CONFIG: {"pad_token": "x" * (1 << 21)}}, "1,048,576 characters"),
    "many": ({CONFIG: {"extra_special_tokens": [f"<{i}>" for i in range(50_000)]}}, "16,384"),
    "post-processor": (
        {"tokenizer.json": {"post_processor": {
            "type": "TemplateProcessing", "pair": [], "special_tokens": {},
            "single": [{"SpecialToken": {"id": "<x>", "type_id": 0}}]}}},
        "post-processor is contradictory",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE_NAMES)
def test_names_that_cannot_be_used(case, write):
    changes, message = HOSTILE_NAMES[case]
    with pytest.raises(TokenizerError, match=message):
        Tokenizer(write(changes))


OPTIONAL = (CONFIG, "special_tokens_map.json", "config.json", "generation_config.json")


@pytest.mark.parametrize("name", ["tokenizer.json", *OPTIONAL])
def test_files_that_are_no_objects(name, write):
    file = write({**NO_NAME, **NO_POST, "config.json": {"text_config": None}}) / name
    contents = [deep(), "[" * 100_000, "[]", "", "{", "\xff", "1" * 5000, '{"a": 1e999', "null"]
    for content in contents:
        file.write_bytes(content.encode("latin-1"))
        with pytest.raises(TokenizerError, match=name):
            Tokenizer(file.parent)
    limit = 64 if name == "tokenizer.json" else 16
    file.write_bytes(b"{" + b" " * (limit << 20) + b"}")
    with pytest.raises(TokenizerError, match=f"{name}: expected at most {limit} MiB"):
        Tokenizer(file.parent)
    for make in (os.mkfifo, os.mkdir, lambda file: os.symlink("/dev/zero", file)):
        file.rmdir() if file.is_dir() else file.unlink()
        make(file)
        with pytest.raises(TokenizerError, match=f"{name}: .*(regular file|directory)"):
            Tokenizer(file.parent)


SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def split_by(pattern: str, normalizer=None) -> dict:
    steps = [{**SPLIT, "pattern": {"Regex": pattern}}, BYTES]
    return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}, "normalizer": normalizer}


def model(**changes) -> dict:
    vocab = {c: i for i, c in enumerate(plain_encoder.BYTE_OF_CHAR)}
    return {"added_tokens": [], "post_processor": None,
            "model": {"type": "BPE", "vocab": vocab, "merges": [], **changes}}  # fmt: skip


def added(*tokens: tuple) -> dict:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return {"added_tokens": [{"id": i, "content": c, **flags} for i, c in tokens]}


CHARS = dict(zip(plain_encoder.BYTE_OF_CHAR, range(256), strict=True))
UNSUPPORTED = {
    "WordPiece": (model(type="WordPiece", unk_token="[UNK]"), "got a model of type 'WordPiece'"),
    "WordLevel": (model(type="WordLevel", unk_token="?"), "got a model of type 'WordLevel'"),
    "Unigram": (model(type="Unigram", vocab=[["a", 0.0]]), "got a model of type 'Unigram'"),
    "dropout": (model(dropout=0.1), "got dropout = 0.1"),
    "prefix": (model(continuing_subword_prefix="##"), "got continuing_subword_prefix = '##'"),
    "suffix": (model(end_of_word_suffix="</w>"), "got end_of_word_suffix = '</w>'"),
    "no vocabulary": (model(vocab={}), "none of the 256 bytes"),
    "a vocabulary of words": (model(vocab={"<a b>": 0}), "none of the 256 bytes"),
    "negative": (model(vocab={"a": -1}), "the id of 'a' to be a whole number"),
    "huge": (model(vocab={"a": 2**31}), "the id of 'a' to be a whole number"),
    "twice": (model(vocab={"a": 0, "b": 0}), "an id of its own"),
    "unknown merge": (model(merges=[["a", "zz"]]), "not a readable tokenizer"),
    "odd merge": (model(merges=["a"]), "not a readable tokenizer"),
    "no pre-tokenizer": ({"pre_tokenizer": None}, "one pre-tokenizer ByteLevel, .* got none"),
    "spaces": ({"pre_tokenizer": {"type": "WhitespaceSplit"}}, "got WhitespaceSplit"),
    "the last is another": (
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [BYTES, {"type": "Whitespace"}]}},
        "got ByteLevel, Whitespace",
    ),
    "bytes twice": (
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [BYTES, BYTES]}},
        "got ByteLevel, ByteLevel",
    ),
    "bytes as a normalizer": ({"normalizer": {"type": "ByteLevel"}}, "NFC, .*, got ByteLevel"),
    "text that grows": (
        {"normalizer": {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10**6}},
        "expected normalizers out of NFC, .*, got Replace",
    ),
    "text that grows 18 times": ({"normalizer": {"type": "NFKC"}}, "got NFKC"),
    "inside a sequence": (
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFKD"}]}},
        "got NFKD",
    ),
    "no decoder": ({"decoder": None}, "the decoder ByteLevel, got none"),
    "another decoder": ({"decoder": {"type": "Fuse"}}, "the decoder ByteLevel, got Fuse"),
    "a long pattern": (split_by(r"[\p{L}]" * 100_000), "at most 4096 characters"),
    "a bad pattern": (split_by("("), "not a readable tokenizer"),
    "many added tokens": (added(*((i, f"<{i}>") for i in range(290, 200_290))), "got 200,000"),
    "long added tokens": (added((290, "x" * (1 << 21))), "1,048,576 characters"),
    "same id": (added((290, "<a>"), (290, "<b>")), "two added tokens have id 290"),
    "same token": (added((290, "<a>"), (291, "<a>")), "cannot be an added token with id 29"),
    "a gap": (added((300, "<a>")), "has another id than 290"),
    "an id of the vocabulary": (added((5, "<a>")), "has another id than 290"),
    "an empty token": (added((290, "")), "to have text"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_what_is_not_supported_is_refused_by_name(case, write):
    changes, message = UNSUPPORTED[case]
    start = time.process_time()
    with pytest.raises(TokenizerError, match=message) as caught:
        Tokenizer(write({"tokenizer.json": changes}))
    assert "tokenizer.json" in str(caught.value) and len(str(caught.value)) < 600
    assert time.process_time() - start < 2


def test_tokens_that_spell_no_bytes_are_their_own_text(write):
    vocab = CHARS | {"<pad it>": 256, "日本": 257, "Ġx": 258}
    content = model(vocab=vocab, merges=[["Ġ", "x"]])
    ours = Tokenizer(write({**NO_NAME, "tokenizer.json": content}))
    library = ours._tokenizer
    for id in range(259):
        assert ours.decode([id]) == library.decode([id])
    assert ours.decode([256, 257, 258]) == "<pad it>日本 x"
    assert not {256, 257} & set(ours.encode("<pad it>日本"))


def test_a_missing_byte_is_an_error_of_the_text(write):
    vocab = {c: i for c, i in CHARS.items() if c not in "zĊ"}
    ours = Tokenizer(write({**NO_NAME, "tokenizer.json": model(vocab=vocab)}))
    assert ours.decode(ours.encode("a b")) == "a b"
    for text, byte in (("az", "7a"), ("a\n", "0a")):
        with pytest.raises(TokenizerError, match=f"no ordinary token for the byte 0x{byte}"):
            ours.encode(text)


def test_the_file_cannot_cut_or_fill_prompts(write, original):
    truncation = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    padding = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None,
               "pad_id": 0, "pad_type_id": 0, "pad_token": "x"}  # fmt: skip
    plain = Tokenizer(write({})).encode("the answer")
    changes = {"truncation": truncation, "padding": padding}
    assert Tokenizer(write({"tokenizer.json": changes})).encode("the answer") == plain


def test_a_pattern_that_the_library_gives_up_on(write):
    ours = Tokenizer(write({"tokenizer.json": split_by("(a+)+b")}))
    with pytest.raises(TokenizerError, match=r"fails on this text \(.*retry-limit"):
        ours.encode("a" * 40)  # a panic, which is no Exception
    assert ours.decode(ours.encode("the user", bos=False)) == "the user"


def test_a_slow_pattern_has_a_bound(write, monkeypatch):
    monkeypatch.setattr(plain_encoder, "SECONDS", 0.1)
    ours = Tokenizer(write({"tokenizer.json": split_by("(a+)+b")}))
    start = time.perf_counter()
    with pytest.raises(TokenizerError, match=r"more than 0\.1 s on 880 characters"):
        ours.encode(("a" * 21 + " ") * 40)
    assert time.perf_counter() - start < 2


def test_interrupts_are_no_faults_of_a_tokenizer():
    for kind in (KeyboardInterrupt, SystemExit):
        with pytest.raises(kind):
            guarded("x", lambda kind=kind: (_ for _ in ()).throw(kind))


VALUES = [None, True, -1, 3, 2**40, 0.5, float("inf"), "x", "", "\ud800", [], {}, [None], "delete",
          {"type": "Sequence"}, {"type": "ByteLevel"}]  # fmt: skip


def paths(value, path=()):
    """Every place of a JSON value; of long lists and tables the first and the last."""
    if path:
        yield path
    value = dict(enumerate(value)) if isinstance(value, list) else value
    items = list(value.items()) if isinstance(value, dict) else []
    for key, inner in items if len(items) < 20 else items[:1] + items[-1:]:
        yield from paths(inner, (*path, key))


def replaced(content: dict, path: tuple, value) -> dict:
    content = copy.deepcopy(content)
    *outer, last = path
    at = content
    for key in outer:
        at = at[key]
    if value == "delete":
        del at[last]
    else:
        at[last] = value
    return content


@pytest.mark.parametrize("name", FILES[:2])
def test_wrong_values_in_every_place(name, original, write):
    """Each file is a `TokenizerError` or a tokenizer that works."""
    base = write({}) / name
    content = original[name]
    refused = worked = 0
    for number, path in enumerate(paths(content)):
        for value in VALUES[number % 5 :: 5]:
            base.write_text(json.dumps(replaced(content, path, value)))
            start = time.process_time()
            try:
                ours = Tokenizer(base.parent)
                ids = ours.encode("the <|eot|>é", bos=False)
                assert not set(ids) & set(ours.special.values()), (path, value)
                ours.encode("the <|eot|>é", special=True)
                ours.decode(range(400))
                Detokenizer(ours).push(5)
                worked += 1
            except TokenizerError:
                refused += 1
            assert time.process_time() - start < 2, (path, value)
    assert refused > 5 and worked > 5
