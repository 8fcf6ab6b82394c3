"""Calls that may hang or take long, in tests that must not."""

import reprlib
import threading
import time
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


def cheaply(
    seconds: float,
    function: Callable[..., Any],
    *args: Any,
    clock: Callable[[], float] = time.process_time,
) -> Any:
    """What a function returns; it fails if three calls of it each take more, by default of the
    processor's time.

    What is slow by itself is slow each time, if each call does the work anew. A collection of
    everything that the process holds, or a machine with other things to do, is not.
    """
    taken = []
    for _ in range(3):
        start = clock()
        result = function(*args)
        taken.append(clock() - start)
        if taken[-1] < seconds:
            return result
    given = reprlib.repr(args)
    raise AssertionError(f"{function} of {given} takes {min(taken):.2f} s, not {seconds:.2f}")
