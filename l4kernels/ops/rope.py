"""Split the fused QKV, rotate, normalise, scale, and write K and V into the paged cache."""

import math
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from l4kernels.inputs.arguments import number, whole_number
from l4kernels.ops.bound import Bound
from l4kernels.ops.check import FLOATS, FP8, describe
from l4kernels.ops.contract import Contract
from l4kernels.ops.indices import require_indices
from l4kernels.ops.norm import inverse_rms
from l4kernels.ops.paged import check_cache_scales
from l4kernels.ops.quant import FP8_MAX
from l4kernels.ops.registry import Work, op, tensor_bytes
from l4kernels.ops.views import as_dtype, as_float

HEAD_DIM = 128
"""The head size of Llama 4, and the only one that the CUDA kernels take."""

_LARGEST = 2**31 - 1
"""No table has more rows or columns."""

_LARGEST_FLOAT = sys.float_info.max

_LLAMA3_NUMBERS = (
    "original_max_position_embeddings",
    "low_freq_factor",
    "high_freq_factor",
    "factor",
)


def rope_frequencies(
    *, theta: float, scaling: Mapping[str, Any] | None = None, head_dim: int = HEAD_DIM
) -> Tensor:
    """Radians per position of each pair, `[head_dim / 2]` float64.

    `theta^(-2i / head_dim)`, then the "llama3" rule if `scaling` is given: wavelengths shorter
    than `original_max_position_embeddings / high_freq_factor` stay, longer ones than `original /
    low_freq_factor` are slowed by `factor`, and those between are blended. With equal factors
    (Scout) the blend is empty and the rule is a switch.

    Raises:
        ValueError: a theta or a number of `scaling` that is not positive and finite, or a head_dim
            that is not even.

    >>> rope_frequencies(theta=10000.0, head_dim=4).tolist()
    [1.0, 0.01]
    """
    head_dim = whole_number("head_dim", head_dim, 2, _LARGEST)
    theta = number("theta", theta, 0, _LARGEST_FLOAT, above=True)
    if head_dim % 2:
        raise ValueError(f"rope_table: expected head_dim to be even, got {head_dim}")
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64, device="cpu") / head_dim
    frequencies = theta**-exponents
    kind = None if scaling is None else scaling.get("rope_type", scaling.get("type"))
    if scaling is None or kind == "default":
        return frequencies
    if kind != "llama3":
        raise ValueError(f"rope_table: expected scaling of type llama3 or default, got {kind!r}")
    original, low, high, factor = (
        number(f"scaling[{key!r}]", scaling.get(key), 0, _LARGEST_FLOAT, above=True)
        for key in _LLAMA3_NUMBERS
    )
    if low > high:
        raise ValueError(
            f"rope_table: expected low_freq_factor <= high_freq_factor, got {low} and {high}"
        )
    turns = original * frequencies / (2 * math.pi)
    blend = (turns - low) / (high - low) if high > low else (turns >= low).double()
    kept = blend.clamp(0, 1)
    return frequencies * (kept + (1 - kept) / factor)


def rope_table(
    num_positions: int,
    *,
    theta: float,
    scaling: Mapping[str, Any] | None = None,
    head_dim: int = HEAD_DIM,
) -> Tensor:
    """Cosines and sines of positions 0 to `num_positions - 1` for `rope_cache`.

    A chunked layer only compares positions within one chunk, so a table of one chunk serves it at
    any length, and exactly: no angle grows with the position.

    Args:
        num_positions: rows of the table.
        theta: base of the frequencies, positive.
        scaling: of `rope_frequencies`; None for none.
        head_dim: even.

    Returns:
        `[num_positions, head_dim]` float32 on the CPU: the cosines of the pairs, then their sines;
        the angles are float64 until the end.

    >>> rope_table(2, theta=10000.0, head_dim=4)
    tensor([[1.0000, 1.0000, 0.0000, 0.0000],
            [0.5403, 0.9999, 0.8415, 0.0100]])
    """
    frequencies = rope_frequencies(theta=theta, scaling=scaling, head_dim=head_dim)
    num_positions = whole_number("num_positions", num_positions, 0, _LARGEST)
    if not math.isfinite(num_positions * float(frequencies.max())):
        raise ValueError(f"rope_table: expected finite angles, got theta {theta}, {scaling}")
    angles = torch.arange(num_positions, dtype=torch.float64, device="cpu")[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], -1).float()


