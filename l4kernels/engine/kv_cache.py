"""Paged KV cache that knows chunks.

A chunked layer never looks back beyond its chunk, so it keeps a ring of pages that
holds one chunk; its block table repeats the ring, and neither `rope_cache` nor attention knows.
That is right as long as no step crosses a chunk boundary: the runner splits a prompt there. Global
layers keep every token.

Page size: 64, or the largest power of two from 16 that divides the chunk, so that the ring is
exactly one chunk. Only a chunk that 16 does not divide (tests; no published model) leaves its first
page shared with the chunk before, and the ring takes one page more.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from l4kernels.inputs.arguments import whole_number
from l4kernels.layers.attention import LayerCache
from l4kernels.model.config import Llama4Config
from l4kernels.ops.check import FP8


def page_size_for(chunk: int) -> int:
    return next((size for size in (64, 32) if chunk % size == 0), 16)


def ring_pages(chunk: int, page_size: int) -> int:
    """Pages that hold one chunk wherever it starts."""
    return -(-chunk // page_size) + (chunk % page_size != 0)


class KVCache:
    """Keys and values of several sequences, each of its own capacity.

    Args:
        capacities: tokens that each sequence has room for.
        dtype: the model's dtype, or float8_e4m3fn.
        scratch: for a forward whose keys nobody reads again: all layers share one layer's pages,
            and a prompt goes through in one step, whatever chunks it crosses.

    Attributes:
        layers: pages of each layer.
        block_tables: int32 `[B, logical pages]`, of the global layers and of the chunked ones; -1
            where a shorter sequence has no page.
        kinds: by layer, which of the two block tables is its own.
        chunk: what no step may cross; 0: nothing.
    """

    def __init__(
        self,
        config: Llama4Config,
        capacities: Iterable[int],
        *,
        dtype: torch.dtype,
        device: torch.device,
        scratch: bool = False,
    ):
        self.capacities = [whole_number("every capacity", c, 1) for c in capacities]
        if not self.capacities:
            raise ValueError("expected the capacity of at least one sequence, got none")
        self.device = device
        self.chunk = 0 if scratch else config.attention_chunk_size
        self.page_size = page_size_for(self.chunk)
        pages = [-(-capacity // self.page_size) for capacity in self.capacities]
        most = ring_pages(self.chunk, self.page_size) if self.chunk else max(pages)
        owned = pages, [min(count, most) for count in pages]
        self.block_tables = [_block_table(pages, own).to(device) for own in owned]
        self.kinds = [int(config.chunk(layer) > 0) for layer in range(config.num_hidden_layers)]
        heads, head_dim = config.num_key_value_heads, config.head_dim
        one = torch.ones(heads, dtype=torch.float32, device=device) if dtype == FP8 else None
        self.layers: list[LayerCache] = []
        for kind in self.kinds[:1] if scratch else self.kinds:
            shape = sum(owned[kind]), self.page_size, heads, head_dim
            k, v = (torch.empty(shape, dtype=dtype, device=device) for _ in "kv")
            self.layers.append(LayerCache(k, v, one, one))
        self.bytes = sum(t.numel() * t.element_size() for c in self.layers for t in (c.k, c.v))
        if scratch:
            self.layers *= len(self.kinds)


def _block_table(pages: list[int], owned: list[int]) -> Tensor:
    """`pages` logical pages for each sequence, on as many consecutive ones as it owns."""
    count, own = (torch.tensor(x, dtype=torch.int32, device="cpu")[:, None] for x in (pages, owned))
    first = own.cumsum(0, dtype=torch.int32) - own
    logical = torch.arange(max(pages), dtype=torch.int32, device="cpu")
    return torch.where(logical < count, first + logical % own, -1)
