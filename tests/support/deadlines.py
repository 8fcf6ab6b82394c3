"""Calls that may hang, in tests that must not."""

import threading
from collections.abc import Callable
from typing import Any


def within(seconds: float, function: Callable[[], Any]) -> Any:
    """What a function returns or raises, in a thread of its own; it fails if it takes longer."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append((function(), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), f"{function} takes more than {seconds} s"
    result, error = outcome[0]
    if error is not None:
        raise error
    return result
