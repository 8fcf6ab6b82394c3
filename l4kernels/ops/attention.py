"""Attention over a paged cache: causal, grouped heads, optional chunks."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from l4kernels.ops.bound import Bound
from l4kernels.ops.check import FLOATS, FP8, describe
from l4kernels.ops.contract import Contract
from l4kernels.ops.decode_plan import MAX_DECODE_TOKENS, check_plan, require_plan
from l4kernels.ops.paged import (
    PagedCache,
    attend_one,
    attend_sequence,
    check_cache_scales,
    visible_pieces,
)
from l4kernels.ops.prefill_plan import (
    plan_header,
    plan_words,
    require_prefill_plan,
    require_sequences,
)
from l4kernels.ops.registry import Work, op, tensor_bytes
from l4kernels.ops.rope import HEAD_DIM
from l4kernels.ops.views import as_dtype, as_float, scalar


class Attention(NamedTuple):
    """The attended values, and the natural logarithm of each softmax denominator."""

    out: Tensor
    lse: Tensor


def _check_cache(contract: Contract) -> None:
    """`q` is `[..., Hq, D]`; the batch has B sequences."""
    args = contract.args
    contract.dtype("q", args.q, FLOATS)
    num_heads, head_dim = args.q.shape[-2:]
    contract.tensor("k_cache", (args.q.dtype, FP8), ["P", "page", "Hkv", head_dim], "contiguous")
    shape = ["P", "page", "Hkv", head_dim]
    contract.tensor("v_cache", args.k_cache.dtype, shape, "contiguous")
    contract.require(
        contract.sizes["page"] >= 1 and head_dim >= 1,
        f"expected pages of at least one slot and heads of at least one element, got k_cache "
        f"{describe(args.k_cache)}",
    )
    kv_heads = contract.sizes["Hkv"]
    contract.require(
        kv_heads >= 1 and num_heads >= 1 and num_heads % kv_heads == 0,
        f"expected the heads of q to be a positive multiple of the {kv_heads} heads of k_cache, "
        f"got {describe(args.q)}",
    )
    if args.q.is_cuda:
        contract.require(
            head_dim == HEAD_DIM and num_heads // kv_heads <= 16,
            f"expected head size {HEAD_DIM} and at most 16 q heads per kv head on CUDA, "
            f"got {describe(args.q)} with {kv_heads} kv heads",
        )
    contract.require(
        0 < args.softmax_scale < math.inf,
        f"expected softmax_scale to be positive and finite, got {args.softmax_scale}",
    )
    contract.require(args.chunk >= 0, f"expected chunk to be 0 (off) or positive, got {args.chunk}")
    contract.last_dim_contiguous("q", args.q)
    contract.tensor("seqlens_k", torch.int32, ["B"])
    contract.tensor("block_table", torch.int32, ["B", "max_pages"], "rows")
    check_cache_scales(contract)


def _attention_work(args: Bound, lengths: list[tuple[int, int]]) -> Work:
    """Two products of each query with its visible keys; every visible key and value once."""
    q, k_cache = args.q, args.k_cache
    num_heads, head_dim = q.shape[-2:]
    pairs = keys = 0
    for len_q, len_k in lengths:
        start = len_k - len_q
        for first, end, low in visible_pieces(len_q, len_k, args.chunk):
            shortest, longest = start + first - low + 1, start + end - low
            pairs += (shortest + longest) * (end - first) // 2
            keys += longest
    per_key = 2 * k_cache.shape[2] * head_dim * k_cache.element_size()
    lse = 4 * q.numel() // head_dim
    return Work(
        flops=4 * pairs * num_heads * head_dim,
        bytes=2 * tensor_bytes(q) + lse + keys * per_key + tensor_bytes(args.block_table),
    )


def _check_flash_prefill(args: Bound) -> None:
    contract = Contract(args)
    contract.shape("q", args.q, ["Tq", "Hq", "D"])
    contract.dtype("cu_seqlens_q", args.cu_seqlens_q, (torch.int32,))
    contract.require(
        args.cu_seqlens_q.dim() == 1 and args.cu_seqlens_q.shape[0] >= 1,
        f"expected cu_seqlens_q to be [B + 1], got {describe(args.cu_seqlens_q)}",
    )
    contract.require(args.max_seqlen_q >= 0, f"expected max_seqlen_q >= 0, got {args.max_seqlen_q}")
    contract.sizes["B"] = args.cu_seqlens_q.shape[0] - 1
    _check_cache(contract)
    if args.q.is_cuda:
        contract.require(
            contract.sizes["page"] % 8 == 0,
            "expected pages of a multiple of 8 slots on CUDA, got k_cache "
            + describe(args.k_cache),
        )
    if args.plan is not None:
        group = args.q.shape[1] // contract.sizes["Hkv"]
        contract.require(group <= 16, f"expected no plan with {group} q heads per kv head")
        sizes = args.q.shape[0], contract.sizes["B"], args.max_seqlen_q, group
        contract.tensor("plan", torch.int32, [plan_words(*sizes)], "contiguous")


def _work_flash_prefill(args: Bound) -> Work:
    queries = args.cu_seqlens_q.diff().tolist()
    return _attention_work(args, list(zip(queries, args.seqlens_k.tolist(), strict=True)))


def _fake_flash_prefill(args: Bound) -> tuple[Tensor, Tensor]:
    tokens, num_heads, _ = args.q.shape
    return (
        args.q.new_empty(args.q.shape),
        args.q.new_empty((num_heads, tokens), dtype=torch.float32),
    )


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
    plan: Tensor | None = None,
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
        k_scale, v_scale: float32 `[Hkv]`, above 0, of an e4m3 cache; None means 1.
        plan: of `flash_prefill_plan` for these lengths and shapes; None: the call plans for itself.

    Returns:
        `Attention(out, lse)`: `[Tq, Hq, D]` in the dtype of `q`, and float32 `[Hq, Tq]`. A query
        with no visible key gives 0 and -inf. Softmax and sums are float32, one rounding.

    Raises:
        IndexError: `cu_seqlens_q` out of order or beyond the rows of q, a sequence longer than
            `max_seqlen_q`, a negative length, a visible page outside the table or the cache, or a
            plan for other shapes or lengths.

    >>> k = v = torch.tensor([1.0, 3.0]).view(1, 2, 1, 1)
    >>> i32 = lambda *values: torch.tensor(values, dtype=torch.int32)
    >>> flash_prefill(torch.zeros(2, 1, 1), k, v, i32(0, 2), i32(2), i32(0).view(1, 1),
    ...               softmax_scale=1.0, max_seqlen_q=2).out.flatten()
    tensor([1., 2.])
    """
    out = torch.zeros_like(q, memory_format=torch.contiguous_format)
    lse = q.new_full((q.shape[1], q.shape[0]), float("-inf"), dtype=torch.float32)
    bounds = require_sequences("flash_prefill", cu_seqlens_q, seqlens_k, q.shape[0], max_seqlen_q)
    if plan is not None:
        heads = q.shape[1], k_cache.shape[2]
        capacity = block_table.shape[1] * k_cache.shape[1]
        sizes = q.shape[0], seqlens_k.shape[0], max_seqlen_q
        header = plan_header(*sizes, *heads, chunk, capacity)
        require_prefill_plan(plan, header, cu_seqlens_q, seqlens_k)
    cache = PagedCache("flash_prefill", k_cache, v_cache, k_scale, v_scale)
    for b, len_k in enumerate(seqlens_k.tolist()):
        rows = slice(bounds[b], bounds[b + 1])
        attend_sequence(
            cache, q[rows], len_k, block_table[b], softmax_scale, chunk, out[rows], lse[:, rows]
        )
    return out, lse


