"""Writes a checkpoint folder: shards of safetensors with an index, and the texts beside them.

What is being written is a folder beside the wanted one, `OUT.partial`, which is renamed when all of
it is there: a run that ends early leaves nothing that looks like a checkpoint. No more than one
part of one tensor is in memory.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from l4kernels.checkpoint.files.planned import Planned, Shard, shards_of
from l4kernels.checkpoint.files.reader import CheckpointError
from l4kernels.inputs.files import read_object, shown

SHARD_BYTES = 5_000_000_000
_JOURNAL = "partial.json"
_UNFINISHED = ".unfinished"


class CheckpointWriter:
    """Writes the tensors of a plan, in its order, into a new folder.

    A context: leaving it after `finish` leaves the folder, leaving it in any other way nothing but,
    with an `identity`, the finished shards in `OUT.partial`. A later run with the same identity and
    plan takes those over: `has(name)` says which tensors need not be written again.

    >>> import tempfile
    >>> out = Path(tempfile.mkdtemp()) / "model"
    >>> with CheckpointWriter(out, {"head": Planned((2, 3))}) as writer:
    ...     writer.write("head", torch.ones(2, 3, dtype=torch.bfloat16))
    ...     writer.add("config.json", "{}")
    ...     writer.finish()
    >>> sorted(file.name for file in out.iterdir())
    ['config.json', 'model.safetensors']

    Args:
        out: the folder; it may exist if it is empty.
        plan: every tensor by name, in the order in which they will be written.
        shard_bytes: a shard has no more, or one tensor.
        identity: of source and options, for runs that may go on where an earlier one ended.
        progress: called after each part with the bytes written so far and all bytes.

    Raises:
        CheckpointError: the folder is not empty, cannot be made, or does not fit on the disk.
    """

    def __init__(
        self,
        out: str | Path,
        plan: Mapping[str, Planned],
        *,
        shard_bytes: int = SHARD_BYTES,
        identity: str = "",
        progress: Callable[[int, int], None] | None = None,
    ):
        self.out = Path(os.path.realpath(out))
        self.folder = self.out.with_name(self.out.name + ".partial")
        self.total = sum(planned.size for planned in plan.values())
        self._identity, self._progress = identity, progress
        self._shards = shards_of(plan, shard_bytes)
        self._order = list(plan)
        self._shard_of = {name: shard for shard in self._shards for name in shard.tensors}
        self._texts: dict[str, str | bytes | Path] = {}
        self._finished: dict[str, str] = {}
        self._next = self._done = 0
        self._stream: BinaryIO | None = None
        self._digest = hashlib.sha256()
        check_free(self.out)
        self._lock = self._begin()

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._stream:
            self._stream.close()
        # Before the lock is given up: another run may wait for this folder.
        if self.folder.is_dir():
            for file in self.folder.glob(f"*{_UNFINISHED}"):
                file.unlink()
            if not (self._identity and self._finished):
                shutil.rmtree(self.folder)
        os.close(self._lock)

    def has(self, name: str) -> bool:
        """Whether the tensor is in a finished shard, by this run or an earlier one."""
        return self._shard_of[name].file in self._finished

    def write(self, name: str, data: Tensor | Iterable[Tensor]) -> None:
        """Writes the plan's next tensor that is not there yet: as a whole, or its parts along the
        first dimension, which may be made one after the other."""
        planned = self._expect(name)
        shard = self._shard_of[name]
        with self._errors():
            if self._stream is None:
                self._stream = open(self._unfinished(shard), "wb")  # noqa: SIM115 (`__exit__`)
                self._digest = hashlib.sha256()
                self._put(memoryview(shard.header()))
        written = 0
        for part in (data,) if isinstance(data, Tensor) else data:
            if part.dtype != planned.dtype:
                raise ValueError(f"{name}: expected {planned.dtype}, got {part.dtype}")
            # Bytes, because numpy has no bfloat16.
            content = part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
            written += content.nbytes
            if written > planned.size:
                break
            with self._errors():
                self._put(content)
            self._done += content.nbytes
            if self._progress:
                self._progress(self._done, self.total)
        if written != planned.size:
            raise ValueError(f"{name}: expected {planned.size} bytes, got {written} or more")
        self._next += 1
        if self._next == len(self._order) or self._shard_of[self._order[self._next]] is not shard:
            self._close(shard)

    def add(self, file: str, content: str | bytes | Path) -> None:
        """A file beside the weights, or in a folder there: its content, or a file to copy."""
        self._texts[file] = content

    def finish(self) -> None:
        """Writes index and texts and gives the folder its name."""
        self._skip()
        if self._next < len(self._order):
            raise ValueError(f"{self._order[self._next]} and maybe others have not been written")
        if len(self._shards) > 1:
            placed = {name: shard.file for name, shard in self._shard_of.items()}
            index = {"metadata": {"total_size": self.total}, "weight_map": placed}
            self.add("model.safetensors.index.json", json.dumps(index, indent=2) + "\n")
        with self._errors():
            for file, content in self._texts.items():
                (self.folder / file).parent.mkdir(exist_ok=True)
                if isinstance(content, Path):
                    shutil.copyfile(content, self.folder / file)
                else:
                    data = content.encode() if isinstance(content, str) else content
                    (self.folder / file).write_bytes(data)
                _sync(self.folder / file)
            _sync(self.folder)
            # Next to each other: without its journal no later run would go on with the folder.
            (self.folder / _JOURNAL).unlink()
            os.rename(self.folder, self.out)
            _sync(self.out)
            _sync(self.out.parent)

    def _begin(self) -> int:
        """The folder, locked, with what can be kept of an earlier run."""
        with self._errors():
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            self.folder.mkdir(exist_ok=True)
            lock = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise CheckpointError(
                f"{self.folder}: another run is writing here; wait for it, or end it"
            ) from None
        try:
            self._check_held(lock)
            with self._errors():
                self._take_over()
                free = shutil.disk_usage(self.folder).free
            if self.total - self._done > free:
                raise CheckpointError(
                    f"{self.out}: expected {(self.total - self._done) / 1e6:,.1f} MB of free disk "
                    f"space, got {free / 1e6:,.1f} MB"
                )
        except BaseException:
            if not self._finished and (self.folder / _JOURNAL).exists():
                shutil.rmtree(self.folder)
            os.close(lock)
            raise
        return lock

    def _check_held(self, lock: int) -> None:
        """Refuses a folder that another run finished, or took away, before this one held it."""
        check_free(self.out)
        if not (self.folder.is_dir() and os.path.samestat(os.fstat(lock), self.folder.stat())):
            raise CheckpointError(
                f"{self.folder}: another run ended here at this moment; run the same command again"
            )

    def _take_over(self) -> None:
        journal, files = self.folder / _JOURNAL, list(self.folder.iterdir())
        # A run may have been killed while it wrote its first journal.
        if journal not in files and any(f.name != f"{_JOURNAL}{_UNFINISHED}" for f in files):
            raise CheckpointError(
                f"{self.folder}: expected what an earlier run left, got a folder with other files; "
                f"move it away, or write to another folder"
            )
        notes = read_object(journal, CheckpointError) if journal in files else {}
        kept = notes.get("finished")
        same = self._identity and notes.get("run") == self._run()
        if same and isinstance(kept, dict):
            for shard in self._shards:
                file = self.folder / shard.file
                if file in files and kept.get(shard.file) == _digest(file):
                    self._finished[shard.file] = kept[shard.file]
        for file in files:
            if file.is_dir() and not file.is_symlink():
                shutil.rmtree(file)  # of texts: an earlier run all but finished
            elif file.name not in self._finished and file != journal:
                file.unlink()
        self._note()
        self._done = sum(s.size for s in self._shards if s.file in self._finished)

    def _run(self) -> str:
        """A digest of what is written, and of what it is made from."""
        headers = [(shard.file, shard.header().decode("latin-1")) for shard in self._shards]
        return hashlib.sha256(json.dumps([self._identity, headers]).encode()).hexdigest()

    def _note(self) -> None:
        """Which shards are whole; the file is replaced as a whole itself."""
        new = self.folder / f"{_JOURNAL}{_UNFINISHED}"
        new.write_text(json.dumps({"run": self._run(), "finished": self._finished}))
        os.replace(new, self.folder / _JOURNAL)

    def _skip(self) -> None:
        while self._next < len(self._order) and self.has(self._order[self._next]):
            self._next += 1

    def _expect(self, name: str) -> Planned:
        self._skip()
        wanted = self._order[self._next] if self._next < len(self._order) else "no more"
        if name != wanted:
            raise ValueError(f"expected the plan's next tensor, {wanted}, got {shown(name)}")
        return self._shard_of[name].tensors[name]

    def _put(self, data: memoryview) -> None:
        assert self._stream
        self._stream.write(data)
        if self._identity:  # nobody asks for it otherwise
            self._digest.update(data)

    def _close(self, shard: Shard) -> None:
        assert self._stream
        with self._errors():
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._stream.close()
            os.replace(self._unfinished(shard), self.folder / shard.file)
            self._finished[shard.file] = self._digest.hexdigest()
            self._note()
        self._stream = None

    def _unfinished(self, shard: Shard) -> Path:
        return self.folder / f"{shard.file}{_UNFINISHED}"

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CheckpointError(
                f"{self.out}: cannot be written ({error.strerror or error})"
            ) from None


def check_free(out: str | Path) -> None:
    """Refuses a place where no new folder can be: before work is done for it.

    Raises:
        CheckpointError: there is a file, or a folder that is not empty, or another disk.
    """
    out = Path(os.path.realpath(out))
    if os.path.ismount(out):
        raise CheckpointError(
            f"{out}: expected a folder that is no disk of its own; name one in it"
        )
    if out.is_dir():
        if any(out.iterdir()):
            raise CheckpointError(f"{out}: expected a new or an empty folder, got one with files")
    elif os.path.lexists(out):
        raise CheckpointError(f"{out}: expected a new or an empty folder, got a file")


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while data := stream.read(1 << 22):
            digest.update(data)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
