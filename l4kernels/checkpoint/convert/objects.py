"""The list of tensors in a `.pth` file, read without running what the file says.

Beside the tensors' bytes such a file holds a program for a stack machine that builds Python
objects, and that can call any function of any module: the way in which a checkpoint takes over the
machine that loads it. Everywhere else in this package only safetensors are read. Here the program
is neither run nor given to a library that would run it: its instructions are read one by one, those
that `torch.save` writes for a dictionary of tensors move inert records about, and the first that is
anything else is refused by its name. Nothing is imported, called or allocated because of what the
file holds.
"""

import functools
import math
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from l4kernels.checkpoint.convert.archive import Member, members
from l4kernels.checkpoint.files.reader import CheckpointError
from l4kernels.inputs.files import open_regular, shown

_MAX_LIST = 16 << 20
_MAX_STEPS = 500_000  # a published file has 60,000
_STORAGES = {
    "BFloat16Storage": torch.bfloat16,
    "HalfStorage": torch.float16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_TENSOR, _PARAMETER = "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"
_DICT = "collections.OrderedDict"
_IGNORED = ("_io.BytesIO", "_codecs.encode")
"""A state of other software beside the tensors: its bytes are not looked at."""
_KNOWN = {_TENSOR, _PARAMETER, _DICT, *_IGNORED, *(f"torch.{name}" for name in _STORAGES)}


class StoredTensor(NamedTuple):
    """A tensor's record: where it lies in its file and what it looks like."""

    file: Path
    member: Member
    dtype: torch.dtype
    offset: int
    """In elements, from the member's start."""
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def read(self, mapped: Tensor) -> Tensor:
        """The tensor, a view of the file's bytes `mapped`."""
        start, size = self.member
        data = mapped[start : start + size]
        if start % self.dtype.itemsize:
            data = data.clone()
        data = data.view(self.dtype)
        return data.as_strided(self.shape, self.strides, data.storage_offset() + self.offset)


class _Name(NamedTuple):
    """A function or class that the file names."""

    name: str


class _Storage(NamedTuple):
    member: Member
    dtype: torch.dtype
    numbers: int


class _Other(NamedTuple):
    """An object that no tensor is."""


def stored_tensors(file: Path) -> dict[str, StoredTensor]:
    """The tensors of a `.pth` file by their names; other entries are left out.

    Raises:
        CheckpointError: the file is not a dictionary of tensors as `torch.save` writes it.
    """
    placed = members(file)
    if "data.pkl" not in placed:
        what = "a TorchScript program" if "constants.pkl" in placed else "another zip file"
        raise CheckpointError(f"{file}: {what}; expected a dictionary of tensors (torch.save)")
    content = _content(file, placed["data.pkl"], _MAX_LIST)
    order = _content(file, placed["byteorder"], 16) if "byteorder" in placed else b"little"
    if order != b"little":
        raise CheckpointError(f"{file}: expected little-endian numbers, got {shown(order)}")
    result = _Machine(file, placed).run(content)
    if not isinstance(result, dict):
        raise CheckpointError(f"{file}: expected a dictionary of tensors, got something else")
    for name, value in result.items():
        if not isinstance(value, (StoredTensor, _Other)):
            kind = type(value).__name__.strip("_")
            raise CheckpointError(f"{file}: expected {shown(name)} to be a tensor, got a {kind}")
    return {name: value for name, value in result.items() if isinstance(value, StoredTensor)}


def _content(file: Path, member: Member, limit: int) -> bytes:
    if member.size > limit:
        raise CheckpointError(
            f"{file}: expected at most {limit:,} bytes that list the tensors, got {member.size:,}"
        )
    with open_regular(file, CheckpointError) as stream:
        stream.seek(member.start)
        return stream.read(member.size)


class _Machine:
    """Reads the instructions for one object."""

    def __init__(self, file: Path, placed: dict[str, Member]):
        self._file, self._placed = file, placed
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self, content: bytes) -> Any:
        steps: dict[str, Callable[[Any], None]] = {
            "MARK": lambda _: self._marks.append(len(self._stack)),
            "EMPTY_DICT": lambda _: self._stack.append({}),
            "EMPTY_TUPLE": lambda _: self._stack.append(()),
            "TUPLE": lambda _: self._stack.append(tuple(self._since_mark())),
            "NONE": lambda _: self._stack.append(None),
            "NEWTRUE": lambda _: self._stack.append(True),
            "NEWFALSE": lambda _: self._stack.append(False),
            "GLOBAL": self._name,
            "BINPERSID": lambda _: self._stack.append(self._storage(self._stack.pop())),
            "REDUCE": lambda _: self._call(),
            "NEWOBJ": lambda _: self._call(),
            "BUILD": lambda _: self._build(),
            "SETITEM": lambda _: self._set([self._stack.pop(-2), self._stack.pop()]),
            "SETITEMS": lambda _: self._set(self._since_mark()),
        }
        steps |= dict.fromkeys(("BINUNICODE", "BININT", "BININT1", "BININT2"), self._stack.append)
        steps |= dict.fromkeys(("LONG1", "BINFLOAT"), self._stack.append)
        for size in (1, 2, 3):
            steps[f"TUPLE{size}"] = functools.partial(self._tuple, size)
        for name in ("PUT", "GET"):
            step = self._keep if name == "PUT" else self._recall
            steps |= {f"BIN{name}": step, f"LONG_BIN{name}": step}
        steps["PROTO"] = lambda _: None
        try:
            for count, (code, argument, _) in enumerate(pickletools.genops(content)):
                if code.name == "STOP":
                    return self._stack.pop()
                if code.name not in steps:
                    self._fail(f"holds an instruction {code.name}")
                if count > _MAX_STEPS:
                    self._fail(f"holds more than {_MAX_STEPS:,} instructions")
                steps[code.name](argument)
        except CheckpointError:
            raise
        # Of a stack that is empty, a number that nothing has, a text that is none.
        except (ValueError, IndexError, KeyError, TypeError, OverflowError):
            self._fail("is damaged")
        return self._fail("has no end")

    def _fail(self, why: str) -> NoReturn:
        raise CheckpointError(
            f"{self._file}: its list of tensors {why}; nothing of it was run; expected a "
            f"dictionary of tensors as torch.save writes it"
        )

    def _name(self, argument: str) -> None:
        name = argument.replace(" ", ".", 1)
        if name not in _KNOWN:
            self._fail(f"asks for {shown(name)}, which no tensor needs")
        self._stack.append(_Name(name))

    def _since_mark(self) -> list[Any]:
        at = self._marks.pop()
        taken, self._stack[at:] = self._stack[at:], []
        return taken

    def _tuple(self, count: int, _: None) -> None:
        if len(self._stack) < count:
            raise IndexError
        self._stack[-count:] = [tuple(self._stack[-count:])]

    def _keep(self, place: int) -> None:
        self._memo[place] = self._stack[-1]

    def _recall(self, place: int) -> None:
        self._stack.append(self._memo[place])

    def _set(self, pairs: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict) or len(pairs) % 2:
            self._fail("sets entries of what is no dictionary")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if not isinstance(key, str):  # a hash of tuples in tuples would overflow the stack
                self._fail("has names of tensors that are no text")
            if key in target:
                self._fail(f"holds {shown(key)} twice")
            target[key] = value

    def _build(self) -> None:
        self._stack.pop()  # attributes: of a dictionary of tensors its versions
        if not isinstance(self._stack[-1], (dict, _Other)):
            self._fail("changes an object")

    def _call(self) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if not isinstance(function, _Name) or not isinstance(arguments, tuple):
            self._fail("calls what is no function")
        if function.name == _TENSOR:
            self._stack.append(self._tensor(arguments))
        elif function.name == _PARAMETER and isinstance(arguments[0], StoredTensor):
            self._stack.append(arguments[0])
        elif function.name == _DICT and not arguments:
            self._stack.append({})
        elif function.name in _IGNORED:
            self._stack.append(_Other())
        else:
            self._fail(f"calls {function.name} in a way that torch.save does not")

    def _storage(self, record: Any) -> _Storage:
        if not isinstance(record, tuple) or len(record) != 5 or record[0] != "storage":
            self._fail("refers to an object outside the file")
        kind, key, _, count = record[1:]
        dtype = _STORAGES.get(kind.name.removeprefix("torch.")) if isinstance(kind, _Name) else None
        member = self._placed.get(f"data/{key}") if isinstance(key, str) else None
        if dtype is None or member is None:
            self._fail(f"refers to data that are not in the file: {shown(key)}")
        if type(count) is not int or count * dtype.itemsize != member.size:
            self._fail(f"expects {shown(count)} numbers in data/{key}, which has {member.size:,} B")
        return _Storage(member, dtype, count)

    def _tensor(self, arguments: tuple[Any, ...]) -> StoredTensor:
        storage, offset, shape, strides = arguments[:4]
        fits = isinstance(storage, _Storage) and isinstance(shape, tuple)
        fits = fits and isinstance(strides, tuple) and len(shape) == len(strides) <= 8
        if not fits or any(type(n) is not int or n < 0 for n in (offset, *shape, *strides)):
            self._fail("describes a tensor in a way that torch.save does not")
        count = math.prod(shape)
        last = offset + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
        if count > storage.numbers or (count and last >= storage.numbers):
            self._fail(f"describes a tensor of {shown(list(shape))} in data of {storage.numbers:,}")
        return StoredTensor(self._file, storage.member, storage.dtype, offset, shape, strides)