def check_flash_decode(args: Bound) -> None:
    contract = Contract(args)
    contract.shape("q", args.q, ["B", "S", "Hq", "D"])
    contract.require(
        1 <= contract.sizes["S"] <= MAX_DECODE_TOKENS,
        f"expected 1 to {MAX_DECODE_TOKENS} new tokens per sequence, got q {describe(args.q)}; "
        f"use flash_prefill for more",
    )
    _check_cache(contract)
    check_plan(contract, contract.sizes["B"])


def work_flash_decode(args: Bound) -> Work:
    return _attention_work(args, [(args.q.shape[1], len_k) for len_k in args.seqlens_k.tolist()])


def fake_flash_decode(args: Bound) -> tuple[Tensor, Tensor]:
    batch, tokens, num_heads, _ = args.q.shape
    return (
        args.q.new_empty(args.q.shape),
        args.q.new_empty((batch, num_heads, tokens), dtype=torch.float32),
    )


@op(
    check=check_flash_decode,
    work=work_flash_decode,
    fake=fake_flash_decode,
    returns=Attention,
    mutates=("plan",),
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
    plan: Tensor | None = None,
    settled: bool = False,
) -> tuple[Tensor, Tensor]:
    """`flash_prefill` for a few new tokens per sequence, as many for each: decoding.

    Args:
        q: `[B, S, Hq, D]` float32, bfloat16 or float16, 1 <= S <= 16 new tokens per sequence.
        k_cache, v_cache: `[P, page_size, Hkv, D]`, the dtype of `q`, or e4m3. D is 128 on CUDA.
        seqlens_k: int32 `[B]`, all keys including the new tokens; 0 for an idle row of a batch.
        block_table: int32 `[B, max_pages]`.
        softmax_scale, chunk, k_scale, v_scale: as for `flash_prefill`.
        plan: `flash_decode_plan` of the same lengths and shapes. Counters in it are written: calls
            that share it must not run at once.
        settled: the plan, lengths, block table and all keys but the new tokens' were complete when
            the launch before this one began, as they are behind a fence (docs/engine.md). They are
            then read while that launch still runs. Means nothing without a plan.

    Returns:
        `Attention(out, lse)`: `[B, S, Hq, D]` in the dtype of `q`, and float32 `[B, Hq, S]`. A
        query with no visible key gives 0 and -inf.

    Raises:
        IndexError: a negative length, a visible page outside the table or the cache, or a plan of
            another call.

    >>> k = v = torch.tensor([1.0, 3.0]).view(1, 2, 1, 1)
    >>> two, page = torch.tensor([2], dtype=torch.int32), torch.zeros(1, 1, dtype=torch.int32)
    >>> flash_decode(torch.zeros(1, 1, 1, 1), k, v, two, page, softmax_scale=1.0)
    Attention(out=tensor([[[[2.]]]]), lse=tensor([[[0.6931]]]))
    """
    caches = k_cache, v_cache, seqlens_k, block_table
    heads, capacity = (q.shape[2], k_cache.shape[2]), block_table.shape[1] * k_cache.shape[1]
    require_plan("flash_decode", plan, seqlens_k, heads, capacity, q.shape[1], chunk)
    return attend_batch("flash_decode", q, *caches, softmax_scale, chunk, k_scale, v_scale)


