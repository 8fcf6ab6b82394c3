"""Writes a folder from what a reader of another form found."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from l4kernels.checkpoint.files.layout import layout
from l4kernels.checkpoint.files.planned import Planned
from l4kernels.checkpoint.files.reader import CheckpointError
from l4kernels.checkpoint.files.writer import SHARD_BYTES, CheckpointWriter
from l4kernels.checkpoint.progress import Progress
from l4kernels.inputs.fields import ConfigError
from l4kernels.model.config import Llama4Config

Parts = Callable[[], Iterable[Tensor]]
"""Makes a tensor's parts along its first dimension, one after the other."""


@dataclass
class Source:
    """A checkpoint in another form, opened and checked.

    Attributes:
        place: the file or folder, for messages.
        kind: what it is, for people.
        config: the content of `config.json`.
        tensors: what makes each tensor of the layout.
        texts: the other files by their names.
        notes: what a user should know, a line each.
    """

    place: Path
    kind: str
    config: dict[str, Any]
    tensors: Mapping[str, Parts]
    texts: dict[str, str]
    notes: list[str] = field(default_factory=list)


def checked_config(data: Mapping[str, Any], place: Path) -> Llama4Config:
    """The config that will be written, as it will be read.

    Raises:
        CheckpointError: it is none of a Llama 4.
    """
    try:
        return Llama4Config.from_dict(data)
    except ConfigError as error:
        raise CheckpointError(f"{place}: {error}") from None


def write(
    source: Source, out: Path, progress: Progress | None, shard_bytes: int = SHARD_BYTES
) -> None:
    """Writes the folder `out` in bfloat16: whole, or nothing.

    Raises:
        CheckpointError: the folder cannot be written, or a weight is not finite.
    """
    slots = layout(checked_config(source.config, source.place))
    plan = {name: Planned(slot.shape) for name, slot in slots.items()}
    with CheckpointWriter(out, plan, shard_bytes=shard_bytes, progress=progress) as writer:
        for name in plan:
            writer.write(name, _finite(source.place, name, source.tensors[name]()))
        for file, text in {"config.json": to_json(source.config), **source.texts}.items():
            writer.add(file, text)
        writer.finish()


def to_json(content: Mapping[str, Any]) -> str:
    """As the text of a file."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _finite(place: Path, name: str, parts: Iterable[Tensor]) -> Iterator[Tensor]:
    for part in parts:
        data = part.to(torch.bfloat16)
        if data.numel() and not torch.stack(data.aminmax()).isfinite().all():
            raise CheckpointError(
                f"{place}: {name} holds values that are NaN, infinite or too large for bfloat16"
            )
        yield data
