"""Decoding in one op: new tokens are rotated, stored in the paged cache and attended to."""

from torch import Tensor

from l4kernels.ops.attention import (
    Attention,
    attend_batch,
    check_flash_decode,
    fake_flash_decode,
    work_flash_decode,
)
from l4kernels.ops.bound import Bound
from l4kernels.ops.check import describe
from l4kernels.ops.contract import Contract
from l4kernels.ops.decode_plan import MAX_DECODE_TOKENS, require_plan
from l4kernels.ops.registry import Work, op, tensor_bytes
from l4kernels.ops.rope import check_rope_cache, split_qkv, work_rope_cache


def _attention(args: Bound) -> Bound:
    """The arguments of the `flash_decode` that follows; q is here where it is in `qkv`."""
    heads = args.qkv.unflatten(1, (-1, args.k_cache.shape[3]))[:, : args.num_heads]
    q = heads.unflatten(0, (args.qkv.shape[0] // args.tokens, args.tokens))
    return Bound(args.op, {**vars(args), "q": q})


def _check_flash_decode_append(args: Bound) -> None:
    check_rope_cache(args)
    contract = Contract(args)
    contract.require(
        1 <= args.tokens <= MAX_DECODE_TOKENS,
        f"expected tokens from 1 to {MAX_DECODE_TOKENS}, got {args.tokens}; use rope_cache and "
        f"flash_prefill for more",
    )
    contract.require(
        args.qkv.shape[0] % args.tokens == 0,
        f"expected {args.tokens} rows of qkv for each sequence, got {describe(args.qkv)}",
    )
    check_flash_decode(_attention(args))


def _work_flash_decode_append(args: Bound) -> Work:
    """That of both parts; q and the new keys and values stay on the chip between them."""
    attention = _attention(args)
    kept = sum(min(args.tokens, length) for length in args.seqlens_k.tolist())
    _, _, kv_heads, head_dim = args.k_cache.shape
    per_key = 2 * kv_heads * head_dim * args.k_cache.element_size()
    both = work_rope_cache(args) + work_flash_decode(attention)
    return Work(both.flops, both.bytes - 2 * tensor_bytes(attention.q) - kept * per_key)


@op(
    check=_check_flash_decode_append,
    work=_work_flash_decode_append,
    fake=lambda args: fake_flash_decode(_attention(args)),
    returns=Attention,
    mutates=("k_cache", "v_cache", "plan"),
)
def flash_decode_append(
    qkv: Tensor,
    positions: Tensor,
    slot_mapping: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    seqlens_k: Tensor,
    block_table: Tensor,
    *,
    num_heads: int,
    softmax_scale: float,
    tokens: int = 1,
    chunk: int = 0,
    cos_sin: Tensor | None = None,
    qk_norm_eps: float | None = None,
    attn_scale: float = 0.0,
    floor_scale: int = 8192,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    plan: Tensor | None = None,
    settled: bool = False,
) -> tuple[Tensor, Tensor]:
    """`rope_cache`, then `flash_decode` of its q: a step of decoding in one launch.

    The new tokens of sequence b are rows `[b * tokens, (b + 1) * tokens)` of `qkv`, and their keys
    the last of its `seqlens_k[b]`. No two sequences of a batch may share the page of a new key.

    Args:
        qkv: `[B * tokens, (Hq + 2 Hkv) * D]` float32, bfloat16 or float16: q heads, k heads, v
            heads. D is 128 on CUDA.
        positions: int64 `[B * tokens]`, absolute, from 0.
        slot_mapping: int64 `[B * tokens]`, where `block_table` puts the token's key: page *
            page_size + offset; -1 writes nothing: the cache has the key already, or an idle row
            (`seqlens_k` 0) has none.
        k_cache, v_cache: `[P, page_size, Hkv, D]`, the dtype of `qkv`, or e4m3; written in place.
        seqlens_k: int32 `[B]`, all keys including the new tokens; 0 for an idle row of a batch.
        block_table: int32 `[B, max_pages]`.
        num_heads, cos_sin, qk_norm_eps, attn_scale, floor_scale: as for `rope_cache`.
        softmax_scale, chunk: as for `flash_decode`.
        tokens: of each sequence, from 1 to 16.
        k_scale, v_scale: float32 `[Hkv]`, above 0, of an e4m3 cache; None means 1.
        plan, settled: as for `flash_decode`.

    Returns:
        `Attention(out, lse)`: `[B, tokens, Hq, D]` in the dtype of `qkv`, and float32 `[B, Hq,
        tokens]`. A query with no visible key gives 0 and -inf.

    Raises:
        IndexError: a negative position or length, a visible page outside the table or the cache,
            a slot that is neither -1 nor the key's place, or a plan of another call. Nothing has
            been written then, unless it was a page.

    >>> import torch
    >>> k, v = torch.full((2, 1, 2, 1, 2), 2.0)
    >>> qkv, at = torch.tensor([[0.0, 0.0, 5.0, 5.0, 4.0, 4.0]]), torch.tensor([1])
    >>> two, page = torch.tensor([2], dtype=torch.int32), torch.zeros(1, 1, dtype=torch.int32)
    >>> out, _ = flash_decode_append(
    ...     qkv, at, at, k, v, two, page, num_heads=1, softmax_scale=1.0
    ... )
    >>> out.flatten(), k.flatten()
    (tensor([3., 3.]), tensor([2., 2., 5., 5.]))
    """
    name = "flash_decode_append"
    _require_places(slot_mapping, seqlens_k, block_table, tokens, k_cache.shape[1])
    capacity, heads = block_table.shape[1] * k_cache.shape[1], (num_heads, k_cache.shape[2])
    require_plan(name, plan, seqlens_k, heads, capacity, tokens, chunk)
    rule = num_heads, cos_sin, qk_norm_eps, attn_scale, floor_scale
    q = split_qkv(
        name, qkv, positions, slot_mapping, k_cache, v_cache, *rule, k_scale, v_scale
    ).unflatten(0, (seqlens_k.shape[0], tokens))
    options = softmax_scale, chunk, k_scale, v_scale
    return attend_batch(name, q, k_cache, v_cache, seqlens_k, block_table, *options)


def _require_places(
    slot_mapping: Tensor, seqlens_k: Tensor, block_table: Tensor, tokens: int, page_size: int
) -> None:
    """Raises `IndexError` for a slot that is neither -1 nor where the block table puts the key."""
    slots, table = slot_mapping.tolist(), block_table.cpu().numpy()
    for b, length in enumerate(seqlens_k.tolist()):
        for i in range(tokens):
            slot, key = slots[b * tokens + i], length - tokens + i
            column = key // page_size
            place = -1
            if 0 <= column < block_table.shape[1]:
                place = int(table[b, column]) * page_size + key % page_size
            if slot not in (-1, place):
                raise IndexError(
                    f"l4kernels.flash_decode_append: expected every value of slot_mapping to be -1 "
                    f"or, by seqlens_k and block_table, the place of the token's key, got {slot} "
                    f"for token {i} of sequence {b} of {length} keys, whose place is {place}"
                )
