"""Which format of weights each block of a model has, by what its checkpoint holds."""

import math
from collections import Counter
from dataclasses import dataclass, replace

from l4kernels.checkpoint.formats.unquantised import Unquantised
from l4kernels.layers.options import ModelOptions
from l4kernels.layers.weights import WeightFormat


@dataclass(frozen=True)
class Change:
    """Weights that a model does not hold as they are stored."""

    kind: str
    """Of the block: attention, feed_forward, lm_head."""
    stored: str
    held: str
    count: int


def stored_formats(source: Unquantised) -> dict[str, WeightFormat]:
    """The format of each block of the model, as `ModelOptions.blocks` names them.

    A block multiplies in one format: where its weights are stored in several, it is that of most
    of them.
    """
    weights: dict[str, Counter[WeightFormat]] = {}
    for name, slot in source.slots.items():
        if slot.block:
            counts = weights.setdefault(slot.block, Counter())
            counts[source.held(name)] += math.prod(slot.shape)
    return {block: max(counts, key=lambda form: counts[form]) for block, counts in weights.items()}


def as_stored(options: ModelOptions, source: Unquantised, *, asked: bool) -> ModelOptions:
    """Options for a model of this checkpoint: without a format that was asked for, all blocks are
    as they are stored; with one, those that are stored in codes of its kind (int4 in groups of 32,
    where int4 was asked for) keep them."""
    blocks = stored_formats(source)
    if asked:
        blocks = {n: f for n, f in blocks.items() if options.block(n).format.linear == f.linear}
    return replace(options, blocks=blocks)


def changes(options: ModelOptions, source: Unquantised) -> list[Change]:
    """What of a quantised checkpoint a model with these options holds in another way."""
    found: Counter[tuple[str, str, str]] = Counter()
    for name, slot in source.slots.items():
        if slot.block:
            stored, held = source.held(name), options.block(slot.block).format
            if not held.holds(stored):
                found[slot.block.rpartition(".")[2], stored.name, held.name] += 1
    return [Change(*kind, count) for kind, count in found.items()]


def said(options: ModelOptions, source: Unquantised) -> list[str]:
    """What a user should hear, a line each: what is not multiplied by as it is stored, unless a
    format was asked for that says so."""
    if source.quantization is None:
        return []
    lines = [
        f"{change.count} weights of {change.kind} are stored as {change.stored} and held as "
        f"{change.held}"
        for change in changes(options, source)
    ]
    return [*source.notes, *lines]
