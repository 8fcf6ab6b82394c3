"""Proving without a GPU that a step can be a CUDA graph: recorded once, replayed for ever.

A graph repeats launches: the same kernels on the same addresses with the same numbers. Whatever the
host did between them is frozen. The recorder does that on any device: it runs a step once, keeps
every operator call, and repeats the calls alone. A value that the host should have left to the
device then shows, since replayed results differ from the step's own; and what a capture refuses is
refused here, by name.
"""

import gc
import weakref
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from l4kernels.ops.ambient import isolated
from l4kernels.ops.check import describe, tensors_in

_ALLOCATIONS = {
    f"aten.{name}"
    for name in ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
}
_OVERWRITES = {"aten::copy_", "aten::fill_", "aten::zero_"}
"""In place, and nothing of what was there is read or kept."""
_CONSTANT = "constant"
"""The name of a call that repeats what the step made of a number or list of the host."""
_HOST_READS = {
    Tensor.tolist: "tolist()",
    Tensor.numpy: "numpy()",
    Tensor.__array__: "__array__()",
    Tensor.__repr__: "repr()",
    Tensor.__format__: "format()",
}
"""What reads a tensor's memory without an operator call that would say so."""
_OF_LISTS = {torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor}
"""So do these, of lists that hold tensors."""


class CaptureError(RuntimeError):
    """A step did what cannot be captured, or what cannot be repeated."""


@dataclass(frozen=True, eq=False)
class Call:
    """An operator call as a graph would keep it: fixed tensors, frozen numbers.

    Attributes:
        name: "l4kernels.rms_norm", "aten.add"; without the overload.
        run: the operator.
        args, kwargs: tensors share the memory of those that the step passed.
        results: in the order of the operator's; None where one is an argument's memory.
    """

    name: str
    run: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: tuple[Tensor | None, ...]

    def replay(self) -> None:
        """Runs it again, and puts its results where they were."""
        results = tensors_in([self.run(*self.args, **self.kwargs)])
        for kept, new in zip(self.results, results, strict=True):
            if kept is None:
                continue
            if kept.shape != new.shape:
                _fail(
                    self.name,
                    f"gave {describe(kept)} when it was recorded and {describe(new)} now",
                    "make sizes depend on shapes alone",
                )
            kept.copy_(new)


