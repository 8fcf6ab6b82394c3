"""The scales of an e4m3 KV cache that a checkpoint brings: one number for a layer's keys, and one
for its values."""

import math
import re
from collections.abc import Iterable, Mapping

from l4kernels.checkpoint.files.reader import Checkpoint, CheckpointError
from l4kernels.checkpoint.files.shares import FLOATS
from l4kernels.inputs.fields import Fields
from l4kernels.inputs.files import shown

_VISION = "vision_model."
_NAME = re.compile(
    r"(?:^|\.)layers\.(\d+)\.self_attn\.(?:(?:[kv]_proj\.)?([kv])_scale|([kv])_proj\.output_scale)$"
)


def kv_scale_names(names: Iterable[str], layers: int) -> dict[str, tuple[int, str] | None]:
    """Those of the names that are scales of one of so many layers: which one, "k" or "v"; None for
    one of the vision model, which has no cache.

    >>> kv_scale_names(["model.layers.3.self_attn.k_proj.k_scale", "model.norm.weight"], 4)
    {'model.layers.3.self_attn.k_proj.k_scale': (3, 'k')}
    """
    places: dict[str, tuple[int, str] | None] = {}
    for name in names:
        found = _NAME.search(name)
        if found and name.startswith(_VISION):
            places[name] = None
        elif found and len(found[1]) < 10 and int(found[1]) < layers:
            places[name] = int(found[1]), found[2] or found[3]
    return places


def read_kv_scales(
    checkpoint: Checkpoint, names: Mapping[str, tuple[int, str] | None]
) -> dict[int, tuple[float, float]]:
    """By layer, the scales of keys and values: positive and finite, both or neither of a layer."""
    found: dict[int, dict[str, float]] = {}
    places = {name: place for name, place in names.items() if place}
    for name in places:
        entry = checkpoint.entries[name]
        if math.prod(entry.shape) != 1 or entry.dtype not in FLOATS:
            raise CheckpointError(
                f"{entry.file}: expected {name} to be one number for all heads, got "
                f"{entry.dtype} {shown(list(entry.shape))}"
            )
    for name, tensor in checkpoint.read_all(places):
        (layer, kind), scale, entry = places[name], tensor.item(), checkpoint.entries[name]
        if not 0 < scale < math.inf:
            raise CheckpointError(
                f"{entry.file}: expected {name} to be finite and above 0, got {scale}"
            )
        if kind in found.setdefault(layer, {}):
            raise CheckpointError(f"{entry.file}: {name} is the second {kind}_scale of its layer")
        found[layer][kind] = scale
    for name, (layer, kind) in places.items():
        if len(found[layer]) < 2:
            other = "v" if kind == "k" else "k"
            raise CheckpointError(
                f"{checkpoint.entries[name].file}: holds {name}, but no {other}_scale of that layer"
            )
    return {layer: (both["k"], both["v"]) for layer, both in found.items()}


def scales_of_scheme(
    checkpoint: Checkpoint,
    names: Mapping[str, tuple[int, str] | None],
    scheme: Fields | None,
) -> tuple[dict[int, tuple[float, float]], list[str]]:
    """The scales by layer, and what a user should know of them, where the config says how keys and
    values are quantised (compressed-tensors' `kv_cache_scheme`)."""
    if scheme is None:
        return read_kv_scales(checkpoint, names), []
    kind, bits = scheme.data.get("type") or "int", scheme.data.get("num_bits", 8)
    if (kind, bits) != ("float", 8) or not scheme.boolean("symmetric", default=True):
        return {}, ["a KV cache other than e4m3 is not supported: its scales are not used"]
    entries = (checkpoint.entries[name] for name, place in names.items() if place)
    if any(math.prod(entry.shape) != 1 for entry in entries):
        return {}, ["scales of the KV cache by head are not used"]
    found = read_kv_scales(checkpoint, names)
    if not found and not scheme.boolean("dynamic", default=False):
        return {}, ["the config asks for scales of the KV cache, but there are none"]
    return found, []
