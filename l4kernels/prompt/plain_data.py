"""What a caller passes to a chat template, as plain data: text, numbers, lists and mappings.

A template sees nothing else, so no method of an object can be called from it.
"""

from collections.abc import Iterable, Mapping, Set
from dataclasses import fields, is_dataclass
from typing import Any

MAX_DEPTH = 100
MAX_VALUES = 1 << 20
MAX_CHARS = 64 << 20


class Plain:
    """Converts values within one budget of depth, count and characters.

    >>> from types import SimpleNamespace
    >>> Plain().convert(SimpleNamespace(role="user", content=(c for c in "ab")), "message")
    {'role': 'user', 'content': ['a', 'b']}
    """

    def __init__(self) -> None:
        self._values = self._chars = 0

    def convert(self, value: Any, where: str, depth: int = 0) -> Any:
        """`value` as plain data of its own; `where` names it in errors.

        Raises:
            ValueError: it has no plain form, or is too large or nested too deeply.
        """
        self._values += 1
        if self._values > MAX_VALUES:
            raise ValueError(f"{where}: expected at most {MAX_VALUES:,} values in a conversation")
        if depth > MAX_DEPTH:
            raise ValueError(f"{where:.100}...: nested more than {MAX_DEPTH} levels deep")
        if value is None or isinstance(value, bool):
            return value
        for kind in (str, int, float):
            if isinstance(value, kind):
                return self._counted(kind.__str__(value), where) if kind is str else kind(value)
        # Of the type: a mapping may make attributes of its keys.
        if hasattr(type(value), "shape") and value.shape == ():  # a number of NumPy or torch
            return self.convert(value.item(), where, depth)
        form = _form(value)
        if isinstance(form, Mapping):
            return {
                self._key(key, where): self.convert(item, f"{where}.{key!s:.40}", depth + 1)
                for key, item in form.items()
            }
        if isinstance(form, Iterable):
            items = (self.convert(v, f"{where}[{i}]", depth + 1) for i, v in enumerate(form))
            return tuple(items) if isinstance(form, tuple) else list(items)
        raise ValueError(
            f"{where}: expected text, a number, a list or a mapping, got {type(value).__name__} "
            f"(images are given as `images`, tools as JSON schemas)"
        )

    def _key(self, key: Any, where: str) -> Any:
        if key is None or isinstance(key, (str, int, float)):
            return self.convert(key, where)
        raise ValueError(f"{where}: expected keys to be text, got {type(key).__name__}")

    def _counted(self, text: str, where: str) -> str:
        self._chars += len(text)
        if self._chars > MAX_CHARS:
            raise ValueError(f"{where}: expected at most {MAX_CHARS:,} characters in all")
        return text


def _form(value: Any) -> Mapping[Any, Any] | Iterable[Any] | None:
    """The mapping or the items that `value` stands for, if it only holds data."""
    if isinstance(value, Mapping):
        return value
    opaque = isinstance(value, (type, bytes, bytearray, memoryview, Set)) or callable(value)
    if opaque or any(hasattr(type(value), a) for a in ("__array__", "__array_interface__")):
        return None
    if is_dataclass(value):
        return {f.name: getattr(value, f.name) for f in fields(value)}
    for method in ("model_dump", "_asdict"):  # pydantic; named tuples
        if callable(getattr(type(value), method, None)):
            data: Mapping[Any, Any] = getattr(value, method)()
            return data
    if isinstance(value, Iterable):
        return value
    named = getattr(value, "__dict__", None)
    return named if named and not any(name.startswith("_") for name in named) else None
