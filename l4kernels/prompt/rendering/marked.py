"""Text that knows which of its characters the template wrote.

Trust is made in one place, `trusted`, for the template's own literals and the checkpoint's named
tokens. It moves only with characters: each method below computes its text as `str` does, so that a
template sees what it would see without marks, and applies the same choice of characters to the
mask. Whatever is not written here returns a plain `str`, and a plain `str` is not trusted.
"""

import re
from collections.abc import Iterable, Iterator
from functools import wraps
from typing import Any

from markupsafe import Markup

TRUSTED, FOREIGN = "1", "0"
_CONVERSION = re.compile(r"%(?:\((?P<key>[^()]*)\))?(?P<form>[-#0 +.\d*]*[hlL]?(?P<type>.))", re.S)


class Marked(str):
    """A `str` with a mask of the same length: `TRUSTED` or `FOREIGN` for each character."""

    __slots__ = ("_mask",)
    _mask: str

    def __new__(cls, text: str = "", mask: str | None = None) -> "Marked":
        self = super().__new__(cls, text)
        self._mask = FOREIGN * len(text) if mask is None else mask
        return self

    def __str__(self) -> str:
        return self

    def __getitem__(self, key: Any) -> "Marked":
        return Marked(str.__getitem__(self, key), self._mask[key])

    def __iter__(self) -> Iterator["Marked"]:
        return map(Marked, str.__iter__(self), self._mask)

    def __add__(self, other: Any) -> "Marked":
        if not isinstance(other, str) or hasattr(other, "__html__"):
            return NotImplemented  # a Markup escapes what it is added to
        return Marked(str.__add__(self, other), self._mask + mask_of(other))

    def __radd__(self, other: Any) -> "Marked":
        if not isinstance(other, str):
            return NotImplemented
        return Marked(str.__add__(other, self), mask_of(other) + self._mask)

    def __mul__(self, count: Any) -> "Marked":
        return Marked(str.__mul__(self, count), self._mask * count)

    __rmul__ = __mul__

    def __mod__(self, values: Any) -> str:
        text = str.__mod__(self, values)
        named, rest = values, iter(values if isinstance(values, tuple) else (values,))
        pieces: list[str] = []
        at = 0
        for found in _CONVERSION.finditer(self):
            pieces.append(self[at : found.start()])
            at = found.end()
            if "*" in found["form"] or found["type"] == "(":
                return text
            if found["type"] == "%":
                pieces.append(self[at - 1 : at])
                continue
            value: Any = next(rest, None) if found["key"] is None else named[found["key"]]
            whole = found["form"] == "s" and isinstance(value, str)
            piece = value if whole else str.__mod__("%" + found["form"], (value,))
            # A caller who writes `%s` chooses where it is: what comes there is text.
            pieces.append(piece if is_trusted(self[slice(*found.span())]) else Marked(piece))
        return confirmed(text, [*pieces, self[at:]])

    def join(self, parts: Iterable[str]) -> "Marked":
        parts = list(parts)
        return Marked(str.join(self, parts), self._mask.join(map(mask_of, parts)))

    def replace(self, old: str, new: str, count: Any = -1) -> str:
        text = str.replace(self, old, new, count)
        return confirmed(text, self.split(old, count), new) if old else text

    def lstrip(self, chars: str | None = None) -> "Marked":
        return self[len(self) - len(str.lstrip(self, chars)) :]

    def rstrip(self, chars: str | None = None) -> "Marked":
        return self[: len(str.rstrip(self, chars))]

    def strip(self, chars: str | None = None) -> "Marked":
        return self.lstrip(chars).rstrip(chars)

    def removeprefix(self, prefix: str) -> "Marked":
        return self[len(self) - len(str.removeprefix(self, prefix)) :]

    def removesuffix(self, suffix: str) -> "Marked":
        return self[: len(str.removesuffix(self, suffix))]

    # The three lists hold what is a `str`, but to the checker a list must keep its type exactly.
    def split(  # type: ignore[override]
        self, sep: str | None = None, maxsplit: Any = -1
    ) -> list["Marked"]:
        return self._cut(str.split(self, sep, maxsplit), sep)

    def rsplit(  # type: ignore[override]
        self, sep: str | None = None, maxsplit: Any = -1
    ) -> list["Marked"]:
        return self._cut(str.rsplit(self, sep, maxsplit), sep)

    def splitlines(self, keepends: Any = False) -> list["Marked"]:  # type: ignore[override]
        return self._cut(str.splitlines(self, keepends), "" if keepends else None)

    def partition(self, sep: str) -> tuple["Marked", "Marked", "Marked"]:
        head, found, tail = self._cut(str.partition(self, sep), "")
        return head, found, tail

    def rpartition(self, sep: str) -> tuple["Marked", "Marked", "Marked"]:
        head, found, tail = self._cut(str.rpartition(self, sep), "")
        return head, found, tail

    def _cut(self, pieces: Iterable[str], sep: str | None) -> list["Marked"]:
        """`pieces` of this text, in order, `sep` between them; None: some white space."""
        cut, at = [], 0
        for piece in pieces:
            at = at if sep is not None else str.find(self, piece, at)
            cut.append(self[at : at + len(piece)])
            at += len(piece) + len(sep or "")
        return cut


def pure(function: Any) -> Any:
    """A function whose text is trusted where it comes from trusted text alone."""

    @wraps(function)
    def call(*args: Any, **named: Any) -> str:
        text = function(*args, **named)
        return trusted(text) if all(map(is_trusted, (*args, *named.values()))) else text

    return call


for _name in (
    "capitalize", "casefold", "center", "expandtabs", "ljust", "lower", "rjust", "swapcase",
    "title", "upper", "zfill",
):  # fmt: skip
    setattr(Marked, _name, pure(getattr(str, _name)))


Marked.__name__, Marked.__module__ = "str", "builtins"  # as errors should name it


class MarkedMarkup(Markup):
    """What the filter `safe` makes of marked text: output keeps the mask, all else loses it."""

    __slots__ = ("_mask",)
    _mask: str

    def __new__(cls, text: Any = "", *args: Any) -> "MarkedMarkup":
        self = super().__new__(cls, text, *args)
        self._mask = mask_of(text) if type(text) is Marked else FOREIGN * len(self)
        return self

    def __str__(self) -> Marked:
        return Marked(str.__str__(self), self._mask)


def trusted(text: str) -> Marked:
    return Marked(text, TRUSTED * len(text))


def is_trusted(value: Any) -> bool:
    """Text of which no character came from outside, or a number, which has none."""
    return FOREIGN not in mask_of(value) if isinstance(value, str) else isinstance(value, int)


def mask_of(text: str) -> str:
    return text._mask if isinstance(text, (Marked, MarkedMarkup)) else FOREIGN * len(text)


def marked(value: Any) -> Any:
    """Plain text as `Marked`, so that its methods keep the marks of their arguments."""
    return Marked(value) if type(value) is str else value


def confirmed(text: str, pieces: Iterable[str], between: str = "") -> str:
    """The joined `pieces` where they are the `text` that `str` made, else that text."""
    joined = marked(between).join(pieces)
    return joined if str.__eq__(joined, text) else text
