"""Calls in answers."""

from collections.abc import Collection
from typing import NamedTuple


class Text(NamedTuple):
    text: str


class CallStart(NamedTuple):
    index: int
    name: str


class CallArguments(NamedTuple):
    index: int
    fragment: str


class ToolCallParser:
    def __init__(self, names: Collection[str]):
        self._names = names

    def push(self, text: str) -> list[Text | CallStart | CallArguments]:
        return [Text(text)]

    def finish(self) -> list[Text | CallStart | CallArguments]:
        return []
