"""FlashAttention 3's calls against attention by definition."""

import inspect

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

import l4kernels
from bench.checks.kernel_checks import device_error
from l4kernels import ops
from l4kernels.testing import assert_close, emulated
from tests.support.naive import visible
from tests.support.tensors import i32

FP8 = torch.float8_e4m3fn


def attend(q, k, v, chunk=0, scale=None):
    """Attention of one sequence in one call of torch, its mask by definition; and its lse."""
    start = k.shape[0] - q.shape[0]
    mask = torch.tensor(
        [
            [j in visible(start + i, k.shape[0], chunk) for j in range(k.shape[0])]
            for i in range(q.shape[0])
        ]
    )
    group = q.shape[1] // k.shape[1]
    heads = [t.float().transpose(0, 1) for t in (q, k, v)]
    heads[1:] = [t.repeat_interleave(group, 0) for t in heads[1:]]
    out = scaled_dot_product_attention(*heads, mask, scale=scale)
    scores = heads[0] @ heads[1].mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    return out.transpose(0, 1), scores.masked_fill(~mask, float("-inf")).logsumexp(-1)


def heads(*shape):
    return torch.randn(*shape, 16)


OFF = {
    "softmax_scale": None,
    "causal": False,
    "window_size": (-1, -1),
    "attention_chunk": 0,
    "softcap": 0.0,
    "pack_gqa": None,
    "sm_margin": 0,
}
FA3 = {
    "flash_attn_varlen_func": (
        "q k v cu_seqlens_q cu_seqlens_k max_seqlen_q max_seqlen_k seqused_q seqused_k "
        "softmax_scale causal qv q_descale k_descale v_descale window_size attention_chunk softcap "
        "num_splits pack_gqa deterministic sm_margin return_attn_probs",
        OFF | {"num_splits": 1, "deterministic": False, "return_attn_probs": False},
    ),
    "flash_attn_with_kvcache": (
        "q k_cache v_cache k v qv rotary_cos rotary_sin cache_seqlens cache_batch_idx "
        "cache_leftpad page_table cu_seqlens_q cu_seqlens_k_new max_seqlen_q rotary_seqlens "
        "q_descale k_descale v_descale softmax_scale causal window_size attention_chunk softcap "
        "rotary_interleaved scheduler_metadata num_splits pack_gqa sm_margin return_softmax_lse",
        OFF | {"rotary_interleaved": True, "num_splits": 0, "return_softmax_lse": False},
    ),
}


@pytest.mark.parametrize("name", FA3)
def test_arguments_are_flash_attention_3s(name):
    """In its order, with its defaults: hopper/flash_attn_interface.py."""
    names, defaults = FA3[name]
    parameters = inspect.signature(getattr(l4kernels, name)).parameters
    assert list(parameters) == names.split()
    empty = inspect.Parameter.empty
    for argument, parameter in parameters.items():
        assert parameter.default in (defaults.get(argument), empty), argument


@pytest.mark.parametrize("chunk", [0, 16])
@pytest.mark.parametrize("lengths", [[(7, 7)], [(32, 32)], [(5, 70), (64, 64), (3, 20)]], ids=str)
def test_varlen_is_attention_of_each_sequence(lengths, chunk):
    torch.manual_seed(5)
    ends = torch.tensor([[0, 0], *lengths]).cumsum(0).to(torch.int32)
    ends_q, ends_k = ends[:, 0].contiguous(), ends[:, 1].contiguous()
    q, k, v = (
        heads(int(ends_q[-1]), 4),
        heads(int(ends_k[-1]), 2),
        heads(int(ends_k[-1]), 2),
    )
    longest = max(a for a, _ in lengths), max(b for _, b in lengths)
    out, lse = l4kernels.flash_attn_varlen_func(
        q,
        k,
        v,
        ends_q,
        ends_k,
        *longest,
        causal=True,
        attention_chunk=chunk,
        softmax_scale=0.3,
        return_attn_probs=True,
    )
    for b in range(len(lengths)):
        of_q, of_k = (slice(int(e[b]), int(e[b + 1])) for e in (ends_q, ends_k))
        expected, expected_lse = attend(q[of_q], k[of_k], v[of_k], chunk, 0.3)
        assert_close(out[of_q], expected, 1e-5)
        assert_close(lse[:, of_q], expected_lse, 1e-5)


