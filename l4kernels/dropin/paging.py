"""Keys and values in pages: where they lie already, or copied there."""

import operator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from l4kernels import ops
from l4kernels.dropin.lengths import LONGEST, WRONG
from l4kernels.inputs.files import shown
from l4kernels.ops.check import FP8, Checker, describe

PAGE = 64
_PAGES = (128, 64, 32, 16)
"""Sizes of pages that an unpaged cache is cut into, by preference."""


@dataclass(frozen=True)
class PagedCache:
    """Keys and values as the kernels take them."""

    k: Tensor  # [P, page size, Hkv, D], as is v
    v: Tensor
    lengths: Tensor  # int32 [B]: keys of each sequence
    table: Tensor  # int32 [B, max_pages]: its pages

    @property
    def places(self) -> int:
        """How many keys a sequence has room for."""
        return self.table.shape[1] * self.k.shape[1]

    def longer(self, new: int) -> "PagedCache":
        """The same memory, with `new` more keys in each sequence."""
        return replace(self, lengths=self.lengths + new)


def contiguous(t: Any) -> Any:
    return t if t is None or t.stride(-1) == 1 else t.contiguous()


def _page_size(rows: int) -> int:
    """The largest page size that divides the number of rows; 0 if none does."""
    return next((page for page in _PAGES if rows and rows % page == 0), 0)


