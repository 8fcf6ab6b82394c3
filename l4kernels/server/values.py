"""Values of Python and of JSON to JSON text, character by character.

The readers are generators: they are sent one character at a time, "" at the end of the text, and
return the first character after what they read. So they never see a character twice, and take time
linear in the text, however it comes.
"""

import json
import math
import sys
from collections.abc import Generator
from typing import Protocol

MAX_DEPTH = 64
MAX_NUMBER = 1024

_SPACE = frozenset(" \t\r\n\f\v")
_QUOTES = frozenset("\"'")
_OPENERS = {"[": "]", "{": "}"}
_NUMBER_START = frozenset("+-.0123456789")
_NUMBER = frozenset("+-._0123456789abcdefABCDEFxXoO")
_FRACTION = frozenset(".eE")
_OCTAL = frozenset("01234567")
_WORDS = {"True": "true", "False": "false", "None": "null"} | {
    word: word for word in ("true", "false", "null")
}
_WORD_START = frozenset(word[0] for word in _WORDS)
_ESCAPES = dict(zip("\\'\"abfnrtv", "\\'\"\a\b\f\n\r\t\v", strict=True)) | {"\n": ""}
_HEX = frozenset("0123456789abcdefABCDEF")
_HEX_DIGITS = {"x": 2, "u": 4, "U": 8}
_ENCODED = {
    char: json.dumps(char)[1:-1]
    for char in ('"', "\\", *map(chr, (*range(0x20), 0x7F, *range(0xD800, 0xE000))))
}

Reader = Generator[None, str, str]


class Malformed(ValueError):
    """The text is no value; the characters after the last that was written are not part of one."""


class Write(Protocol):
    def __call__(self, text: str, /, ahead: int = 0) -> None:
        """Takes JSON text. The last `ahead` characters that were read are not yet part of it."""


def spaces(char: str) -> Reader:
    """The first character from `char` on that is not white space."""
    while char in _SPACE:
        char = yield
    return char


def begins_value(char: str) -> bool:
    return char in _OPENERS or char in _QUOTES or char in _NUMBER_START or char in _WORD_START


def value(char: str, write: Write, *, python: bool) -> Reader:
    """Reads the value that begins with `char`: a string, number, word, list or dictionary.

    Both languages are read at once, so that what a model mixes is understood; only the escape
    `\\/` means different things (`python`).
    """
    closers: list[str] = []
    while True:
        if char in _OPENERS:
            if len(closers) == MAX_DEPTH:
                raise Malformed
            closers.append(_OPENERS[char])
            write(char)
            char = yield
            follows = False
        else:
            char = yield from _scalar(char, write, python)
            follows = True
        while closers:  # what ends here; then the next value begins
            char = yield from spaces(char)
            comma = follows and char == ","
            if comma:
                char = yield from spaces((yield))
            if char == closers[-1]:
                write(closers.pop())
                char = yield
                follows = True
                continue
            if follows != comma:
                raise Malformed
            if comma:
                write(", ", ahead=len(char))
            break
        if not closers:
            return char
        if closers[-1] == "}":
            char = yield from _key(char, write, python)


def string(quote: str, write: Write, *, python: bool) -> Reader:
    """The rest of a string, written as JSON with its quotes."""
    write('"')
    char = yield
    needed, quotes = 1, 0
    if python and char == quote:
        char = yield
        if char != quote:
            write('"', ahead=len(char))
            return char
        needed = 3
        char = yield
    while True:
        if not char:
            raise Malformed
        if char == quote:
            quotes += 1
            if quotes == needed:
                write('"')
                return (yield)
            char = yield
            continue
        if quotes:
            write(_encoded(quote) * quotes, ahead=1)
            quotes = 0
        if char == "\\":
            text, char = yield from _escape((yield), python)
            write(text, ahead=len(char))
        else:
            write(_encoded(char))
            char = yield


def converted(text: str) -> str:
    """A whole text that is one value, as JSON."""
    parts: list[str] = []

    def write(part: str, /, ahead: int = 0) -> None:
        parts.append(part)

    def document() -> Reader:
        char = yield from spaces((yield))
        return (yield from spaces((yield from value(char, write, python=False))))

    reader = document()
    next(reader)
    try:
        for char in text:
            reader.send(char)
        reader.send("")
    except StopIteration as end:
        if end.value == "":
            return "".join(parts)
    raise Malformed


def _key(char: str, write: Write, python: bool) -> Reader:
    if char not in _QUOTES:
        raise Malformed
    char = yield from spaces((yield from string(char, write, python=python)))
    if char != ":":
        raise Malformed
    write(": ")
    return (yield from spaces((yield)))


def _scalar(char: str, write: Write, python: bool) -> Reader:
    if char in _QUOTES:
        return (yield from string(char, write, python=python))
    number = char in _NUMBER_START
    if not number and char not in _WORD_START:
        raise Malformed
    token = ""
    while char in _NUMBER if number else char.isalpha():
        token += char
        if len(token) > MAX_NUMBER:
            raise Malformed
        char = yield
    write(_number(token) if number else _word(token), ahead=len(char))
    return char


def _word(token: str) -> str:
    if token not in _WORDS:
        raise Malformed
    return _WORDS[token]


def _number(token: str) -> str:
    """As it is where it is JSON; Python also has `1.`, `.5`, `+1`, `1_000` and `0x1f`."""
    try:
        json.loads(token)
        return token
    except ValueError:
        pass
    try:
        whole = not _FRACTION & set(token) or token[:2].lower() == "0x"
        number = int(token, 0) if whole else float(token)
    except ValueError:
        raise Malformed from None
    if isinstance(number, float) and not math.isfinite(number):
        raise Malformed
    return json.dumps(number)


def _escape(char: str, python: bool) -> Generator[None, str, tuple[str, str]]:
    """JSON text of what a backslash and `char` stand for, and the character after it."""
    if char in _HEX_DIGITS:
        digits = ""
        for _ in range(_HEX_DIGITS[char]):
            digit = yield
            if digit not in _HEX:
                raise Malformed
            digits += digit
        if int(digits, 16) > sys.maxunicode:
            raise Malformed
        return _encoded(chr(int(digits, 16))), (yield)
    if char in _OCTAL:
        digits = char
        char = yield
        while char in _OCTAL and len(digits) < 3:
            digits += char
            char = yield
        return _encoded(chr(int(digits, 8))), char
    if not char or char == "N":  # a character by its name
        raise Malformed
    other = char if char == "/" and not python else "\\" + char
    decoded = _ESCAPES.get(char, other)
    return "".join(map(_encoded, decoded)), (yield)


def _encoded(char: str) -> str:
    return _ENCODED.get(char, char)