def test_varlen_counts_only_used_keys():
    torch.manual_seed(6)
    q, k, v = heads(2, 2), heads(9, 1), heads(9, 1)
    out = l4kernels.flash_attn_varlen_func(
        q, k, v, i32(0, 1, 2), i32(0, 5, 9), 1, 5, seqused_k=i32(3, 4)
    )
    assert_close(out[:1], attend(q[:1], k[:3], v[:3])[0], 1e-5)
    assert_close(out[1:], attend(q[1:], k[5:], v[5:])[0], 1e-5)


@pytest.mark.parametrize("new", [1, 3, 20])
@pytest.mark.parametrize("paged", [False, True])
def test_kvcache_appends_and_attends(paged, new):
    torch.manual_seed(7)
    lengths, capacity, page = [5, 33, 0], 64, 16
    q, k, v = heads(3, new, 4), heads(3, new, 2), heads(3, new, 2)
    caches = heads(3, capacity, 2), heads(3, capacity, 2)
    wanted = [c.clone() for c in caches]
    for row, length in enumerate(lengths):
        for cache, values in zip(wanted, (k, v), strict=True):
            cache[row, length : length + new] = values[row]
    table = None
    if paged:
        order = torch.randperm(12)
        table = order.view(3, -1).to(torch.int32)
        caches = [
            torch.empty(12, page, 2, 16).index_copy_(0, order, c.view(12, page, 2, 16))
            for c in caches
        ]
    out, lse = l4kernels.flash_attn_with_kvcache(
        q,
        *caches,
        k,
        v,
        cache_seqlens=i32(*lengths),
        page_table=table,
        causal=True,
        attention_chunk=16,
        return_softmax_lse=True,
    )
    for row, length in enumerate(lengths):
        keys, values = (c[row, : length + new] for c in wanted)
        expected, expected_lse = attend(q[row], keys, values, 16)
        assert_close(out[row], expected, 1e-5)
        assert_close(lse[row], expected_lse, 1e-5)
    for cache, want in zip(caches, wanted, strict=True):
        got = cache[order].view(want.shape) if paged else cache
        assert torch.equal(got, want)


def test_kvcache_of_e4m3_with_scales():
    torch.manual_seed(8)
    q, k, v = heads(2, 1, 4), heads(2, 1, 2), heads(2, 1, 2)
    cache = torch.zeros(2, 16, 2, 16).to(FP8)
    scale = torch.tensor([0.5, 0.25]).expand(2, 2)
    caches = cache, cache.clone()
    out = l4kernels.flash_attn_with_kvcache(
        q, *caches, k, v, cache_seqlens=0, k_descale=scale, v_descale=2 * scale[0]
    )
    assert_close(out, v.repeat_interleave(2, 2), 0.05)
    assert_close(caches[0][:, 0].float() * scale[..., None], k[:, 0], 0.05)
    assert_close(caches[1][:, 0].float() * 2 * scale[..., None], v[:, 0], 0.05)


def test_kvcache_with_different_numbers_of_queries_and_rows_of_a_batch():
    torch.manual_seed(9)
    q, k, v = heads(5, 2), heads(4, 32, 1), heads(4, 32, 1)
    out, lse = l4kernels.flash_attn_with_kvcache(
        q,
        k,
        v,
        cache_seqlens=i32(7, 9),
        cache_batch_idx=torch.tensor([3, 1]),
        cu_seqlens_q=i32(0, 2, 5),
        max_seqlen_q=3,
        causal=True,
        return_softmax_lse=True,
    )
    for rows, row, length in ((slice(0, 2), 3, 7), (slice(2, 5), 1, 9)):
        expected, expected_lse = attend(q[rows], k[row, :length], v[row, :length])
        assert_close(out[rows], expected, 1e-5)
        assert_close(lse[:, rows], expected_lse, 1e-5)


