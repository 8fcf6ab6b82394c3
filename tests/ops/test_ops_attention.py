"""Attention, RoPE and the paged cache: masks, known values, and what bad input says."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.checks.inputs import FP8, I32
from l4kernels import ops
from l4kernels.ops.paged import visible_pieces
from tests.support import naive
from tests.support.tensors import i32

SCOUT_SCALING = {
    "rope_type": "llama3",
    "factor": 16.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
}


@settings(max_examples=500, deadline=None)
@given(
    st.integers(0, 40), st.integers(0, 150), st.sampled_from([0, 1, 3, 7, 16, 64, 8192]),
    st.booleans(),
)  # fmt: skip
def test_pieces_are_the_mask(len_q, other, chunk, shorter):
    len_k = max(0, len_q - other) if shorter else len_q + other
    seen = [[] for _ in range(len_q)]
    for first, end, low in visible_pieces(len_q, len_k, chunk):
        for i in range(first, end):
            assert not seen[i], "pieces overlap"
            seen[i] = list(range(low, len_k - len_q + i + 1))
    assert seen == [naive.visible(len_k - len_q + i, len_k, chunk) for i in range(len_q)]


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_prefill_equals_brute_force(data):
    batch = data.draw(st.integers(1, 4))
    len_qs = [data.draw(st.integers(0, 20)) for _ in range(batch)]
    len_ks = [n + data.draw(st.integers(0, 30)) for n in len_qs]
    chunk = data.draw(st.sampled_from([0, 1, 3, 16, 64, 8192]))
    page_size = data.draw(st.sampled_from([1, 4, 16]))
    group, kv_heads = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 2))
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    pages = max(1, sum(-(-n // page_size) for n in len_ks))
    cache = torch.randn(2, pages, page_size, kv_heads, 8)
    order = iter(torch.randperm(pages).tolist())
    table = torch.full((batch, 60), -1, dtype=I32)
    for b, n in enumerate(len_ks):
        for j in range(-(-n // page_size)):
            table[b, j] = next(order)
    q = torch.randn(sum(len_qs), group * kv_heads, 8)
    offsets = i32(0, *itertools.accumulate(len_qs))
    args = (q, cache[0], cache[1], offsets, i32(*len_ks), table)
    options = {"softmax_scale": 0.3, "chunk": chunk, "max_seqlen_q": max(len_qs)}
    out, lse = ops.flash_prefill(*args, **options)
    exact_out, exact_lse = naive.flash_prefill(*args, **options)
    torch.testing.assert_close(out.double(), torch.from_numpy(exact_out), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lse.double(), torch.from_numpy(exact_lse), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("position", [8190, 8191, 8192, 16383, 16384])
def test_chunk_edges_of_8192(position):
    """Value j is j: the mean over what a query sees, at equal scores, tells the keys."""
    keys = position + 1
    cache = torch.arange(keys + 32 - keys % 32, dtype=torch.float32).view(-1, 32, 1, 1)
    table = torch.arange(cache.shape[0], dtype=I32)[None]
    for chunk, first in ((8192, position // 8192 * 8192), (0, 0)):
        out, lse = ops.flash_decode(
            torch.zeros(1, 1, 1, 1), cache, cache, i32(keys), table, softmax_scale=1.0, chunk=chunk
        )
        torch.testing.assert_close(out.item(), (first + position) / 2, rtol=1e-5, atol=0)
        torch.testing.assert_close(lse.item(), math.log(keys - first), rtol=1e-6, atol=1e-6)


def test_decode_steps_equal_one_prefill():
    torch.manual_seed(0)
    cache, table = torch.randn(2, 8, 16, 2, 32), torch.randperm(8).to(I32)[None]
    q = torch.randn(70, 6, 32)
    options = {"softmax_scale": 32**-0.5, "chunk": 32}
    whole = ops.flash_prefill(q, *cache, i32(0, 70), i32(70), table, max_seqlen_q=70, **options)
    for p in range(70):
        step = ops.flash_decode(q[None, p : p + 1], *cache, i32(p + 1), table, **options)
        torch.testing.assert_close(step.out[0, 0], whole.out[p])
        torch.testing.assert_close(step.lse[0, :, 0], whole.lse[:, p])


def test_a_ring_of_pages_serves_a_chunk():
    """A chunked layer keeps one chunk of pages; its block table repeats them."""
    torch.manual_seed(0)
    keys = torch.randn(2, 8, 4, 1, 16)
    ring = keys[:, 4:6].clone()
    options = {"softmax_scale": 1.0, "chunk": 8}
    q = torch.randn(1, 1, 2, 16)
    full = ops.flash_decode(q, *keys, i32(23), torch.arange(8, dtype=I32)[None], **options)
    ringed = ops.flash_decode(q, *ring, i32(23), (torch.arange(8) % 2).to(I32)[None], **options)
    assert torch.equal(full.out, ringed.out) and torch.equal(full.lse, ringed.lse)


def test_unread_table_entries_and_pages_do_not_matter():
    cache = torch.full((4, 4, 1, 8), float("nan"))
    cache[2] = 1.0
    table = i32(-1, 10**9, 2, -7)[None]
    out, lse = ops.flash_decode(
        torch.ones(1, 1, 1, 8), cache, cache, i32(10), table, softmax_scale=1.0, chunk=8
    )
    torch.testing.assert_close(out, torch.ones_like(out))
    torch.testing.assert_close(lse.item(), 8 + math.log(2))


def test_hostile_attention_arguments():
    q, cache, table = torch.zeros(3, 2, 8), torch.zeros(2, 4, 1, 8), i32(0, 1)[None]
    options = {"softmax_scale": 1.0, "max_seqlen_q": 3}

    def prefill(offsets=(0, 3), len_k=3, table=table, **other):
        ops.flash_prefill(q, cache, cache, i32(*offsets), i32(len_k), table, **options | other)

    for bad in ((1, 3), (0, 4), (0, -1)):
        with pytest.raises(IndexError, match=r"flash_prefill: expected cu_seqlens_q to ascend"):
            prefill(bad)
    with pytest.raises(IndexError, match=r"block_table in \[0, 2\), got \[5\]"):
        prefill(table=i32(5, 1)[None])
    with pytest.raises(IndexError, match=r"column for each of the 3 pages.* got 2 columns"):
        prefill(len_k=9)
    with pytest.raises(IndexError, match="max_seqlen_q to bound the sequences, got 2"):
        prefill(max_seqlen_q=2)
    with pytest.raises(ValueError, match=r"chunk to be 0 .off. or positive, got -1"):
        prefill(chunk=-1)
    with pytest.raises(ValueError, match=r"no k_scale with a torch.float32 cache"):
        prefill(k_scale=torch.ones(1))
    with pytest.raises(IndexError, match=r"flash_decode: expected seqlens_k >= 0, got \[-1\]"):
        ops.flash_decode(q[None], cache, cache, i32(-1), table, softmax_scale=1.0)
    with pytest.raises(ValueError, match=r"1 to 16 new tokens per sequence.*use flash_prefill"):
        ops.flash_decode(torch.zeros(1, 17, 2, 8), cache, cache, i32(17), table, softmax_scale=1.0)
    with pytest.raises(ValueError, match="positive multiple of the 3 heads of k_cache"):
        ops.flash_decode(
            torch.zeros(1, 1, 2, 8), *torch.zeros(2, 1, 4, 3, 8), i32(1), table, softmax_scale=1.0
        )


def test_scout_frequencies():
    f = ops.rope_frequencies(theta=500000.0, scaling=SCOUT_SCALING)
    known = {0: 1.0, 1: 0.81461722, 2: 0.66360128, 34: 9.3847385e-4, 35: 4.7781061e-5}
    for pair, value in (known | {63: 1.5344629e-7}).items():
        assert f[pair].item() == pytest.approx(value, rel=1e-7)
    plain = ops.rope_frequencies(theta=500000.0)
    assert torch.equal(f[:35], plain[:35])
    torch.testing.assert_close(f[35:] * 16, plain[35:])


def test_blended_frequencies():
    """Between the two wavelengths the rule interpolates; outside it keeps or divides."""
    scaling = SCOUT_SCALING | {"factor": 8.0, "high_freq_factor": 4.0}
    plain = ops.rope_frequencies(theta=500000.0)
    for f, scaled in zip(plain, ops.rope_frequencies(theta=500000.0, scaling=scaling), strict=True):
        wavelength = 2 * math.pi / f
        if wavelength < 8192 / 4:
            wanted = f
        elif wavelength > 8192:
            wanted = f / 8
        else:
            s = (8192 / wavelength - 1) / (4 - 1)
            wanted = (1 - s) * f / 8 + s * f
        torch.testing.assert_close(scaled, wanted)


def test_unknown_scaling_is_refused():
    with pytest.raises(ValueError, match="type llama3 or default, got 'yarn'"):
        ops.rope_table(4, theta=1e4, scaling={"rope_type": "yarn"})


@pytest.mark.parametrize(
    ("position", "temperature"),
    [
        (0, 1.0), (8190, 1.0), (8191, 1.0693), (16382, 1.0693), (16383, 1.1099), (32767, 1.1609),
        (131071, 1.2833), (262143, 1.3497), (1048575, 1.4860), (10485759, 1.7155),
    ],
)  # fmt: skip
def test_query_temperature(position, temperature):
    q = rope(torch.ones(1, 3 * 128), position, attn_scale=0.1)[0]
    torch.testing.assert_close(q, torch.full_like(q, temperature), rtol=0, atol=6e-5)


def rope(qkv, position, cache_dtype=torch.float32, **options):
    """One token with one head: q, and what its K and V became."""
    k, v = torch.zeros(2, 1, 1, 1, 128).to(cache_dtype)
    token = torch.tensor([position]), torch.tensor([0])
    return ops.rope_cache(qkv, *token, k, v, num_heads=1, **options), k.flatten(), v.flatten()


@pytest.mark.parametrize("position", [0, 8190, 8191, 8192, 10**6, 10**7 - 1])
def test_rope_is_exact_at_any_position(position):
    """Modulo the chunk, a rotation at ten million is as accurate as one at the start."""
    table = ops.rope_table(8192, theta=500000.0, scaling=SCOUT_SCALING)
    torch.manual_seed(position)
    qkv = torch.randn(1, 3 * 128)
    q, k, v = rope(qkv, position, cos_sin=table)
    angle = (position % 8192) * ops.rope_frequencies(theta=500000.0, scaling=SCOUT_SCALING)
    turn = torch.polar(torch.ones_like(angle), angle)
    for got, given_ in ((q.flatten(), qkv[0, :128]), (k, qkv[0, 128:256])):
        wanted = torch.view_as_complex(given_.double().view(64, 2)) * turn
        torch.testing.assert_close(
            got.double(), torch.view_as_real(wanted).flatten(), rtol=0, atol=2e-6
        )
    assert torch.equal(v, qkv[0, 256:])


def test_qk_norm_gives_length_sqrt_128_and_spares_v():
    table = ops.rope_table(16, theta=500000.0)
    qkv = torch.randn(1, 3 * 128) * 7
    q, k, v = rope(qkv, 5, cos_sin=table, qk_norm_eps=1e-5)
    for head in (q, k):
        torch.testing.assert_close(head.norm().item(), 128**0.5, rtol=1e-4, atol=0)
    assert torch.equal(v, qkv[0, 256:])


def test_fp8_cache_saturates_and_scales():
    qkv = torch.cat([torch.zeros(128), torch.full((128,), 1e4), torch.full((128,), -3.0)])[None]
    scales = {"k_scale": torch.tensor([2.0]), "v_scale": torch.tensor([0.5])}
    _, k, v = rope(qkv, 0, FP8, **scales)
    assert (k.float() == 448).all() and (v.float() == -6).all()


def test_rope_cache_writes_only_its_slots():
    qkv, k, v = torch.ones(3, 3 * 8), *torch.zeros(2, 3, 2, 1, 8)
    slots = torch.tensor([4, -1, 1])
    ops.rope_cache(qkv, torch.arange(3), slots, k, v, num_heads=1)
    assert k.view(6, 8).sum(-1).tolist() == [0, 8, 0, 0, 8, 0] and torch.equal(k, v)


def test_hostile_rope_arguments():
    qkv, cache, slot = torch.ones(1, 24), torch.zeros(2, 3, 2, 1, 8), torch.tensor([0])

    def call(qkv=qkv, position=0, slot=0, num_heads=1, k=cache[0], **options):
        token = torch.tensor([position]), torch.tensor([slot])
        ops.rope_cache(qkv, *token, k, cache[1], num_heads=num_heads, **options)

    for bad in (6, -2):
        with pytest.raises(IndexError, match=rf"slot_mapping in \[-1, 6\), got {bad}"):
            call(slot=bad)
    with pytest.raises(IndexError, match=r"positions in .*, got -1"):
        call(position=-1)
    with pytest.raises(ValueError, match=r"expected qkv to be \[T, 32\], got \[1, 24\]"):
        call(num_heads=2)
    with pytest.raises(ValueError, match=r"cos_sin to be \[R, 8\], got \[4, 6\]"):
        call(cos_sin=torch.zeros(4, 6))
    with pytest.raises(TypeError, match=r"k_cache to be float32 or float8_e4m3fn, got .*bfloat16"):
        call(k=cache[0].bfloat16())
    with pytest.raises(ValueError, match="k_cache to be contiguous"):
        call(k=torch.zeros(2, 3, 1, 8).transpose(0, 1))
    with pytest.raises(TypeError, match="positions to be int64"):
        ops.rope_cache(qkv, slot.int(), slot, *cache, num_heads=1)
