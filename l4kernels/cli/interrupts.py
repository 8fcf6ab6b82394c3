"""Ctrl-C and SIGTERM: the verbs stop where they are and show what they have."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn


class Interrupted(KeyboardInterrupt):
    """A signal that ends the program; `code` is its exit code, 128 and the signal's number."""

    def __init__(self, number: int = signal.SIGINT):
        self.code = 128 + number


def exit_code(error: KeyboardInterrupt) -> int:
    return getattr(error, "code", 128 + signal.SIGINT)


_ENDINGS = (signal.SIGINT, signal.SIGTERM)


def _interrupt(number: int, frame: object) -> NoReturn:
    for ending in _ENDINGS:
        signal.signal(ending, signal.SIG_DFL)  # whoever asks twice does not want to wait
    raise Interrupted(number)


@contextlib.contextmanager
def postponed() -> Iterator[None]:
    """In the block `interruptible` waits: what comes is raised at its end.

    For imports: C++ that torch runs while it is imported swallows an exception or aborts.
    """
    came: list[int] = []

    def note(number: int, frame: object) -> None:
        came.append(number)
        for ending in _ENDINGS:
            signal.signal(ending, signal.SIG_DFL)

    held = [n for n in _ENDINGS if signal.getsignal(n) == _interrupt]
    for number in held:
        signal.signal(number, note)
    try:
        yield
    finally:
        if came:
            raise Interrupted(came[0])
        for number in held:
            signal.signal(number, _interrupt)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGINT and SIGTERM raise `Interrupted` in the block, unless somebody else handles them."""
    replaced = {}
    if threading.current_thread() is threading.main_thread():
        for number, usual in (
            (signal.SIGINT, signal.default_int_handler),
            (signal.SIGTERM, signal.SIG_DFL),
        ):
            if signal.getsignal(number) == usual:
                replaced[number] = signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def ctrl_c(action: Callable[[], None]) -> Iterator[None]:
    """In the block, which `interruptible` is around, Ctrl-C calls `action`, as often as it comes;
    SIGTERM ends the program still."""

    def act(number: int, frame: object) -> None:
        action()

    ours = signal.getsignal(signal.SIGINT) == _interrupt
    if ours:
        signal.signal(signal.SIGINT, act)
    try:
        yield
    finally:
        if ours and signal.getsignal(signal.SIGINT) == act:  # SIGTERM may have come
            signal.signal(signal.SIGINT, _interrupt)
