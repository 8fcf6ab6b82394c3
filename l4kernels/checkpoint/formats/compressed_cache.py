"""Scales of an e4m3 KV cache in checkpoints of the compressed-tensors library."""

import math
import re
from collections.abc import Mapping

from l4kernels.checkpoint.files.reader import Checkpoint, CheckpointError, Entry
from l4kernels.checkpoint.files.shares import Piece
from l4kernels.checkpoint.formats.unquantised import KvScales
from l4kernels.inputs.fields import Fields

_PROJECTION = re.compile(r"(.*\.layers\.(\d+)\.self_attn\.)([kv])_proj\.weight")
_NAMES = ("{}_scale", "{}_proj.output_scale")
"""Of attention, as the library has it; of a projection's outputs, as it had it once."""


def cache_pieces(name: str, entries: Mapping[str, Entry]) -> dict[str, Piece]:
    """The scale of keys or values as a piece of k_proj's or v_proj's weight, if there are any.

    Where only the other one of the two is there, the check of pieces says what is missing.
    """
    found = _PROJECTION.fullmatch(name)
    if found is None:
        return {}
    attention, _, own = found.groups()
    for form in _NAMES:
        there = [n for kind in "kv" if (n := attention + form.format(kind)) in entries]
        if there:
            shape = entries[there[0]].shape
            if math.prod(shape) != 1:
                return {}  # one for each head: not used
            return {attention + form.format(own): Piece(shape, "-" * len(shape))}
    return {}


def cache_scales(
    checkpoint: Checkpoint, pieces: Mapping[str, Mapping[str, Piece]], scheme: Fields | None
) -> tuple[KvScales, list[str]]:
    """The scales of keys and values by layer, and what a user should know of them.

    Args:
        checkpoint: after its check.
        pieces: of all weights, those of `cache_pieces` among them.
        scheme: how the config says that keys and values are quantised.
    """
    if scheme is not None:
        kind, bits = scheme.data.get("type") or "int", scheme.data.get("num_bits", 8)
        if (kind, bits) != ("float", 8) or not scheme.boolean("symmetric", default=True):
            return {}, ["a KV cache other than e4m3 is not supported: its scales are not used"]
    scales: dict[int, tuple[float, float]] = {}
    for name, own in pieces.items():
        found = _PROJECTION.fullmatch(name)
        if found is None or found[3] == "v":
            continue
        parts = [list(own)[-1], list(pieces[f"{found[1]}v_proj.weight"])[-1]]
        if parts[0].endswith(tuple(form.format("k") for form in _NAMES)):
            scales[int(found[2])] = _number(checkpoint, parts[0]), _number(checkpoint, parts[1])
    if scheme is not None and not scales and not scheme.boolean("dynamic", default=False):
        return {}, ["the config asks for scales of the KV cache, but there is not one per layer"]
    return scales, []


def _number(checkpoint: Checkpoint, name: str) -> float:
    value = float(checkpoint.read(name))
    if not 0 < value < math.inf:
        raise CheckpointError(
            f"{checkpoint.entries[name].file}: expected {name} to be positive and finite, "
            f"got {value}"
        )
    return value
