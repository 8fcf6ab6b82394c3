"""Reads a folder of safetensors: names, shapes and types first, tensors one file at a time.

Nothing of a checkpoint is trusted. Paths stay inside its folder, and every error names the file
and the tensor.
"""

import contextlib
import functools
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from l4kernels.checkpoint.files.shares import WHOLE, Piece, Share
from l4kernels.inputs.files import open_regular, read_object, shown
from l4kernels.inputs.forms import convert_hint
from l4kernels.layers.weights.codes import Codes
from l4kernels.layers.weights.memory import lies_transposed

Weight = Tensor | Codes
NamedTensor = tuple[str, int | None, Weight]
"""Name, expert of a stack or None, data."""
Read = Callable[[str], Tensor]
"""Name of a piece -> what is stored."""
Decode = Callable[[str, Read], Weight]
"""Name of a tensor of the layout, and what reads its pieces -> data."""
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_SHOWN = 5
_MAX_NAMES = 8 << 20
"""Bytes of an index, and of all headers together; Maverick's, expert by expert, have 2 MB each."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: which file, which tensor, what was expected."""


@dataclass(frozen=True)
class Entry:
    """A tensor's header: where it lies and what it looks like."""

    file: Path
    shape: tuple[int, ...]
    dtype: str

    @property
    def bytes(self) -> int:
        """As stored; the first number in the name of a type is its bits."""
        return math.prod(self.shape) * int(re.findall(r"\d+", self.dtype)[0]) // 8