def check_rope_cache(args: Bound) -> None:
    contract = Contract(args)
    contract.dtype("qkv", args.qkv, FLOATS)
    cache = ["P", "page", "Hkv", "D"]
    contract.tensor("k_cache", (args.qkv.dtype, FP8), cache, "contiguous")
    contract.tensor("v_cache", args.k_cache.dtype, cache, "contiguous")
    kv_heads, head_dim = contract.sizes["Hkv"], contract.sizes["D"]
    contract.require(
        args.num_heads >= 1 and kv_heads >= 1 and args.num_heads % kv_heads == 0,
        f"expected num_heads to be a positive multiple of the {kv_heads} heads of k_cache, "
        f"got {args.num_heads}",
    )
    contract.multiple("the head size", head_dim, 2)
    if args.qkv.is_cuda:
        contract.require(
            head_dim == HEAD_DIM,
            f"expected head size {HEAD_DIM} on CUDA, got {describe(args.k_cache)}",
        )
    columns = (args.num_heads + 2 * kv_heads) * head_dim
    contract.tensor("qkv", FLOATS, ["T", columns], "rows")
    contract.tensor("positions", torch.int64, ["T"])
    contract.tensor("slot_mapping", torch.int64, ["T"])
    contract.tensor("cos_sin", torch.float32, ["R", "D"], "contiguous")
    contract.require(
        contract.sizes.get("R", 1) > 0, "expected cos_sin to hold at least one position, got none"
    )
    contract.require(
        args.qk_norm_eps is None or args.qk_norm_eps >= 0,
        f"expected qk_norm_eps to be None (off) or not negative, got {args.qk_norm_eps}",
    )
    contract.require(
        args.floor_scale >= 1, f"expected floor_scale to be positive, got {args.floor_scale}"
    )
    check_cache_scales(contract)


def work_rope_cache(args: Bound) -> Work:
    qkv, k_cache = args.qkv, args.k_cache
    tokens, (kv_heads, head_dim) = qkv.shape[0], k_cache.shape[2:]
    rotated = tokens * (args.num_heads + kv_heads) * head_dim
    written = tokens * args.num_heads * head_dim * qkv.element_size()
    written += 2 * tokens * kv_heads * head_dim * k_cache.element_size()
    table = tokens * head_dim * 4 if args.cos_sin is not None else 0
    flops = 3 * rotated * ((args.cos_sin is not None) + (args.qk_norm_eps is not None))
    return Work(
        flops=flops + tokens * args.num_heads * head_dim * (args.attn_scale != 0),
        bytes=tensor_bytes(qkv, args.positions, args.slot_mapping) + table + written,
    )


def _fake_rope_cache(args: Bound) -> Tensor:
    return args.qkv.new_empty(args.qkv.shape[0], args.num_heads, args.k_cache.shape[3])


