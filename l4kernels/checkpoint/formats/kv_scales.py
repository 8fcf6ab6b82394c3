"""The scales of an e4m3 KV cache that a checkpoint brings: one number for a layer's keys, and one
for its values."""

import math
import re
from collections.abc import Iterable

from l4kernels.checkpoint.files.reader import Checkpoint, CheckpointError
from l4kernels.checkpoint.files.shares import FLOATS
from l4kernels.inputs.files import shown

_NAME = re.compile(r"(?:^|\.)layers\.(\d+)\.self_attn\.(?:k_proj\.|v_proj\.)?([kv])_scale$")


def kv_scale_names(names: Iterable[str], layers: int) -> dict[str, tuple[int, str]]:
    """Those of the names that are scales of one of so many layers: which one, "k" or "v".

    >>> kv_scale_names(["model.layers.3.self_attn.k_proj.k_scale", "model.norm.weight"], 4)
    {'model.layers.3.self_attn.k_proj.k_scale': (3, 'k')}
    """
    found = ((name, _NAME.search(name)) for name in names)
    places = {name: (int(m[1]), m[2]) for name, m in found if m and len(m[1]) < 10}
    return {name: place for name, place in places.items() if place[0] < layers}


def read_kv_scales(
    checkpoint: Checkpoint, names: dict[str, tuple[int, str]]
) -> dict[int, tuple[float, float]]:
    """By layer, the scales of keys and values: positive and finite, both or neither of a layer."""
    found: dict[int, dict[str, float]] = {}
    for name, (layer, kind) in names.items():
        entry = checkpoint.entries[name]
        if math.prod(entry.shape) != 1 or entry.dtype not in FLOATS:
            raise CheckpointError(
                f"{entry.file}: expected {name} to be one number for all heads, got "
                f"{entry.dtype} {shown(list(entry.shape))}"
            )
        scale = checkpoint.read(name).item()
        if not 0 < scale < math.inf:
            raise CheckpointError(
                f"{entry.file}: expected {name} to be finite and above 0, got {scale}"
            )
        if kind in found.setdefault(layer, {}):
            raise CheckpointError(f"{entry.file}: {name} is the second {kind}_scale of its layer")
        found[layer][kind] = scale
    for name, (layer, kind) in names.items():
        if len(found[layer]) < 2:
            other = "v" if kind == "k" else "k"
            raise CheckpointError(
                f"{checkpoint.entries[name].file}: holds {name}, but no {other}_scale of that layer"
            )
    return {layer: (both["k"], both["v"]) for layer, both in found.items()}
