"""Sizes of zero, counts of other integer types, numbers without a meaning: the right result, or an
error that says what is wrong. On the references and on the kernels."""

import contextlib
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import l4kernels
from bench.checks.inputs import I32
from bench.checks.kernel_checks import device_error
from l4kernels import STATUS, ops
from l4kernels.testing import emulated

BF16 = torch.bfloat16
ROUTES = [contextlib.nullcontext, *[emulated] * STATUS.loaded]
both_routes = pytest.mark.parametrize("route", ROUTES, ids=["reference", "kernels"][: len(ROUTES)])
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip


def zeros(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


def ids(*shape: int, dtype: torch.dtype = I32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


def cache(pages: int, page: int = 16, heads: int = 1, size: int = 128) -> list[Tensor]:
    return [zeros(pages, page, heads, size) for _ in "kv"]


def rope(tokens: int = 0, **options: Any) -> Any:
    slots = ids(tokens, dtype=torch.int64)
    return ops.rope_cache(
        zeros(tokens, 384), slots, slots, *cache(1), **{"num_heads": 1, **options}
    )


def fp8(*shape: int) -> tuple[Tensor, Tensor]:
    return ops.quantize_fp8.reference(zeros(*shape), "row")


def coded_gemm(m: int, n: int, k: int) -> Tensor:
    (a, sfa), (b, sfb) = fp8(m, k), fp8(n, k)
    return ops.gemm(a, b, sfa=sfa, sfb=sfb)


def prefill(rows: int, batch: int, size: int = 128, **options: Any) -> Any:
    lengths = ids(batch)
    return ops.flash_prefill(
        zeros(rows, 2, size), *cache(1, size=size), ids(batch + 1), lengths, ids(batch, 1),
        **{"softmax_scale": 1.0, "max_seqlen_q": 0, **options},
    )  # fmt: skip


EMPTY = {  # name: the call, the shape of its first result
    "gemm M": (lambda: ops.gemm(zeros(0, 64), zeros(8, 64)), (0, 8)),
    "gemm N": (lambda: ops.gemm(zeros(3, 64), zeros(0, 64)), (3, 0)),
    "gemm N of experts": (
        lambda: ops.gemm(zeros(3, 64), zeros(2, 0, 64), expert_offsets=ids(3)), (3, 0)
    ),
    "gemm N and swiglu": (
        lambda: ops.gemm(zeros(3, 64), zeros(0, 64), activation="swiglu"), (3, 0)
    ),
    "gemm e4m3 M": (lambda: coded_gemm(0, 8, 64), (0, 8)),
    "gemm e4m3 N": (lambda: coded_gemm(3, 0, 64), (3, 0)),
    "silu_mul rows": (lambda: ops.silu_mul(zeros(0, 32)), (0, 16)),
    "silu_mul_fp8 rows": (lambda: ops.silu_mul_fp8(zeros(0, 32)), (0, 16)),
    "rms_norm rows": (lambda: ops.rms_norm(zeros(0, 128), zeros(128)), (0, 128)),
    "quantize_fp8 rows": (lambda: ops.quantize_fp8(zeros(0, 128), "row"), (0, 128)),
    "embed tokens": (lambda: ops.embed(ids(0), zeros(3, 128)), (0, 128)),
    "embed vocabulary": (lambda: ops.embed(ids(0), zeros(0, 128)), (0, 128)),
    "moe_route tokens": (lambda: ops.moe_route(zeros(0, 16)), (0, 1)),
    "moe_router tokens": (
        lambda: ops.moe_router(zeros(0, 128), zeros(128), zeros(16, 128), 16), (0, 128)
    ),
    "moe_permute tokens": (lambda: ops.moe_permute(zeros(0, 128), ids(0), 2), (0, 128)),
    "moe_combine tokens": (lambda: ops.moe_combine(zeros(0, 128), ids(0), 2), (0, 128)),
    "rope_cache tokens": (lambda: rope(), (0, 1, 128)),
    "flash_prefill sequences": (lambda: prefill(2, 0), (2, 2, 128)),
    "flash_prefill rows": (lambda: prefill(0, 2), (0, 2, 128)),
    "word_sum bytes": (lambda: ops.word_sum(ids(0)), (1,)),
}  # fmt: skip


@both_routes
@pytest.mark.parametrize("name", EMPTY)
def test_nothing_of_something_is_an_empty_result(name, route):
    call, shape = EMPTY[name]
    with route():
        result = call()
    first = result if isinstance(result, Tensor) else result[0]
    assert first.shape == shape and not first.float().any()


REFUSED = {  # name: the call, what the message says
    "gemm K": (
        lambda: ops.gemm(zeros(2, 0), zeros(8, 0)),
        r"gemm: expected K \(columns of a and b\) to be positive, got a \[2, 0\]",
    ),
    "gemm K of experts": (
        lambda: ops.gemm(zeros(2, 0), zeros(2, 8, 0), expert_offsets=ids(3)), "gemm: expected K "
    ),
    "gemm_swiglu_fp8 K": (
        lambda: ops.gemm_swiglu_fp8(
            fp8(2, 0)[0], fp8(256, 0)[0], sfa=torch.ones(2), sfb=torch.ones(256)
        ),
        "gemm_swiglu_fp8: expected K ",
    ),
    "rope_cache qk_norm_eps": (
        lambda: rope(1, qk_norm_eps=-1.0), "qk_norm_eps to be None .off. or not negative, got -1.0"
    ),
    "rope_cache qk_norm_eps NaN": (lambda: rope(1, qk_norm_eps=math.nan), "qk_norm_eps .* got nan"),
    "rope_cache num_heads": (lambda: rope(1, num_heads=0), "num_heads to be a positive multiple"),
    "flash_prefill softmax_scale": (
        lambda: prefill(2, 0, softmax_scale=0.0), "softmax_scale to be positive and finite, got 0.0"
    ),
    "flash_prefill NaN": (lambda: prefill(2, 0, softmax_scale=math.nan), "softmax_scale .* nan"),
    "flash_prefill bound": (lambda: prefill(2, 0, max_seqlen_q=-1), "max_seqlen_q >= 0, got -1"),
    "flash_decode page": (
        lambda: ops.flash_decode(
            zeros(1, 1, 2, 128), *cache(1, page=0), ids(1), ids(1, 1), softmax_scale=1.0
        ),
        "pages of at least one slot",
    ),
    "moe_route experts": (lambda: ops.moe_route(zeros(2, 0)), "expected 1 to 256 experts"),
    "moe_router experts": (
        lambda: ops.moe_router(zeros(2, 8), zeros(8), zeros(0, 8), 0), "expected 1 to 256 experts"
    ),
    "moe_router columns": (
        lambda: ops.moe_router(zeros(2, 0), zeros(0), zeros(8, 0), 8), "rows of x that are not"
    ),
    "moe_permute top_k": (lambda: ops.moe_permute(zeros(2, 128), ids(0), 0), "top_k in 1 to 9"),
}  # fmt: skip


@both_routes
@pytest.mark.parametrize("name", REFUSED)
def test_nothing_where_there_must_be_something_is_refused(name, route):
    call, message = REFUSED[name]
    with route(), pytest.raises(ValueError, match=message):
        call()


@both_routes
def test_bounds_may_be_larger_than_anything(route):
    q, k, ends = zeros(4, 2, 128), zeros(40, 1, 128), torch.tensor([0, 2, 4], dtype=I32)
    call = (q, k, k, ends, 10 * ends)
    with route():
        l4kernels.flash_attn_varlen_func(*call, 10**12, 10**12, causal=True)
        l4kernels.flash_attn_varlen_func(*call, np.int64(2), np.int32(20), causal=True)
        cache, options = zeros(2, 32, 1, 128), {"cu_seqlens_q": ends, "max_seqlen_q": 10**12}
        l4kernels.flash_attn_with_kvcache(q, cache, cache, causal=True, **options)
    assert not STATUS.loaded or device_error() == ""
    with pytest.raises(ValueError, match=r"max_seqlen_k >= 0, got -1"):
        l4kernels.flash_attn_varlen_func(*call, 2, -1, causal=True)


def test_arguments_of_attention_drop_ins():
    varlen, kvcache = l4kernels.flash_attn_varlen_func, l4kernels.flash_attn_with_kvcache
    q, k, none = zeros(4, 2, 128), zeros(40, 1, 128), ids(1)
    assert varlen(q, k, k, none, none, 0, 0).eq(0).all()
    for wrong in ((none + 3, none), (none, none + 7)):
        with pytest.raises(IndexError, match=r"expected cu_seqlens_[qk] to ascend .* got \[[37]\]"):
            varlen(q, k, k, *wrong, 0, 0)
    with pytest.raises(ValueError, match=r"cu_seqlens_q to be \[B \+ 1\], got \[0\]"):
        varlen(q, k, k, ids(0), ids(0), 0, 0)
    with pytest.raises(ValueError, match="heads of at least one element"):
        varlen(q[..., :0], k[..., :0], k[..., :0], none, none, 0, 0)
    cache = zeros(4, 32, 1, 128)
    for length in (2.5, "3"):
        with pytest.raises(TypeError, match=r"cache_seqlens to be int32 \[B\] or a whole number"):
            kvcache(q[:, None], cache, cache, cache_seqlens=length)


@both_routes
@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8])
def test_counts_of_numpy_are_counts(kind, route):
    x, order = torch.randn(4, 128).to(BF16), torch.randperm(8).to(I32)
    with route():
        assert torch.equal(ops.moe_permute(x, order, kind(2)), ops.moe_permute(x, order, 2))
        assert ops.moe_route(x[:, :16], top_k=kind(2)).topk_ids.shape == (4, 2)
        assert rope(1, num_heads=kind(1)).shape == (1, 1, 128)
        assert prefill(2, 0, max_seqlen_q=kind(4), chunk=kind(16)).out.shape == (2, 2, 128)
    assert ops.rope_table(kind(3), theta=kind(4), head_dim=kind(4)).shape == (3, 4)


