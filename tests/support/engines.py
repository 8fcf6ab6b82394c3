"""Engines whose answers are given, so that the logits of their steps can be compared."""

from typing import Any
from unittest import mock

import torch
from torch import Tensor

from l4kernels import Llama4, Sampling
from l4kernels.engine.core import EngineCore
from l4kernels.engine.graphs import as_it_is
from l4kernels.engine.images import PromptImages
from l4kernels.engine.kv_cache import CacheShape, Pages
from l4kernels.engine.sequence import Choice, Sequence
from l4kernels.ops.step import pack_bits


def sequence(
    model: Llama4,
    ids: list[int],
    prompt: int,
    images: PromptImages | None = None,
    **settings: Any,
) -> Sequence:
    """The first tokens are its prompt, the others its answer, whatever its logits say."""

    def next_token(new: list[int]) -> Tensor:
        return pack_bits([ids[prompt + len(new)]], model.config.vocab_size)

    choice = Choice(Sampling(**settings), 0, frozenset(), len(ids) - prompt, token_mask=next_token)
    return Sequence(ids[:prompt], choice, images)


def run(core: EngineCore, sequences: list[Sequence]) -> dict[Sequence, Tensor]:
    """The logits `[new tokens, V]` from which each token of the answers was chosen."""
    core.runner.capture = as_it_is  # of a captured step nobody sees the logits
    seen: dict[Sequence, list[Tensor]] = {s: [] for s in sequences}
    compute, rows = core.model.compute_logits, {}

    def noted(hidden: Tensor) -> Tensor:
        logits = compute(hidden)
        for slot, s in core.scheduler.running.items():
            if s.computed < s.capacity:
                seen[s].append(logits[slot])
        return logits

    for s in sequences:
        core.add(s)
    with mock.patch.object(core.model, "compute_logits", noted):
        while not core.idle:
            for event in core.step():
                assert event.error is None, event
                rows[event.sequence] = event.finish_reason
    assert set(rows.values()) == {"length"}
    return {s: torch.stack(logits) for s, logits in seen.items()}


def logits_of(
    model: Llama4, texts: list[list[int]], prompts: list[int], **options: Any
) -> list[Tensor]:
    """Texts whose first tokens are prompts, in an engine with just the room that they need."""
    sequences = [sequence(model, ids, n) for ids, n in zip(texts, prompts, strict=True)]
    core = engine_for(model, sequences, **options)
    found = run(core, sequences)
    return [found[s] for s in sequences]


def engine_for(model: Llama4, sequences: list[Sequence], **options: Any) -> EngineCore:
    shape = CacheShape.of(model.config, model.kv_dtype)
    needed = [shape.needed(s.capacity) for s in sequences]
    given = {
        "slots": len(sequences),
        "context": max(s.capacity + 1 for s in sequences),
        "pages": Pages(*(sum(counts) for counts in zip(*needed, strict=True))),
        **options,
    }
    return EngineCore(model, **given)
