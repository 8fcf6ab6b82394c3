"""FlashAttention 3's calls on batches that are empty, padded or wrong, and its window_size."""

import contextlib
import itertools

import pytest
import torch

from bench.checks.kernel_checks import device_error
from l4kernels import STATUS, flash_attn_varlen_func, flash_attn_with_kvcache
from l4kernels.testing import assert_close, emulated
from tests.support.naive import visible
from tests.support.tensors import i32

KERNELS = pytest.param(True, marks=pytest.mark.skipif(not STATUS.loaded, reason="no kernels"))
ROUTES = pytest.mark.parametrize("kernels", [False, KERNELS], ids=["reference", "kernels"])


def heads(*shape):
    return torch.randn(*shape, 128).bfloat16()


def route(kernels):
    return emulated() if kernels else contextlib.nullcontext()


def brute_force(q, k, v, chunk=0):
    """`[S, Hq, D]` over `[N, Hkv, D]`, a query and a head at a time, in float64."""
    out = torch.zeros(q.shape, dtype=torch.float64)
    lse = torch.full((q.shape[1], q.shape[0]), -torch.inf, dtype=torch.float64)
    group = q.shape[1] // k.shape[1]
    for i, h in itertools.product(range(q.shape[0]), range(q.shape[1])):
        seen = list(visible(k.shape[0] - q.shape[0] + i, k.shape[0], chunk))
        if not seen:
            continue
        scores = k[seen, h // group].double() @ q[i, h].double() * q.shape[-1] ** -0.5
        out[i, h] = scores.softmax(0) @ v[seen, h // group].double()
        lse[h, i] = scores.logsumexp(0)
    return out.to(q.dtype), lse.float()


def check_varlen(out, lse, q, k, v, starts_q, spans_k):
    """Every sequence by definition; the rows of nobody are 0 and -inf."""
    expected = torch.zeros_like(q)
    expected_lse = torch.full(lse.shape, -torch.inf)
    for (first, end), (low, high) in zip(itertools.pairwise(starts_q), spans_k, strict=True):
        expected[first:end], expected_lse[:, first:end] = brute_force(
            q[first:end], k[low:high], v[low:high]
        )
    assert_close(out, expected, 1e-2)
    assert_close(lse, expected_lse, 1e-2)


VARLEN = {  # starts of queries, rows of q; starts of keys, rows of k
    "no sequence, rows of q and k": ([0], 5, [0], 7),
    "no sequence, no row": ([0], 0, [0], 0),
    "no sequence, rows of k": ([0], 0, [0], 16),
    "one sequence without queries, padded": ([0, 0], 3, [0, 9], 9),
    "two without queries, padded": ([0, 0, 0], 2, [0, 9, 20], 32),
    "without keys": ([0, 2], 2, [0, 0], 0),
    "without keys, padded": ([0, 2], 4, [0, 0], 16),
    "one of three without keys": ([0, 2, 4, 5], 7, [0, 6, 6, 9], 11),
    "one of three without queries": ([0, 2, 2, 5], 5, [0, 6, 8, 14], 14),
    "more queries than keys": ([0, 5], 5, [0, 2], 2),
    "many queries, padded": ([0, 20, 20, 21], 30, [0, 25, 25, 40], 48),
    "many queries without keys": ([0, 20, 21], 21, [0, 0, 1], 1),
}


@ROUTES
@pytest.mark.parametrize("name", VARLEN)
def test_varlen_of_empty_and_padded_batches(name, kernels):
    torch.manual_seed(1)
    starts_q, rows_q, starts_k, rows_k = VARLEN[name]
    q, k, v = heads(rows_q, 2), heads(rows_k, 1), heads(rows_k, 1)
    longest = (
        max((b - a for a, b in itertools.pairwise(s)), default=0) for s in (starts_q, starts_k)
    )
    with route(kernels):
        out, lse = flash_attn_varlen_func(
            q, k, v, i32(*starts_q), i32(*starts_k), *longest, causal=True, return_attn_probs=True
        )
    assert device_error() == ""
    check_varlen(out, lse, q, k, v, starts_q, list(itertools.pairwise(starts_k)))


@ROUTES
@pytest.mark.parametrize("queries", [1, 20])
def test_varlen_of_unused_keys(kernels, queries):
    torch.manual_seed(2)
    starts_q, spans = [0, queries, 2 * queries], [(0, 0), (30, 52)]
    q, k, v = heads(2 * queries, 2), heads(60, 1), heads(60, 1)
    with route(kernels):
        out, lse = flash_attn_varlen_func(
            q,
            k,
            v,
            i32(*starts_q),
            i32(0, 30, 60),
            queries,
            30,
            seqused_k=i32(0, 22),
            causal=True,
            return_attn_probs=True,
        )
    check_varlen(out, lse, q, k, v, starts_q, spans)


@ROUTES
@pytest.mark.parametrize("queries", [0, 1, 20])
@pytest.mark.parametrize("batch, new", [(0, 0), (0, 2), (2, 0), (2, 2), (2, None)])
@pytest.mark.parametrize("paged", [False, True])
def test_kvcache_of_empty_batches(kernels, queries, batch, new, paged):
    torch.manual_seed(3)
    lengths = [3, 0][:batch]
    q, k, v = heads(batch, queries, 2), heads(4, 32, 1), heads(4, 32, 1)
    added = () if new is None else (heads(batch, new, 1), heads(batch, new, 1))
    table = i32(*range(batch)).view(batch, 1) if paged else None
    wanted = [t[:batch].clone() for t in (k, v)]
    for cache, values in zip(wanted, added, strict=False):
        for row, length in enumerate(lengths):
            cache[row, length : length + new] = values[row]
    with route(kernels):
        out, lse = flash_attn_with_kvcache(
            q,
            k,
            v,
            *added,
            cache_seqlens=i32(*lengths),
            page_table=table,
            causal=True,
            return_softmax_lse=True,
        )
    assert device_error() == ""
    assert out.shape == q.shape and lse.shape == (batch, 2, queries)
    assert torch.equal(k[:batch], wanted[0]) and torch.equal(v[:batch], wanted[1])
    for row, length in enumerate(lengths):
        keys = slice(0, length + (new or 0))
        expected, expected_lse = brute_force(q[row], k[row, keys], v[row, keys])
        assert_close(out[row], expected, 1e-2)
        assert_close(lse[row], expected_lse, 1e-2)


@ROUTES
@pytest.mark.parametrize("starts", [[0], [0, 0, 0], [0, 0, 2]], ids=str)
def test_kvcache_of_padded_rows(kernels, starts):
    torch.manual_seed(4)
    q, k, v, batch = heads(5, 2), heads(2, 32, 1), heads(2, 32, 1), len(starts) - 1
    with route(kernels):
        out, lse = flash_attn_with_kvcache(
            q,
            k,
            v,
            cache_seqlens=i32(7, 9)[:batch],
            cu_seqlens_q=i32(*starts),
            max_seqlen_q=max(starts),
            causal=True,
            return_softmax_lse=True,
        )
    assert device_error() == ""
    flat = k.flatten(0, 1), v.flatten(0, 1)
    check_varlen(out, lse, q, *flat, starts, [(0, 7), (32, 41)][:batch])


@ROUTES
@pytest.mark.parametrize("queries", [1, 20])
@pytest.mark.parametrize("shape", [(0, 16), (2, 0)], ids=["no page", "pages of nothing"])
def test_a_cache_without_a_place(kernels, queries, shape):
    q, cache, paged = heads(2, queries, 2), heads(*shape, 1), shape[0] == 0
    options = {"page_table": torch.zeros(2, 3, dtype=torch.int32)} if paged else {}
    options |= {"causal": True, "return_softmax_lse": True}
    with route(kernels):
        out, lse = flash_attn_with_kvcache(q, cache, cache, cache_seqlens=i32(0, 0), **options)
    assert device_error() == ""
    assert not out.any() and lse.eq(-torch.inf).all() and lse.shape == (2, 2, queries)
    more = [((), i32(0, 1)), ([heads(2, queries, 1)] * 2, i32(0, 0))]
    for added, lengths in more:
        call = (q, cache, cache, *added)
        if kernels:
            with emulated():
                flash_attn_with_kvcache(*call, cache_seqlens=lengths, **options)
            assert device_error() != ""
        else:
            with pytest.raises(IndexError, match=r"l4kernels.\w+: expected"):
                flash_attn_with_kvcache(*call, cache_seqlens=lengths, **options)


WRONG = {  # starts of keys, keys used: of 40 rows
    "past the rows": ([0, 20, 41], None),
    "one page past the rows": ([0, 20, 100], None),
    "backwards": ([0, 30, 20], None),
    "not from 0": ([1, 20, 40], None),
    "more used than there are": ([0, 20, 40], (21, 20)),
    "fewer than none": ([0, 20, 40], (20, -1)),
}


@ROUTES
@pytest.mark.parametrize("queries", [1, 20])
@pytest.mark.parametrize("name", WRONG)
def test_keys_that_are_not_there_are_an_error(name, queries, kernels):
    """Not whatever lies in the memory after them."""
    starts, used = WRONG[name]
    q, k = heads(2 * queries, 2), heads(40, 1)
    starts_q = i32(0, queries, 2 * queries)
    options = {"seqused_k": None if used is None else i32(*used), "causal": True}
    call = (q, k, k, starts_q, i32(*starts), queries, 100)
    if kernels:
        with emulated():
            flash_attn_varlen_func(*call, **options)
        assert device_error() in ("flash_prefill: seqlens_k", "flash_decode: seqlens_k")
    else:
        with pytest.raises(IndexError, match=r"expected (cu_seqlens_k|seqused_k) .*, got"):
            flash_attn_varlen_func(*call, **options)


@ROUTES
@pytest.mark.parametrize("queries", [1, 20])
def test_a_length_past_the_cache_is_an_error(queries, kernels):
    q, cache = heads(2, queries, 2), heads(2, 32, 1)
    for lengths in ((3, 33), (-1, 3)):
        call = (q, cache, cache)
        options = {"cache_seqlens": i32(*lengths), "causal": True}
        if kernels:
            with emulated():
                flash_attn_with_kvcache(*call, **options)
            assert device_error() != ""
        else:
            with pytest.raises(IndexError, match="expected cache_seqlens between 0 and 32"):
                flash_attn_with_kvcache(*call, **options)


CAUSAL = [
    (True, (-1, -1)),
    (True, (-1, 0)),
    (True, (-7, 3)),
    (True, (8, 0)),
    (False, (-1, 0)),
    (False, [9, 0]),
]
NOT_CAUSAL = [(True, (7, 0)), (True, (0, 0)), (False, (-1, 1)), (False, (3, -1)), (False, (0, 0))]


def test_windows_that_are_plain_causal_are_taken():
    """Of 9 keys for 3 queries."""
    torch.manual_seed(5)
    q, k, v, cache = heads(3, 2), heads(9, 1), heads(9, 1), torch.zeros(2, 1, 16, 1, 128)
    caches = cache.bfloat16()
    caches[:, 0, :9] = torch.stack([k, v])
    expected = brute_force(q, k, v)[0]
    for causal, window in CAUSAL:
        options = {"causal": causal, "window_size": window}
        out = flash_attn_varlen_func(q, k, v, i32(0, 3), i32(0, 9), 3, 9, **options)
        assert_close(out, expected, 1e-2, f"{options}")
        wide = options | {"window_size": [15 if window[0] > 0 else -1, window[1]]}
        out = flash_attn_with_kvcache(q[None], *caches, cache_seqlens=i32(9), **wide)
        assert_close(out[0], expected, 1e-2, f"{wide}")


def test_windows_that_are_another_mask_are_refused():
    q, k, caches = heads(3, 2), heads(9, 1), heads(2, 1, 16, 1)
    for causal, window in NOT_CAUSAL:
        options = {"causal": causal, "window_size": window}
        with pytest.raises(ValueError, match=r"expected window_size to be \(-1, -1\), got"):
            flash_attn_varlen_func(q, k, k, i32(0, 3), i32(0, 9), 3, 9, **options)
        with pytest.raises(ValueError, match=r"expected window_size to be \(-1, -1\), got"):
            flash_attn_with_kvcache(q[None], *caches, cache_seqlens=9, **options)
    for window in ((-1, -1), (-1, 2), (8, 5)):
        with pytest.raises(ValueError, match="expected causal to be True, got False"):
            flash_attn_varlen_func(q, k, k, i32(0, 3), i32(0, 9), 3, 9, window_size=window)


def test_one_query_needs_no_mask():
    """What is to its right does not exist."""
    q, k = heads(1, 2), heads(9, 1)
    expected = brute_force(q, k, k)[0]
    for causal, window in itertools.product((False, True), ((-1, -1), (-1, 0), (8, 0), (9, 4))):
        options = {"causal": causal, "window_size": window}
        out = flash_attn_varlen_func(q, k, k, i32(0, 1), i32(0, 9), 1, 9, **options)
        assert_close(out, expected, 1e-2, f"{options}")
    with pytest.raises(ValueError, match="expected window_size"):
        flash_attn_varlen_func(q, k, k, i32(0, 1), i32(0, 9), 1, 9, window_size=(0, 0))


@pytest.mark.parametrize("queries", [0, 1, 17])
def test_a_length_below_zero_is_an_error_without_queries_too(queries):
    q, cache = torch.ones(2, queries, 1, 4), torch.ones(2, 16, 1, 4)
    lengths = torch.tensor([3, -5], dtype=torch.int32)
    with pytest.raises(IndexError, match="expected cache_seqlens between 0 and 16"):
        flash_attn_with_kvcache(q, cache, cache, cache_seqlens=lengths, causal=True)