@pytest.mark.parametrize(("first", "width"), [(0, 384), (1, 385), (2, 387), (5, 395)])
@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_rows_of_qkv_may_begin_anywhere(first, width, tokens, dtype):
    rows = torch.randn(tokens, width).to(dtype)[:, first : first + 384]
    place = torch.arange(tokens)
    table = torch.randn(8, 128)
    results = []
    for qkv in (rows, rows.clone(memory_format=torch.contiguous_format)):
        caches = torch.zeros(2, 1, 8, 1, 128, dtype=dtype)
        q = ops.rope_cache(qkv, place, place, *caches, num_heads=1, cos_sin=table)
        results.append((q, caches))
    for got, wanted in zip(*results, strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize(
    "theta", [0, 0.0, -1.0, math.nan, math.inf, -math.inf, 10**400, "1e4", None, True]
)
def test_a_theta_that_is_none_is_refused(theta):
    for call in (ops.rope_frequencies, lambda **options: ops.rope_table(4, **options)):
        with pytest.raises(
            ValueError, match=r"expected theta to be a number in \(0, 1.79769e\+308\], got"
        ):
            call(theta=theta)


@pytest.mark.parametrize("head_dim", [3, 0, -2, 1])
def test_an_odd_head_is_refused(head_dim):
    with pytest.raises(
        ValueError,
        match=rf"head_dim to be (even|a whole number in \[2, 2147483647\]), got {head_dim}",
    ):
        ops.rope_table(4, theta=1e4, head_dim=head_dim)


@pytest.mark.parametrize("count", [2.5, "4", None, True])
def test_a_count_that_is_none_is_refused(count):
    with pytest.raises(ValueError, match="expected num_positions to be a whole number"):
        ops.rope_table(count, theta=1e4)
    with pytest.raises(ValueError, match="expected head_dim to be a whole number"):
        ops.rope_table(4, theta=1e4, head_dim=count)


@pytest.mark.parametrize("name", ["factor", "low_freq_factor", "high_freq_factor",
                                  "original_max_position_embeddings"])  # fmt: skip
@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, "8", None, True])
def test_a_scaling_without_meaning_is_refused(name, value):
    assert ops.rope_table(4, theta=1e4, scaling=LLAMA3).isfinite().all()
    with pytest.raises(ValueError, match=rf"expected scaling\['{name}'\] to be a number in \(0, "):
        ops.rope_table(4, theta=1e4, scaling=LLAMA3 | {name: value})