def _no_places(batch: int, k_cache: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A block table without a column, and caches that the kernels take: they need a page."""
    table = torch.empty(batch, 0, dtype=torch.int32, device=k_cache.device)
    page = k_cache.new_empty(1, PAGE, *k_cache.shape[2:])
    return table, page, page


def cache_in_pages(
    check: Checker,
    k_cache: Tensor,
    v_cache: Tensor,
    cache_seqlens: int | Tensor | None,
    page_table: Tensor | None,
    cache_batch_idx: Tensor | None,
    batch: int,
) -> PagedCache:
    """The caches of `flash_attn_with_kvcache`, paged or not, where they lie."""
    rows, length = k_cache.shape[:2]
    if page_table is not None:
        check.require(cache_batch_idx is None, "expected no cache_batch_idx with a page_table")
        check.require(cache_seqlens is not None, "expected cache_seqlens with a page_table")
        table = contiguous(page_table)
        if rows == 0:
            table, k_cache, v_cache = _no_places(batch, k_cache)
    elif length == 0:
        table, k_cache, v_cache = _no_places(batch, k_cache)
    else:
        table = _unpaged(check, k_cache, batch, cache_batch_idx)
        page = _page_size(length)
        k_cache, v_cache = (t.flatten(0, 1).unflatten(0, (-1, page)) for t in (k_cache, v_cache))
    lengths = _lengths(check, length if cache_seqlens is None else cache_seqlens, table)
    if cache_batch_idx is not None:
        lengths = lengths.masked_fill((cache_batch_idx < 0) | (cache_batch_idx >= rows), WRONG)
    return PagedCache(k_cache, v_cache, contiguous(lengths), table)


def _lengths(check: Checker, lengths: int | Tensor, table: Tensor) -> Tensor:
    """int32 `[B]`, of one number too."""
    batch = table.shape[0]
    if not isinstance(lengths, Tensor):
        try:
            number = min(max(operator.index(lengths), WRONG), LONGEST)
        except TypeError:
            message = "expected cache_seqlens to be int32 [B] or a whole number, "
            message += f"got {shown(lengths)}"
            check.fail(message, TypeError)
        lengths = torch.full((batch,), number, dtype=torch.int32, device=table.device)
    check.dtype("cache_seqlens", lengths, (torch.int32,))
    check.shape("cache_seqlens", lengths, [batch])
    return lengths


def _unpaged(check: Checker, k_cache: Tensor, batch: int, cache_batch_idx: Tensor | None) -> Tensor:
    """The block table of a cache `[B', N, Hkv, D]` whose rows are seen as pages."""
    rows, length = k_cache.shape[:2]
    page = _page_size(length)
    if not page:
        check.fail(
            f"expected an unpaged cache to hold a multiple of 16 keys per sequence, got "
            f"{describe(k_cache)}; allocate it longer, cache_seqlens says what counts"
        )
    pages = torch.arange(rows * length // page, dtype=torch.int32, device=k_cache.device)
    table = pages.view(rows, length // page)
    if cache_batch_idx is not None:
        check.dtype("cache_batch_idx", cache_batch_idx, (torch.int32, torch.int64))
        check.shape("cache_batch_idx", cache_batch_idx, [batch])
        check.require(rows > 0, f"expected k_cache to have a row, got {describe(k_cache)}")
        return table.index_select(0, cache_batch_idx.clamp(0, rows - 1))
    check.require(batch <= rows, f"expected k_cache to have {batch} rows, got {describe(k_cache)}")
    return table[:batch]


def packed_in_pages(
    k: Tensor, v: Tensor, cu_seqlens_k: Tensor, used: Tensor, max_seqlen_k: int
) -> PagedCache:
    """Sequences one after the other, `[Tk, Hkv, D]`, of which `used` keys `[B]` count: one that can
    be cut into pages where it lies, others copied."""
    batch, page = used.shape[0], _page_size(k.shape[0])
    if batch == 0:
        table, k_cache, v_cache = _no_places(batch, k[None])
    elif batch == 1 and page:
        k_cache, v_cache = (t.contiguous().unflatten(0, (-1, page)) for t in (k, v))
        table = torch.arange(k_cache.shape[0], dtype=torch.int32, device=k.device)[None]
    else:
        longest = min(max_seqlen_k, k.shape[0])
        slots, table = _paging(cu_seqlens_k, cu_seqlens_k.diff(), k.shape[0], longest)
        k_cache, v_cache = (_into_pages(t, slots, batch) for t in (k, v))
    return PagedCache(k_cache, v_cache, contiguous(used), table)


def _paging(cu_seqlens: Tensor, lengths: Tensor, rows: int, longest: int) -> tuple[Tensor, Tensor]:
    """Where rows lie once every sequence begins on a page, and the block table of that."""
    device, batch = lengths.device, lengths.shape[0]
    pages = (lengths + PAGE - 1) // PAGE
    first = pages.cumsum(0, dtype=torch.int32) - pages
    row = torch.arange(rows, dtype=torch.int32, device=device)
    sequence = torch.searchsorted(cu_seqlens[1:], row, right=True).clamp(max=max(batch - 1, 0))
    slots = (first * PAGE - cu_seqlens[:-1])[sequence] + row
    # Rows after the last sequence go after its last page, where nothing looks, and those of wrong
    # offsets anywhere: their sequences are not looked at.
    slots = slots.clamp(0, _paged_rows(rows, batch) - 1)
    logical = torch.arange(-(-longest // PAGE), dtype=torch.int32, device=device)
    return slots.long(), first[:, None] + logical


def _paged_rows(rows: int, batch: int) -> int:
    return (rows // PAGE + batch + 1) * PAGE


def _into_pages(values: Tensor, slots: Tensor, batch: int) -> Tensor:
    paged = values.new_empty(_paged_rows(values.shape[0], batch), *values.shape[1:])
    _bytes(paged).index_copy_(0, slots, _bytes(values.contiguous()))
    return paged.unflatten(0, (-1, PAGE))


def append(cache: PagedCache, k: Tensor, v: Tensor, scales: dict[str, Any]) -> None:
    """Writes new keys and values after those that the cache has; without a place, an error."""
    table, (pages, size, heads) = cache.table, cache.k.shape[:3]
    positions = cache.lengths[:, None].long() + torch.arange(k.shape[1], device=table.device)
    column, width = positions // size, table.shape[1]
    page = table.gather(1, column.clamp(0, width - 1)).long() if width else column
    slots = page * size + positions % size
    slots = torch.where((page < 0) | (column >= width), pages * size, slots)
    rows = torch.cat([k, k, v], 2).flatten(2).flatten(0, 1)  # the first k is in the place of q
    where = positions.flatten(), slots.flatten()
    ops.rope_cache(rows, *where, cache.k, cache.v, num_heads=heads, **scales)


def _bytes(t: Tensor) -> Tensor:
    """e4m3 as bytes: indexed copies know no float8."""
    return t.view(torch.uint8) if t.dtype == FP8 else t
