"""Typed, bounded access to the fields of an untrusted JSON file."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

REQUIRED: Any = object()


class ConfigError(ValueError):
    """A config file that cannot be used: which field, what was expected, what came."""


class Fields:
    def __init__(self, data: Mapping[str, Any], where: str):
        if not isinstance(data, Mapping):
            raise ConfigError(f"{where}: expected an object, got {data!r:.80}")
        self.data, self.where = data, where

    @classmethod
    def of_file(cls, file: Path) -> "Fields":
        """The object in a JSON file; every error names the file."""
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(
                f"{file}: not found; expected a checkpoint folder, such as "
                f"`hf download REPO --local-dir DIR` makes"
            ) from None
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{file}: not valid JSON ({error})") from None
        return cls(data, str(file))

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
        if not isinstance(value, int) or not low <= value <= high:
            self.fail(f"expected {name} to be a whole number in [{low}, {high}], got {value!r:.80}")
        return int(value)

    def number(self, name: str, low: float, high: float, default: Any = REQUIRED) -> float:
        value = self._get(name, default)
        good = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not good or not math.isfinite(value) or not low <= value <= high:
            self.fail(f"expected {name} to be a number in [{low:g}, {high:g}], got {value!r:.80}")
        return float(value)

    def boolean(self, name: str, default: bool) -> bool:
        value = self._get(name, default)
        if not isinstance(value, bool):
            self.fail(f"expected {name} to be true or false, got {value!r:.80}")
        return value

    def integers(self, name: str, value: Any, low: int, high: int) -> tuple[int, ...]:
        if not isinstance(value, list) or len(value) > 4096:
            self.fail(f"expected {name} to be a list, got {value!r:.80}")
        if any(not isinstance(v, int) or not low <= v <= high for v in value):
            self.fail(f"expected every entry of {name} in [{low}, {high}], got {value!r:.80}")
        return tuple(int(v) for v in value)

    def id_list(self, name: str) -> tuple[int, ...]:
        """A token id, a list of them, or nothing."""
        value = self.data.get(name)
        value = [] if value is None else value if isinstance(value, list) else [value]
        return self.integers(name, value, 0, 1_000_000)

    def square(self, name: str, high: int) -> int:
        """One side, or the same side twice."""
        value = self._get(name, REQUIRED)
        if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
            value = value[0]
        return Fields({name: value}, self.where).integer(name, 1, high)

    def expect(self, name: str, wanted: Any, default: Any) -> None:
        value = self._get(name, default)
        if value != wanted:
            self.fail(f"only {name} = {wanted!r} is supported, got {value!r:.80}")

    def divides(self, name: str, divisor: int, value: int) -> None:
        if value % divisor:
            self.fail(f"expected {name} = {divisor} to divide {value}")

    def equal(self, left: str, left_value: int, right: str, right_value: int) -> None:
        if left_value != right_value:
            self.fail(f"expected {left} = {left_value} to equal {right} = {right_value}")
