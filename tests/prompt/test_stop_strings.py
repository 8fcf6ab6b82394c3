"""Stop strings: the automaton against the definition, what it costs, and what is refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l4kernels.prompt.stop_strings import MAX_STOP_CHARS, StopStrings
from l4kernels.prompt.tokenizer import Detokenizer
from tests.support.deadlines import cheaply


class Letters:
    """A tokenizer whose ids are indices into a list of texts."""

    def __init__(self, texts):
        self.texts = texts

    def token_bytes(self, id):
        return self.texts[id].encode()


def naive(parts: list[str], stops: list[str]) -> tuple[list[str], bool]:
    """What each part shows, and at the end the rest: the definition, without any memory."""
    shown, held = [], ""
    for i, part in enumerate([*parts, ""]):
        text = held + part
        found = [at for at in (text.find(s) for s in stops) if at >= 0]
        if found:
            return [*shown, text[: min(found)]], True
        ends = [n for s in stops for n in range(1, len(s)) if text.endswith(s[:n])]
        keep = max(ends, default=0) if i < len(parts) else 0
        shown.append(text[: len(text) - keep])
        held = text[len(text) - keep :]
    return shown, False


def streamed(parts: list[str], stops) -> tuple[list[str], bool]:
    stream, shown = Detokenizer(Letters(parts), stops), []
    for i in range(len(parts)):
        shown.append(stream.push(i))
        if stream.stopped:
            break
    else:
        shown.append(stream.finish())
    assert stream.text == "".join(shown)
    return shown, stream.stopped


few_letters = st.text("abé", min_size=1, max_size=6)


@settings(max_examples=600, deadline=None)
@given(st.lists(st.text("abé", max_size=5), max_size=12), st.lists(few_letters, max_size=6))
def test_streams_as_defined(parts, stops):
    assert streamed(parts, stops) == naive(parts, stops)


@pytest.mark.parametrize(
    "parts, stops, want",
    [
        (["on", "e END", " more"], "END", "one "),  # a string alone is one stop string
        (["the user said e"], "the end", "the user said e"),
        (["abcd"], ["bc", "abcd"], ""),  # the first to begin of one part
        (["a", "b", "c"], ["bc", "abcd"], "a"),
        (["ab", "abc"], ("abab", "ababc"), ""),  # one begins another
        (["a" * 50], ["a" * 60], "a" * 50),
        (["x😀"], ["😀"], "x"),
        (["x"], (), "x"),
    ],
)
def test_examples(parts, stops, want):
    shown, stopped = streamed(parts, stops)
    assert "".join(shown) == want and stopped == (want != "".join(parts))


def test_text_after_a_stop_string_is_none():
    stream = Detokenizer(Letters(["a", "END", "b"]), "END")
    assert [stream.push(i) for i in (0, 1, 2)] == ["a", "", ""] and stream.finish() == ""


def test_what_finish_gave_is_held_no_longer():
    stream = Detokenizer(Letters(["E", "ND"]), "END")
    assert (stream.push(0), stream.finish(), stream.push(1)) == ("", "E", "ND")
    assert not stream.stopped


@pytest.mark.parametrize(
    "stop", [[""], "", ["a", None], [b"a"], b"end", 5, None, {"a": 1}, [["a"]], ["a" * 10**6]]
)
def test_what_is_no_stop_string_is_refused(stop):
    with pytest.raises(ValueError, match="stop string"):
        Detokenizer(Letters([]), stop)


@pytest.mark.parametrize(
    "stops",
    [
        [f"stop string number {i}" for i in range(1000)],
        [*("a" * n for n in range(700, 0, -1)), "b"],
        ["ab" * (MAX_STOP_CHARS // 2)],
    ],
    ids=["many", "nested", "long"],
)
def test_a_token_costs_next_to_nothing(stops):
    """Far below the 5 ms that 1,000 comparisons a token took, whatever the text has begun."""
    search = StopStrings(stops)
    texts = ["stop string numb", "xyz", "ab" * 50, "ba"] * 250

    def feed():
        for text in texts:
            search.feed(text)

    cheaply(len(texts) * 5e-4, feed)