def test_the_rest_of_a_tables_arguments():
    for huge in (2**31, 10**30, 10**400):
        with pytest.raises(
            ValueError, match=r"expected num_positions to be a whole number in \[0, 214"
        ):
            ops.rope_table(huge, theta=1e4)
        with pytest.raises(ValueError, match=r"expected head_dim to be a whole number in \[2, 214"):
            ops.rope_table(4, theta=1e4, head_dim=huge)
    with pytest.raises(ValueError, match=r"whole number in \[0, 2147483647\], got -4"):
        ops.rope_table(-4, theta=1e4)
    with pytest.raises(ValueError, match=r"low_freq_factor <= high_freq_factor, got 5\.0 and"):
        ops.rope_table(4, theta=1e4, scaling=LLAMA3 | {"low_freq_factor": 5})
    with pytest.raises(ValueError, match=r"scaling\['factor'\] .* got None"):
        ops.rope_table(4, theta=1e4, scaling={"rope_type": "llama3", **LLAMA3, "factor": None})
    with pytest.raises(ValueError, match="expected finite angles"):
        ops.rope_table(4, theta=1e4, scaling=LLAMA3 | {"factor": 5e-324})
    assert ops.rope_table(0, theta=1e4).shape == (0, 128)
    assert torch.equal(
        ops.rope_table(4, theta=np.float32(1e4)), ops.rope_table(np.int64(4), theta=10**4)
    )
    assert ops.rope_table(4, theta=5e-324, head_dim=2).isfinite().all()
