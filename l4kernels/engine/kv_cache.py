"""Paged KV cache that knows chunks: pages for global layers, and others for chunked layers.

A sequence's block tables name a page for each of its logical pages. A chunked layer never looks
back beyond its chunk, so a sequence gives the pages of earlier chunks back; a table's entries there
are never read, and neither `rope_cache` nor attention knows. That is right as long as no step
crosses a chunk boundary: the scheduler splits prompts there.

Page size: 64, or the largest power of two from 16 that divides the chunk. Of a chunk that 16 does
not divide (tests; no published model) a page may hold the end of one and the start of the next.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import torch

from l4kernels.engine.pages import NO_PAGE, PagePool
from l4kernels.engine.sequence import Sequence
from l4kernels.layers.attention import LayerCache
from l4kernels.model.config import Llama4Config
from l4kernels.ops.check import FP8

GLOBAL, CHUNKED = 0, 1
KvScales = Mapping[int, tuple[float, float]]
"""By layer: of keys and of values; 1 where nothing is said."""


def page_size_for(chunk: int) -> int:
    return next((size for size in (64, 32) if chunk % size == 0), 16)


def chunk_pages(chunk: int, page_size: int) -> int:
    """Pages that hold one chunk wherever it starts."""
    return -(-chunk // page_size) + (chunk % page_size != 0)


class Pages(NamedTuple):
    """How many of each kind."""

    of_global: int
    of_chunked: int


@dataclass(frozen=True)
class CacheShape:
    """What pages a model's layers need."""

    chunk: int
    page_size: int
    kinds: tuple[int, ...]
    """By layer: GLOBAL or CHUNKED."""
    page_bytes: Pages
    """Of a page in all layers of its kind."""

    @classmethod
    def of(cls, config: Llama4Config, dtype: torch.dtype) -> "CacheShape":
        chunk = config.attention_chunk_size
        page_size = page_size_for(chunk)
        kinds = tuple(int(config.chunk(layer) > 0) for layer in range(config.num_hidden_layers))
        one = 2 * page_size * config.num_key_value_heads * config.head_dim * dtype.itemsize
        return cls(chunk, page_size, kinds, Pages(*(one * kinds.count(kind) for kind in (0, 1))))

    def pages(self, tokens: int) -> int:
        return -(-tokens // self.page_size)

    def first_page(self, position: int) -> int:
        """The first that chunked layers see from a position."""
        return (position - position % self.chunk if self.chunk else 0) // self.page_size

    @property
    def most_chunked(self) -> int:
        """Pages of chunked layers that one sequence holds: of a chunk, and the next one's first."""
        return chunk_pages(self.chunk, self.page_size) + 1 if self.chunk else 1 << 62

    def needed(self, capacity: int) -> Pages:
        """By a sequence that grows to a number of tokens."""
        pages = self.pages(capacity)
        return Pages(
            pages if GLOBAL in self.kinds else 0,
            min(pages, self.most_chunked) if CHUNKED in self.kinds else 0,
        )

    def within(self, num_bytes: int, sequences: int, context: int) -> Pages:
        """The best use of memory for so many sequences of up to `context` tokens: as many pages of
        both kinds, until chunked layers have all they can use."""
        most = self.needed(context)
        ends = Pages(*(sequences * count for count in most))
        both = num_bytes // max(1, sum(self.page_bytes))
        chunked = min(both, ends.of_chunked)
        left = num_bytes - chunked * self.page_bytes.of_chunked
        return Pages(min(left // max(1, self.page_bytes.of_global), ends.of_global), chunked)


def layer_cache(
    config: Llama4Config, pages: int, dtype: torch.dtype, device: torch.device
) -> LayerCache:
    """Pages of one layer, with anything in them, without scales."""
    heads, head_dim = config.num_key_value_heads, config.head_dim
    size = pages, page_size_for(config.attention_chunk_size), heads, head_dim
    k, v = (torch.empty(size, dtype=dtype, device=device) for _ in "kv")
    return LayerCache(k, v)


def scaled(cache: LayerCache, layer: int, scales: KvScales) -> LayerCache:
    """The same pages with what an e4m3 cache of that layer is multiplied by; others have none."""
    if cache.k.dtype != FP8:
        return cache
    heads, device = cache.k.shape[2], cache.k.device
    k, v = (
        torch.full((heads,), scale, dtype=torch.float32, device=device)
        for scale in scales.get(layer, (1.0, 1.0))
    )
    return cache._replace(k_scale=k, v_scale=v)


class KVCache:
    """The keys and values of many sequences, and which pages they are in.

    Attributes:
        layers: pages of each layer.
        pools: of the global layers and of the chunked ones; without a page where there are none.
    """

    def __init__(
        self,
        config: Llama4Config,
        pages: Pages,
        *,
        dtype: torch.dtype,
        device: torch.device,
        scales: KvScales = MappingProxyType({}),
    ):
        self.shape = CacheShape.of(config, dtype)
        self.device = device
        self.releases = 0
        """Times that a sequence gave pages back."""
        self.pools = [PagePool(count) for count in pages]
        self.bytes = sum(a * b for a, b in zip(pages, self.shape.page_bytes, strict=True))
        self._used = [kind in self.shape.kinds for kind in (GLOBAL, CHUNKED)]
        self.layers = [
            scaled(layer_cache(config, pages[kind], dtype, device), layer, scales)
            for layer, kind in enumerate(self.shape.kinds)
        ]

    def reuse(self, sequence: Sequence) -> int:
        """Gives a sequence the cached pages of its longest known prefix; returns how many tokens
        they hold, fewer than the sequence has: its last token is always computed.

        Global layers need every page of the prefix. Chunked layers need those from the start of
        the chunk that the next token is in, so none where a chunk begins.
        """
        size, most = self.shape.page_size, (len(sequence.tokens) - 1) // self.shape.page_size
        count = most
        if self._used[GLOBAL]:
            count = next((i for i in range(most) if self._find(GLOBAL, sequence, i) is None), most)
        first = count
        while self._used[CHUNKED]:
            first = self.shape.first_page(count * size)
            pages = range(count - 1, first - 1, -1)
            missing = next((i for i in pages if self._find(CHUNKED, sequence, i) is None), None)
            if missing is None:
                break
            count = missing
        for kind, start in ((GLOBAL, 0), (CHUNKED, min(first, count))):
            if self._used[kind]:
                sequence.pages[kind][:] = [NO_PAGE] * start
                for i in range(start, count):
                    page = self._find(kind, sequence, i)
                    assert page is not None
                    self.pools[kind].take(page)
                    sequence.pages[kind].append(page)
        sequence.named = count
        return count * size

    def _find(self, kind: int, sequence: Sequence, page: int) -> int | None:
        return self.pools[kind].find(sequence.page_name(page, self.shape.page_size))

    def missing(self, sequence: Sequence, end: int) -> Pages:
        """What `extend` to `end` tokens would take, were all of them needed at once."""
        return Pages(
            *(
                max(0, needed - sum(page != NO_PAGE for page in pages))
                for needed, pages in zip(self.shape.needed(end), sequence.pages, strict=True)
            )
        )

    def has(self, pages: Iterable[Pages]) -> bool:
        """Whether there are so many pages, all together."""
        wanted = zip(*pages, strict=True)
        return all(sum(n) <= pool.available for n, pool in zip(wanted, self.pools, strict=True))

    def extend(self, sequence: Sequence, start: int, end: int) -> bool:
        """Pages for tokens up to `end`, of which those from `start` on are computed next; pages of
        chunks before that of `start` are given back. False, and nothing taken, if there are not
        enough."""
        if self._used[CHUNKED]:
            self._give_back(sequence, self.shape.first_page(start))
        wanted = self.shape.pages(end)
        for kind in (GLOBAL, CHUNKED):
            more = wanted - len(sequence.pages[kind])
            if self._used[kind] and more > self.pools[kind].available:
                return False
        for kind in (GLOBAL, CHUNKED):
            if self._used[kind]:
                held, pool = sequence.pages[kind], self.pools[kind]
                held += [pool.allocate() for _ in range(wanted - len(held))]
        return True

    def _give_back(self, sequence: Sequence, first: int) -> None:
        held = sequence.pages[CHUNKED]
        for i in range(min(first, len(held)) - 1, -1, -1):
            if held[i] == NO_PAGE:
                break
            self.pools[CHUNKED].release(held[i])
            held[i] = NO_PAGE
            self.releases += 1

    def remember(self, sequence: Sequence, computed: int) -> None:
        """Names the full pages of the first `computed` tokens, so that others may reuse them."""
        size = self.shape.page_size
        for i in range(sequence.named, computed // size):
            name = sequence.page_name(i, size)
            for kind in (GLOBAL, CHUNKED):
                if self._used[kind] and (page := sequence.pages[kind][i]) != NO_PAGE:
                    self.pools[kind].name(page, name)
            sequence.named = i + 1

    def release(self, sequence: Sequence) -> None:
        """Gives all pages back; what is named can still be found. The last go first, so that the
        start of a prefix is forgotten last."""
        for kind, pool in enumerate(self.pools):
            for page in reversed(sequence.pages[kind]):
                if page != NO_PAGE:
                    pool.release(page)
            sequence.pages[kind].clear()
        sequence.named = 0
        self.releases += 1
