"""Where an op call goes: to the compiled kernel, to the typed body, or to the emulator.

`dispatch` is a block of the thread and asyncio task that opened it (a context variable): a new
thread starts without one, a task with that of the task that made it. Blocks may end in any order.
"""

import contextlib
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass

import torch

LIBRARY = "library"


@dataclass(frozen=True, eq=False)
class _Block:
    target: str
    bodies: frozenset[str]  # ops that run on their typed bodies in any case

    def of(self, op: str) -> str:
        return "reference" if op in self.bodies else self.target


_stack: ContextVar[tuple[_Block, ...]] = ContextVar("l4kernels_dispatch", default=())
# Those of all threads that have not ended: without any, a call need not ask further, and
# torch.compile, which cannot trace a context variable, compiles again when they change.
open_blocks: tuple[_Block, ...] = ()
_lock = threading.Lock()


def target_of(op: str) -> str:
    """ "library", "reference" or "emulated": where this thread and task send the op."""
    if not open_blocks:
        return LIBRARY
    if torch.compiler.is_compiling():
        return _compiled(op, *[block.of(op) for block in open_blocks])
    return _innermost(op)


def _innermost(op: str) -> str:
    return next((r.of(op) for r in reversed(_stack.get()) if r in open_blocks), LIBRARY)


def _compiled(op: str, *guards: str) -> str:
    """`guards` make no difference but that a compiled function is valid for them only."""
    return _innermost(op)


# What torch.compiler.assume_constant_result does, without the second that it takes to import
# torch._dynamo, which few processes need.
_compiled._dynamo_marked_constant = True  # type: ignore[attr-defined]


@contextlib.contextmanager
def dispatch(target: str, bodies: frozenset[str] = frozenset()) -> Iterator[None]:
    """Sends op calls in the block to "library", "reference" or "emulated"; those named in
    `bodies` go to their typed bodies in any case."""
    global open_blocks
    block = _Block(target, bodies)
    # Without those that ended in another thread or task, as generators do that are collected there.
    _stack.set((*(r for r in _stack.get() if r in open_blocks), block))
    with _lock:
        open_blocks = (*open_blocks, block)
    try:
        yield
    finally:
        with _lock:
            open_blocks = tuple(other for other in open_blocks if other is not block)
        _stack.set(tuple(other for other in _stack.get() if other is not block))


def reference() -> contextlib.AbstractContextManager[None]:
    """Runs every op on its typed reference, on any device, in this thread and asyncio task.

    Threads that are started in the block begin without it: open a block of their own there, or run
    them in a `contextvars.copy_context()`, as `asyncio.to_thread` does.

    >>> import torch, l4kernels
    >>> with l4kernels.reference():
    ...     l4kernels.ops.silu_mul(torch.ones(1, 4)).shape
    torch.Size([1, 2])
    """
    return dispatch("reference")
