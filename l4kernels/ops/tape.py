"""A step of many op calls as a list of calls: on a CPU what a CUDA graph is on a GPU.

A small model's step costs as much in modules, argument checks and dispatching as in arithmetic, and
all of that comes out the same each time: the step reads and writes tensors that stay, of shapes
that stay. `capture` runs it once and notes which op got which tensors and numbers; what repeats
the step calls the ops' bodies with them, one after the other.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from operator import itemgetter
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
    something looks on (`observed`) or an open block sends ops elsewhere, the step itself runs, and
    nothing is noted.

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
    program: Step | None = None

    def again() -> None:
        nonlocal program
        if dispatch.open_blocks or observed():
            step()
        elif program is not None:
            program()
        else:
            tape = _Tape()
            with torch.inference_mode(), tape:
                step()
            program = isolated(tape.program())

    again()
    return again


@dataclass
class _Call:
    """One call of a program, whose tensors and numbers are known by their places in a list."""

    function: Callable[..., Any]
    args: list[int]
    kwargs: dict[str, int]
    results: list[int | None]  # None: nothing new; a call in place gives what it got
    several: bool
    gone: list[int] = field(default_factory=list)  # what nobody reads any more

    def compiled(self) -> tuple[Any, ...]:
        """As `_Tape.program` wants it: what takes the arguments out of the list, and the rest."""
        places = self.results if any(place is not None for place in self.results) else []
        return (
            self.function,
            _taking(self.args),
            tuple(self.kwargs),
            _taking([*self.kwargs.values()]),
            [(i, place) for i, place in enumerate(places) if place is not None],
            self.several,
            self.gone,
        )


class _Tape(TorchDispatchMode):
    """Notes what a step calls, but not what an op's body does."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[_Call] = []
        self.values: list[Any] = []  # what stays, and room for what is made
        self.made: set[int] = set()  # places of what is made
        self.places: dict[int, int] = {}  # of tensors, by id
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
            places = [self._place(value) for value in args]
            named = {key: self._place(value) for key, value in kwargs.items()}
            self._note(_function(func), places, named, result)
        return result

    def _is_part_of_what_stays(self, func: Any, result: Any, args: tuple[Any, ...]) -> bool:
        """A view of such a tensor is one itself, and need not be made again."""
        given = [*tensors_in(args)]
        if not func.is_view or any(self._place(t) in self.made for t in given):
            return False
        memory = {t.untyped_storage()._cdata for t in given}
        return all(t.untyped_storage()._cdata in memory for t in tensors_in(_several(result)))

    def _note(
        self, function: Callable[..., Any], args: list[int], kwargs: dict[str, int], result: Any
    ) -> None:
        results: list[int | None] = []
        for value in _several(result):
            new = isinstance(value, Tensor) and id(value) not in self.places
            results.append(self._make(value) if new else None)
        self.calls.append(_Call(function, args, kwargs, results, isinstance(result, (list, tuple))))

    def _make(self, value: Any) -> int:
        place = self.places[id(value)] = len(self.values)
        self.values.append(None)
        self.made.add(place)
        return place

    def _place(self, value: Any) -> int:
        if isinstance(value, (list, tuple)) and any(True for _ in tensors_in(value)):
            items, own = [self._place(item) for item in value], [*value]
            self.alive.append(own)
            self.calls.append(_Call(lambda *found: [*found], items, {}, [self._make(own)], False))
            return self.places[id(own)]
        if isinstance(value, Tensor) and id(value) in self.places:
            return self.places[id(value)]
        self.alive.append(value)
        self.values.append(value)
        place = len(self.values) - 1
        if isinstance(value, Tensor):
            self.places[id(value)] = place
        return place

    def program(self) -> Step:
        """Makes the calls again, and lets go of what nobody reads any more."""
        read_later: set[int] = set()
        for call in reversed(self.calls):
            used = {*call.args, *call.kwargs.values(), *(r for r in call.results if r is not None)}
            call.gone = [*(used & self.made) - read_later]
            read_later |= used
        calls, start = [call.compiled() for call in self.calls], self.values

        def program() -> None:
            values = [*start]
            for function, args, names, named, results, several, gone in calls:
                if names:
                    kwargs = dict(zip(names, named(values), strict=True))
                    result = function(*args(values), **kwargs)
                    del kwargs
                else:
                    result = function(*args(values))
                for i, place in results:
                    values[place] = result[i] if several else result
                del result
                for place in gone:
                    values[place] = None

        return program


def _taking(places: list[int]) -> Callable[[list[Any]], tuple[Any, ...]]:
    if len(places) > 1:
        return itemgetter(*places)
    return lambda values: tuple(values[place] for place in places)


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