def attend_batch(
    op_name: str,
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    seqlens_k: Tensor,
    block_table: Tensor,
    softmax_scale: float,
    chunk: int,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The body of `flash_decode`, under the name of the op that it is a part of."""
    batch, tokens, num_heads, head_dim = q.shape
    cache = PagedCache(op_name, k_cache, v_cache, k_scale, v_scale)
    lengths = seqlens_k.tolist()
    shortest = min(lengths, default=0)
    if shortest < 0:
        raise IndexError(f"l4kernels.{op_name}: expected seqlens_k >= 0, got {lengths}")
    if tokens == 1 and batch:
        kv_heads = k_cache.shape[2]
        value = as_float(q)
        value = value * scalar(softmax_scale, value)
        groups = value.view(batch, kv_heads, num_heads // kv_heads, head_dim)
        found = [
            attend_one(cache, groups[b], len_k, block_table[b], chunk)
            for b, len_k in enumerate(lengths)
        ]
        value, lse = found[0] if batch == 1 else map(torch.cat, zip(*found, strict=True))
        return as_dtype(value.view(q.shape), q.dtype), lse.view(batch, num_heads, 1)
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    lse = q.new_empty((batch, num_heads, tokens), dtype=torch.float32)
    if shortest < tokens:  # some query sees no key
        out.zero_()
        lse.fill_(float("-inf"))
    for b, len_k in enumerate(lengths):
        attend_sequence(cache, q[b], len_k, block_table[b], softmax_scale, chunk, out[b], lse[b])
    return out, lse
