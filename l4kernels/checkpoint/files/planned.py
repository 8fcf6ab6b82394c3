"""The shards of a checkpoint that will be written: which tensors each holds, and its header."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

DTYPES = {
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float32: "F32",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int32: "I32",
    torch.int64: "I64",
}
"""What can be written, as safetensors calls it."""


class Planned(NamedTuple):
    """A tensor that will be written."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.bfloat16

    @property
    def size(self) -> int:
        return int(torch.Size(self.shape).numel()) * self.dtype.itemsize


class Shard(NamedTuple):
    """A file and the tensors in it, in their order."""

    file: str
    tensors: Mapping[str, Planned]

    @property
    def size(self) -> int:
        """Of the tensors' data."""
        return sum(planned.size for planned in self.tensors.values())

    def header(self) -> bytes:
        """Everything before the data."""
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        at = 0
        for name, planned in self.tensors.items():
            dtype, end = DTYPES[planned.dtype], at + planned.size
            header[name] = {"dtype": dtype, "shape": planned.shape, "data_offsets": [at, end]}
            at = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text


def shards_of(plan: Mapping[str, Planned], shard_bytes: int) -> list[Shard]:
    """The plan's tensors in their order, in files of at most `shard_bytes`, or of one tensor.

    >>> [shard.file for shard in shards_of({"a": Planned((4,)), "b": Planned((4,))}, 12)]
    ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors']

    Raises:
        ValueError: a type that cannot be written, or a tensor at a place that its type does not
            divide.
    """
    groups: list[dict[str, Planned]] = []
    used = 0
    for name, planned in plan.items():
        if planned.dtype not in DTYPES:
            raise ValueError(f"{name}: {planned.dtype} cannot be written")
        if not groups or used + planned.size > shard_bytes:
            groups.append({})
            used = 0
        if used % planned.dtype.itemsize:
            raise ValueError(f"{name}: expected a place that its type divides; plan it earlier")
        groups[-1][name] = planned
        used += planned.size
    if len(groups) == 1:
        return [Shard("model.safetensors", groups[0])]
    count = len(groups)
    return [
        Shard(f"model-{number:05}-of-{count:05}.safetensors", group)
        for number, group in enumerate(groups, 1)
    ]
