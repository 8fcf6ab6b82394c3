"""The ops again, written as slowly and plainly as possible: loops, float64, no shared code.

Each function takes an op's arguments and returns its results before their last rounding, as a
tuple; what an op writes in place comes after what it returns.
"""

import math

import numpy as np
import torch

from tests.support.naive_quant import (
    dequantized,
    f64,
    int4_rows,
    int4_tiles,
    quantize_fp8,
    quantize_int4,
    quantized,
)
from tests.support.naive_sample import sample
from tests.support.naive_step import advance_step, process_logits

__all__ = ["advance_step", "process_logits", "quantize_fp8", "quantize_int4", "sample"]

FP8 = torch.float8_e4m3fn


def silu(z: float) -> float:
    return 0.0 if z < -700 else z / (1 + math.exp(-z))


def gelu(z: float) -> float:
    return 0.5 * z * (1 + math.erf(z / math.sqrt(2)))


def mma_tile(a, b):
    return (f64(a) @ f64(b).T,)


def word_sum(data):
    words = np.frombuffer(data.contiguous().flatten().view(torch.uint8).numpy(), np.uint32)
    total = sum(int(word) for word in words)
    return (np.array([total % 2**32]).astype(np.uint32).view(np.int32),)


def silu_mul(x):
    f = x.shape[1] // 2
    rows = f64(x)
    out = [[silu(row[j]) * row[f + j] for j in range(f)] for row in rows]
    return (np.array(out).reshape(len(rows), f),)


def silu_mul_fp8(x, scaling="row"):
    return quantized(silu_mul(x)[0], scaling)


def rms_norm(x, weight, eps=1e-5):
    rows = f64(x).reshape(-1, x.shape[-1])
    out = np.zeros_like(rows)
    for i, row in enumerate(rows):
        normal = row / math.sqrt(sum(v * v for v in row) / len(row) + eps)
        out[i] = f64(torch.from_numpy(normal).to(x.dtype)) * f64(weight)
    return (out.reshape(x.shape),)


def add_rms_norm(x, residual, weight, eps=1e-5):
    total = torch.from_numpy(f64(x) + f64(residual)).to(x.dtype)
    return rms_norm(total, weight, eps)[0], f64(total)


def rms_norm_fp8(x, weight, eps=1e-5, scaling="row", residual=None, keep_y=False):
    nothing = np.zeros((0, x.shape[1]))
    y, total = rms_norm(x, weight, eps)[0], nothing
    if residual is not None:
        y, total = add_rms_norm(x, residual, weight, eps)
    rounded = f64(torch.from_numpy(y).to(x.dtype))
    return *quantized(rounded, scaling), rounded if keep_y else nothing, total