class Recording:
    """What one step did. Calling it does that again, and returns nothing.

    Attributes:
        calls: in their order; views and allocations are not among them.
        temporary_bytes: of all memory that the step made: what a graph's pool needs at the most.
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.temporary_bytes = 0
        # By storage: a tensor in it, and where it is. Those that the step made, and the tensors
        # that it was given of them.
        self.memory: dict[int, tuple[Tensor, int]] = {}
        self.temporaries: set[int] = set()
        self.made: list[tuple[str, weakref.ref[Tensor]]] = []

    @property
    def launches(self) -> Counter[str]:
        """How many calls of each operator a replay makes."""
        return Counter(call.name for call in self.calls if call.name != _CONSTANT)

    @isolated
    def __call__(self) -> None:
        for tensor, address in self.memory.values():
            if tensor.untyped_storage().data_ptr() != address:
                raise CaptureError(
                    f"a tensor of the recorded step ({describe(tensor)}) was moved to other "
                    f"memory; expected it to stay, and to be written in place"
                )
        for call in self.calls:
            call.replay()

    def escaped(self) -> list[str]:
        """What the step made and something still holds, as "aten.add: [2] float32 on cpu".

        Replays write to it; a step that is run again without them makes another one. Empty if the
        step allocates nothing that outlives it.
        """
        if any(made() is not None for _, made in self.made):
            gc.collect()
        alive = ((name, made()) for name, made in self.made)
        return [f"{name}: {describe(tensor)}" for name, tensor in alive if tensor is not None]


class Recorder:
    """Stands in for a CUDA graph's capture: `recorder(step)` runs `step` once and returns what
    repeats its operator calls.

    Calls are seen as the dispatcher gets them: those of this package, also inside `emulated()`, and
    torch's own; not what an operator's body does. Frozen are numbers, sizes, lists, tensors made of
    them, and which tensors took part. Each call runs again on the recorded tensors and writes its
    results into the memory of the recorded ones.

    Attributes:
        recordings: what was recorded, in order.

    Raises:
        CaptureError: by a recording, names the operator that reads a value back to the host (also
            as `bool()`, `tolist()` or a result's size), waits for a copy between devices, draws
            from a generator, moves memory, or reads memory of the step's own that the step has not
            written. By a replay: recorded memory was moved, or a result has another shape.

    >>> position, tokens = torch.zeros(1, dtype=torch.int64), torch.zeros(4)
    >>> recorder = Recorder()
    >>> replay = recorder(lambda: (tokens.index_fill_(0, position, 7), position.add_(1)))
    >>> replay(), replay()
    (None, None)
    >>> tokens
    tensor([7., 7., 7., 0.])
    >>> recorder.launches["aten.add_"], replay.escaped()
    (1, [])
    """

    def __init__(self) -> None:
        self.recordings: list[Recording] = []

    @isolated
    def __call__(self, step: Callable[[], Any]) -> Recording:
        recording = Recording()
        foreign = {key for other in self.recordings for key in other.temporaries}
        with _NoHostReads(), _Tracer(recording, foreign):
            step()
        self.recordings.append(recording)
        return recording

    @property
    def launches(self) -> Counter[str]:
        """How many calls of each operator one replay of every recording makes."""
        return sum((recording.launches for recording in self.recordings), Counter())

    @property
    def temporary_bytes(self) -> int:
        """Of all recordings."""
        return sum(recording.temporary_bytes for recording in self.recordings)

    def escaped(self) -> list[str]:
        """Of all recordings: see `Recording.escaped`."""
        return [made for recording in self.recordings for made in recording.escaped()]


class _Tracer(TorchDispatchMode):
    """Adds every operator call to a recording; refuses what cannot be captured."""

    def __init__(self, recording: Recording, foreign: Collection[int]):
        super().__init__()  # type: ignore[no-untyped-call]
        self.recording, self.foreign = recording, foreign
        self.unwritten: dict[int, Tensor] = {}  # by storage: uint8 of each byte, 0 until written

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here, and to say so would import the compiler, for seconds."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        composite = torch._C.DispatchKey.CompositeImplicitAutograd
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), composite):
            with self:  # it is what it is made of
                return func._op_dk(composite, *args, **kwargs)
        if func is torch.ops.aten.lift_fresh.default:
            return self._constant(args[0])
        return self._recorded(func, args, kwargs)

    def _constant(self, made: Tensor) -> Tensor:
        """What `torch.tensor` and its like made: a graph has its values of now."""
        if made.device.type != "cpu":
            _fail("torch.tensor", f"waits for a copy to {made.device}", _MADE_BEFORE)
        frozen, result = made.clone(), made.clone()
        fresh = self._note_made(_CONSTANT, [result])
        self._keep(_CONSTANT, torch.ops.aten.clone.default, (frozen,), {}, fresh)
        return result

    def _recorded(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        schema, passed = func._schema, _passed(func._schema, args, kwargs)
        name, given = schema.name.replace("::", "."), [*tensors_in(passed.values())]
        before = [_place(t) for t in given]
        for t, (key, address) in zip(given, before, strict=True):
            if key in self.foreign:
                _fail(name, f"uses {describe(t)} that another recorded step made", _MADE_BEFORE)
            self.recording.memory.setdefault(key, (t.detach(), address))
        _refuse_unknowable(name, func.tags, passed)
        reshapes = torch.Tag.inplace_view in func.tags
        if not reshapes:
            self._require_written(name, _read(schema, passed))
        result = func(*args, **kwargs)
        results = [*tensors_in([result])]
        _refuse_waiting(name, [*given, *results], passed)
        if before != [_place(t) for t in given]:
            _fail(name, "moved an argument to other memory", "write in place, at its size")
        if reshapes:
            return result
        self._note_written(_written(schema, passed))
        fresh = self._note_made(name, results)
        if name in _ALLOCATIONS:
            self._note_unwritten(results)
        elif schema.is_mutable or not schema.returns or any(t is not None for t in fresh):
            self._keep(name, func, args, kwargs, fresh)
        return result

    def _keep(
        self, name: str, run: Any, args: Any, kwargs: Any, fresh: list[Tensor | None]
    ) -> None:
        args, kwargs = tree_map_only(Tensor, Tensor.detach, (args, kwargs))
        self.recording.calls.append(Call(name, run, args, kwargs, tuple(fresh)))

    def _note_made(self, name: str, results: list[Tensor]) -> list[Tensor | None]:
        """Results, without those in memory that was there before them."""
        recording, keys = self.recording, [_place(t)[0] for t in results]
        new = {*keys} - recording.memory.keys()
        for key, t in zip(keys, results, strict=True):
            if key in new and key not in recording.memory:
                recording.memory[key] = t.detach(), _place(t)[1]
                recording.temporary_bytes += t.untyped_storage().nbytes()
        recording.temporaries |= new
        made = [t for key, t in zip(keys, results, strict=True) if key in recording.temporaries]
        recording.made += [(name, weakref.ref(t)) for t in made]
        return [t.detach() if key in new else None for key, t in zip(keys, results, strict=True)]

    def _note_unwritten(self, allocated: list[Tensor]) -> None:
        for t in allocated:
            size = t.untyped_storage().nbytes()
            blank = torch.zeros(size, dtype=torch.uint8, device=t.device)
            self.unwritten[_place(t)[0]] = blank

    def _note_written(self, tensors: list[Tensor]) -> None:
        for t in tensors:
            written = self.unwritten.get(_place(t)[0])
            if written is not None:
                _bytes_of(written, t).fill_(1)

    def _require_written(self, name: str, tensors: list[Tensor]) -> None:
        for t in tensors:
            written = self.unwritten.get(_place(t)[0])
            if written is not None and not bool(_bytes_of(written, t).all()):
                _fail(
                    name,
                    f"reads {describe(t)} that the step made and has not written, where a replay "
                    f"finds what the one before it left",
                    f"write it first; if it is state, {_MADE_BEFORE}",
                )


class _NoHostReads(TorchFunctionMode):
    """Refuses what never reaches an operator."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _HOST_READS:
            _fail(_HOST_READS[func], f"reads {describe(args[0])} back to the host", _ON_DEVICE)
        if func in _OF_LISTS:
            for t in tensors_in(value for value in args if isinstance(value, (list, tuple))):
                _fail(func.__name__, f"reads {describe(t)} back to the host", "use torch.stack")
        if func == Tensor.data.__set__:  # type: ignore[attr-defined]
            _fail("tensor.data = ...", "moves a tensor to other memory", "write in place")
        return func(*args, **(kwargs or {}))


_MADE_BEFORE = "make it before the step, once, and write to it in place"
_ON_DEVICE = "leave the value on the device, or read it after the step"


def _fail(name: str, what: str, remedy: str) -> NoReturn:
    raise CaptureError(f"{name} {what}, and a captured step cannot do that: {remedy}")


def _place(t: Tensor) -> tuple[int, int]:
    """A storage, as long as it lives, and where it is."""
    storage = t.untyped_storage()
    return storage._cdata, storage.data_ptr()


def _bytes_of(written: Tensor, t: Tensor) -> Tensor:
    """Of the bytes of a storage those that a tensor covers."""
    size = t.element_size()
    strides = *(size * stride for stride in t.stride()), 1
    return written.as_strided((*t.shape, size), strides, size * t.storage_offset())


def _passed(schema: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """What was passed, by the names of the operator's arguments."""
    names = [argument.name for argument in schema.arguments]
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _written(schema: Any, passed: dict[str, Any]) -> list[Tensor]:
    """The tensors that a call writes."""
    names = [a.name for a in schema.arguments if a.alias_info and a.alias_info.is_write]
    return [*tensors_in(passed.get(name) for name in names)]


def _read(schema: Any, passed: dict[str, Any]) -> list[Tensor]:
    """The tensors whose values a call uses, or keeps in part."""
    if any(result.alias_info and not result.alias_info.is_write for result in schema.returns):
        return []  # a view
    whole = schema.name in _OVERWRITES
    unread = {
        a.name
        for a in schema.arguments
        if a.alias_info and a.alias_info.is_write and (a.kwarg_only or whole)  # an out tensor
    }
    return [*tensors_in(value for name, value in passed.items() if name not in unread)]


def _refuse_unknowable(name: str, tags: Collection[torch.Tag], passed: dict[str, Any]) -> None:
    """Results that the host reads, sizes that data decide, and numbers that come from the host."""
    if torch.Tag.data_dependent_output in tags:
        values = ", ".join(map(describe, tensors_in(passed.values())))
        _fail(name, f"reads {values} back to the host, as item(), bool() and int() do", _ON_DEVICE)
    sized = torch.Tag.dynamic_output_shape in tags
    if "indices" in passed:  # the tag is for masks; one value goes to masked_fill instead
        mask = any(t.dtype in (torch.bool, torch.uint8) for t in tensors_in([passed["indices"]]))
        sized = mask and ("values" not in passed or passed["values"].numel() != 1)
    if sized:
        _fail(name, "makes sizes of data", "use torch.where, or sizes that are always the same")
    if torch.Tag.nondeterministic_seeded in tags:
        _fail(name, "draws from a generator of the host", "use ops.sample, which draws by counters")


def _refuse_waiting(name: str, tensors: list[Tensor], passed: dict[str, Any]) -> None:
    """Work on several devices, unless it is a copy that goes on by itself."""
    devices = {str(t.device) for t in tensors}
    pinned = all(t.is_pinned() for t in tensors if t.device.type == "cpu")
    if len(devices) > 1 and not (passed.get("non_blocking") and pinned):
        shown = " and ".join(sorted(devices))
        remedy = f"{_MADE_BEFORE}; a copy may be non_blocking, with pinned memory"
        _fail(name, f"waits for work between {shown}", remedy)
