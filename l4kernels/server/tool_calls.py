"""Calls of tools in an answer, found while it streams.

Llama 4 is asked for calls in one of two forms, by the published templates, and writes both:

    [get_weather(city="Paris", days=3), get_time()]
    {"name": "get_weather", "parameters": {"city": "Paris"}}

The second also with `arguments`, as a JSON string too, with `"type": "function"`, in a list, and
several one after the other.
"""

import json
from collections.abc import Collection, Generator
from dataclasses import dataclass

from l4kernels.server.values import (
    Malformed,
    Reader,
    Write,
    begins_value,
    converted,
    spaces,
    string,
    value,
)

_MARKS = {"<|python_start|>", "<|python_end|>", "<|python_tag|>"}
_SEPARATORS = frozenset(",;")
_QUOTES = frozenset("\"'")
_MEMBERS = {"name": "name", "parameters": "arguments", "arguments": "arguments"} | {
    name: name for name in ("type", "id")
}
_LONGEST_MEMBER = max(map(len, _MEMBERS))
_LONGEST_ID = 128
_LONGEST_KEYWORD = 256


@dataclass(frozen=True)
class Text:
    """Of the answer, outside of calls."""

    text: str


@dataclass(frozen=True)
class CallStart:
    index: int
    """0, 1, ... in the order of the answer."""
    name: str


@dataclass(frozen=True)
class CallArguments:
    """A call's fragments together are the JSON text of one object."""

    index: int
    fragment: str


Delta = Text | CallStart | CallArguments


