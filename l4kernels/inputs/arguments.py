"""What may stand for a number, a count or ids: in a call, and in a field of a file.

Python's, NumPy's and torch's scalars are alike; `True` is no number and 5.0 is no count.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from l4kernels.inputs.files import shown

_NO_IDS = str, bytes, bytearray, memoryview, Mapping


def whole_number(name: str, value: Any, low: int, high: float = math.inf) -> int:
    """`value` as an int in [low, high]; raises `ValueError` for everything else."""
    plain = _plain(value)
    if not isinstance(plain, int) or isinstance(plain, bool) or not low <= plain <= high:
        limits = f">= {low}" if high == math.inf else f"in [{low}, {high}]"
        raise ValueError(f"expected {name} to be a whole number {limits}, got {shown(value)}")
    return plain


def number(name: str, value: Any, low: float, high: float, *, above: bool = False) -> float:
    """`value` as a float in [low, high], or in (low, high] with `above`; raises `ValueError`."""
    plain = _plain(value)
    # Compared before it is converted: a float cannot hold every integer. NaN compares false.
    good = isinstance(plain, (int, float)) and not isinstance(plain, bool)
    if not good or not low <= plain <= high or (above and plain == low):
        limits = f"{'(' if above else '['}{low:g}, {high:g}]"
        raise ValueError(f"expected {name} to be a number in {limits}, got {shown(value)}")
    return float(plain)


def token_ids(name: str, value: Any, vocab_size: int) -> tuple[int, ...]:
    """One id or several, as a tensor or array `[n]` or any iterable of integers."""
    plain = value.tolist() if hasattr(value, "tolist") and not isinstance(value, _NO_IDS) else value
    if isinstance(plain, int):
        plain = [plain]
    if isinstance(plain, _NO_IDS) or not isinstance(plain, Iterable):
        raise ValueError(f"expected {name} to be token ids, got {shown(value)}")
    return tuple(whole_number(f"every one of {name}", i, 0, vocab_size - 1) for i in plain)


def _plain(value: Any) -> Any:
    """Scalars of NumPy and torch, and tensors of one element, as Python's numbers."""
    item = getattr(value, "item", None)
    try:
        return item() if callable(item) else value
    except (RuntimeError, ValueError):  # of several elements
        return value