@op(
    check=check_rope_cache,
    work=work_rope_cache,
    fake=_fake_rope_cache,
    mutates=("k_cache", "v_cache"),
)
def rope_cache(
    qkv: Tensor,
    positions: Tensor,
    slot_mapping: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    *,
    num_heads: int,
    cos_sin: Tensor | None = None,
    qk_norm_eps: float | None = None,
    attn_scale: float = 0.0,
    floor_scale: int = 8192,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> Tensor:
    """Turns the fused QKV projection into attention's q, and stores K and V in the paged cache.

    Per token, in float32 with one rounding at the end: rotate the adjacent pairs (2i, 2i + 1) of q
    and k by `cos_sin[position % R]`; divide each head of q and k by its root mean square; multiply
    q by `1 + attn_scale * ln(1 + floor((position + 1) / floor_scale))`. In Llama 4 the first two
    belong to the chunked (RoPE) layers and the last to the full (NoPE) layers. This is the only
    place where the temperature is applied: attention knows none.

    Args:
        qkv: `[T, (Hq + 2 Hkv) * D]` float32, bfloat16 or float16: q heads, k heads, v heads. D is
            128 on CUDA.
        positions: int64 `[T]`, absolute, from 0.
        slot_mapping: int64 `[T]`: page * page_size + offset; -1 writes no K and V.
        k_cache, v_cache: `[P, page_size, Hkv, D]`, the dtype of `qkv`, or e4m3; written in place.
        num_heads: Hq, a multiple of Hkv.
        cos_sin: float32 `[R, D]` of `rope_table`; None on NoPE layers.
        qk_norm_eps: turns on the weightless norm of each q and k head.
        attn_scale: 0 turns the temperature off.
        floor_scale: positions per step of the temperature.
        k_scale, v_scale: float32 `[Hkv]` for an e4m3 cache, which holds
            `saturate(value * (1 / scale))`; None means 1.

    Returns:
        q `[T, Hq, D]`, the dtype of `qkv`.

    Raises:
        IndexError: a negative position, or a slot outside the cache.

    >>> k, v = torch.zeros(2, 1, 2, 2, 4)
    >>> qkv = torch.arange(12.0).view(1, 12)
    >>> zero, two = torch.tensor([0]), torch.tensor([2])
    >>> cache = k.view(2, 2, 1, 4), v.view(2, 2, 1, 4)
    >>> q = rope_cache(qkv, zero, two, *cache, num_heads=1)
    >>> q.tolist(), cache[0][1, 0].tolist()
    ([[[0.0, 1.0, 2.0, 3.0]]], [[4.0, 5.0, 6.0, 7.0]])
    """
    options = qk_norm_eps, attn_scale, floor_scale, k_scale, v_scale
    q = split_qkv(
        "rope_cache", qkv, positions, slot_mapping, k_cache, v_cache, num_heads, cos_sin, *options
    )
    return q.clone(memory_format=torch.contiguous_format)


def split_qkv(
    op_name: str,
    qkv: Tensor,
    positions: Tensor,
    slot_mapping: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    num_heads: int,
    cos_sin: Tensor | None,
    qk_norm_eps: float | None,
    attn_scale: float,
    floor_scale: int,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
) -> Tensor:
    """The body of `rope_cache`, under the name of the op that it is a part of; its q may be a part
    of `qkv` or of a larger tensor."""
    num_pages, page_size, kv_heads, head_dim = k_cache.shape
    _, last = require_indices(op_name, "positions", positions, 0, 2**63 - 1)
    slots = num_pages * page_size
    least, _ = require_indices(op_name, "slot_mapping", slot_mapping, -1, slots)
    heads = as_float(qkv).view(qkv.shape[0], num_heads + 2 * kv_heads, head_dim)
    qk, value = heads.split_with_sizes([num_heads + kv_heads, kv_heads], 1)
    if cos_sin is not None:
        qk = _rotated(qk, _table_rows(cos_sin, positions, last))
    if qk_norm_eps is not None:
        qk = qk * inverse_rms(qk, qk_norm_eps)
    q, key = qk.split_with_sizes([num_heads, kv_heads], 1)
    # Before the first step the factor is 1, and the calls are saved.
    if attn_scale != 0.0 and (last + 1 >= floor_scale or not math.isfinite(attn_scale)):
        steps = ((positions + 1) // floor_scale).float()
        q = q * (1 + attn_scale * torch.log1p(steps))[:, None, None]
    if least < 0:
        stored = slot_mapping >= 0
        slot_mapping, key, value = slot_mapping[stored], key[stored], value[stored]
    where: Tensor | slice = slot_mapping
    if len(positions) == 1 and least >= 0:  # a slice is filled sooner than rows are scattered
        where = slice(least, least + 1)
    _write(k_cache, key, where, k_scale)
    _write(v_cache, value, where, v_scale)
    return as_dtype(q, qkv.dtype)


def _table_rows(cos_sin: Tensor, positions: Tensor, last: int) -> Tensor:
    """`[T, D]`; `last` is the largest position."""
    size = cos_sin.shape[0]
    if len(positions) == 1:
        return cos_sin[last % size : last % size + 1]
    return cos_sin.index_select(0, positions if last < size else positions % size)


def _rotated(x: Tensor, cos_sin: Tensor) -> Tensor:
    cos, sin = cos_sin.view(x.shape[0], 1, 2, x.shape[2] // 2).unbind(2)
    x = x.contiguous()
    if x.storage_offset() % 2 or x.stride(0) % 2:  # no place for a complex number
        x = x.clone(memory_format=torch.contiguous_format)
    pairs = x.view(torch.complex64)
    return (pairs * torch.complex(cos, sin)).view(torch.float32)


def _write(cache: Tensor, value: Tensor, slots: Tensor | slice, scale: Tensor | None) -> None:
    if cache.dtype == FP8:
        if scale is not None:
            value = value * scale.reciprocal()[:, None]
        value = value.clamp(-FP8_MAX, FP8_MAX)
    cache.view(-1, *cache.shape[2:])[slots] = as_dtype(value, cache.dtype)
