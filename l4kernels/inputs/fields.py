"""Typed, bounded access to the fields of an untrusted JSON file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from l4kernels.inputs.arguments import number, whole_number
from l4kernels.inputs.files import read_object, shown
from l4kernels.inputs.forms import convert_hint

REQUIRED: Any = object()
MAX_CONFIG_BYTES = 4 << 20  # published ones have a few kilobytes
MAX_TOKEN_ID = 1_000_000


class ConfigError(ValueError):
    """A config file that cannot be used: which field, what was expected, what came."""


class Fields:
    """The fields of one JSON object. A field that is null counts as absent.

    >>> Fields({"size": 3}, "config.json").integer("size", 1, 9)
    3
    """

    def __init__(self, data: Mapping[str, Any], where: str):
        if not isinstance(data, Mapping):
            raise ConfigError(f"{where}: expected an object, got {shown(data)}")
        self.data, self.where = data, where

    @classmethod
    def of_file(cls, file: Path, *, optional: bool = False) -> "Fields":
        """The object in a JSON file; every error names the file. `optional`: may be absent."""
        try:
            return cls(read_object(file, ConfigError, MAX_CONFIG_BYTES), str(file))
        except FileNotFoundError:
            if optional:
                return cls({}, str(file))
            raise ConfigError(
                f"{file}: not found; expected a checkpoint folder, such as "
                f"`hf download REPO --local-dir DIR` makes{convert_hint(file.parent)}"
            ) from None

    def fail(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.where}: {message}")

    def _get(self, name: str, default: Any) -> Any:
        value = self.data.get(name)
        if value is None and default is REQUIRED:
            self.fail(f"{name} is missing")
        return default if value is None else value

    def integer(self, name: str, low: int, high: int, default: Any = REQUIRED) -> Any:
        value = self._get(name, default)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        try:
            return whole_number(name, value, low, high)
        except ValueError as problem:
            self.fail(str(problem))

    def number(self, name: str, low: float, high: float, default: Any = REQUIRED) -> float:
        value = self._get(name, default)
        try:
            return number(name, value, low, high)
        except ValueError as problem:
            self.fail(str(problem))

    def boolean(self, name: str, default: bool) -> bool:
        value = self._get(name, default)
        if not isinstance(value, bool):
            self.fail(f"expected {name} to be true or false, got {shown(value)}")
        return value

    def part(self, name: str) -> "Fields | None":
        """The object under `name`; None where there is none."""
        value = self.data.get(name)
        return None if value is None else Fields(value, name)

    def integers(self, name: str, value: Any, low: int, high: int) -> tuple[int, ...]:
        if not isinstance(value, list) or len(value) > 4096:
            self.fail(f"expected {name} to be a list of at most 4096, got {shown(value)}")
        try:
            return tuple(whole_number(name, entry, low, high) for entry in value)
        except ValueError:
            self.fail(f"expected every entry of {name} in [{low}, {high}], got {shown(value)}")

    def id_list(self, name: str) -> tuple[int, ...]:
        """A token id, a list of them, or nothing."""
        value = self.data.get(name)
        value = [] if value is None else value if isinstance(value, list) else [value]
        return self.integers(name, value, 0, MAX_TOKEN_ID)

    def square(self, name: str, high: int) -> int:
        """One side, or the same side twice."""
        value = self._get(name, REQUIRED)
        if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
            value = value[0]
        side: int = Fields({name: value}, self.where).integer(name, 1, high)
        return side

    def expect(self, name: str, wanted: Any, default: Any) -> None:
        value = self._get(name, default)
        if value != wanted:
            self.fail(f"only {name} = {wanted!r} is supported, got {shown(value)}")

    def divides(self, name: str, divisor: int, value: int) -> None:
        if value % divisor:
            self.fail(f"expected {name} = {divisor} to divide {value}")

    def equal(self, left: str, left_value: int, right: str, right_value: int) -> None:
        if left_value != right_value:
            self.fail(f"expected {left} = {left_value} to equal {right} = {right_value}")
