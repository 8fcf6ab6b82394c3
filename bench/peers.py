"""What the kernels are measured against, in the same run. A peer has its op's signature and is
absent where it cannot be imported; it is checked against the reference before it is timed."""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench import int4_peers
from l4kernels.bench.measure import Peers
from l4kernels.bench.shapes import SIZES, Arguments
from l4kernels.ops import OPS
from l4kernels.ops.check import FP8

EAGER: dict[str, Callable[..., Any]] = {
    name: OPS[name].body for name in ("process_logits", "advance_step")
}  # of these the typed body looks at nothing on the host


def _eager(function: Callable[..., Any]) -> Callable[..., Any]:
    EAGER[function.__name__] = function
    return function


@_eager
def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, eps)


@_eager
def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-5) -> Any:
    total = x + residual
    return F.rms_norm(total, weight.shape, weight, eps), total


@_eager
def silu_mul(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


@_eager
def moe_permute(x: Tensor, permutation: Tensor, top_k: int) -> Tensor:
    return x.index_select(0, permutation // top_k)


@_eager
def moe_combine(
    y: Tensor,
    inverse: Tensor,
    top_k: int,
    shared: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    total = y.index_select(0, inverse).view(-1, top_k, y.shape[1]).sum(1)
    for extra in (shared, residual):
        total = total if extra is None else total + extra
    return total


@_eager
def moe_combine_norm(
    y: Tensor,
    inverse: Tensor,
    top_k: int,
    norm_weight: Tensor,
    eps: float = 1e-5,
    residual: Tensor | None = None,
) -> Any:
    x = moe_combine(y, inverse, top_k, residual=residual)
    return x, rms_norm(x, norm_weight, eps)


@_eager
def moe_combine_norm_fp8(
    y: Tensor,
    inverse: Tensor,
    top_k: int,
    norm_weight: Tensor,
    eps: float = 1e-5,
    residual: Tensor | None = None,
) -> Any:
    x, normed = moe_combine_norm(y, inverse, top_k, norm_weight, eps, residual)
    return x, *quantize_fp8(normed, "row")


@_eager
def embed(input_ids: Tensor, weight: Tensor) -> Tensor:
    return F.embedding(input_ids, weight)


@_eager
def quantize_fp8(x: Tensor, scaling: str) -> tuple[Tensor, Tensor]:
    rows = x if scaling == "row" else x.unflatten(-1, (-1, 128))
    scale = rows.abs().amax(-1, keepdim=True).float() / 448
    q = (rows.float() / scale).to(FP8)
    return q.view(x.shape), scale.squeeze(-1)


@_eager
def rms_norm_fp8(x: Tensor, weight: Tensor, eps: float = 1e-5, scaling: str = "row") -> Any:
    return quantize_fp8(rms_norm(x, weight, eps), scaling)


@_eager
def silu_mul_fp8(x: Tensor, scaling: str = "row") -> Any:
    return quantize_fp8(silu_mul(x), scaling)


@_eager
def moe_permute_fp8(x: Tensor, permutation: Tensor, top_k: int, scaling: str = "row") -> Any:
    return quantize_fp8(moe_permute(x, permutation, top_k), scaling)


@_eager
def moe_route(logits: Tensor, top_k: int, shared_expert: bool) -> Any:
    chosen, ids = logits.topk(top_k)
    experts, weights = logits.shape[1], chosen.sigmoid()
    if shared_expert:
        ids, weights = F.pad(ids, (0, 1), value=experts), F.pad(weights, (0, 1), value=1.0)
        experts += 1
    flat = ids.flatten()
    rows, permutation = torch.arange(len(flat), device=ids.device), flat.argsort(stable=True)
    bounds = torch.arange(experts + 1, device=ids.device)
    offsets = torch.searchsorted(flat[permutation], bounds)
    inverse = torch.empty_like(rows).scatter_(0, permutation, rows)
    scale = weights.flatten()[permutation]
    return ids.int(), weights, scale, offsets.int(), permutation.int(), inverse.int()


@_eager
def moe_router(
    x: Tensor,
    norm_weight: Tensor,
    router_weight: Tensor,
    num_experts: int,
    eps: float,
    top_k: int,
    shared_expert: bool,
) -> Any:
    normed = rms_norm(x, norm_weight, eps)
    logits = (normed @ router_weight.T)[:, :num_experts].float()
    return normed, *moe_route(logits, top_k, shared_expert)


@_eager
def rope_cache(
    qkv: Tensor,
    positions: Tensor,
    slot_mapping: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    *,
    num_heads: int,
    cos_sin: Tensor | None,
    qk_norm_eps: float | None = None,
) -> Tensor:
    heads = qkv.unflatten(1, (-1, k_cache.shape[3]))
    qk, value = heads.split([heads.shape[1] - k_cache.shape[2], k_cache.shape[2]], 1)
    if cos_sin is not None:
        cos, sin = cos_sin[positions % cos_sin.shape[0], None].chunk(2, -1)
        a, b = qk.float().unflatten(-1, (-1, 2)).unbind(-1)
        qk = torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)
    if qk_norm_eps is not None:
        qk = F.rms_norm(qk, qk.shape[-1:], eps=qk_norm_eps)
    for cache, new in ((k_cache, qk[:, num_heads:]), (v_cache, value)):
        cache.flatten(0, 1)[slot_mapping] = new.to(cache.dtype)
    return qk[:, :num_heads].to(qkv.dtype)


@_eager
def sample(logits: Tensor, *_: Tensor) -> Any:
    """Greedy; what draws differs from it and has `_nucleus` as its peer."""
    ids = logits.argmax(-1)
    return ids, logits.log_softmax(-1).gather(-1, ids[:, None]).squeeze(1)


def _nucleus(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, *_: Tensor
) -> tuple[Tensor, Tensor]:
    """The sort, the running sum and the exponential race of the usual samplers."""
    if not torch.cuda.is_current_stream_capturing() and not temperature.any():
        raise NotImplementedError("not for greedy rows")
    mass, order = (logits / temperature[:, None]).softmax(-1).sort(descending=True)
    mass = mass.masked_fill(mass.cumsum(-1) - mass > top_p[:, None], 0)
    won = (mass / torch.empty_like(mass).exponential_()).argmax(-1, keepdim=True)
    ids = order.gather(-1, won)
    return ids.squeeze(1), logits.log_softmax(-1).gather(-1, ids).squeeze(1)


@_eager
def gemm(
    a: Tensor,
    b: Tensor,
    *,
    expert_offsets: Tensor | None = None,
    permutation: Tensor | None = None,
    top_k: int = 1,
    sfa: Tensor | None = None,
    sfb: Tensor | None = None,
    row_scale: Tensor | None = None,
    activation: str = "none",
    fast_accum: bool = False,
) -> Tensor:
    """cuBLAS and torch's grouped products; then SwiGLU in eager torch."""
    a = a if permutation is None else moe_permute(a, permutation, top_k)
    w = b.transpose(-2, -1)
    options = {"out_dtype": torch.bfloat16, "use_fast_accum": fast_accum}
    if expert_offsets is not None:
        ends = expert_offsets[1:]
        if sfa is None:
            out = torch._grouped_mm(a, w, offs=ends)
        else:
            out = torch._scaled_grouped_mm(a, w, sfa, sfb, offs=ends, **options)
    elif sfa is None:
        out = a @ w
    elif sfa.dim() == 1:
        out = torch._scaled_mm(a, w, sfa[:, None], sfb[None], **options)
    else:  # its scales are those of `prepared`
        out = torch._scaled_mm(a, w, sfa, sfb.t(), **options)
    out = out if row_scale is None else out * row_scale[:, None]
    if activation == "swiglu":
        gate, up = out.unflatten(-1, (-1, 2, 8)).unbind(-2)
        out = (F.silu(gate) * up).flatten(-2)
    return out.bfloat16()


@_eager
def w4_gemm(
    a: Tensor,
    weight: Tensor,
    **options: Any,
) -> Tensor:
    """bf16 products of the same weights, by cuBLAS and torch."""
    return gemm(a, weight, **options)


@_eager
def flash_prefill(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    *_: Tensor,
    softmax_scale: float,
    chunk: int = 0,
    max_seqlen_q: int = 0,
) -> Tensor:
    """cuDNN on one sequence whose pages lie in order; chunks go as a batch."""
    _one_bf16_sequence(k_cache)
    if q.shape[0] < k_cache.shape[0] * k_cache.shape[1]:
        raise NotImplementedError("a mask that ends at the last key")
    heads = [t.reshape(-1, *t.shape[-2:])[: q.shape[0]] for t in (q, k_cache, v_cache)]
    heads = [t.unflatten(0, (-1, chunk or q.shape[0])).transpose(1, 2) for t in heads]
    with _cudnn(q):
        out = F.scaled_dot_product_attention(
            *heads, is_causal=True, scale=softmax_scale, enable_gqa=True
        )
    return out.transpose(1, 2).flatten(0, 1)


@_eager
def flash_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    *_: Tensor,
    softmax_scale: float,
    chunk: int = 0,
) -> Tensor:
    """cuDNN on one sequence that fills its pages, which lie in order."""
    if q.shape[0] > 1:
        raise NotImplementedError("sequences of different lengths")
    if q.shape[1] > 1:
        raise NotImplementedError("a mask that ends at the last key")
    _one_bf16_sequence(k_cache)
    keys = k_cache.shape[0] * k_cache.shape[1]
    low = (keys - 1) // chunk * chunk if chunk else 0
    heads = [t.flatten(0, 1)[low:].transpose(0, 1)[None] for t in (k_cache, v_cache)]
    with _cudnn(q):
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2), *heads, scale=softmax_scale, enable_gqa=True
        )
    return out.transpose(1, 2)


