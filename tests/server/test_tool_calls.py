"""Calls of tools in answers: every form, every cut, and everything that is none."""

import ast
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l4kernels.server.tool_calls import CallArguments, CallStart, Text, ToolCallParser
from tests.support.deadlines import cheaply

NAMES = ("f", "get_weather", "look-up")


def merged(deltas):
    """One delta for each run of text or of one call's fragments."""
    found = []
    for delta in deltas:
        last = found[-1] if found else None
        if isinstance(delta, Text) and isinstance(last, Text):
            found[-1] = Text(last.text + delta.text)
        elif isinstance(delta, CallArguments) and isinstance(last, CallArguments):
            assert delta.index == last.index
            found[-1] = CallArguments(last.index, last.fragment + delta.fragment)
        else:
            found.append(delta)
    return found


def parsed(text, cuts=()):
    parser, deltas, start = ToolCallParser(NAMES), [], 0
    for cut in [*sorted(cuts), len(text)]:
        deltas += parser.push(text[start:cut])
        start = cut
    return merged(deltas + parser.finish())


def calls(text):
    """(name, arguments) of an answer of nothing but calls."""
    deltas = parsed(text)
    starts, arguments = deltas[::2], deltas[1::2]
    assert all(isinstance(delta, CallStart) for delta in starts), deltas
    assert all(isinstance(delta, CallArguments) for delta in arguments), deltas
    assert [d.index for d in starts] == [d.index for d in arguments] == [*range(len(starts))]
    return [(s.name, json.loads(a.fragment)) for s, a in zip(starts, arguments, strict=True)]


PARIS = ("get_weather", {"city": "Paris"})
WELL_FORMED = {
    '[get_weather(city="Paris")]': [PARIS],
    "[get_weather(city='Paris'), f()]": [PARIS, ("f", {})],
    '<|python_start|>[get_weather(city="Paris")]<|python_end|>': [PARIS],
    ' \n[ get_weather( city = "Paris" , ) , ]\n': [PARIS],
    '[f()]\n[get_weather(city="Paris")]': [("f", {}), PARIS],
    "[look-up(a=-1, b=.5, c=1., d=1_000, e=0x1F, f=2e3)]": [
        ("look-up", {"a": -1, "b": 0.5, "c": 1.0, "d": 1000, "e": 31, "f": 2000.0})
    ],
    "[f(a=True, b=false, c=None, d=null)]": [("f", {"a": True, "b": False, "c": None, "d": None})],
    "[f(a=[1, [], {}, {'b': [{'c': None,},],},],)]": [
        ("f", {"a": [1, [], {}, {"b": [{"c": None}]}]})
    ],
    r'[f(a="\"\x41\u00e9\U0001F600\101\0\q\'")]': [("f", {"a": "\"Aé\U0001f600A\0\\q'"})],
    '[f(a="""one "two"\nthree""", b="")]': [("f", {"a": 'one "two"\nthree', "b": ""})],
    '{"name": "get_weather", "parameters": {"city": "Paris"}}': [PARIS],
    '{"arguments": {"city": "Paris"}, "name": "get_weather"}': [PARIS],
    '{"type": "function", "name": "get_weather", "parameters": {"city": "Paris"}}': [PARIS],
    '{"name": "get_weather", "arguments": "{\\"city\\": \\"Paris\\"}", "id": "7"}': [PARIS],
    '{"arguments": "{\\"city\\": \\"Paris\\"}", "name": "get_weather"}': [PARIS],
    '{"name": "f", "parameters": null}': [("f", {})],
    '{"name": "f", "arguments": ""}': [("f", {})],
    '{"name": "f", "parameters": {"a": "\\/\\u00e9\\ud83d\\ude00"}}': [
        ("f", {"a": "/é\U0001f600"})
    ],
    **{
        f'{{"name": "f", "parameters": {{}}}}{separator}'
        '{"name": "get_weather", "parameters": {"city": "Paris"}}': [("f", {}), PARIS]
        for separator in (";", "; ", ",", "\n", "")
    },
    '[{"name": "f", "parameters": {}}, {"name": "get_weather", "parameters": {"city": "Paris"}}]': [
        ("f", {}),
        PARIS,
    ],
}