@pytest.mark.parametrize("chunk", [0, 16])
@pytest.mark.parametrize("counts", [[1, 1, 1], [1, 0, 1], [0, 3, 1], [16, 1, 2]], ids=str)
def test_few_queries_of_each_sequence_are_decoded(counts, chunk, monkeypatch):
    """How engines decode: cu_seqlens_q and max_seqlen_q, with rows of padding at the end."""
    monkeypatch.setattr(ops, "flash_prefill", None)
    torch.manual_seed(12)
    lengths, total = [20, 5, 33], sum(counts)
    q, k, v = heads(total + 2, 4), heads(12, 16, 2), heads(12, 16, 2)
    table = torch.randperm(12).to(torch.int32).view(3, 4)
    ends = torch.tensor([0, *counts]).cumsum(0).to(torch.int32)
    out, lse = l4kernels.flash_attn_with_kvcache(
        q,
        k,
        v,
        cache_seqlens=i32(*lengths),
        page_table=table,
        cu_seqlens_q=ends,
        max_seqlen_q=max(counts),
        causal=True,
        attention_chunk=chunk,
        return_softmax_lse=True,
        cu_seqlens_k_new=ends,
    )
    for b, length in enumerate(lengths):
        keys, values = (c[table[b].long()].flatten(0, 1)[:length] for c in (k, v))
        rows = slice(int(ends[b]), int(ends[b + 1]))
        if not counts[b]:
            continue
        expected, expected_lse = attend(q[rows], keys, values, chunk)
        assert_close(out[rows], expected, 1e-5)
        assert_close(lse[:, rows], expected_lse, 1e-5)
    assert not out[total:].any() and lse[:, total:].eq(-torch.inf).all()


def test_wrong_offsets_of_queries_are_errors():
    q, cache, table = heads(4, 1), heads(4, 16, 1), i32(0, 1, 2, 3).view(2, 2)
    options = {"cache_seqlens": i32(20, 20), "page_table": table, "max_seqlen_q": 2}
    for ends in ((0, 3, 4), (1, 2, 4), (0, 2, 1), (0, 2, 5)):
        with pytest.raises(IndexError, match=r"expected (cu|max)_seqlen\w+ to (ascend|bound)"):
            l4kernels.flash_attn_with_kvcache(
                q, cache, cache, cu_seqlens_q=i32(*ends), causal=True, **options
            )
    with pytest.raises(ValueError, match=r"expected q to be \[B, S, Hq, D\], got \[4, 1, 16\]"):
        l4kernels.flash_attn_with_kvcache(q, cache, cache)
    ends = torch.tensor([0, 2, 4])
    with pytest.raises(TypeError, match="expected cu_seqlens_q to be int32"):
        l4kernels.flash_attn_with_kvcache(
            q, cache, cache, cu_seqlens_q=ends, causal=True, **options
        )
    with pytest.raises(TypeError, match="expected cu_seqlens_q to be int32"):
        l4kernels.flash_attn_varlen_func(q, q, q, ends, ends.int(), 2, 2, causal=True)


def test_strided_lengths_tables_and_queries_are_taken():
    q, cache = heads(2, 1, 3).mT.contiguous().mT, heads(8, 16, 1)
    wide = torch.arange(16, dtype=torch.int32).view(2, 8)
    lengths, table = wide[:, 5], wide.T.contiguous().T.remainder(8)[:, :4]
    options = {"cache_seqlens": lengths, "page_table": table}
    got = l4kernels.flash_attn_with_kvcache(q, cache, cache, **options)
    options = {name: t.contiguous() for name, t in options.items()}
    assert not lengths.is_contiguous() and table.stride(-1) != 1 and q.stride(-1) != 1
    assert torch.equal(
        got, l4kernels.flash_attn_with_kvcache(q.contiguous(), cache, cache, **options)
    )


