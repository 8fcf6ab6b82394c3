"""Runs steps of a model: which tokens each takes, in tensors that exist before it begins."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from l4kernels.engine.kv_cache import KVCache
from l4kernels.engine.sequence import Sequence
from l4kernels.inputs.arguments import whole_number
from l4kernels.inputs.files import shown
from l4kernels.layers.attention import AttentionMetadata
from l4kernels.model.llama4 import Llama4Model
from l4kernels.ops.ambient import isolated
from l4kernels.ops.check import describe
from l4kernels.planning.footprint import MAX_PREFILL_TOKENS


def prompt_pieces(starts: list[int], ends: list[int], chunk: int) -> Iterator[list[int]]:
    """How many tokens of each sequence go into each step, from its start to its end.

    None crosses a boundary of its chunk (0: there are none), and together they are at most
    MAX_PREFILL_TOKENS, or one of each sequence. A chunk is split into pieces of equal length.

    >>> list(prompt_pieces([0, 6], [20, 8], chunk=8))
    [[8, 2], [8, 0], [4, 0]]
    """
    at = list(starts)
    while running := sum(start < end for start, end in zip(at, ends, strict=True)):
        most = max(1, MAX_PREFILL_TOKENS // running)
        counts = []
        for start, end in zip(at, ends, strict=True):
            span = min(end, (start // chunk + 1) * chunk) - start if chunk else end - start
            counts.append(-(-span // max(1, -(-span // most))))
        yield counts
        at = [start + count for start, count in zip(at, counts, strict=True)]


@dataclass(frozen=True, eq=False)
class StepTensors:
    """What a step of T tokens of B sequences reads: made before it and filled in place, so that a
    captured step finds the next one's values where it looks for them."""

    cache: KVCache
    ids: Tensor  # int64 [T]
    positions: Tensor  # int64 [T]
    table_rows: Tensor  # int64 [T], where a token's row begins in a flattened block table
    slots: tuple[Tensor, ...]  # int64 [T], by block table of the cache
    cu_seqlens_q: Tensor  # int32 [B + 1]
    seqlens_k: Tensor  # int32 [B]

    @classmethod
    def make(cls, cache: KVCache, num_tokens: int) -> "StepTensors":
        def zeros(size: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(size, dtype=dtype, device=cache.device)

        batch = len(cache.capacities)
        return cls(
            cache,
            ids=zeros(num_tokens),
            positions=zeros(num_tokens),
            table_rows=zeros(num_tokens),
            slots=tuple(zeros(num_tokens) for _ in cache.block_tables),
            cu_seqlens_q=zeros(batch + 1, torch.int32),
            seqlens_k=zeros(batch, torch.int32),
        )

    def first(self, num_tokens: int) -> "StepTensors":
        """The same memory for a step of fewer tokens."""
        return replace(
            self,
            ids=self.ids[:num_tokens],
            positions=self.positions[:num_tokens],
            table_rows=self.table_rows[:num_tokens],
            slots=tuple(slots[:num_tokens] for slots in self.slots),
        )

    def place(self, starts: list[int], counts: list[int]) -> None:
        """`counts[b]` tokens of sequence b, from position `starts[b]` on."""
        device, width = self.ids.device, self.cache.block_tables[0].shape[1]
        ends = [start + count for start, count in zip(starts, counts, strict=True)]
        bounds = [0, *itertools.accumulate(counts)]
        for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
            span = slice(bounds[row], bounds[row + 1])
            torch.arange(start, end, dtype=torch.int64, device=device, out=self.positions[span])
            self.table_rows[span] = row * width
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
        offset, place = self.positions % page_size, self.positions // page_size + self.table_rows
        for table, slots in zip(self.cache.block_tables, self.slots, strict=True):
            page = table.view(-1).index_select(0, place)
            torch.add(offset, page, alpha=page_size, out=slots)

    def metadata(self, max_seqlen_q: int) -> list[AttentionMetadata]:
        """Of each layer."""
        kinds = [
            AttentionMetadata(
                self.positions, slots, self.cu_seqlens_q, self.seqlens_k, table, max_seqlen_q
            )
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
        self.model, self.sequences = model, sequences
        self.cache = KVCache(model.config, capacities, **formats, scratch=scratch)
        model.rotate_up_to(max(capacities))
        most = sum(capacities)
        if not scratch:
            most = min(most, max(len(sequences), MAX_PREFILL_TOKENS))
        self._tensors = StepTensors.make(self.cache, most)
        self._decoding: tuple[StepTensors, list[AttentionMetadata]] | None = None
        self._next_starts: list[int] = []  # where another step of decoding finds `_decoding`

    @isolated
    def prefill(self) -> Tensor:
        """Runs the tokens of all prompts that are not in the cache yet.

        Returns:
            float32 `[B, vocab_size]`: logits after the last token of each.
        """
        starts = [sequence.position for sequence in self.sequences]
        ends = [len(sequence.ids) for sequence in self.sequences]
        self._require_room(starts, ends)
        if any(start >= end for start, end in zip(starts, ends, strict=True)):
            raise ValueError("expected tokens of every sequence that are not in the KV cache yet")
        last = self.model.embedding.new_empty(len(ends), self.model.config.hidden_size)
        for counts in prompt_pieces(starts, ends, self.cache.chunk):
            hidden = self.step(counts)
            for row, bound in enumerate(itertools.accumulate(counts)):
                if counts[row] and self.sequences[row].position == ends[row]:
                    last[row] = hidden[bound - 1]
        return self.model.compute_logits(last)

    @isolated
    def step(self, counts: list[int]) -> Tensor:
        """Runs the next `counts[b]` tokens of each prompt, within the limits of `prompt_pieces`.

        Returns:
            `[sum(counts), hidden_size]`, the last layer's output.
        """
        num_tokens, most = sum(counts), len(self._tensors.ids)
        if not 1 <= num_tokens <= most:
            raise ValueError(f"expected 1 to {most} tokens in one step, got {num_tokens}")
        starts, self._decoding = self._starts(counts), None
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
        hidden: Tensor = self.model(x, tensors.metadata(max(counts)), self.cache.layers)
        self._move_on(counts)
        return hidden

    @isolated
    def decode(self, ids: Tensor) -> Tensor:
        """Logits `[B, vocab_size]` after one more token of every sequence, `ids` `[B]`."""
        batch = len(self.sequences)
        found = (ids.shape, ids.dtype) if isinstance(ids, Tensor) else ()
        if found not in (((batch,), torch.int64), ((batch,), torch.int32)):
            got = describe(ids) if isinstance(ids, Tensor) else shown(ids)
            raise ValueError(f"expected ids to be int64 or int32 [{batch}], got {got}")
        one_each = [1] * batch
        starts = self._starts(one_each)
        if self._decoding and starts == self._next_starts:
            tensors, metadata = self._decoding
            tensors.advance()
        else:
            tensors = self._tensors.first(batch)
            metadata = tensors.metadata(1)
            tensors.place(starts, one_each)
            self._decoding = tensors, metadata
        self._next_starts = [start + 1 for start in starts]
        tensors.ids.copy_(ids)
        hidden = self.model(tensors.ids, metadata, self.cache.layers)
        self._move_on(one_each)
        return self.model.compute_logits(hidden)

    def _starts(self, counts: list[int]) -> list[int]:
        """The positions where the new tokens of each sequence begin, if there is room for them."""
        starts = [sequence.position for sequence in self.sequences]
        ends, chunk = [a + count for a, count in zip(starts, counts, strict=True)], self.cache.chunk
        self._require_room(starts, ends)
        for start, end in zip(starts, ends, strict=True):
            if chunk and end > start and start // chunk != (end - 1) // chunk:
                raise ValueError(
                    f"expected a step inside one chunk of {chunk} tokens, got positions {start} "
                    f"to {end - 1}"
                )
        return starts

    def _move_on(self, counts: list[int]) -> None:
        """After a step: one that failed has left nothing in the cache."""
        for sequence, count in zip(self.sequences, counts, strict=True):
            sequence.position += count

    def _require_room(self, starts: list[int], ends: list[int]) -> None:
        for start, end, capacity in zip(starts, ends, self.cache.capacities, strict=True):
            if end > capacity:
                raise ValueError(
                    f"expected at most {capacity - start} more tokens in this KV cache "
                    f"(capacity {capacity}, in use {start}), got {end - start}"
                )