def rope_cache(
    qkv,
    positions,
    slot_mapping,
    k_cache,
    v_cache,
    *,
    num_heads,
    cos_sin=None,
    qk_norm_eps=None,
    attn_scale=0.0,
    floor_scale=8192,
    k_scale=None,
    v_scale=None,
):
    kv_heads, page_size = k_cache.shape[2], k_cache.shape[1]
    q = np.zeros((qkv.shape[0], num_heads, 128))
    caches = [f64(k_cache), f64(v_cache)]
    scales = [np.ones(kv_heads) if s is None else f64(s) for s in (k_scale, v_scale)]
    table = None if cos_sin is None else f64(cos_sin)
    for t, row in enumerate(f64(qkv).reshape(qkv.shape[0], num_heads + 2 * kv_heads, 128)):
        p, slot = int(positions[t]), int(slot_mapping[t])
        for h, head in enumerate(row):
            is_value = h >= num_heads + kv_heads
            if table is not None and not is_value:
                cos, sin = table[p % len(table), :64], table[p % len(table), 64:]
                head = [
                    head[2 * i] * cos[i] - head[2 * i + 1] * sin[i]
                    if even
                    else head[2 * i] * sin[i] + head[2 * i + 1] * cos[i]
                    for i in range(64)
                    for even in (True, False)
                ]
            head = np.array(head)
            if qk_norm_eps is not None and not is_value:
                head = head / math.sqrt((head**2).sum() / 128 + qk_norm_eps)
            if h < num_heads:
                q[t, h] = head * (1 + attn_scale * math.log(1 + (p + 1) // floor_scale))
            elif slot >= 0:
                g = (h - num_heads) % kv_heads
                stored = head / scales[is_value][g]
                if k_cache.dtype == FP8:
                    stored = np.clip(stored, -448, 448)
                caches[is_value][slot // page_size, slot % page_size, g] = stored
    return q, *caches


def moe_route(logits, top_k=1, shared_expert=False):
    ids, weights, flat = [], [], []
    experts, choices = logits.shape[1] + shared_expert, top_k + shared_expert
    for t, row in enumerate(f64(logits)):
        if any(math.isnan(v) for v in row):
            ids.append(list(range(top_k)))
            weights.append([math.nan] * top_k)
        else:
            best = sorted(range(len(row)), key=lambda e: (-row[e], e))[:top_k]
            ids.append(best)
            with np.errstate(over="ignore"):
                weights.append([float(1 / (1 + np.exp(-row[e]))) for e in best])
        if shared_expert:
            ids[-1].append(experts - 1)
            weights[-1].append(1.0)
        flat += [(e, t * choices + j) for j, e in enumerate(ids[-1])]
    order = [index for _, index in sorted(flat)]
    offsets = [sum(e < bound for e, _ in flat) for bound in range(experts + 1)]
    inverse = [0] * len(order)
    for row, index in enumerate(order):
        inverse[index] = row
    shape = (logits.shape[0], choices)
    weights = np.array(weights).reshape(shape)
    row_scale = weights.flatten()[order] if order else np.zeros(0)
    return (
        np.array(ids).reshape(shape),
        weights,
        row_scale,
        *map(np.array, (offsets, order, inverse)),
    )


def gathered(x, permutation, top_k):
    rows = [] if permutation is None else [int(i) // top_k for i in permutation]
    return f64(x) if permutation is None else f64(x)[np.array(rows, int)]


def moe_router(x, norm_weight, router_weight, num_experts, eps=1e-5, top_k=1, shared_expert=False):
    normed = rms_norm(x, norm_weight, eps)[0]
    logits = f64(torch.from_numpy(normed).to(x.dtype)) @ f64(router_weight[:num_experts]).T
    return normed, *moe_route(torch.from_numpy(logits), top_k, shared_expert)


def moe_permute(x, permutation, top_k):
    return (gathered(x, permutation, top_k),)


def moe_permute_fp8(x, permutation, top_k, scaling="row"):
    return quantized(moe_permute(x, permutation, top_k)[0], scaling)


def moe_combine(y, inverse, top_k, shared=None, residual=None):
    rows = f64(y)
    out = np.zeros((len(rows) // top_k, y.shape[1]))
    for t in range(len(out)):
        for j in range(top_k):
            out[t] += rows[int(inverse[t * top_k + j])]
    for other in (shared, residual):
        out += 0 if other is None else f64(other)
    return (out,)


def moe_combine_norm(y, inverse, top_k, norm_weight, eps=1e-5, residual=None, norm=rms_norm):
    (x,) = moe_combine(y, inverse, top_k, residual=residual)
    return x, *norm(torch.from_numpy(x).to(y.dtype), norm_weight, eps)[:2]


def moe_combine_norm_fp8(*args, **options):
    return moe_combine_norm(*args, **options, norm=rms_norm_fp8)


def product(a, weight, n, offsets, bias, residual, row_scale, activation):
    """`weight(e)` is the float64 [N, K] of expert e, or of the dense weight for None."""
    out = np.zeros((len(a), n // 2 if activation == "swiglu" else n))
    for i, row in enumerate(a):
        expert = None
        if offsets is not None:
            owners = [e for e in range(len(offsets) - 1) if offsets[e] <= i < offsets[e + 1]]
            if not owners:
                continue
            (expert,) = owners
        acc = weight(expert) @ row
        acc = acc * (1 if row_scale is None else float(row_scale[i]))
        acc = acc + (0 if bias is None else f64(bias))
        if activation == "swiglu":
            acc = [
                silu(acc[j // 8 * 16 + j % 8]) * acc[j // 8 * 16 + 8 + j % 8] for j in range(n // 2)
            ]
        elif activation == "gelu":
            acc = [gelu(v) for v in acc]
        out[i] = np.array(acc) + (0 if residual is None else f64(residual)[i])
    return out


def gemm(
    a,
    b,
    *,
    expert_offsets=None,
    permutation=None,
    top_k=1,
    sfa=None,
    sfb=None,
    bias=None,
    residual=None,
    row_scale=None,
    activation="none",
    **_,
):
    n = b.shape[-2]
    value_a, value_b = gathered(a, permutation, top_k), f64(b)
    if sfa is not None:
        of_a = "1x128" if sfa.dim() == 2 else "tensor" if len(sfa) == 1 else "row"
        value_a = dequantized(a, sfa, of_a)
        last = tuple(sfb.shape[b.dim() - 2 :])
        of_b = "128x128" if len(last) == 2 else "row" if last == (n,) else "tensor"
        value_b = dequantized(b, sfb, of_b)
    offsets = None if expert_offsets is None else expert_offsets.tolist()
    return (
        product(
            value_a,
            lambda e: value_b if e is None else value_b[e],
            n,
            offsets,
            bias,
            residual,
            row_scale,
            activation,
        ),
    )


def gemm_swiglu_fp8(a, b, **options):
    return quantized(gemm(a, b, activation="swiglu", **options)[0], "1x128")


def w4_gemm(
    a,
    packed,
    scales=None,
    *,
    zeros=None,
    expert_offsets=None,
    permutation=None,
    top_k=1,
    bias=None,
    residual=None,
    row_scale=None,
    activation="none",
    **_,
):
    weights = int4_tiles(packed) if scales is None else int4_rows(packed, scales, zeros)
    offsets = None if expert_offsets is None else expert_offsets.tolist()
    return (
        product(
            gathered(a, permutation, top_k),
            lambda e: weights if e is None else weights[e],
            weights.shape[-2],
            offsets,
            bias,
            residual,
            row_scale,
            activation,
        ),
    )


def visible(position, num_keys, chunk):
    """The mask, word for word: key j is seen iff j <= p and both lie in one chunk."""
    return [
        j
        for j in range(num_keys)
        if j <= position and (chunk == 0 or j // chunk == position // chunk)
    ]


def attend(q, k_cache, v_cache, len_k, table, softmax_scale, chunk, k_scale, v_scale):
    """One sequence: q float64 [L, Hq, D] -> out [L, Hq, D], lse [Hq, L]."""
    page_size, kv_heads = k_cache.shape[1:3]
    k_cache, v_cache = f64(k_cache), f64(v_cache)
    out, lse = np.zeros(q.shape), np.full((q.shape[1], len(q)), -np.inf)
    scales = [np.ones(kv_heads) if s is None else f64(s) for s in (k_scale, v_scale)]
    for i, query in enumerate(q):
        keys = visible(len_k - len(q) + i, len_k, chunk)
        if not keys:
            continue
        slots = [(int(table[j // page_size]), j % page_size) for j in keys]
        k = np.stack([k_cache[slot] for slot in slots]) * scales[0][:, None]
        v = np.stack([v_cache[slot] for slot in slots]) * scales[1][:, None]
        for h in range(q.shape[1]):
            g = h // (q.shape[1] // kv_heads)
            scores = k[:, g] @ query[h] * softmax_scale
            total = np.exp(scores - scores.max()).sum()
            lse[h, i] = scores.max() + math.log(total)
            out[i, h] = np.exp(scores - lse[h, i]) @ v[:, g]
    return out, lse


def flash_prefill_plan(
    cu_seqlens_q,
    seqlens_k,
    *,
    rows,
    num_heads,
    kv_heads,
    capacity,
    max_seqlen_q,
    chunk=0,
):
    """The longest tiles of queries first, by looking at every key of theirs."""
    bounds, batch = cu_seqlens_q.tolist(), len(seqlens_k)
    tokens = 128 // (num_heads // kv_heads)
    found = []
    for b, len_k in enumerate(seqlens_k.tolist()):
        positions = range(len_k - bounds[b + 1] + bounds[b], len_k)
        for tile in range(-(-len(positions) // tokens)):
            own = positions[tile * tokens : (tile + 1) * tokens]
            keys = {j // 128 for p in own for j in visible(p, len_k, chunk)}
            found.append((len(keys), b, tile))
    found = [(b, tile, 0, 65536) for _, b, tile in sorted(found, reverse=True)]
    bound = min(max_seqlen_q, rows)
    most = min(rows // tokens + batch, batch * -(-bound // tokens))
    words = np.zeros(12 + 4 * (max(most, 1280) + min(most, 768)) + 2 * batch + 1, np.int32)
    shape = rows, batch, bound, num_heads, kv_heads, chunk, capacity, 0
    words[:12] = *shape, bounds[-1], len(found), 0, 1
    words[12 : 12 + 4 * len(found)] = np.ravel(found)
    words[-2 * batch - 1 :] = *bounds, *seqlens_k.tolist()
    return (words,)


def flash_prefill(
    q,
    k_cache,
    v_cache,
    cu_seqlens_q,
    seqlens_k,
    block_table,
    *,
    softmax_scale,
    max_seqlen_q,
    chunk=0,
    k_scale=None,
    v_scale=None,
    plan=None,
):
    out, lse = np.zeros(q.shape), np.full((q.shape[1], q.shape[0]), -np.inf)
    bounds, queries = cu_seqlens_q.tolist(), f64(q)
    for b, len_k in enumerate(seqlens_k.tolist()):
        rows = slice(bounds[b], bounds[b + 1])
        out[rows], lse[:, rows] = attend(
            queries[rows],
            k_cache,
            v_cache,
            len_k,
            block_table[b],
            softmax_scale,
            chunk,
            k_scale,
            v_scale,
        )
    return out, lse


def flash_decode(
    q,
    k_cache,
    v_cache,
    seqlens_k,
    block_table,
    *,
    softmax_scale,
    chunk=0,
    k_scale=None,
    v_scale=None,
    plan=None,
):
    out, lse = np.zeros(q.shape), np.zeros((q.shape[0], q.shape[2], q.shape[1]))
    for b, len_k in enumerate(seqlens_k.tolist()):
        out[b], lse[b] = attend(
            f64(q[b]),
            k_cache,
            v_cache,
            len_k,
            block_table[b],
            softmax_scale,
            chunk,
            k_scale,
            v_scale,
        )
    return (out, lse) if plan is None else (out, lse, plan.numpy())


def flash_decode_plan(seqlens_k, *, num_heads, kv_heads, capacity, tokens=1, chunk=0):
    """What others may read of it: of 32 bits and so many tiles of 64 keys."""
    lengths = seqlens_k.tolist()
    blocks = max(1, math.ceil(tokens * (num_heads // kv_heads) / 64))
    items = max(1, len(lengths) * kv_heads * blocks)
    while capacity > 2**31 - 16 or math.ceil(capacity / 64) * items > 2**31 - 1:
        capacity = min(capacity - 1, 2**31 - 16, (2**31 - 1) // items * 64)
    plan = np.zeros(16 + 256 * 24 + len(lengths), dtype=np.int64)
    plan[:7] = [0x6C346B31, len(lengths), kv_heads, blocks, tokens, chunk, capacity]
    for b, length in enumerate(lengths):
        plan[16 + 256 * 24 + b] = length
    return (plan,)


def flash_decode_append(
    qkv, positions, slots, k_cache, v_cache, seqlens_k, block_table,
    *, num_heads, softmax_scale, tokens=1, chunk=0, k_scale=None, v_scale=None, plan=None, **rule,
):  # fmt: skip
    """Between the two parts q and the cache are rounded."""
    scales = {"k_scale": k_scale, "v_scale": v_scale}
    rule |= {"num_heads": num_heads, **scales}
    q, *stored = rope_cache(qkv, positions, slots, k_cache, v_cache, **rule)
    q = torch.from_numpy(q).to(qkv.dtype).unflatten(0, (len(seqlens_k), tokens))
    caches = (torch.from_numpy(cache).to(k_cache.dtype) for cache in stored)
    options = {"softmax_scale": softmax_scale, "chunk": chunk, **scales}
    plans = () if plan is None else (plan.numpy(),)
    return *flash_decode(q, *caches, seqlens_k, block_table, **options), *stored, *plans


def merge_attention_states(outs, lses):
    outs, lses = f64(outs), f64(lses)
    with np.errstate(divide="ignore"):
        lse = np.log(np.exp(lses).sum(0))
    out = np.zeros(outs.shape[1:])
    for index in np.ndindex(*lses.shape):
        if lses[index] != -np.inf:
            _, *place, head, token = index
            weight = np.exp(lses[index] - lse[index[1:]])
            out[(*place, token, head)] += weight * outs[(index[0], *place, token, head)]
    return out, lse


def embed(input_ids, weight, image_features=None, image_rows=None):
    out = np.zeros((len(input_ids), weight.shape[1]))
    for t, token in enumerate(input_ids.tolist()):
        row = -1 if image_rows is None else int(image_rows[t])
        out[t] = f64(weight)[token] if row < 0 else f64(image_features)[row]
    return (out,)
