"""Text that knows which of its characters the template wrote: as `str`, and never too trusting."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l4kernels.prompt.rendering.marked import Marked, mask_of, trusted

# No character is in both: what one is shows where it came from.
OURS, THEIRS = "ab| ", "xy-\t"


def pieces(text: str) -> Marked:
    """Marked text whose mask says of each character where it comes from."""
    return Marked(text, "".join("1" if c in OURS else "0" for c in text))


texts = st.text(OURS + THEIRS, max_size=12)
filled = st.text(OURS + THEIRS, min_size=1, max_size=3)
S, K = trusted("%s"), trusted("%(k)s")
bounds = st.none() | st.integers(-8, 8)
strips = st.none() | filled

OPERATIONS = {
    "add": (lambda s, t: s + t, texts),
    "radd": (lambda s, t: t + s, texts),
    "mul": (lambda s, n: s * n, st.integers(-1, 3)),
    "rmul": (lambda s, n: n * s, st.integers(-1, 3)),
    "index": (lambda s, i: s[i % len(s)] if s else s, st.integers(0, 20)),
    "slice": (lambda s, k: s[slice(*k)], st.tuples(bounds, bounds, st.sampled_from([None, 2, -1]))),
    "iterate": (lambda s: list(s),),
    "join": (lambda s, *t: s.join(t), texts, texts, texts),
    "joined": (lambda s, t, u: t.join([s, u, s]), texts, texts),
    "replace": (lambda s, *a: s.replace(*a), filled, texts, st.integers(-1, 2)),
    "replaced": (lambda s, t, u: t.replace(u, s), texts, filled),
    "strip": (lambda s, c: s.strip(c), strips),
    "lstrip": (lambda s, c: s.lstrip(c), strips),
    "rstrip": (lambda s, c: s.rstrip(c), strips),
    "removeprefix": (lambda s, p: s.removeprefix(p), texts),
    "removesuffix": (lambda s, p: s.removesuffix(p), texts),
    "split": (lambda s, *a: s.split(*a), strips, st.integers(-1, 2)),
    "rsplit": (lambda s, *a: s.rsplit(*a), strips, st.integers(-1, 2)),
    "splitlines": (lambda s, k: s.replace("a", "\n").splitlines(k), st.booleans()),
    "partition": (lambda s, p: s.partition(p), filled),
    "rpartition": (lambda s, p: s.rpartition(p), filled),
    "percent": (lambda s, t, u: (s + S + t + S + "%%") % (u, s), texts, texts),
    "percent one": (lambda s, t: (S + s) % t, texts),
    "percent named": (lambda s, t: (K + s + K) % {"k": t}, texts),
    "percent odd": (lambda s, t: (s + "%5s|%d|%*d%r") % (t, 3, 4, 5, t), texts),
}


def marked(argument):
    return pieces(argument) if isinstance(argument, str) else argument


def plain(result):
    return [str.__str__(r) for r in result] if isinstance(result, (list, tuple)) else str(result)


@pytest.mark.parametrize("name", OPERATIONS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_operations_are_those_of_str_and_marks_move_with_their_characters(name, data):
    operation, *arguments = OPERATIONS[name]
    values = [data.draw(texts), *(data.draw(a) for a in arguments)]
    got, want = operation(*map(marked, values)), operation(*values)
    assert plain(got) == plain(want)
    for result in got if isinstance(got, (list, tuple)) else [got]:
        assert len(mask_of(result)) == len(result)
        for char, mark in zip(str.__str__(result), mask_of(result), strict=True):
            # Characters that the operation itself makes (padding, quotes) are nobody's.
            assert mark == "0" or char in OURS + "%\n", (name, values, result)
            if "odd" not in name and name != "splitlines":
                assert mark == "1" or char not in OURS, (name, values, result)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize(
    "call",
    [
        lambda s: s.upper(),
        lambda s: s.title(),
        lambda s: s.center(40, trusted("*")),
        lambda s: s.ljust(40),
        lambda s: s.zfill(40),
        lambda s: s.expandtabs(tabsize=3),
    ],
)
def test_pure_functions_of_trusted_text_are_trusted(call, mixed):
    text = trusted("a|\tb") + ("x" if mixed else "")
    result = call(text)
    assert result == call(str.__str__(text) + "")
    assert ("1" in mask_of(result)) is not mixed
    assert mixed or set(mask_of(result)) == {"1"}


def test_a_conversion_that_a_caller_wrote_makes_text_of_its_value():
    text, value = trusted("a") + Marked("%s"), trusted("b|")
    assert (mask_of(text % value), text % value) == ("100", "ab|")
    text = trusted("%(k)s") + "%(k)s"
    assert (mask_of(text % {"k": value}), text % {"k": value}) == ("1100", "b|b|")


def test_what_is_not_written_down_is_not_trusted():
    text = trusted("abc")
    for foreign in (text.encode().decode(), f"{text}!", repr(text), text.translate({97: "<"})):
        assert "1" not in mask_of(foreign), foreign