class ToolCallParser:
    """Splits an answer into calls and text, in time linear in it, however it is cut into pieces.

    Calls stand at the beginning of an answer, after white space; from the first character on that
    belongs to none, all is text, as it came. What may become a call is held back until it is known.
    A call begins with its first argument or its end, and from there on its arguments stream. If it
    then breaks off, what was given of them stays, and the rest of a malformed one is text.

    Args:
        names: of the tools; what looks like a call of any other name is text.

    >>> parser = ToolCallParser(["f"])
    >>> parser.push("[f(a='x', "), parser.push("b=None)]"), parser.finish()
    ([CallStart(index=0, name='f'), CallArguments(index=0, fragment='{"a": "x"')], \
[CallArguments(index=0, fragment=', "b": null}')], [])
    """

    def __init__(self, names: Collection[str]):
        self._names = frozenset(names)
        self._longest_name = max(map(len, self._names), default=0)
        self._deltas: list[Delta] = []
        self._fragments: list[str] = []
        self._held: list[str] = []
        """Characters that are in no delta yet."""
        self._calls = 0
        self._in_call = False
        self._reader: Generator[None, str, None] | None = self._answer()
        next(self._reader)

    def push(self, text: str) -> list[Delta]:
        """What the next piece of the answer makes certain."""
        if self._reader is None:
            self._give_text(text)
            return self._given()
        send, hold, read = self._reader.send, self._held.append, 0
        try:
            for char in text:
                read += 1
                hold(char)
                send(char)
        except Malformed:
            self._end(as_text=True)
            self._give_text(text[read:])
        return self._given()

    def finish(self) -> list[Delta]:
        """What was held back, when the answer is over."""
        if self._reader is not None:
            try:
                self._reader.send("")
            except StopIteration:
                self._end(as_text=False)
            except Malformed:
                # A call that was cut off is one nevertheless; text was not left out of it.
                self._end(as_text=not self._in_call)
        return self._given()

    def _given(self) -> list[Delta]:
        self._flush()
        deltas, self._deltas = self._deltas, []
        return deltas

    def _end(self, *, as_text: bool) -> None:
        self._reader = None
        if as_text:
            self._give_text("".join(self._held))
        self._held.clear()

    def _give_text(self, text: str) -> None:
        if not text:
            return
        self._flush()
        last = self._deltas[-1] if self._deltas else None
        if isinstance(last, Text):
            self._deltas[-1] = Text(last.text + text)
        else:
            self._deltas.append(Text(text))

    def _flush(self) -> None:
        fragment = "".join(self._fragments)
        if fragment:
            self._deltas.append(CallArguments(self._calls - 1, fragment))
        self._fragments.clear()

    def _start_call(self, name: str) -> None:
        self._flush()
        self._deltas.append(CallStart(self._calls, name))
        self._calls += 1
        self._in_call = True

    def _write(self, text: str, /, ahead: int = 0) -> None:
        self._fragments.append(text)
        del self._held[: len(self._held) - ahead]

    def _end_call(self) -> None:
        self._in_call = False

    def _answer(self) -> Generator[None, str, None]:
        char = yield
        while True:
            char = yield from spaces(char)
            if char == "" and self._calls:
                return
            if char == "<":
                char = yield from self._mark()
            elif char == "[":
                char = yield from self._list()
            elif char == "{":
                char = yield from self._json_call()
            elif char in _SEPARATORS and self._calls:
                char = yield
            else:
                raise Malformed

    def _mark(self) -> Reader:
        text = "<"
        while text not in _MARKS:
            char = yield
            text += char
            if not char or not any(mark.startswith(text) for mark in _MARKS):
                raise Malformed
        return (yield)

    def _list(self) -> Reader:
        char = yield from spaces((yield))
        while True:
            if char == "{":
                char = yield from self._json_call()
            else:
                char = yield from self._python_call(char)
            char = yield from spaces(char)
            if char == ",":
                char = yield from spaces((yield))
            elif char not in {"]", ""}:
                raise Malformed
            if char == "]":
                self._held.clear()
                return (yield)
            if not char:
                return char

    def _python_call(self, char: str) -> Reader:
        name = ""
        while char != "(":
            name += char
            if not char or len(name) > self._longest_name:
                raise Malformed
            char = yield
        if name not in self._names:
            raise Malformed
        char = yield from spaces((yield))
        keywords: set[str] = set()
        while char != ")":
            keyword = ""
            while char.isidentifier() or char.isdecimal():
                keyword += char
                if len(keyword) > _LONGEST_KEYWORD:
                    raise Malformed
                char = yield
            char = yield from spaces(char)
            if char != "=" or not keyword.isidentifier() or keyword in keywords:
                raise Malformed
            char = yield from spaces((yield))
            if not begins_value(char):
                raise Malformed
            if not keywords:
                self._start_call(name)
            keywords.add(keyword)
            before = "{" if len(keywords) == 1 else ", "
            self._write(f'{before}"{keyword}": ', ahead=1)
            char = yield from spaces((yield from value(char, self._write, python=True)))
            if char == ",":
                char = yield from spaces((yield))
            elif char != ")":
                raise Malformed
        if not keywords:
            self._start_call(name)
        self._write("}" if keywords else "{}")
        self._end_call()
        return (yield)

    def _json_call(self) -> Reader:
        """An object with a name and arguments, whichever comes first."""
        name = ""
        waiting: list[str] = []
        seen: set[str] = set()
        char = yield from spaces((yield))
        while char != "}":
            member, char = yield from self._short_string(char, _LONGEST_MEMBER)
            member = _MEMBERS.get(member, "")
            char = yield from spaces(char)
            if char != ":" or not member or member in seen:
                raise Malformed
            seen.add(member)
            char = yield from spaces((yield))
            if member == "arguments":
                if name and char == "{":
                    self._start_call(name)
                    char = yield from value(char, self._write, python=False)
                    self._end_call()
                else:
                    char = yield from self._arguments(char, waiting)
            else:
                longest = self._longest_name if member == "name" else _LONGEST_ID
                text, char = yield from self._short_string(char, longest)
                if member == "name":
                    name = text
                    if name not in self._names:
                        raise Malformed
                elif member == "type" and text != "function":
                    raise Malformed
            if name and waiting:
                self._start_call(name)
                self._write("".join(waiting), ahead=len(char))
                self._end_call()
                waiting.clear()
            char = yield from spaces(char)
            if char == ",":
                char = yield from spaces((yield))
            elif char != "}":
                raise Malformed
        if not {"name", "arguments"} <= seen:
            raise Malformed
        self._held.clear()
        return (yield)

    def _arguments(self, char: str, parts: list[str]) -> Reader:
        """An object, or a string that is one, for later; null is an empty one."""
        read: list[str] = []
        char = yield from value(char, _into(read), python=False)
        text = "".join(read)
        if text.startswith('"'):
            inner = json.loads(text)
            text = converted(inner) if inner.strip() else "null"
        if text == "null":
            text = "{}"
        if not text.startswith("{"):
            raise Malformed
        parts.append(text)
        return char

    def _short_string(self, char: str, longest: int) -> Generator[None, str, tuple[str, str]]:
        if char not in _QUOTES:
            raise Malformed
        parts: list[str] = []
        char = yield from string(char, _into(parts, 6 * longest + 2), python=False)
        return json.loads("".join(parts)), char


def _into(parts: list[str], room: int | None = None) -> Write:
    """Keeps JSON text until it is needed, up to `room` characters."""

    def write(text: str, /, ahead: int = 0) -> None:
        nonlocal room
        if room is not None:
            room -= len(text)
            if room < 0:
                raise Malformed
        parts.append(text)

    return write