@_eager
def flash_decode_append(
    *args: Tensor,
    num_heads: int,
    softmax_scale: float,
    chunk: int = 0,
    attn_scale: float = 0.0,
    cos_sin: Tensor | None = None,
    qk_norm_eps: float | None = None,
) -> Tensor:
    """One part after the other."""
    rule = {"num_heads": num_heads, "cos_sin": cos_sin, "qk_norm_eps": qk_norm_eps}
    q = rope_cache(*args[:5], **rule)
    if attn_scale:
        q = q * (1 + attn_scale * ((args[1] + 1) // 8192).float().log1p())[:, None, None].bfloat16()
    return flash_decode(q[:, None], *args[3:], softmax_scale=softmax_scale, chunk=chunk)


def _one_bf16_sequence(k_cache: Tensor) -> None:
    if k_cache.dtype == FP8:
        raise NotImplementedError("no e4m3 cache")


def _cudnn(q: Tensor) -> Any:
    backend = SDPBackend.CUDNN_ATTENTION if q.is_cuda else SDPBackend.MATH
    return sdpa_kernel(backend)


def _fbgemm_gemm(
    a: Tensor,
    b: Tensor,
    *,
    expert_offsets: Tensor | None = None,
    sfa: Tensor | None = None,
    sfb: Tensor | None = None,
    fast_accum: bool = False,
) -> Tensor:
    import fbgemm_gpu.experimental.gen_ai  # noqa: F401

    ops = torch.ops.fbgemm
    if expert_offsets is not None:
        rows = expert_offsets.diff().long()
        if sfa is None:
            return ops.bf16bf16bf16_grouped_stacked(a, b, rows)
        return ops.f8f8bf16_rowwise_grouped_stacked(a, b, sfa, sfb, rows)
    if sfa is None:
        raise NotImplementedError("dense bf16 is cuBLAS there")
    if sfa.dim() == 1:
        return ops.f8f8bf16_rowwise(a, b, sfa, sfb, use_fast_accum=fast_accum)
    return ops.f8f8bf16_groupwise(a, b, sfa.t().contiguous(), sfb.t().contiguous())


def _deep_gemm(a: Tensor, b: Tensor, *, sfa: Tensor | None = None, sfb: Any = None) -> Tensor:
    """Dense only: its grouped form wants each group padded to whole tiles."""
    import deep_gemm

    out = torch.empty(a.shape[0], b.shape[0], dtype=torch.bfloat16, device=a.device)
    if sfa is None:
        deep_gemm.bf16_gemm_nt(a, b, out)
    else:
        deep_gemm.fp8_gemm_nt((a, sfa), (b, sfb), out)
    return out


def _fa3(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    *tables: Tensor,
    softmax_scale: float,
    chunk: int = 0,
    max_seqlen_q: int | None = None,
) -> Tensor:
    from flash_attn_interface import flash_attn_with_kvcache

    *starts, lengths, block_table = tables
    return flash_attn_with_kvcache(
        q,
        k_cache,
        v_cache,
        cache_seqlens=lengths,
        page_table=block_table,
        causal=True,
        cu_seqlens_q=starts[0] if starts else None,
        max_seqlen_q=max_seqlen_q,
        softmax_scale=softmax_scale,
        attention_chunk=chunk,
    )


def _fbgemm_index_shuffling(logits: Tensor, top_k: int, shared_expert: bool) -> Any:
    """Without the shared expert's rows, which it does not know."""
    import fbgemm_gpu.experimental.gen_ai  # noqa: F401

    return torch.ops.fbgemm.index_shuffling(logits.bfloat16(), top_k=top_k)


# op -> (name, module that must be importable, callable)
LIBRARIES = {
    "moe_route": [("fbgemm", "fbgemm_gpu", _fbgemm_index_shuffling)],
    "sample": [("torch sort", "torch", _nucleus)],
    "gemm": [("fbgemm", "fbgemm_gpu", _fbgemm_gemm), ("deep_gemm", "deep_gemm", _deep_gemm)],
    "w4_gemm": int4_peers.LIBRARIES,
    "flash_prefill": [("fa3", "flash_attn_interface", _fa3)],
    "flash_decode": [("fa3", "flash_attn_interface", _fa3)],
}
OTHER_RESULT = {("moe_route", "fbgemm"), ("sample", "torch sort")}
"""Peers that do the same work and return it in another form, or with other random numbers."""


def prepared(op: str, name: str, arguments: Arguments) -> Arguments:
    """The arguments in the layout that a peer wants, which it need not make within the timed call:
    int4 weights are laid out once, and torch and FBGEMM want block scales with the rows of A
    innermost. None knows our plans."""
    args, kwargs = arguments
    if "plan" in kwargs:
        return args, {n: kwargs[n] for n in kwargs if n not in ("plan", "settled")}
    if op == "w4_gemm":
        return int4_peers.prepared(name, args, kwargs)
    sfa = kwargs.get("sfa")
    if op != "gemm" or sfa is None or sfa.dim() != 2:
        return arguments
    return args, kwargs | {"sfa": sfa.t().contiguous().t()}


def peers(op: str, compiled: bool = False) -> Peers:
    """The compiled reference is a peer, if it is asked for (it takes seconds a shape), where a
    compiler can make one kernel of it."""
    found: dict[str, Callable[..., Any]] = {}
    if op in EAGER:
        found["torch"] = EAGER[op]
    if compiled and op not in SIZES:
        found["torch.compile"] = torch.compile(EAGER.get(op, OPS[op].body))
    for name, module, call in LIBRARIES.get(op, ()):
        if importlib.util.find_spec(module):
            found[name] = call
    other = frozenset(name for of, name in OTHER_RESULT if of == op)
    return Peers(found, functools.partial(prepared, op), other)