@pytest.mark.parametrize("text", WELL_FORMED)
def test_well_formed_calls(text):
    assert calls(text) == WELL_FORMED[text]
    expected = parsed(text)
    assert all(parsed(text, [cut]) == expected for cut in range(len(text)))
    assert parsed(text, range(len(text))) == expected


NO_CALLS = (
    *("", "Hello.", "[1]", "[]", "{}", "[", "[f", "[f(", "[f]", "f()", "[g()]"),
    *('[f("Paris")]', "[f(a)]", "[f(a=b)]", "[f(a=@)]", "[f(,)]", "[f(1=2)]", "[,f()]"),
    *("<|python_start|>Hello", "<|python", "<|eot|>[f()]", "Look: [f()]", ";[f()]", "\n\n"),
    *('{"name": "f"}', '{"name": "g", "parameters": {}}', '{"parameters": {}}', '{"name": f}'),
    '{"name": "f", "description": "d", "parameters": {"type": "object"}}',
    '{"type": "object", "name": "f", "parameters": {}}',
    '{"parameters": {}, "arguments": {}, "name": "f"}',
    '{"name": "f", "arguments": "[]"}',
    '{"name": "f", "arguments": "{} {}"}',
    '{"name": "f", "parameters": [1]}',
    '{"name": "' + "f" * 1000,
)


@pytest.mark.parametrize("text", NO_CALLS)
def test_what_is_no_call_is_text_as_it_came(text):
    assert parsed(text) == ([Text(text)] if text else [])
    assert parsed(text, range(len(text))) == ([Text(text)] if text else [])


BROKEN_OFF = {
    "[f()] and more": ("{}", " and more"),
    "[f(), g(x=1)]": ("{}", ", g(x=1)]"),
    "[f(a=1, b=c)]": ('{"a": 1', ", b=c)]"),
    "[f(a=1, a=2)]": ('{"a": 1', ", a=2)]"),
    "[f(a='b' 'c')]": ('{"a": "b"', " 'c')]"),
    "[f(a=[1 2])]": ('{"a": [1', " 2])]"),
    '{"name": "f", "parameters": {}, "x": 1}': ("{}", ', "x": 1}'),
    '{"name": "f", "parameters": {}} {"age": 3}': ("{}", ' {"age": 3}'),
    # Cut off: what there is of a call is no text.
    "[f(a=1": ('{"a": 1', None),
    "[f(a='x\\u00": ('{"a": "x', None),
    "[f(a=1, b": ('{"a": 1', None),
    "[f(a={'b': [": ('{"a": {"b": [', None),
    '{"name": "f", "parameters": {"a": tr': ('{"a": ', None),
    "[f()": ("{}", None),
    "[f(), ": ("{}", None),
    "[f()];\n": ("{}", None),
}


@pytest.mark.parametrize("text", BROKEN_OFF)
def test_what_follows_a_call_or_breaks_it_off(text):
    arguments, rest = BROKEN_OFF[text]
    expected = [CallStart(0, "f"), CallArguments(0, arguments)] + ([Text(rest)] if rest else [])
    assert parsed(text) == expected == parsed(text, range(len(text)))


def test_arguments_stream_as_they_come():
    parser = ToolCallParser(NAMES)
    assert parser.push("[get_weather(ci") == []
    assert parser.push('ty="Pa') == [CallStart(0, "get_weather"), CallArguments(0, '{"city": "Pa')]
    assert parser.push("ris") == [CallArguments(0, "ris")]
    assert parser.push('"') == [CallArguments(0, '"')]
    assert parser.push(")") == [CallArguments(0, "}")]
    assert parser.push("]") == parser.finish() == parser.finish() == []


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
words = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)
asked = st.lists(
    st.tuples(st.sampled_from(NAMES), st.dictionaries(words, values, max_size=4)),
    min_size=1, max_size=3,
)  # fmt: skip


