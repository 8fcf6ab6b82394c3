"""Attention over a paged cache: causal, grouped heads, optional chunks."""

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from l4kernels.ops.check import FLOATS, FP8, Checker, describe
from l4kernels.ops.paged import PagedCache, attend_sequence, visible_pieces
from l4kernels.ops.registry import Work, op, tensor_bytes
from l4kernels.ops.rope import HEAD_DIM

MAX_DECODE_TOKENS = 16


class Attention(NamedTuple):
    """The attended values, and the natural logarithm of each softmax denominator."""

    out: Tensor
    lse: Tensor


def _check_cache(
    check: Checker,
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    seqlens_k: Tensor,
    block_table: Tensor,
    batch: int,
    softmax_scale: float,
    chunk: int,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
) -> None:
    check.dtype("q", q, FLOATS)
    num_heads, head_dim = q.shape[-2:]
    check.shape("k_cache", k_cache, ["P", "page", "Hkv", head_dim])
    check.shape("v_cache", v_cache, list(k_cache.shape))
    check.dtype("k_cache", k_cache, (q.dtype, FP8))
    check.dtype("v_cache", v_cache, (k_cache.dtype,))
    check.require(
        k_cache.shape[1] >= 1 and head_dim >= 1,
        f"expected pages of at least one slot and heads of at least one element, got k_cache "
        f"{describe(k_cache)}",
    )
    kv_heads = k_cache.shape[2]
    check.require(
        kv_heads >= 1 and num_heads >= 1 and num_heads % kv_heads == 0,
        f"expected the heads of q to be a positive multiple of the {kv_heads} heads of k_cache, "
        f"got {describe(q)}",
    )
    if q.is_cuda:
        check.require(
            head_dim == HEAD_DIM and num_heads // kv_heads <= 16,
            f"expected head size {HEAD_DIM} and at most 16 q heads per kv head on CUDA, "
            f"got {describe(q)} with {kv_heads} kv heads",
        )
    check.require(
        0 < softmax_scale < math.inf,
        f"expected softmax_scale to be positive and finite, got {softmax_scale}",
    )
    check.require(chunk >= 0, f"expected chunk to be 0 (off) or positive, got {chunk}")
    check.last_dim_contiguous("q", q)
    check.contiguous("k_cache", k_cache)
    check.contiguous("v_cache", v_cache)
    check.dtype("seqlens_k", seqlens_k, (torch.int32,))
    check.shape("seqlens_k", seqlens_k, [batch])
    check.dtype("block_table", block_table, (torch.int32,))
    check.shape("block_table", block_table, [batch, "max_pages"])
    check.last_dim_contiguous("block_table", block_table)
    for name, t in (("k_scale", k_scale), ("v_scale", v_scale)):
        if t is not None:
            check.require(
                k_cache.dtype == FP8, f"expected no {name} with a {k_cache.dtype} cache, got one"
            )
            check.dtype(name, t, (torch.float32,))
            check.shape(name, t, [kv_heads])
    check.same_device(
        q=q,
        k_cache=k_cache,
        v_cache=v_cache,
        seqlens_k=seqlens_k,
        block_table=block_table,
        k_scale=k_scale,
        v_scale=v_scale,
    )


def _attention_work(
    q: Tensor,
    k_cache: Tensor,
    lengths: list[tuple[int, int]],
    chunk: int,
    tables: Tensor,
) -> Work:
    """Two products of each query with its visible keys; every visible key and value once."""
    num_heads, head_dim = q.shape[-2:]
    pairs = keys = 0
    for len_q, len_k in lengths:
        start = len_k - len_q
        for first, end, low in visible_pieces(len_q, len_k, chunk):
            shortest, longest = start + first - low + 1, start + end - low
            pairs += (shortest + longest) * (end - first) // 2
            keys += longest
    per_key = 2 * k_cache.shape[2] * head_dim * k_cache.element_size()
    lse = 4 * q.numel() // head_dim
    return Work(
        flops=4 * pairs * num_heads * head_dim,
        bytes=2 * tensor_bytes(q) + lse + keys * per_key + tensor_bytes(tables),
    )


