"""FlashAttention 3's two inference calls, with its argument names."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from l4kernels import ops
from l4kernels.dropin.flash_arguments import (
    check_mask,
    check_offsets,
    check_unsupported,
    head_scales,
)
from l4kernels.dropin.lengths import (
    LONGEST,
    WRONG,
    bound_rule,
    explained,
    index_rule,
    offset_rule,
    query_rules,
    unordered,
)
from l4kernels.dropin.paging import (
    PagedCache,
    append,
    cache_in_pages,
    contiguous,
    packed_in_pages,
)
from l4kernels.ops.check import Checker, describe
from l4kernels.ops.decode_plan import MAX_DECODE_TOKENS


def flash_attn_varlen_func(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int,
    max_seqlen_k: int, seqused_q: Tensor | None = None, seqused_k: Tensor | None = None,
    softmax_scale: float | None = None, causal: bool = False, qv: Tensor | None = None,
    q_descale: Tensor | None = None, k_descale: Tensor | None = None,
    v_descale: Tensor | None = None, window_size: Sequence[int] = (-1, -1),
    attention_chunk: int = 0, softcap: float = 0.0, num_splits: int = 1,
    pack_gqa: bool | None = None, deterministic: bool = False, sm_margin: int = 0,
    return_attn_probs: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """FlashAttention 3's `flash_attn_varlen_func` for causal attention, chunked or not.

    The kernels read keys and values from pages. One sequence whose rows are a multiple of 16 is
    seen as pages where it lies. Otherwise K and V are copied into pages, read and written once;
    keep them in pages and call `flash_attn_with_kvcache` with `cu_seqlens_q` to save that. Where no
    sequence has more than 16 queries, the keys of each are divided among the SMs.

    Args:
        q: `[Tq, Hq, D]` bfloat16 (float32 and float16 on the CPU), sequences one after the other;
            D is 128 on CUDA.
        k, v: `[Tk, Hkv, D]`, the dtype of `q`, or e4m3; Hq is a multiple of Hkv, at most 16 times.
        cu_seqlens_q, cu_seqlens_k: int32 `[B + 1]`, where each sequence begins, from 0, and the
            end.
        max_seqlen_q, max_seqlen_k: bounds on one sequence, known to the host.
        seqused_k: int32 `[B]`, keys of each sequence that count.
        softmax_scale: default D^-0.5.
        causal: must be True where a sequence has more than one query (max_seqlen_q > 1), or what
            is the same, `window_size=(-1, 0)`. Aligned at the end: the last query sees all keys.
        window_size: (keys to the left, keys to the right), negative for all. Only what comes to
            plain causal attention: with `causal`, to the right means nothing, and to the left
            max_seqlen_k - 1 are all.
        k_descale, v_descale: float32 scales of e4m3 `k` and `v` per head: `[Hkv]`, or `[B, Hkv]`
            with the same row for all (expanded, or B = 1).
        attention_chunk: keys in the same block of this many positions only; 0 for all.
        num_splits, pack_gqa, deterministic, sm_margin: hints to FA3's scheduler, of no effect:
            results are always deterministic.
        return_attn_probs: return the logarithm of the softmax denominator, too.
        seqused_q, qv, q_descale, softcap: not supported; anything but FA3's default raises.

    Returns:
        `[Tq, Hq, D]`, or a pair of that and float32 `[Hq, Tq]`. 0 and -inf (FA3: +inf) for a query
        without keys, and for rows of `q` after the last sequence (which FA3 does not write).

    Raises:
        ValueError, TypeError: what is not supported, and shapes or dtypes that do not fit.
        IndexError: offsets that do not ascend from 0 to the rows of `q` or `k`, a sequence longer
            than its bound, a seqused_k longer than its sequence; on CUDA it is raised by
            `l4kernels.take_device_error` after a synchronisation.

    >>> q = k = v = torch.tensor([1.0, 3.0]).view(2, 1, 1)
    >>> ends = torch.tensor([0, 2], dtype=torch.int32)
    >>> flash_attn_varlen_func(q, k, v, ends, ends, 2, 2, causal=True).flatten()
    tensor([1.0000, 2.9951])
    """
    check = Checker("flash_attn_varlen_func")
    max_seqlen_q, max_seqlen_k = min(max_seqlen_q, LONGEST), min(max_seqlen_k, LONGEST)
    check_mask(check, causal, window_size, max_seqlen_q, max_seqlen_k)
    check_unsupported(check, seqused_q=seqused_q, qv=qv, q_descale=q_descale, softcap=softcap)
    check.shape("q", q, ["Tq", "Hq", "D"])
    check.require(q.shape[-1] > 0, f"expected heads of at least one element, got q {describe(q)}")
    check.shape("k", k, ["Tk", "Hkv", q.shape[-1]])
    check.shape("v", v, list(k.shape))
    check_offsets(check, "cu_seqlens_q", cu_seqlens_q)
    check.dtype("cu_seqlens_k", cu_seqlens_k, (torch.int32,))
    check.shape("cu_seqlens_k", cu_seqlens_k, list(cu_seqlens_q.shape))
    check.same_device(
        q=q, k=k, v=v, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k, seqused_k=seqused_k
    )
    scales = head_scales(check, k_descale, v_descale)
    check.require(max_seqlen_k >= 0, f"expected max_seqlen_k >= 0, got {max_seqlen_k}")
    lengths = cu_seqlens_k.diff()
    if seqused_k is not None:
        check.dtype("seqused_k", seqused_k, (torch.int32,))
        check.shape("seqused_k", seqused_k, [lengths.shape[0]])
    given = lengths if seqused_k is None else seqused_k
    unused = (given < 0) | (given > lengths)
    # One wrong offset and nobody knows whose rows are whose.
    wrong = unordered(cu_seqlens_k, k.shape[0]) | (unused | (given > max_seqlen_k)).any()
    starts = cu_seqlens_q if len(lengths) else cu_seqlens_q.masked_fill(wrong, WRONG)
    cache = packed_in_pages(k, v, cu_seqlens_k, given.masked_fill(wrong, WRONG), max_seqlen_k)
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    options: dict[str, Any] = {"softmax_scale": scale, "chunk": attention_chunk, **scales}
    q, starts = map(contiguous, (q, starts))
    try:
        out, lse = _attend_packed(q, starts, max_seqlen_q, cache, options)
    except IndexError as error:
        used = f"seqused_k between 0 and the keys of each sequence, {lengths.tolist()}"
        raise explained(
            check,
            error,
            *query_rules(cu_seqlens_q, max_seqlen_q, q),
            offset_rule("cu_seqlens_k", cu_seqlens_k, k.shape[0], "k"),
            (unused, used, given),
            bound_rule("max_seqlen_k", max_seqlen_k, given),
        ) from error
    return (out, lse) if return_attn_probs else out


def flash_attn_with_kvcache(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, k: Tensor | None = None, v: Tensor | None = None,
    qv: Tensor | None = None, rotary_cos: Tensor | None = None, rotary_sin: Tensor | None = None,
    cache_seqlens: int | Tensor | None = None, cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None, page_table: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None, cu_seqlens_k_new: Tensor | None = None,
    max_seqlen_q: int | None = None, rotary_seqlens: Tensor | None = None,
    q_descale: Tensor | None = None, k_descale: Tensor | None = None,
    v_descale: Tensor | None = None, softmax_scale: float | None = None, causal: bool = False,
    window_size: Sequence[int] = (-1, -1), attention_chunk: int = 0, softcap: float = 0.0,
    rotary_interleaved: bool = True, scheduler_metadata: Any = None, num_splits: int = 0,
    pack_gqa: bool | None = None, sm_margin: int = 0, return_softmax_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """FlashAttention 3's `flash_attn_with_kvcache` for causal attention, chunked or not.

    Lengths stay on the device: no host synchronisation, and a captured graph stays valid as the
    sequences grow. An unpaged cache is seen as pages where it lies, without a copy. Where no
    sequence has more than 16 queries, with `cu_seqlens_q` too, the keys of each are divided among
    the SMs.

    Args:
        q: `[B, S, Hq, D]` bfloat16 (float32 and float16 on the CPU), or `[Tq, Hq, D]` with
            `cu_seqlens_q`; D is 128 on CUDA.
        k_cache, v_cache: with `page_table` `[P, page_size, Hkv, D]`, else `[B, N, Hkv, D]` with N
            a multiple of 16; the dtype of `q`, or e4m3. Contiguous.
        k, v: `[B, S', Hkv, D]`, the dtype of `q`, appended to the cache first, by
            `ops.rope_cache` after they were joined (which calling it yourself saves).
        cache_seqlens: int32 `[B]`, or one number: keys in the cache, without `k`. Default N.
        cache_batch_idx: int `[B]`, each sequence's row of an unpaged cache.
        page_table: int32 `[B, max_pages]`.
        cu_seqlens_q, max_seqlen_q: int32 `[B + 1]`, from 0, and a bound known to the host, for
            sequences with different numbers of queries.
        k_descale, v_descale: float32 scales of an e4m3 cache per head: `[Hkv]`, or `[B, Hkv]` with
            the same row for all (expanded, or B = 1).
        softmax_scale: default D^-0.5.
        causal: must be True where a sequence has more than one query, or what is the same,
            `window_size=(-1, 0)`. Aligned at the end: the last query sees all keys.
        window_size: as for `flash_attn_varlen_func`; all keys are what the cache has places for.
        attention_chunk: keys in the same block of this many positions only; 0 for all.
        rotary_interleaved, scheduler_metadata, num_splits, pack_gqa, sm_margin: of no effect.
        return_softmax_lse: return the logarithm of the softmax denominator, too.
        qv, rotary_cos, rotary_sin, rotary_seqlens, cache_leftpad, cu_seqlens_k_new, q_descale,
            softcap: not supported; anything but FA3's default raises.

    Returns:
        The shape of `q`, or a pair of that and float32 `[B, Hq, S]` (`[Hq, Tq]` with
        `cu_seqlens_q`). What sees no key is as for `flash_attn_varlen_func`.

    Raises:
        ValueError, TypeError: what is not supported, and shapes or dtypes that do not fit.
        IndexError: a length or offset that does not fit, a visible page outside the cache, or no
            place in it for `k` and `v`; on CUDA it is raised by `l4kernels.take_device_error` after
            a synchronisation.

    >>> cache, one = torch.zeros(1, 16, 1, 4), torch.ones(1, 1, 1, 4)
    >>> flash_attn_with_kvcache(one, cache, cache, one, one, cache_seqlens=0).flatten()
    tensor([1., 1., 1., 1.])
    """
    check = Checker("flash_attn_with_kvcache")
    check.shape("q", q, ["B", "S", "Hq", "D"] if cu_seqlens_q is None else ["Tq", "Hq", "D"])
    max_seqlen_q = q.shape[1] if cu_seqlens_q is None else max_seqlen_q
    if max_seqlen_q is None:
        check.fail("expected max_seqlen_q with cu_seqlens_q, got None")
    max_seqlen_q = min(max_seqlen_q, LONGEST)
    check_unsupported(
        check,
        qv=qv,
        rotary_cos=rotary_cos,
        rotary_sin=rotary_sin,
        rotary_seqlens=rotary_seqlens,
        cache_leftpad=cache_leftpad,
        cu_seqlens_k_new=None if k is None else cu_seqlens_k_new,
        q_descale=q_descale,
        softcap=softcap,
    )
    batch = _check_cache(check, q, k_cache, v_cache, cu_seqlens_q, page_table)
    keys = k_cache.shape[1] * (1 if page_table is None else page_table.shape[1])
    check_mask(check, causal, window_size, max_seqlen_q, keys)
    check.require((k is None) == (v is None), "expected k and v, or neither")
    check.same_device(
        q=q,
        k_cache=k_cache,
        v_cache=v_cache,
        k=k,
        v=v,
        cache_seqlens=cache_seqlens if isinstance(cache_seqlens, Tensor) else None,
        cache_batch_idx=cache_batch_idx,
        page_table=page_table,
        cu_seqlens_q=cu_seqlens_q,
    )
    scales = head_scales(check, k_descale, v_descale)
    cache = cache_in_pages(
        check, k_cache, v_cache, cache_seqlens, page_table, cache_batch_idx, batch
    )
    q, starts = map(contiguous, (q, cu_seqlens_q))
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    options: dict[str, Any] = {"softmax_scale": scale, "chunk": attention_chunk, **scales}
    new = 0
    try:
        if k is not None and v is not None:
            _check_new_keys(check, q, k, v, [batch, "S", *cache.k.shape[2:]])
            new = k.shape[1]
            append(cache, k, v, scales)
        out, lse = _attend(q, starts, max_seqlen_q, cache.longer(new), options)
    except IndexError as error:
        fit = cache.places - new
        rules = [] if cu_seqlens_q is None else query_rules(cu_seqlens_q, max_seqlen_q, q)
        if cache_batch_idx is not None:
            rules.append(index_rule("cache_batch_idx", cache_batch_idx, k_cache.shape[0]))
        room = f"cache_seqlens between 0 and {fit} (places in the cache, without those of k)"
        rules.append(((cache.lengths < 0) | (cache.lengths > fit), room, cache_seqlens))
        if page_table is not None:
            rules.append(index_rule("page_table", page_table, k_cache.shape[0]))
        raise explained(check, error, *rules) from error
    return (out, lse) if return_softmax_lse else out


def _check_cache(
    check: Checker,
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cu_seqlens_q: Tensor | None,
    page_table: Tensor | None,
) -> int:
    """Shapes and layouts that hang together; the number of sequences."""
    check.require(q.shape[-1] > 0, f"expected heads of at least one element, got q {describe(q)}")
    check.shape("k_cache", k_cache, ["P", "N", "Hkv", q.shape[-1]])
    check.shape("v_cache", v_cache, list(k_cache.shape))
    check.contiguous("k_cache", k_cache)
    check.contiguous("v_cache", v_cache)
    if cu_seqlens_q is not None:
        check_offsets(check, "cu_seqlens_q", cu_seqlens_q)
    batch = q.shape[0] if cu_seqlens_q is None else cu_seqlens_q.shape[0] - 1
    if page_table is not None:
        check.dtype("page_table", page_table, (torch.int32,))
        check.shape("page_table", page_table, [batch, "max_pages"])
    return batch


def _check_new_keys(
    check: Checker, q: Tensor, k: Tensor, v: Tensor, shape: list[int | str]
) -> None:
    check.shape("k", k, shape)
    check.shape("v", v, list(k.shape))
    check.dtype("k", k, (q.dtype,))
    check.dtype("v", v, (q.dtype,))


def _attend(
    q: Tensor, starts: Tensor | None, max_seqlen_q: int, cache: PagedCache, options: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """Queries `[B, S, Hq, D]`, or `[Tq, Hq, D]` where `starts` says whose they are."""
    if starts is not None:
        return _attend_packed(q, starts, max_seqlen_q, cache, options)
    if 1 <= max_seqlen_q <= MAX_DECODE_TOKENS:
        return ops.flash_decode(q, cache.k, cache.v, cache.lengths, cache.table, **options)
    batch = q.shape[0]
    starts = torch.arange(batch + 1, dtype=torch.int32, device=q.device) * max_seqlen_q
    out, lse = _attend_packed(q.flatten(0, 1), starts, max_seqlen_q, cache, options)
    return out.view(q.shape), lse.unflatten(1, (batch, max_seqlen_q)).transpose(0, 1)


def _attend_packed(
    q: Tensor, starts: Tensor, max_seqlen_q: int, cache: PagedCache, options: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """Sequences of up to `max_seqlen_q` queries each, one after the other.

    Few queries are decoded, as the last ones of a batch `[B, max_seqlen_q, Hq, D]`: that divides
    the keys of a sequence among SMs.
    """
    ends, counts = starts[1:], starts.diff()
    if not 1 <= max_seqlen_q <= MAX_DECODE_TOKENS or not q.numel() or not counts.numel():
        keys = cache.k, cache.v, starts, cache.lengths, cache.table
        return ops.flash_prefill(q, *keys, max_seqlen_q=max_seqlen_q, **options)
    wrong = unordered(starts, len(q)) | (counts > max_seqlen_q).any() | (cache.lengths < 0)
    lengths = torch.where(counts > 0, cache.lengths, 0).masked_fill(wrong, WRONG)
    row, place = (
        torch.arange(n, dtype=torch.int32, device=q.device) for n in (len(q), max_seqlen_q)
    )
    batch = q[(ends[:, None] - max_seqlen_q + place).clamp(0, len(q) - 1)]
    out, lse = ops.flash_decode(batch, cache.k, cache.v, lengths, cache.table, **options)
    sequence = torch.searchsorted(ends, row, right=True)
    owned = sequence < len(ends)
    sequence = sequence.clamp(max=len(ends) - 1)
    place = (row - ends[sequence] + max_seqlen_q).clamp(0, max_seqlen_q - 1)
    out = torch.where(owned[:, None, None], out[sequence, place], 0)
    return out, torch.where(owned, lse[sequence, :, place].T, -math.inf).contiguous()
