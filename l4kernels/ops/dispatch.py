"""Where an op call goes: to the compiled kernel, to the typed body, or to the emulator.

A route belongs to the thread and asyncio task that opened it (a context variable): a new thread
starts without one, a task with that of the task that made it. It ends with its block, everywhere
and in whatever order blocks end.
"""

import contextlib
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass

import torch

LIBRARY = "library"


@dataclass(frozen=True, eq=False)
class _Route:
    target: str
    bodies: frozenset[str]  # ops that run on their typed bodies in any case

    def of(self, op: str) -> str:
        return "reference" if op in self.bodies else self.target


_stack: ContextVar[tuple[_Route, ...]] = ContextVar("l4kernels_routes", default=())
# Those of all threads whose block has not ended: without any, a call need not ask further, and
# torch.compile, which cannot trace a context variable, compiles again when they change.
open_routes: tuple[_Route, ...] = ()
_lock = threading.Lock()


def route_of(op: str) -> str:
    """ "library", "reference" or "emulated": where this thread and task send the op."""
    if not open_routes:
        return LIBRARY
    if torch.compiler.is_compiling():
        return _compiled(op, *[route.of(op) for route in open_routes])
    return _innermost(op)


def _innermost(op: str) -> str:
    return next((r.of(op) for r in reversed(_stack.get()) if r in open_routes), LIBRARY)


def _compiled(op: str, *guards: str) -> str:
    """`guards` make no difference but that a compiled function is valid for them only."""
    return _innermost(op)


# What torch.compiler.assume_constant_result does, without the second that it takes to import
# torch._dynamo, which few processes need.
_compiled._dynamo_marked_constant = True  # type: ignore[attr-defined]


@contextlib.contextmanager
def routed(target: str, bodies: frozenset[str] = frozenset()) -> Iterator[None]:
    """Sends op calls in the block to "library", "reference" or "emulated"; those named in
    `bodies` go to their typed bodies in any case."""
    global open_routes
    route = _Route(target, bodies)
    # Without those that ended in another thread or task, as generators do that are collected there.
    _stack.set((*(r for r in _stack.get() if r in open_routes), route))
    with _lock:
        open_routes = (*open_routes, route)
    try:
        yield
    finally:
        with _lock:
            open_routes = tuple(other for other in open_routes if other is not route)
        _stack.set(tuple(other for other in _stack.get() if other is not route))


def reference() -> contextlib.AbstractContextManager[None]:
    """Runs every op on its typed reference, on any device, in this thread and asyncio task.

    Threads that are started in the block begin without it: open a block of their own there, or run
    them in a `contextvars.copy_context()`, as `asyncio.to_thread` does.

    >>> import torch, l4kernels
    >>> with l4kernels.reference():
    ...     l4kernels.ops.silu_mul(torch.ones(1, 4)).shape
    torch.Size([1, 2])
    """
    return routed("reference")
