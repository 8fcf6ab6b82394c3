"""How loading reports what it has read."""

import sys
import time
from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called after each tensor, and once at the end, with the bytes that were read and all bytes."""


def terminal_counter() -> Progress:
    """A line on standard error that counts, where that is a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        return lambda done, total: None
    last = 0.0

    def show(done: int, total: int) -> None:
        nonlocal last
        ended, now = done == total, time.monotonic()
        if ended or now - last > 0.2:
            last = now
            text = f"\rLoading {done / 1e9:.1f} / {total / 1e9:.1f} GB"
            print(text, end="\n" if ended else "", file=sys.stderr, flush=True)

    return show