class Checkpoint:
    """The headers of a checkpoint folder. Opening it reads no tensor data."""

    def __init__(self, path: str | Path, single: str = _SINGLE):
        self.folder, self.single = Path(path), single
        if not os.path.isdir(self.folder):
            raise CheckpointError(
                f"{self.folder}: not a folder; expected a checkpoint folder"
                f"{convert_hint(self.folder)}"
            )
        self.entries: dict[str, Entry] = {}
        self._placed: dict[str, str] = {}
        self._roots = _roots(self.folder.resolve())
        self.files = self._files()
        room = _MAX_NAMES
        for file in self.files:
            room -= self._read_header(file, room)
        absent = [f"{short(n)} in {f}" for n, f in self._placed.items() if n not in self.entries]
        if absent:
            raise CheckpointError(
                f"{self.folder / _INDEX}: places {len(absent)} tensors in files that do not hold "
                f"them: {some(absent)}"
            )

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.stat().st_size for file in self.files)

    def check(
        self,
        expected: Mapping[str, Piece],
        ignored: Callable[[str], bool] = lambda name: False,
    ) -> None:
        """Exactly the expected tensors, each with its shape and one of its dtypes.

        Others that are `ignored` may be there, and are not read.
        """
        self.entries = {n: e for n, e in self.entries.items() if n in expected or not ignored(n)}
        missing = [name for name in expected if name not in self.entries]
        if missing:
            raise CheckpointError(
                f"{self.folder}: {len(missing)} tensors are missing that config.json asks for: "
                f"{some(missing)}; looked in {some(f.name for f in self.files)}"
            )
        extra = [name for name in self.entries if name not in expected]
        if extra:
            places = (f"{short(name)} in {self.entries[name].file.name}" for name in extra)
            raise CheckpointError(
                f"{self.folder}: {len(extra)} tensors are unexpected by config.json: {some(places)}"
            )
        for name, piece in expected.items():
            entry = self.entries[name]
            if entry.shape != piece.shape:
                raise CheckpointError(
                    f"{entry.file}: expected {name} to be {list(piece.shape)}, "
                    f"got {shown(list(entry.shape))}"
                )
            if entry.dtype not in piece.dtypes:
                raise CheckpointError(
                    f"{entry.file}: expected {name} to be one of {', '.join(piece.dtypes)}, "
                    f"got {entry.dtype}"
                )

    def tensors(
        self,
        wanted: Mapping[str, Mapping[str, Piece]],
        decode: Decode,
        dtype: torch.dtype,
        share: Share = WHOLE,
        failed: Callable[[CheckpointError], None] | None = None,
    ) -> Iterator[NamedTensor]:
        """The tensors that are made of these pieces, a stack of experts one expert at a time.

        Data are what `decode` makes of what is stored (float64: float32) and finite in `dtype`. A
        file is mapped while its tensors are read, with those that hold their scales, and unmapped
        before the next one. `failed` is told of tensors that cannot be used, which are left out;
        without it the first is raised.
        """
        for own in self._by_file(wanted):
            yield from self._tensors_of(own, wanted, decode, dtype, share, failed)

    def order(self, wanted: Mapping[str, Mapping[str, Piece]]) -> list[str]:
        """The names in the order in which `tensors` gives them."""
        return [name for own in self._by_file(wanted) for _, name in own]

    def _by_file(self, wanted: Mapping[str, Mapping[str, Piece]]) -> list[list[tuple[str, str]]]:
        """The tensors that each file begins: their first piece, and their name."""
        found: dict[Path, list[tuple[str, str]]] = {file: [] for file in self.files}
        for name, pieces in wanted.items():
            stored = next(iter(pieces))
            found[self.entries[stored].file].append((stored, name))
        return [sorted(own) for own in found.values()]

    def read(self, name: str) -> Tensor:
        """One tensor as stored."""
        with _Opened(self.entries[name].file) as f:
            data: Tensor = f.get_tensor(name)
            return data

    def read_all(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """Tensors as stored, file by file: opening one for each of many would take long."""
        by_file: dict[Path, list[str]] = {}
        for name in names:
            by_file.setdefault(self.entries[name].file, []).append(name)
        for file, own in by_file.items():
            with _Opened(file) as f:
                for name in own:
                    yield name, f.get_tensor(name)

    def _tensors_of(
        self,
        own: list[tuple[str, str]],
        wanted: Mapping[str, Mapping[str, Piece]],
        decode: Decode,
        dtype: torch.dtype,
        share: Share,
        failed: Callable[[CheckpointError], None] | None,
    ) -> Iterator[NamedTensor]:
        # In a function of its own: a leftover handle would keep this file mapped beside the next.
        with _Together() as files:
            for stored, name in own:
                pieces = wanted[name]
                stacked = pieces[stored].axes.startswith("e")
                for expert in range(pieces[stored].shape[0]) if stacked else (None,):
                    read = functools.partial(self._read, files, pieces, expert, share)
                    try:
                        data = self._finite(name, expert, decode(name, read), dtype, stored)
                    except CheckpointError as error:
                        if failed is None:
                            raise
                        failed(error)
                        break
                    yield data
                    del data  # the next one would be made beside it

    def _read(
        self,
        files: "_Together",
        pieces: Mapping[str, Piece],
        expert: int | None,
        share: Share,
        name: str,
    ) -> Tensor:
        return _part(files.opened(self.entries[name].file), name, pieces[name], expert, share)

    def _finite(
        self, name: str, expert: int | None, data: Weight, dtype: torch.dtype, stored: str
    ) -> NamedTensor:
        file = self.entries[stored].file
        if isinstance(data, Codes):
            require_valid(file, stored, data.invalid())
            return name, expert, data
        # The extremes speak for all values, in one pass that needs no memory; NaN is both of them.
        # A matrix that lies transposed is read as it lies.
        as_it_lies = data.t() if lies_transposed(data) else data
        if not torch.stack(as_it_lies.aminmax()).to(dtype).isfinite().all():
            count = int((~data.to(dtype).isfinite()).sum())
            raise CheckpointError(
                f"{file}: {stored} holds {count} values that are NaN, infinite "
                f"or too large for {str(dtype).removeprefix('torch.')}"
            )
        return name, expert, data.float() if data.dtype == torch.float64 else data

    def _files(self) -> list[Path]:
        # As in transformers: an index counts only where there is no single file.
        if os.path.lexists(self.folder / self.single):
            return [self.inside(self.single)]
        index = self.folder / _INDEX
        if not os.path.lexists(index):
            raise CheckpointError(
                f"{self.folder}: found neither {_SINGLE} nor {_INDEX}; expected a Hugging Face "
                f"safetensors checkpoint{convert_hint(self.folder)}"
            )
        content = read_object(self.inside(_INDEX), CheckpointError, _MAX_NAMES)
        placed = content.get("weight_map")
        if not isinstance(placed, dict) or not placed:
            raise CheckpointError(
                f"{index}: expected weight_map to name the file of each tensor, got {shown(placed)}"
            )
        for name, place in placed.items():
            if not isinstance(place, str):
                raise CheckpointError(
                    f"{index}: expected {short(name)} to be in a file inside the checkpoint, "
                    f"got {shown(place)}"
                )
        self._placed = placed
        return [self.inside(name) for name in sorted(set(placed.values()))]

    def inside(self, name: str) -> Path:
        """A regular file of the folder; it may be a link, but not to anywhere else."""
        fits = 0 < len(name) < 256 and name.isprintable()
        if not fits or Path(name).is_absolute() or ".." in Path(name).parts:
            raise CheckpointError(
                f"{self.folder / _INDEX}: expected a file name inside the checkpoint, "
                f"got {shown(name)}"
            )
        file = self.folder / name
        try:
            target = file.resolve(strict=True)
        except (OSError, RuntimeError):  # RuntimeError: links in a circle
            target = None
        if target and not any(target.is_relative_to(root) for root in self._roots):
            raise CheckpointError(
                f"{file}: leads out of the checkpoint folder to {target}; "
                f"copy the file into the folder"
            )
        if not target or not target.is_file():
            raise CheckpointError(f"{file}: the file is missing, or not a regular file")
        return file

    def _read_header(self, file: Path, room: int) -> int:
        """Its size, of at most `room`."""
        size = _check_header(file, room)
        with _Opened(file) as f:
            for name in f.keys():  # noqa: SIM118 (a safetensors handle is not a mapping)
                if name in self.entries:
                    raise CheckpointError(
                        f"{file}: {short(name)} is also in {self.entries[name].file.name}"
                    )
                if self._placed and self.folder / self._placed.get(name, "") != file:
                    raise CheckpointError(
                        f"{file}: holds {short(name)}, which {_INDEX} places in "
                        f"{self._placed.get(name)!r}"
                    )
                header = f.get_slice(name)
                self.entries[name] = Entry(file, tuple(header.get_shape()), header.get_dtype())
        return size


def _roots(folder: Path) -> list[Path]:
    """The folder itself; for a snapshot of the Hugging Face cache also its own blobs."""
    is_snapshot = folder.parent.name == "snapshots"
    return [folder, folder.parents[1] / "blobs"] if is_snapshot else [folder]


def _check_header(file: Path, room: int) -> int:
    """The header's size. Refuses what `safe_open` takes: a header that is long to parse, a name
    that comes twice."""
    with open_regular(file, CheckpointError) as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > room:
            raise CheckpointError(
                f"{file}: not a complete safetensors file (expected headers of at most "
                f"{_MAX_NAMES >> 20} MiB in all files, got {length:,} bytes here)"
            )
        header = stream.read(length)

    def distinct(pairs: list[tuple[str, Any]]) -> None:
        name, count = Counter(name for name, _ in pairs).most_common(1)[0] if pairs else ("", 0)
        if count > 1:
            raise CheckpointError(f"{file}: holds {short(name)} {count} times")

    try:
        json.loads(header, object_pairs_hook=distinct)
    except CheckpointError:
        raise
    except (ValueError, RecursionError):
        pass  # `safe_open` says better what is wrong with it
    return length


def _part(opened: Any, name: str, piece: Piece, expert: int | None, share: Share) -> Tensor:
    """Of a stored tensor one expert, and of that the share of a rank."""
    of_expert = piece.axes.startswith("e") and expert is not None
    ways = share.of(piece)
    if not of_expert and all(way == [slice(None)] for way in ways):
        whole: Tensor = opened.get_tensor(name)
        return whole
    stored = opened.get_slice(name)
    parts: list[Tensor] = []
    (halves,) = {len(way) for way in ways if len(way) > 1} or {1}
    for half in range(halves):
        index = [way[half if len(way) > 1 else 0] for way in ways]
        parts.append(stored[tuple([expert, *index[1:]] if of_expert else index)])
    return parts[0] if len(parts) == 1 else torch.cat(parts, piece.axes.index("g") - of_expert)


class _Opened:
    """`safe_open` whose errors name the file."""

    def __init__(self, file: Path):
        self.file = file
        try:
            os.fspath(file).encode()
        except UnicodeEncodeError:  # of bytes that are no UTF-8
            raise CheckpointError(
                f"{file}: safetensors opens no file whose path is not UTF-8; rename the folder"
            ) from None
        try:
            self.handle = safe_open(str(file), framework="pt")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{file}: not a complete safetensors file ({shown(str(error), 200)}); it may be "
                f"truncated: copy or download it again"
            ) from None
        except RuntimeError as error:  # torch's, of a file larger than the system lets it map
            raise CheckpointError(
                f"{file}: cannot be mapped ({shown(str(error), 200)}); expected a file that fits "
                f"the memory: save the checkpoint in more shards"
            ) from None

    def __enter__(self) -> Any:
        return self.handle.__enter__()

    def __exit__(self, *exception: Any) -> None:
        self.handle.__exit__(*exception)


class _Together(contextlib.ExitStack):
    """The file whose turn it is, and those that hold scales of its weights, each opened once:
    opening one reads all names in it, which for each of many weights would take minutes."""

    def __init__(self) -> None:
        super().__init__()
        self.files: dict[Path, Any] = {}

    def opened(self, file: Path) -> Any:
        if file not in self.files:
            self.files[file] = self.enter_context(_Opened(file))
        return self.files[file]


def require_valid(file: Path, name: str, count: int) -> None:
    """Raises CheckpointError where so many codes and scales of a tensor stand for no number."""
    if count:
        raise CheckpointError(
            f"{file}: {name} has {count} codes or scales that are NaN or infinite, or scales that "
            f"are 0 or, of e4m3 codes, below 0"
        )


def short(name: str) -> str:
    """A tensor's name, or enough of one that nobody could have given."""
    return name if name.isprintable() and len(name) <= 200 else shown(name)


def some(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