UNSUPPORTED = {
    "causal": False,
    "window_size": (0, 0),
    "softcap": 15.0,
    "qv": torch.zeros(1),
    "q_descale": torch.ones(1, 1),
}
ONLY_KVCACHE = {
    "rotary_cos": torch.zeros(1),
    "rotary_sin": torch.zeros(1),
    "cache_leftpad": torch.zeros(1),
    "rotary_seqlens": torch.zeros(1),
}


@pytest.mark.parametrize("name", [*UNSUPPORTED, *ONLY_KVCACHE, "seqused_q"])
def test_what_is_not_supported_says_so(name):
    value = (UNSUPPORTED | ONLY_KVCACHE | {"seqused_q": torch.zeros(1)})[name]
    q, cache = heads(1, 2, 1), heads(1, 16, 1)
    good = {"causal": True, "window_size": [-1, -1], "softcap": 0.0}
    calls = []
    if name != "seqused_q":
        calls.append(lambda o: l4kernels.flash_attn_with_kvcache(q, cache, cache, **o))
    if name not in ONLY_KVCACHE:
        ends = i32(0, 2)
        calls.append(
            lambda o: l4kernels.flash_attn_varlen_func(q[0], q[0], q[0], ends, ends, 2, 2, **o)
        )
    for call in calls:
        call(good)
        with pytest.raises(ValueError, match=f"l4kernels.flash_attn_.*: expected {name} to be"):
            call(good | {name: value})


def test_layouts_that_cannot_be_had_are_errors():
    q = heads(2, 1, 1)
    with pytest.raises(ValueError, match="a multiple of 16 keys per sequence"):
        l4kernels.flash_attn_with_kvcache(q, heads(2, 17, 1), heads(2, 17, 1))
    cache = heads(2, 16, 1).to(FP8)
    with pytest.raises(ValueError, match="differ between sequences are not supported"):
        l4kernels.flash_attn_with_kvcache(q, cache, cache, k_descale=torch.ones(2, 1))
    with pytest.raises(ValueError, match="expected cache_seqlens with a page_table"):
        l4kernels.flash_attn_with_kvcache(q, cache, cache, page_table=i32(0, 1).view(2, 1))
    wide = torch.empty(2, 16, 1, 32)[..., :16]  # written into a copy, new keys would be lost
    with pytest.raises(ValueError, match="expected v_cache to be contiguous"):
        l4kernels.flash_attn_with_kvcache(q, cache, wide, q, q, cache_seqlens=0)
    with pytest.raises(TypeError, match="expected cache_seqlens to be int32"):
        l4kernels.flash_attn_with_kvcache(q, cache, cache, cache_seqlens=torch.tensor([1, 2]))


def test_with_kvcache_compiles_into_one_graph():
    q, new = heads(2, 3, 2), heads(2, 3, 1)

    def call(cache):
        return l4kernels.flash_attn_with_kvcache(
            q, cache, cache, new, new, cache_seqlens=i32(2, 9), causal=True
        )

    cache = heads(2, 32, 1)
    expected = call(cache.clone())
    got = torch.compile(call, backend="aot_eager", fullgraph=True)(cache)
    assert_close(got, expected, 1e-5)
    assert torch.equal(cache[1, 9:12], new[1])


def test_decoding_with_offsets_compiles_into_one_graph():
    q, cache = heads(3, 2), heads(2, 32, 1)

    def call(q):
        return l4kernels.flash_attn_with_kvcache(
            q,
            cache,
            cache,
            cache_seqlens=i32(20, 9),
            cu_seqlens_q=i32(0, 2, 3),
            max_seqlen_q=2,
            causal=True,
        )

    assert_close(torch.compile(call, backend="aot_eager", fullgraph=True)(q), call(q), 1e-5)


def test_varlen_compiles_into_one_graph():
    q, ends = heads(6, 2), i32(0, 2, 6)

    def call(q):
        return l4kernels.flash_attn_varlen_func(q, q, q, ends, ends, 4, 4, causal=True)

    got = torch.compile(call, backend="aot_eager", fullgraph=True)(q)
    assert_close(got, call(q), 1e-5)


