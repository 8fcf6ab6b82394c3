"""Runs steps of a model: which tokens each takes, in tensors that exist before it begins."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from l4kernels.engine.kv_cache import KVCache
from l4kernels.engine.sequence import Sequence
from l4kernels.inputs.arguments import whole_number
from l4kernels.layers.attention import AttentionMetadata
from l4kernels.model.llama4 import Llama4Model
from l4kernels.ops.ambient import isolated

MAX_PIECE = 8192
"""Tokens of one step of a prompt, those of all sequences together."""


def prompt_pieces(starts: list[int], ends: list[int], chunk: int) -> Iterator[list[int]]:
    """How many tokens of each sequence go into each step, from its start to its end.

    None crosses a boundary of its chunk (0: there are none), and together they are at most
    MAX_PIECE, or one of each sequence. A chunk is split into pieces of equal length.

    >>> list(prompt_pieces([0, 6], [20, 8], chunk=8))
    [[8, 2], [8, 0], [4, 0]]
    """
    at = list(starts)
    while running := sum(start < end for start, end in zip(at, ends, strict=True)):
        most = max(1, MAX_PIECE // running)
        counts = []
        for start, end in zip(at, ends, strict=True):
            span = min(end, (start // chunk + 1) * chunk) - start if chunk else end - start
            counts.append(-(-span // max(1, -(-span // most))))
        yield counts
        at = [start + count for start, count in zip(at, counts, strict=True)]


@dataclass(frozen=True, eq=False)
class StepTensors:
    """What a step of T tokens of B sequences reads: made before it and filled in place, so that a
    captured step finds the next one's values where it looks for them.

    int64 `[T]`, but for cu_seqlens_q, int32 `[B + 1]`, and seqlens_k, int32 `[B]`. `tables` says
    where the row of a token's sequence begins in a flattened block table; `index`, `offset` and
    `page` (int32) are for the slots on their way.
    """

    cache: KVCache
    ids: Tensor
    positions: Tensor
    tables: Tensor
    index: Tensor
    offset: Tensor
    page: Tensor
    slots: tuple[Tensor, ...]  # as the cache's block tables
    cu_seqlens_q: Tensor
    seqlens_k: Tensor

    @classmethod
    def make(cls, cache: KVCache, num_tokens: int) -> "StepTensors":
        def zeros(size: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(size, dtype=dtype, device=cache.device)

        tokens = [zeros(num_tokens) for _ in range(5)]
        slots = tuple(zeros(num_tokens) for _ in cache.block_tables)
        bounds, lengths = (zeros(len(cache.capacities) + n, torch.int32) for n in (1, 0))
        return cls(cache, *tokens, zeros(num_tokens, torch.int32), slots, bounds, lengths)

    def first(self, num_tokens: int) -> "StepTensors":
        """The same memory for a step of fewer tokens."""
        tokens = self.ids, self.positions, self.tables, self.index, self.offset, self.page
        fewer = [t[:num_tokens] for t in (*tokens, *self.slots)]
        bounds = self.cu_seqlens_q, self.seqlens_k
        return StepTensors(self.cache, *fewer[:6], tuple(fewer[6:]), *bounds)

    def place(self, starts: list[int], counts: list[int]) -> None:
        """`counts[b]` tokens of sequence b, from position `starts[b]` on."""
        device, width = self.ids.device, self.cache.block_tables[0].shape[1]
        ends = [start + count for start, count in zip(starts, counts, strict=True)]
        bounds = [0, *itertools.accumulate(counts)]
        for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
            span = slice(bounds[row], bounds[row + 1])
            torch.arange(start, end, dtype=torch.int64, device=device, out=self.positions[span])
            self.tables[span] = row * width
        self.cu_seqlens_q.copy_(torch.tensor(bounds, dtype=torch.int32, device="cpu"))
        self.seqlens_k.copy_(torch.tensor(ends, dtype=torch.int32, device="cpu"))
        self._find_slots()

    def advance(self) -> None:
        """One token of every sequence, after a step of one token of each."""
        self.positions.add_(1)
        self.seqlens_k.add_(1)
        self._find_slots()

    def _find_slots(self) -> None:
        page_size = self.cache.page_size
        torch.floor_divide(self.positions, page_size, out=self.index).add_(self.tables)
        torch.remainder(self.positions, page_size, out=self.offset)
        for table, slots in zip(self.cache.block_tables, self.slots, strict=True):
            torch.index_select(table.view(-1), 0, self.index, out=self.page)
            torch.add(self.offset, self.page, alpha=page_size, out=slots)

    def metadata(self, max_seqlen_q: int) -> list[AttentionMetadata]:
        """Of each layer."""
        lengths = self.cu_seqlens_q, self.seqlens_k
        kinds = [
            AttentionMetadata(self.positions, slots, *lengths, table, max_seqlen_q)
            for slots, table in zip(self.slots, self.cache.block_tables, strict=True)
        ]
        return [kinds[kind] for kind in self.cache.kinds]


class Runner:
    """Runs sequences of any lengths together, sequence b in row b of a KV cache of its own.

    Args:
        new_tokens: how many tokens of each sequence there is room for after its prompt.
        scratch: for one step over whole prompts, whose keys nobody reads again: see `KVCache`.

    Raises:
        ValueError: by a step, that the cache has no room for it.
    """

    def __init__(
        self,
        model: Llama4Model,
        sequences: list[Sequence],
        new_tokens: int = 0,
        *,
        scratch: bool = False,
    ):
        new_tokens = whole_number("new_tokens", new_tokens, 0)
        capacities = [len(sequence.ids) + new_tokens for sequence in sequences]
        formats: dict[str, Any] = {"dtype": model.kv_dtype, "device": model.device}
        model.rotate_up_to(max(capacities))
        self.model, self.sequences = model, sequences
        self.cache = KVCache(model.config, capacities, **formats, scratch=scratch)
        most = sum(capacities) if scratch else min(sum(capacities), max(len(sequences), MAX_PIECE))
        self._tensors = StepTensors.make(self.cache, most)
        self._decoding: tuple[StepTensors, list[AttentionMetadata]] | None = None

    @isolated
    def prefill(self) -> Tensor:
        """Runs the tokens of all prompts that are not in the cache yet.

        Returns:
            float32 `[B, vocab_size]`: logits after the last token of each.
        """
        starts = [sequence.position for sequence in self.sequences]
        ends = [len(sequence.ids) for sequence in self.sequences]
        counts = [end - start for start, end in zip(starts, ends, strict=True)]
        if min(counts) < 1:
            raise ValueError("expected tokens of every sequence that are not in the KV cache yet")
        self._require_room(starts, counts)
        last = self.model.embedding.new_empty(len(ends), self.model.config.hidden_size)
        for counts in prompt_pieces(starts, ends, self.cache.chunk):
            hidden = self.step(counts)
            for row, bound in enumerate(itertools.accumulate(counts)):
                if counts[row] and self.sequences[row].position == ends[row]:
                    last[row] = hidden[bound - 1]
        return self.model.compute_logits(last)

    @isolated
    def step(self, counts: list[int]) -> Tensor:
        """Runs the next `counts[b]` tokens of each prompt, at most as many together as
        `prompt_pieces` gives; `[sum(counts), hidden_size]`."""
        num_tokens, starts = sum(counts), self._take(counts)
        self._decoding = None
        tensors = self._tensors.first(num_tokens)
        tensors.place(starts, counts)
        parts = [
            (sequence, slice(start, start + count))
            for sequence, start, count in zip(self.sequences, starts, counts, strict=True)
        ]
        if any(sequence.features is not None for sequence in self.sequences):
            x = torch.cat([sequence.embeddings(self.model, span) for sequence, span in parts])
        else:
            x = torch.cat([sequence.ids[span] for sequence, span in parts], out=tensors.ids)
        return self.model(x, tensors.metadata(max(counts)), self.cache.layers)

    @isolated
    def decode(self, ids: Tensor) -> Tensor:
        """Logits `[B, vocab_size]` after one more token of every sequence, `ids` `[B]`."""
        batch = len(self.sequences)
        if ids.shape != (batch,):
            raise ValueError(f"expected ids to be [{batch}], got {list(ids.shape)}")
        one_each = [1] * batch
        starts = self._take(one_each)
        if self._decoding:
            tensors, metadata = self._decoding
            tensors.advance()
        else:
            tensors = self._tensors.first(batch)
            metadata = tensors.metadata(1)
            tensors.place(starts, one_each)
            self._decoding = tensors, metadata
        tensors.ids.copy_(ids)
        return self.model.compute_logits(self.model(tensors.ids, metadata, self.cache.layers))

    def _take(self, counts: list[int]) -> list[int]:
        """Moves the sequences on; the positions where their new tokens begin."""
        starts = [sequence.position for sequence in self.sequences]
        self._require_room(starts, counts)
        for sequence, count in zip(self.sequences, counts, strict=True):
            sequence.position += count
        return starts

    def _require_room(self, starts: list[int], counts: list[int]) -> None:
        for start, count, capacity in zip(starts, counts, self.cache.capacities, strict=True):
            if start + count > capacity:
                raise ValueError(
                    f"expected at most {capacity - start} more tokens in this KV cache "
                    f"(capacity {capacity}, in use {start}), got {count}"
                )