def spelled(items, form):
    if form == "python":
        inside = (f"{name}({', '.join(f'{k}={v!r}' for k, v in a.items())})" for name, a in items)
        return f"[{', '.join(inside)}]"
    objects = [json.dumps({"name": name, form: a}, ensure_ascii=False) for name, a in items]
    return "; ".join(objects) if form == "parameters" else f"[{','.join(objects)}]"


@settings(max_examples=150, deadline=None)
@given(asked, st.sampled_from(["python", "parameters", "arguments"]), st.data())
def test_any_call_however_cut(items, form, data):
    text = spelled(items, form)
    assert calls(text) == items
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=6))
    assert parsed(text, cuts) == parsed(text)


PIECES = [
    *("[", "]", "{", "}", "(", ")", ",", ":", ";", "=", '"', "'", "\\", " ", "\n", "-", "1", ".5"),
    *("f", "f(", "f()", "a=", "name", "parameters", "arguments", "null", "True", "u00e9", "é"),
    *('{"name": "f", "parameters": ', "[f(a=", '"x"', "<|python_start|>", '""', "\U0001f600"),
]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join), st.data())
def test_whatever_comes_is_read_alike_however_cut(text, data):
    whole = parsed(text)
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=6))
    assert parsed(text, cuts) == whole == parsed(text, range(len(text)))
    texts = [delta.text for delta in whole if isinstance(delta, Text)]
    assert len(texts) <= 1 and text.endswith("".join(texts))
    if not any(isinstance(delta, CallStart) for delta in whole):
        assert "".join(texts) == text, "text was lost"


literals = st.lists(st.sampled_from([*PIECES[:18], "0", "7", "_", "e", "x", "n", "t", "None"]),
                    max_size=8).map("".join)  # fmt: skip


@settings(max_examples=500, deadline=None)
@given(literals)
def test_values_of_python_mean_what_python_reads(text):
    try:
        call = ast.parse(f"f(a={text})", mode="eval").body
        (argument,) = call.keywords
        expected = ast.literal_eval(argument.value)
        json.dumps(expected)
    except (ValueError, SyntaxError, TypeError, AttributeError, MemoryError):
        return
    deltas = parsed(f"[f(a={text})]")
    if any(isinstance(delta, Text) for delta in deltas):
        # Parts of Python that need no reading: sums, parentheses, strings side by side, keys.
        assert {*text} & {*"()+-'\"{j"}, deltas
        return
    assert json.loads(deltas[1].fragment) == {"a": json.loads(json.dumps(expected))}


def hostile(n):
    yield from ("[" * n, "{" * n, "[f(a=" + "[" * n, '{"name":"f","parameters":' + '{"a":' * n)
    yield from ("[f(a='" + "x" * n, "[f(a='" + "\\" * n, "[f(a=" + "1" * n, " " * n, "[" + "f" * n)
    yield from ("[" + "f()," * n, "[f()]" + ";" * n, '{"name":"f","arguments":"' + "[" * n + '"}')
    yield from ("[f(a=" + " " * n, "<|python_start|>" * n, "[f(" + "a" * n, "[f(a=[" + "1," * n)
    yield from ('{"parameters":{"a":"' + "y" * n, '{"' + "n" * n, "[f(" + "a=1," * n)
    yield "[f(" + "".join(f"a{i}=1," for i in range(n))


def test_hostile_text_takes_linear_time_and_no_stack():
    for text in hostile(20_000):
        first = cheaply(0.2 + 20e-6 * len(text), parsed, text)
        assert parsed(text, range(0, len(text), 7)) == first