@pytest.mark.parametrize("lengths", [[(20, 32)], [(3, 40), (17, 17)], [(3, 40), (1, 5)]], ids=str)
def test_varlen_runs_on_kernels(lengths):
    torch.manual_seed(10)
    ends_q, ends_k = torch.tensor([(0, 0), *lengths]).cumsum(0).T.to(torch.int32).contiguous()
    q, k, v = (
        torch.randn(int(n), h, 128).bfloat16()
        for n, h in ((ends_q[-1], 5), (ends_k[-1], 1), (ends_k[-1], 1))
    )
    arguments = (q, k, v, ends_q, ends_k, max(n for n, _ in lengths), 40)
    options = {"causal": True, "attention_chunk": 16, "return_attn_probs": True}
    expected = l4kernels.flash_attn_varlen_func(*arguments, **options)
    with emulated():
        got = l4kernels.flash_attn_varlen_func(*arguments, **options)
    assert_close(got, expected, 1e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, FP8], ids=str)
def test_decoding_with_offsets_runs_on_kernels(dtype):
    torch.manual_seed(13)
    q, caches = torch.randn(7, 5, 128).bfloat16(), torch.randn(2, 4, 64, 1, 128).to(dtype)
    options = {"cache_seqlens": i32(3, 30, 0, 61), "cu_seqlens_q": i32(0, 2, 3, 3, 6)}
    options |= {"max_seqlen_q": 3, "causal": True, "return_softmax_lse": True}
    expected = l4kernels.flash_attn_with_kvcache(q, *caches, **options)
    with emulated():
        got = l4kernels.flash_attn_with_kvcache(q, *caches, **options)
        options["cu_seqlens_q"] = i32(0, 2, 1, 1, 6)
        l4kernels.flash_attn_with_kvcache(q, *caches, **options)
    assert_close(got, expected, 1e-2)
    assert device_error() == "flash_decode: seqlens_k"


@pytest.mark.parametrize("length, page", [(63, 3), (20, -1), (20, 99), (2**31 - 2, 3)])
def test_new_keys_without_a_place_are_an_error(length, page):
    """Not a write somewhere, nor an assertion on the device that ends the process."""
    torch.manual_seed(14)
    caches = torch.randn(2, 5, 32, 1, 128).bfloat16()
    q, (k, v) = torch.randn(1, 2, 5, 128).bfloat16(), torch.randn(2, 1, 2, 1, 128).bfloat16()
    kept = caches.clone()
    options = {"cache_seqlens": i32(length), "page_table": i32(page, page)[None], "causal": True}
    with pytest.raises(IndexError, match=r"kvcache: expected (cache_seqlens|page_table) "):
        l4kernels.flash_attn_with_kvcache(q, *caches, k, v, **options)
    with emulated():
        l4kernels.flash_attn_with_kvcache(q, *caches, k, v, **options)
    assert device_error() != ""
    if length == 63:  # the first of the two has its place
        assert torch.equal(caches[:, 3, 31], torch.stack([k, v])[:, 0, 0])
        kept[:, 3, 31] = caches[:, 3, 31]
    assert torch.equal(caches, kept)


@pytest.mark.parametrize("new", [2, 18])
@pytest.mark.parametrize("dtype", [torch.bfloat16, FP8], ids=str)
def test_with_kvcache_runs_on_kernels(dtype, new):
    torch.manual_seed(11)
    q = torch.randn(2, new, 5, 128).bfloat16()
    k, v = torch.randn(2, 2, new, 1, 128).bfloat16()
    caches = torch.randn(2, 2, 64, 1, 128).to(dtype)
    scale = torch.tensor([[0.5]]) if dtype == FP8 else None
    options = {"cache_seqlens": i32(3, 30), "causal": True, "return_softmax_lse": True}
    options |= {"k_descale": scale, "v_descale": scale}
    expected = l4kernels.flash_attn_with_kvcache(q, *caches.clone(), k, v, **options)
    with emulated():
        got = l4kernels.flash_attn_with_kvcache(q, *caches.clone(), k, v, **options)
    assert_close(got, expected, 1e-2)
