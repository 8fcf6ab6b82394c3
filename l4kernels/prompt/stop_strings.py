"""Stop strings in a text that arrives in pieces, at a cost that does not grow with their number."""

from collections import deque
from collections.abc import Iterable, Sequence

from l4kernels.inputs.files import shown

MAX_STOP_CHARS = 1 << 18


class StopStrings:
    """The automaton of Aho and Corasick.

    Its state is the longest end of the text so far that begins a stop string, which is what must
    be held back: `held` characters.

    >>> search = StopStrings(["END", "is"])
    >>> search.feed("the E"), search.held
    (None, 1)
    >>> search.feed("ND"), search.feed("this")  # where the stop string begins in the new text
    (-1, 2)
    """

    def __init__(self, strings: str | Sequence[str] = ()):
        self._next: list[dict[str, int]] = [{}]  # state 0: nothing is held
        self._depth = [0]
        self._found = [0]  # length of the longest stop string that ends in this state
        for string in _checked(strings):
            self._found[self._add(string)] = len(string)
        self._fallback = [0] * len(self._next)  # the longest proper end that is a state, too
        self._link()
        self._state = 0

    @property
    def held(self) -> int:
        return self._depth[self._state]

    def feed(self, text: str) -> int | None:
        """Where the first stop string that `text` completes begins, relative to `text`, or None.

        The first to begin, among all that end within `text`. The search then starts afresh.
        """
        first, state = None, self._state
        for at, char in enumerate(text, 1):
            state = self._step(state, char)
            if self._found[state]:
                begin = at - self._found[state]
                first = begin if first is None else min(first, begin)
        self._state = state if first is None else 0
        return first

    def reset(self) -> None:
        self._state = 0

    def _step(self, state: int, char: str) -> int:
        while state and char not in self._next[state]:
            state = self._fallback[state]
        return self._next[state].get(char, 0)

    def _add(self, string: str) -> int:
        state = 0
        for char in string:
            if char not in self._next[state]:
                self._next[state][char] = len(self._next)
                self._next.append({})
                self._depth.append(self._depth[state] + 1)
                self._found.append(0)
            state = self._next[state][char]
        return state

    def _link(self) -> None:
        """Breadth first: what a state falls back to is shorter, so it is complete already."""
        waiting = deque([0])
        while waiting:
            state = waiting.popleft()
            for char, longer in self._next[state].items():
                if state:
                    self._fallback[longer] = self._step(self._fallback[state], char)
                found = self._found[self._fallback[longer]]
                self._found[longer] = self._found[longer] or found
                waiting.append(longer)


def _checked(strings: str | Sequence[str]) -> Sequence[str]:
    strings = [strings] if isinstance(strings, str) else strings
    if not isinstance(strings, Iterable) or isinstance(strings, (bytes, dict)):
        raise ValueError(f"expected a stop string or a list of them, got {shown(strings)}")
    strings = list(strings)
    for string in strings:
        if not isinstance(string, str) or not string:
            raise ValueError(f"expected every stop string to have a character, got {shown(string)}")
    if sum(map(len, strings)) > MAX_STOP_CHARS:
        raise ValueError(f"expected stop strings of at most {MAX_STOP_CHARS:,} characters in all")
    return strings
