"""The tensors of a native checkpoint, of which each rank's file has a slice."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from l4kernels.checkpoint.convert.objects import stored_tensors
from l4kernels.checkpoint.files.reader import CheckpointError
from l4kernels.inputs.files import shown

_FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
_UNUSED = re.compile(
    r"rope\.freqs|freq_cis|.*_extra_state|.*(global|running)_gate_stats_3E|.*expert_activation_DE"
)


class Part(NamedTuple):
    """What a tensor is made of: a stored tensor of each rank, or rows of it, side by side."""

    name: str
    dim: int | None
    """Along which ranks share it; None: each has the same."""
    shape: tuple[int, ...]
    """Of one rank."""
    rows: slice = slice(None)


class Ranks:
    """The tensors of all ranks."""

    def __init__(self, folder: Path, files: list[Path]):
        self.folder, self.count, self._files = folder, len(files), files
        self._found = [
            {n: tensor for n, tensor in stored_tensors(file).items() if not _UNUSED.fullmatch(n)}
            for file in files
        ]
        self._used: set[str] = set()
        self._mapped: dict[Path, Tensor] = {}

    def fail(self, name: str, rank: int, why: str) -> NoReturn:
        raise CheckpointError(f"{self._files[rank]}: {why.format(name=name)}")

    def first(self, *names: str) -> str:
        """The first of these names that is there; the last if none is."""
        return next((name for name in names if name in self._found[0]), names[-1])

    def expect(self, part: Part) -> Part:
        """Checks what the headers say of it."""
        for rank, tensors in enumerate(self._found):
            stored = tensors.get(part.name)
            if stored is None:
                self.fail(part.name, rank, "{name} is missing, which params.json asks for")
            if stored.shape != part.shape:
                wanted, got = list(part.shape), shown(list(stored.shape))
                ranks = f" on each of {self.count} ranks" if self.count > 1 else ""
                self.fail(part.name, rank, f"expected {{name}} to be {wanted}{ranks}, got {got}")
            if stored.dtype not in _FLOATS:
                kind = str(stored.dtype).removeprefix("torch.")
                self.fail(part.name, rank, f"expected {{name}} to be of a float type, got {kind}")
        self._used.add(part.name)
        return part

    def check_all_used(self) -> None:
        for rank, tensors in enumerate(self._found):
            extra = [name for name in tensors if name not in self._used]
            if extra:
                names = shown(", ".join(extra[:3]), 200)
                self.fail("", rank, f"{len(extra)} tensors are unexpected: {names}")

    def read(self, part: Part, view: Callable[[Tensor], Tensor] = lambda t: t) -> Tensor:
        """The whole tensor; `view` is applied to each rank's."""
        data = [view(self._tensor(rank, part.name)[part.rows]) for rank in range(self.count)]
        if part.dim is not None:
            return data[0] if self.count == 1 else torch.cat(data, part.dim)
        for rank, other in enumerate(data[1:], 1):
            if not torch.equal(data[0], other):
                self.fail(part.name, rank, "expected {name} to be the same on all ranks")
        return data[0]

    def _tensor(self, rank: int, name: str) -> Tensor:
        stored = self._found[rank][name]
        if stored.file not in self._mapped:
            size = stored.file.stat().st_size
            self._mapped[stored.file] = torch.from_file(
                str(stored.file), shared=False, size=size, dtype=torch.uint8
            )
        return stored.read(self._mapped[stored.file])