def _check_flash_prefill(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cu_seqlens_q: Tensor,
    seqlens_k: Tensor,
    block_table: Tensor,
    *,
    softmax_scale: float,
    max_seqlen_q: int,
    chunk: int = 0,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> None:
    check = Checker("flash_prefill")
    check.shape("q", q, ["Tq", "Hq", "D"])
    check.dtype("cu_seqlens_q", cu_seqlens_q, (torch.int32,))
    check.require(
        cu_seqlens_q.dim() == 1 and cu_seqlens_q.shape[0] >= 1,
        f"expected cu_seqlens_q to be [B + 1], got {describe(cu_seqlens_q)}",
    )
    check.require(max_seqlen_q >= 0, f"expected max_seqlen_q >= 0, got {max_seqlen_q}")
    batch = cu_seqlens_q.shape[0] - 1
    keys = k_cache, v_cache, seqlens_k, block_table
    _check_cache(check, q, *keys, batch, softmax_scale, chunk, k_scale, v_scale)
    if q.is_cuda:
        check.require(
            k_cache.shape[1] > 0 and k_cache.shape[1] % 8 == 0,
            f"expected pages of a multiple of 8 slots on CUDA, got k_cache {describe(k_cache)}",
        )
    check.same_device(q=q, cu_seqlens_q=cu_seqlens_q)


def _work_flash_prefill(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cu_seqlens_q: Tensor,
    seqlens_k: Tensor,
    block_table: Tensor,
    *,
    chunk: int = 0,
    **_: object,
) -> Work:
    lengths = list(zip(cu_seqlens_q.diff().tolist(), seqlens_k.tolist(), strict=True))
    return _attention_work(q, k_cache, lengths, chunk, block_table)


def _fake_flash_prefill(q: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
    out = q.new_empty(q.shape)
    return out, q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)


@op(
    check=_check_flash_prefill,
    work=_work_flash_prefill,
    fake=_fake_flash_prefill,
    returns=Attention,
)
def flash_prefill(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cu_seqlens_q: Tensor,
    seqlens_k: Tensor,
    block_table: Tensor,
    *,
    softmax_scale: float,
    max_seqlen_q: int,
    chunk: int = 0,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Causal attention of several sequences' new tokens over their paged keys and values.

    Query i of a sequence is at position `p = seqlens_k - len_q + i` and sees key j iff `j <= p`
    and, with a chunk, `j // chunk == p // chunk`: blocks on the diagonal, not a sliding window.
    Key j is in page `block_table[b, j // page_size]`; entries outside the visible range are never
    read, so a chunked layer may keep one chunk of pages and repeat them. Query head h reads KV
    head `h // (Hq / Hkv)`. The temperature of Llama 4's NoPE layers is already in q.

    Args:
        q: `[Tq, Hq, D]` float32, bfloat16 or float16, the sequences one after the other.
        k_cache, v_cache: `[P, page_size, Hkv, D]`, the dtype of `q`, or e4m3. On CUDA D is 128 and
            page_size a multiple of 8.
        cu_seqlens_q: int32 `[B + 1]`, where each sequence's queries begin, and the end. Rows past
            the end give 0 and -inf.
        seqlens_k: int32 `[B]`, all keys of a sequence including the new tokens.
        block_table: int32 `[B, max_pages]`.
        softmax_scale: multiplies q . k; Llama 4: D^-0.5.
        max_seqlen_q: a bound on the queries of one sequence, known to the host.
        chunk: 0 for none.
        k_scale, v_scale: float32 `[Hkv]` of an e4m3 cache; None means 1.

    Returns:
        `Attention(out, lse)`: `[Tq, Hq, D]` in the dtype of `q`, and float32 `[Hq, Tq]`. A query
        with no visible key gives 0 and -inf. Softmax and sums are float32, one rounding.

    Raises:
        IndexError: `cu_seqlens_q` out of order or beyond the rows of q, a sequence longer than
            `max_seqlen_q`, a negative length, or a visible page outside the table or the cache.

    >>> k = v = torch.tensor([1.0, 3.0]).view(1, 2, 1, 1)
    >>> i32 = lambda *values: torch.tensor(values, dtype=torch.int32)
    >>> flash_prefill(torch.zeros(2, 1, 1), k, v, i32(0, 2), i32(2), i32(0).view(1, 1),
    ...               softmax_scale=1.0, max_seqlen_q=2).out.flatten()
    tensor([1., 2.])
    """
    out = torch.zeros_like(q, memory_format=torch.contiguous_format)
    lse = q.new_full((q.shape[1], q.shape[0]), float("-inf"), dtype=torch.float32)
    bounds = cu_seqlens_q.tolist()
    lengths = [end - first for first, end in itertools.pairwise(bounds)]
    if bounds[0] != 0 or bounds[-1] > q.shape[0] or min(lengths, default=0) < 0:
        raise IndexError(
            f"l4kernels.flash_prefill: expected cu_seqlens_q to ascend from 0 to at most "
            f"{q.shape[0]} (the rows of q), got {bounds}"
        )
    if min(seqlens_k.tolist(), default=0) < 0:
        raise IndexError(
            f"l4kernels.flash_prefill: expected seqlens_k >= 0, got {seqlens_k.tolist()}"
        )
    if max(lengths, default=0) > max_seqlen_q:
        raise IndexError(
            f"l4kernels.flash_prefill: expected max_seqlen_q to bound the sequences, got "
            f"{max_seqlen_q} for lengths {lengths}"
        )
    cache = PagedCache("flash_prefill", k_cache, v_cache, k_scale, v_scale)
    for b, len_k in enumerate(seqlens_k.tolist()):
        rows = slice(bounds[b], bounds[b + 1])
        attend_sequence(
            cache, q[rows], len_k, block_table[b], softmax_scale, chunk, out[rows], lse[:, rows]
        )
    return out, lse


def _check_flash_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    seqlens_k: Tensor,
    block_table: Tensor,
    *,
    softmax_scale: float,
    chunk: int = 0,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> None:
    check = Checker("flash_decode")
    check.shape("q", q, ["B", "S", "Hq", "D"])
    check.require(
        1 <= q.shape[1] <= MAX_DECODE_TOKENS,
        f"expected 1 to {MAX_DECODE_TOKENS} new tokens per sequence, got q {describe(q)}; "
        f"use flash_prefill for more",
    )
    keys = k_cache, v_cache, seqlens_k, block_table
    _check_cache(check, q, *keys, q.shape[0], softmax_scale, chunk, k_scale, v_scale)


def _work_flash_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    seqlens_k: Tensor,
    block_table: Tensor,
    *,
    chunk: int = 0,
    **_: object,
) -> Work:
    lengths = [(q.shape[1], len_k) for len_k in seqlens_k.tolist()]
    return _attention_work(q, k_cache, lengths, chunk, block_table)


def _fake_flash_decode(q: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
    batch, tokens, num_heads, _ = q.shape
    out = q.new_empty(q.shape)
    return out, q.new_empty((batch, num_heads, tokens), dtype=torch.float32)


@op(
    check=_check_flash_decode,
    work=_work_flash_decode,
    fake=_fake_flash_decode,
    returns=Attention,
)
def flash_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    seqlens_k: Tensor,
    block_table: Tensor,
    *,
    softmax_scale: float,
    chunk: int = 0,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`flash_prefill` for a few new tokens per sequence, as many for each: decoding.

    Args:
        q: `[B, S, Hq, D]` float32, bfloat16 or float16, 1 <= S <= 16 new tokens per sequence.
        k_cache, v_cache: `[P, page_size, Hkv, D]`, the dtype of `q`, or e4m3. D is 128 on CUDA.
        seqlens_k: int32 `[B]`, all keys including the new tokens; 0 for an idle row of a batch.
        block_table: int32 `[B, max_pages]`.
        softmax_scale, chunk, k_scale, v_scale: as for `flash_prefill`.

    Returns:
        `Attention(out, lse)`: `[B, S, Hq, D]` in the dtype of `q`, and float32 `[B, Hq, S]`. A
        query with no visible key gives 0 and -inf.

    Raises:
        IndexError: a negative length, or a visible page outside the table or the cache.

    >>> k = v = torch.tensor([1.0, 3.0]).view(1, 2, 1, 1)
    >>> two, page = torch.tensor([2], dtype=torch.int32), torch.zeros(1, 1, dtype=torch.int32)
    >>> flash_decode(torch.zeros(1, 1, 1, 1), k, v, two, page, softmax_scale=1.0)
    Attention(out=tensor([[[[2.]]]]), lse=tensor([[[0.6931]]]))
    """
    batch, tokens, num_heads, _ = q.shape
    out = torch.zeros_like(q, memory_format=torch.contiguous_format)
    lse = q.new_full((batch, num_heads, tokens), float("-inf"), dtype=torch.float32)
    cache = PagedCache("flash_decode", k_cache, v_cache, k_scale, v_scale)
    lengths = seqlens_k.tolist()
    if min(lengths, default=0) < 0:
        raise IndexError(f"l4kernels.flash_decode: expected seqlens_k >= 0, got {lengths}")
    for b, len_k in enumerate(lengths):
        attend_sequence(cache, q[b], len_k, block_table[b], softmax_scale, chunk, out[b], lse[b])
    return out, lse
