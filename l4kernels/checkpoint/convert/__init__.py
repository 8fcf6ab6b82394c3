"""Other forms of checkpoints, written anew as folders that can be loaded."""

from collections.abc import Callable
from pathlib import Path

from l4kernels.checkpoint.convert.gguf import gguf_file, open_gguf
from l4kernels.checkpoint.convert.meta import is_native, open_native
from l4kernels.checkpoint.convert.writing import Source, write
from l4kernels.checkpoint.files.reader import CheckpointError
from l4kernels.checkpoint.files.writer import SHARD_BYTES, check_free

__all__ = ["Source", "convert", "open_source"]


def open_source(source: str | Path) -> Source:
    """A checkpoint in another form, checked; no weight is read yet.

    Args:
        source: a folder in Meta's native form, a GGUF file, or a folder with one.

    Raises:
        CheckpointError: it is neither, or does not hold a Llama 4 that can be written.
        MissingExtra: the library that its kind needs is not installed.
    """
    path = Path(source)
    if path.is_dir() and is_native(path):
        return open_native(path)
    file = gguf_file(path)
    if file is not None:
        return open_gguf(file)
    if not path.exists():
        raise CheckpointError(f"{path}: not found")
    raise CheckpointError(
        f"{path}: expected a folder with consolidated.00.pth and params.json (Meta's native form), "
        f"or a GGUF file"
    )


def convert(
    source: str | Path,
    out: str | Path,
    progress: Callable[[int, int], None] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Source:
    """Writes a checkpoint in another form as a Hugging Face folder in bfloat16.

    Args:
        source: as of `open_source`.
        out: the folder to write, new or empty. It is there when all of it is, or not at all.
        progress: called with the bytes written so far and all bytes.
        shard_bytes: of a file at most.

    Returns:
        What was read.

    Raises:
        CheckpointError: source or place cannot be used; nothing is left then.
    """
    check_free(out)
    opened = open_source(source)
    write(opened, Path(out), progress, shard_bytes)
    return opened
