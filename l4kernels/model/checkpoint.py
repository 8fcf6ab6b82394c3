"""Reads a folder of safetensors: names, shapes and types first, tensors one file at a time.

Nothing of a checkpoint is trusted. Paths stay inside its folder, and every error names the file
and the tensor.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

_FLOATS = ("BF16", "F16", "F32")
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_SHOWN = 5


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: which file, which tensor, what was expected."""


@dataclass(frozen=True)
class Entry:
    """A tensor's header: where it lies and what it looks like."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


class Checkpoint:
    """The headers of a checkpoint folder. Opening it reads no tensor data."""

    def __init__(self, path: str | Path):
        self.folder = Path(path)
        if not self.folder.is_dir():
            raise CheckpointError(f"{self.folder}: not a folder; expected a checkpoint folder")
        self.entries: dict[str, Entry] = {}
        self._placed: dict[str, str] = {}
        self.files = self._files()
        for file in self.files:
            self._read_header(file)
        absent = [f"{n} in {f}" for n, f in self._placed.items() if n not in self.entries]
        if absent:
            raise CheckpointError(
                f"{self.folder / _INDEX}: places {len(absent)} tensors in files that do not hold "
                f"them: {_some(absent)}"
            )

    def check(self, expected: dict[str, tuple[int, ...]]) -> None:
        """Exactly the expected tensors, each with its shape and a float type."""
        missing = [name for name in expected if name not in self.entries]
        if missing:
            raise CheckpointError(
                f"{self.folder}: {len(missing)} tensors are missing that config.json asks for: "
                f"{_some(missing)}; looked in {_some(f.name for f in self.files)}"
            )
        extra = [name for name in self.entries if name not in expected]
        if extra:
            places = (f"{name} in {self.entries[name].file.name}" for name in extra)
            raise CheckpointError(
                f"{self.folder}: {len(extra)} tensors are unexpected by config.json: "
                f"{_some(places)}"
            )
        for name, shape in expected.items():
            entry = self.entries[name]
            if entry.shape != shape:
                raise CheckpointError(
                    f"{entry.file}: expected {name} to be {list(shape)}, got {list(entry.shape)}"
                )
            if entry.dtype not in _FLOATS:
                raise CheckpointError(
                    f"{entry.file}: expected {name} to be one of {', '.join(_FLOATS)}, "
                    f"got {entry.dtype}"
                )

    def slabs(self) -> Iterator[tuple[str, int | None, Tensor]]:
        """Every tensor, a stack of experts `[E, ...]` one expert at a time: (name, expert, data).

        A file is mapped while its tensors are read and unmapped before the next one.
        """
        for file in self.files:
            yield from self._slabs_of(file)

    def _slabs_of(self, file: Path) -> Iterator[tuple[str, int | None, Tensor]]:
        # In a function of its own: a leftover handle would keep this file mapped beside the next.
        with _opened(file) as f:
            for name in sorted(n for n, e in self.entries.items() if e.file == file):
                if len(self.entries[name].shape) == 3:
                    stack = f.get_slice(name)
                    for expert in range(self.entries[name].shape[0]):
                        yield name, expert, self._finite(name, stack[expert])
                else:
                    yield name, None, self._finite(name, f.get_tensor(name))

    def _finite(self, name: str, data: Tensor) -> Tensor:
        # NaN and infinity survive a sum, which needs no memory; a finite sum clears the tensor.
        if not torch.isfinite(data.sum()) and not data.isfinite().all():
            count = int((~data.isfinite()).sum())
            raise CheckpointError(
                f"{self.entries[name].file}: {name} holds {count} values that are NaN or infinite"
            )
        return data

    def _files(self) -> list[Path]:
        index = self.folder / _INDEX
        if not index.exists():
            single = self.folder / _SINGLE
            if single.exists():
                return [self._inside(_SINGLE)]
            raise CheckpointError(
                f"{self.folder}: found neither {_SINGLE} nor {_INDEX}; expected a Hugging Face "
                f"safetensors checkpoint"
            )
        text = self._inside(_INDEX).read_bytes()
        try:
            weight_map = json.loads(text)["weight_map"]
            names = sorted(set(weight_map.values()))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{index}: not a safetensors index ({error!r})") from None
        self._placed = weight_map
        return [self._inside(name) for name in names]

    def _inside(self, name: object) -> Path:
        fits = isinstance(name, str) and 0 < len(name) < 256 and "\0" not in name
        if not fits or Path(name).is_absolute() or ".." in Path(name).parts:
            raise CheckpointError(
                f"{self.folder / _INDEX}: expected a file name inside the checkpoint, "
                f"got {name!r:.80}"
            )
        file = self.folder / name
        target = file.resolve()
        if not any(target.is_relative_to(root) for root in self._roots()):
            raise CheckpointError(
                f"{file}: leads out of the checkpoint folder to {target}; "
                f"copy the file into the folder"
            )
        if not file.is_file():
            raise CheckpointError(f"{file}: the file is missing, or not a regular file")
        return file

    def _roots(self) -> list[Path]:
        """The folder itself; for a snapshot of the Hugging Face cache also its own blobs."""
        folder = self.folder.resolve()
        is_snapshot = folder.parent.name == "snapshots"
        return [folder, folder.parents[1] / "blobs"] if is_snapshot else [folder]

    def _read_header(self, file: Path) -> None:
        with _opened(file) as f:
            for name in f.keys():  # noqa: SIM118 (a safetensors handle is not a mapping)
                if name in self.entries:
                    raise CheckpointError(
                        f"{file}: {name} is also in {self.entries[name].file.name}"
                    )
                if self._placed and self.folder / str(self._placed.get(name)) != file:
                    raise CheckpointError(
                        f"{file}: holds {name}, which {_INDEX} places in {self._placed.get(name)!r}"
                    )
                header = f.get_slice(name)
                self.entries[name] = Entry(file, tuple(header.get_shape()), header.get_dtype())


class _opened:
    """`safe_open` whose errors name the file."""

    def __init__(self, file: Path):
        self.file = file
        try:
            self.handle = safe_open(str(file), framework="pt")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{file}: not a complete safetensors file ({error}); it may be truncated: "
                f"copy or download it again"
            ) from None

    def __enter__(self):
        return self.handle.__enter__()

    def __exit__(self, *exception):
        return self.handle.__exit__(*exception)


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
