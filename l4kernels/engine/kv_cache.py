"""Paged KV cache that knows chunks.

A chunked layer never looks back beyond its chunk, so it keeps a ring of pages that
holds one chunk; its block table repeats the ring, and neither `rope_cache` nor attention knows.
That is right as long as no step crosses a chunk boundary: `pieces` cuts a prompt there. Global
layers keep every token.

Page size: 64, or the largest power of two from 16 that divides the chunk, so that the ring is
exactly one chunk. Only a chunk that 16 does not divide (tests; no published model) leaves its first
page shared with the chunk before, and the ring takes one page more.
"""

import functools
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from l4kernels import ops
from l4kernels.inputs.arguments import whole_number
from l4kernels.layers.attention import LayerCache, Tokens
from l4kernels.model.config import Llama4Config

FP8 = torch.float8_e4m3fn
MAX_PIECE = 8192
"""Tokens of one step of a prompt, those of all sequences together."""


def page_size_for(chunk: int) -> int:
    return next((size for size in (64, 32) if chunk % size == 0), 16)


def ring_pages(chunk: int, page_size: int) -> int:
    """Pages that hold one chunk wherever it starts."""
    return -(-chunk // page_size) + (chunk % page_size != 0)


class KVCache:
    """Keys and values of `batch` sequences of up to `capacity` tokens each.

    Args:
        dtype: the model's dtype, or float8_e4m3fn.
        scratch: for a forward whose keys nobody reads again: all layers share one layer's pages,
            and a prompt goes through in one piece.
    """

    def __init__(
        self,
        config: Llama4Config,
        batch: int,
        capacity: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
        scratch: bool = False,
    ):
        self.batch = batch = whole_number("batch", batch, 1)
        self.capacity = capacity = whole_number("capacity", capacity, 1)
        self.length = 0
        self.device, self.scratch = device, scratch
        self.chunk = 0 if scratch else config.attention_chunk_size
        self.page_size = page_size_for(self.chunk)
        self._config = config
        self._cos_sin = rope_table(config, capacity, device)
        pages = -(-capacity // self.page_size)
        self._table = self._block_table(pages, pages)
        ring = min(pages, ring_pages(self.chunk, self.page_size)) if self.chunk else pages
        self._ring_table = self._block_table(pages, ring)
        shape = (self.page_size, config.num_key_value_heads, config.head_dim)
        num_layers = 1 if scratch else config.num_hidden_layers
        self._layers = []
        for layer in range(num_layers):
            num_pages = batch * (ring if config.chunk(layer) else pages)
            k, v = (torch.empty(num_pages, *shape, dtype=dtype, device=device) for _ in "kv")
            self._layers.append((k, v))
        heads = config.num_key_value_heads
        one = torch.ones(heads, dtype=torch.float32, device=device) if dtype == FP8 else None
        self._scale = one

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for pair in self._layers for t in pair)

    def pieces(self, num_tokens: int) -> Iterator[int]:
        """Lengths of the steps that `num_tokens` more tokens take: none crosses a chunk, and all
        sequences together have at most MAX_PIECE tokens in flight."""
        self._require_room(num_tokens)
        at, end = self.length, self.length + num_tokens
        while at < end:
            span = min(end, (at // self.chunk + 1) * self.chunk) - at if self.chunk else end - at
            most = span if self.scratch else max(1, MAX_PIECE // self.batch)
            step = -(-span // -(-span // most))  # as many as needed, of equal length
            yield step
            at += step

    def step(self, num_tokens: int) -> tuple[Tokens, list[LayerCache]]:
        """Makes room for the next `num_tokens` tokens of every sequence."""
        self._require_room(num_tokens)
        start, self.length = self.length, self.length + num_tokens
        span = torch.arange(start, self.length, device=self.device)
        int32: dict[str, Any] = {"dtype": torch.int32, "device": self.device}
        tokens = Tokens(
            batch=self.batch,
            positions=span.repeat(self.batch),
            cu_seqlens_q=torch.arange(self.batch + 1, **int32) * num_tokens,
            seqlens_k=torch.full((self.batch,), self.length, **int32),
            cos_sin=self._cos_sin,
        )
        full = self._slots(self._table, span), self._table
        ring = self._slots(self._ring_table, span), self._ring_table
        layers = []
        for layer in range(self._config.num_hidden_layers):
            k, v = self._layers[0 if self.scratch else layer]
            slots, table = ring if self._config.chunk(layer) else full
            layers.append(LayerCache(k, v, slots, table, self._scale, self._scale))
        return tokens, layers

    def _require_room(self, num_tokens: int) -> None:
        if self.length + num_tokens > self.capacity:
            raise ValueError(
                f"expected at most {self.capacity - self.length} more tokens in this KV cache "
                f"(capacity {self.capacity}, in use {self.length}), got {num_tokens}"
            )

    def _block_table(self, pages: int, ring: int) -> Tensor:
        first = torch.arange(self.batch, device=self.device)[:, None] * ring
        logical = torch.arange(pages, device=self.device)
        return (first + logical % ring).to(torch.int32)

    def _slots(self, table: Tensor, span: Tensor) -> Tensor:
        page = table[:, span // self.page_size].long()
        return (page * self.page_size + span % self.page_size).flatten()


@functools.lru_cache(maxsize=8)
def _rope_table(config: Llama4Config, rows: int, device: torch.device) -> Tensor:
    """Made once for all generations: 8,192 rows take tens of milliseconds of a CPU."""
    scaling = None
    if config.rope_scaling:
        scaling = {"rope_type": "llama3", **asdict(config.rope_scaling)}
    table = ops.rope_table(rows, theta=config.rope_theta, scaling=scaling, head_dim=config.head_dim)
    return table.to(device)


def rope_table(config: Llama4Config, capacity: int, device: torch.device) -> Tensor:
    """cos and sin of positions inside a chunk: exact however long the context is.

    Layers that rotate without chunks (no published Llama 4) need a row per position.
    """
    unchunked = any(
        rope and not chunked
        for rope, chunked in zip(config.rope_layers, config.chunked_layers, strict=True)
    )
    rows = max(capacity, 8192)  # one table for most generations
    if config.attention_chunk_size and not unchunked:
        rows = min(rows, config.attention_chunk_size)
    return _rope_table(config, rows, device)
