"""Grammars over tokens: what may follow, when an answer may end, and what is refused."""

import contextlib
import json
import random
import threading
import time
from types import SimpleNamespace

import pytest
import torch

from l4kernels.demo import CHECKPOINT
from l4kernels.ops.step import pack_bits
from l4kernels.prompt.tokenizer import Tokenizer
from l4kernels.server.constraints import Grammars, _Cache, _size
from l4kernels.server.schemas import GrammarError
from tests.support.deadlines import cheaply

VOCABULARY = 1056 + 40  # ids that only pad it
PAIR = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"enum": ["é", "x"]}},
        "required": ["a", "b"], "additionalProperties": False}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(CHECKPOINT)


@pytest.fixture(scope="module")
def ends(tokenizer):
    return [tokenizer.id("<|eot|>"), tokenizer.id("<|end_of_text|>")]


@pytest.fixture(scope="module")
def grammars(tokenizer, ends):
    return Grammars(tokenizer, VOCABULARY, ends)


def may_follow(mask, token):
    return bool(mask[token // 32] >> (token % 32) & 1)


def allowed(mask):
    bits = (mask[:, None] >> torch.arange(32, dtype=torch.int32)) & 1
    return {*bits.flatten().nonzero().flatten().tolist()}


def accepts(grammar, tokenizer, text, ends):
    """Whether the text, token by token, is allowed and may end there."""
    mask, tokens = grammar.mask(), tokenizer.encode(text, bos=False)
    for index, token in enumerate(tokens):
        if not may_follow(mask(tokens[:index]), token):
            return False
    last = mask(tokens)
    return all(may_follow(last, end) for end in ends)


def test_only_end_tokens_follow_a_complete_answer(grammars, tokenizer, ends):
    mask = grammars.json_schema({"const": "a"}).mask()
    tokens = tokenizer.encode('"a"', bos=False)
    first = mask([])
    assert first.dtype.itemsize == 4 and first.shape == pack_bits([0], VOCABULARY).shape
    assert not allowed(first) & {*ends}
    assert allowed(mask(tokens)) == {*ends} == allowed(mask(tokens))


def test_no_added_token_and_no_padding_is_text(grammars, tokenizer, ends):
    inside = allowed(
        grammars.json_schema({"type": "string"}).mask()(tokenizer.encode('"', bos=False))
    )
    assert len(inside) > 700
    assert not inside & {*tokenizer.special.values(), *range(1056, VOCABULARY)}
    # As text inside of text its characters are allowed, and are not the token.
    assert accepts(grammars.json_schema({"const": "<|eot|>"}), tokenizer, '"<|eot|>"', ends)


@pytest.mark.parametrize("text, right", [
    ('{"a":-12,"b":"é"}', True), ('{"a": 1, "b": "x"}', True), ('{"a":  1, "b": "x"}', False),
    ('{ "a": 1, "b": "x"}', False), ('{\n"a": 1, "b": "x"}', False), ('{"b": "x", "a": 1}', False),
    ('{"a": 1.5, "b": "x"}', False), ('{"a": 1}', False), ('{"a": 1, "b": "x"} ', False),
])  # fmt: skip
def test_layout(grammars, tokenizer, ends, text, right):
    assert accepts(grammars.json_schema(PAIR), tokenizer, text, ends) == right


def test_any_object_is_json_and_nothing_else(grammars, tokenizer, ends):
    grammar = grammars.json_object()
    for text in ("{}", '{"a": [1, {"b": null}], "c": "\\n\\u0000"}', '{"é": -1.5e10}'):
        assert accepts(grammar, tokenizer, text, ends)
    for text in ("[]", "1", '{"a": NaN}', "{'a': 1}", '{"a": 1,}', '{"a": "\n"}', ""):
        assert not accepts(grammar, tokenizer, text, ends)


def test_calls(grammars, tokenizer, ends):
    tools = [
        SimpleNamespace(name="f", parameters=PAIR),
        SimpleNamespace(name="g-2", parameters=None),
    ]
    one, more = (grammars.tool_calls(tools, parallel=p) for p in (False, True))
    f = '{"name": "f", "parameters": {"a": 1, "b": "x"}}'
    g = '{"name": "g-2", "parameters": {}}'
    for text in (f, g):
        assert accepts(one, tokenizer, text, ends) and accepts(more, tokenizer, text, ends)
    assert accepts(more, tokenizer, f"{g}; {f}; {g}", ends)
    assert accepts(more, tokenizer, "; ".join([g] * 32), ends)
    assert not accepts(more, tokenizer, "; ".join([g] * 33), ends)
    for text in (f"{g}; {g}", "", "{}", g.replace("g-2", "h"), g.replace("{}", '{"a": 1}')):
        assert not accepts(one, tokenizer, text, ends)


@pytest.mark.parametrize("tools, message", [
    ([], "at least one tool"),
    ([("a b", None)], "'a b'"),
    ([('f"', None)], "letters, digits"),
    ([("", None)], "letters, digits"),
    ([("f", {})], '"type": "object"'),
    ([("f", {"type": "object", "foo": 1})], "parameters of f: schema at #: 'foo'"),
    ([(f"f{i}", {"type": "object", "title": "x" * 60_000}) for i in range(5)], "at most 262,144"),
])  # fmt: skip
def test_refused_tools(grammars, tools, message):
    tools = [SimpleNamespace(name=name, parameters=parameters) for name, parameters in tools]
    with pytest.raises(GrammarError, match=message):
        grammars.tool_calls(tools, parallel=True)


def test_a_mask_follows_one_answer(grammars, tokenizer):
    grammar = grammars.json_schema({"enum": ["abc", "abd"]})
    tokens = tokenizer.encode('"abc"', bos=False)
    first, second = grammar.mask(), grammar.mask()
    first(tokens)
    assert allowed(second([])) == {*tokenizer.encode('"', bos=False)}, "they share their state"
    with pytest.raises(GrammarError, match="grows"):
        first(tokens[:1])
    with pytest.raises(GrammarError, match="not one of its grammar"):
        second([tokens[0], tokens[0]])
    with pytest.raises(GrammarError):
        second([tokens[0], tokens[0]])
    third = grammar.mask()
    assert allowed(third(tokens)) == allowed(first(tokens)), "all at once or one by one"


IMPOSSIBLE = {
    "nothing": {"$ref": "#"},
    "an empty range": {"type": "integer", "minimum": 3, "maximum": 2},
    "a property of false": {"type": "object", "properties": {"a": False}, "required": ["a"]},
    "a long pattern": {"type": "string", "pattern": "^a{9}$", "maxLength": 3},
    "a pattern that is none": {"type": "string", "pattern": "(("},
    "a pattern that looks ahead": {"type": "string", "pattern": "(?=a)b"},
    "a pattern that looks back": {"type": "string", "pattern": r"(a)\1"},
    "a pattern too deep": {"type": "string", "pattern": "(" * 9000 + ")" * 9000},
    "one of two that may be both": {"oneOf": [{"type": "string"}, {"type": "string"}]},
    "overlapping patterns": {"patternProperties": {"a": {}, "b": {}}},
    "a circle beside": {"properties": {"a": {"$ref": "#", "maxProperties": 1}}},
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_impossible_schemas_are_refused(grammars, name):
    with pytest.raises(GrammarError) as error:
        grammars.json_schema(IMPOSSIBLE[name])
    assert "\n" not in str(error.value) and 0 < len(str(error.value)) < 400


def costly():
    rng = random.Random(0)
    yield {"enum": [f"{rng.getrandbits(48):012x}" for _ in range(3900)]}
    yield {"enum": [{"a": i, "b": [i]} for i in range(2500)]}
    yield {"const": "x" * 60_000}
    yield {"$ref": "#/$defs/a0", "$defs": {
        **{f"a{i}": {"type": "array", "prefixItems": [{"$ref": f"#/$defs/a{i + 1}"}] * 2}
           for i in range(500)}, "a500": {}}}  # fmt: skip
    yield {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(1000)}}
    yield {"type": "array", "prefixItems": [
        {"type": "object", "minProperties": 1, "additionalProperties": False,
         "properties": {f"p{i}": {} for i in range(12)}} for _ in range(100)]}  # fmt: skip
    yield {"type": "array", "minItems": 10_000, "items": {"type": "array", "minItems": 10_000}}
    yield {"type": "integer", "minimum": 12345, "maximum": 10**12, "multipleOf": 1999}
    yield {
        "allOf": [
            {"anyOf": [{"properties": {f"a{i}{j}": {}}} for i in range(12)]} for j in range(6)
        ]
    }
    for pattern in (
        "^((a{1,1000}){1,1000}){1,1000}$", "^(((a?){1000}){1000}){1000}$", "(.*a.{1000}){50}",
        "^(a|b)*a(a|b){400}$", r"^(\w*\W*\s*\S*){500}x$", "^" + "a?" * 15000 + "a" * 15000 + "$",
    ):  # fmt: skip
        yield {"type": "string", "pattern": pattern}
        yield {"type": "string", "pattern": pattern, "minLength": 5000, "maxLength": 9000}


def test_no_schema_takes_long(tokenizer, ends):
    """To compile, and to follow: the engine waits for masks."""

    def followed(schema):
        """The seconds that its slowest mask took. Nothing is kept from one call to the next."""
        grammars, slowest = Grammars(tokenizer, VOCABULARY, ends), 0.0
        with contextlib.suppress(GrammarError):
            mask, tokens, rng = grammars.json_schema(schema).mask(), [], random.Random(0)
            while len(tokens) < 25:
                before = time.process_time()
                words = mask(tokens)
                slowest = max(slowest, time.process_time() - before)
                choices = sorted(allowed(words) - {*ends})
                if not choices:
                    break
                tokens.append(rng.choice(choices))
        return slowest

    for schema in costly():
        assert cheaply(4, followed, schema) < 0.5, json.dumps(schema)[:60]


def test_grammars_are_kept_up_to_so_many_bytes(grammars):
    assert grammars.json_schema(PAIR) is grammars.json_schema(dict(PAIR))
    made = []
    cache = _Cache(3 * _size("0"))

    def get(source):
        return cache.get(source, lambda: made.append(source) or object())

    for source in "0120310":
        get(source)
    assert made == [*"01231"], "1 made room for 3, then 2 for 1"


def test_threads_share_grammars(grammars):
    found = []
    threads = [
        threading.Thread(
            target=lambda: found.append(grammars.json_schema({"const": "shared"}).mask()([]))
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and all(mask.equal(found[0]) for mask in found)


@pytest.mark.parametrize("end_ids", [[], [VOCABULARY], [-1]])
def test_bad_end_tokens(tokenizer, end_ids):
    with pytest.raises(ValueError, match="end_ids"):
        Grammars(tokenizer, VOCABULARY, end_ids)
