"""A step of many op calls as one Python function: on a CPU what a CUDA graph is on a GPU.

A small model's step costs as much in modules, argument checks and dispatching as in arithmetic, and
all of that comes out the same each time: the step reads and writes tensors that stay, of shapes
that stay. `capture` runs it once, notes which op got which tensors and numbers, and writes a
function of one line per op, which calls their bodies.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from l4kernels.ops import dispatch
from l4kernels.ops.ambient import isolated, observed
from l4kernels.ops.check import NAMESPACE, tensors_in
from l4kernels.ops.registry import OPS

Step = Callable[[], None]

_ASKED_BY_THE_HOST = (torch.ops.aten.is_nonzero.default, torch.ops.aten.resolve_neg.default)
"""Without a tag: `bool`, and all that is seen of `tolist`."""


def capture(step: Step) -> Step:
    """Does a step's work now, and returns what does it again.

    What may change between two runs has to be in tensors that were there before: as with a CUDA
    graph, numbers and shapes stay what they were, and so does what the step makes of them. While
    something looks on (`observed`) or an open block sends ops elsewhere, the step itself runs.

    Args:
        step: takes nothing, returns nothing, reads and writes tensors of a CPU that stay.

    Raises:
        RuntimeError: the step reads a tensor's values on the host, outside of an op; it names what
            asked for them.

    >>> from l4kernels import ops
    >>> x, weight = torch.ones(1, 2), torch.ones(2)
    >>> again = capture(lambda: x.copy_(ops.rms_norm(x + 3, weight) + x))
    >>> x
    tensor([[2.0000, 2.0000]])
    >>> again(); x
    tensor([[3.0000, 3.0000]])
    """
    if dispatch.open_blocks or observed():
        step()
        return step
    tape = _Tape()
    with torch.inference_mode(), tape:
        step()
    program = isolated(tape.program())

    def again() -> None:
        if dispatch.open_blocks or observed():
            step()
        else:
            program()

    return again


class _Tape(TorchDispatchMode):
    """Notes what a step calls, but not what an op's body does."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[list[str], str, list[str]]] = []  # results, call, what it reads
        self.names: dict[int, str] = {}  # of tensors, by id: t1 is made by a call, c1 stays
        self.bound: dict[str, Any] = {}  # what stays, and the functions
        self.alive: list[Any] = []  # so that no id is given twice

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if _reads_values(func, args):
            raise RuntimeError(
                f"capture: expected a step that leaves values where they are, got {func}, whose "
                "caller reads them: compute with tensors, or read between two steps"
            )
        result = func(*args, **kwargs)
        self.alive += result, args, kwargs
        if not self._is_part_of_what_stays(func, result, args):
            shown = [self._name(value) for value in args]
            shown += [f"{key}={self._name(value)}" for key, value in kwargs.items()]
            call = f"{self._bind('f', _function(func))}({', '.join(shown)})"
            read = [self._name(t) for t in tensors_in((*args, *kwargs.values()))]
            self.calls.append((self._results(result), call, read))
        return result

    def _is_part_of_what_stays(self, func: Any, result: Any, args: tuple[Any, ...]) -> bool:
        """A view of such a tensor is one itself, and need not be made again."""
        given = [*tensors_in(args)]
        if not func.is_view or any(self._name(t).startswith("t") for t in given):
            return False
        memory = {t.untyped_storage()._cdata for t in given}
        return all(t.untyped_storage()._cdata in memory for t in tensors_in(_several(result)))

    def _name(self, value: Any) -> str:
        if isinstance(value, (list, tuple)):
            return f"[{', '.join(map(self._name, value))}]"
        if not isinstance(value, Tensor):
            return self._bind("c", value)
        if id(value) not in self.names:
            self.names[id(value)] = self._bind("c", value)
        return self.names[id(value)]

    def _bind(self, letter: str, value: Any) -> str:
        name = f"{letter}{len(self.bound)}"
        self.bound[name] = value
        self.alive.append(value)
        return name

    def _results(self, result: Any) -> list[str]:
        """The names of tensors that are new: a call in place gives what it got."""
        names = []
        for value in _several(result):
            new = isinstance(value, Tensor) and id(value) not in self.names
            if new:
                self.names[id(value)] = f"t{len(self.names)}"
            names.append(self.names[id(value)] if new else "_")
        return names if any(name != "_" for name in names) else []

    def program(self) -> Step:
        """A line for each call, which lets go of what nobody reads any more."""
        lines: list[str] = []
        read_later: set[str] = set()
        for results, call, read in reversed(self.calls):
            gone = {name for name in (*results, *read) if name.startswith("t")} - read_later
            read_later |= gone
            lines += [f"    del {', '.join(sorted(gone))}"] if gone else []
            lines.append(f"    {', '.join(results)} = {call}" if results else f"    {call}")
        source = "\n".join(["def program():", *reversed(lines), "    return None"])
        exec(compile(source, "<capture>", "exec"), self.bound)
        program: Step = self.bound["program"]
        return program


def _several(result: Any) -> tuple[Any, ...]:
    return tuple(result) if isinstance(result, (list, tuple)) else (result,)


def _reads_values(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether the host gets the call's result, or learns its size."""
    if func in _ASKED_BY_THE_HOST:
        return True
    if torch.Tag.dynamic_output_shape in func.tags:
        by_place = func.overloadpacket is torch.ops.aten.index
        return not by_place or any(t.dtype == torch.bool for t in tensors_in(args[1:]))
    return torch.Tag.data_dependent_output in func.tags


def _function(func: Any) -> Callable[..., Any]:
    """The body of an op of ours; of another its kernel, without a Python function in between."""
    namespace, _, name = func._schema.name.partition("::")
    ours = namespace == NAMESPACE and func._overloadname == "default" and OPS[name].direct
    return OPS[name].body if ours else func._op
