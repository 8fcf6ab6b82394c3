"""flash_decode in the emulator beyond its cases: precision against PyTorch's, the boundaries of the
full chunk, replays with other lengths, hostile ids, poisoned slots, place in a batch, traffic."""

import ctypes
import math
import random
from typing import Any

import pytest
import torch
from torch import Tensor

import l4kernels
from bench.checks.inputs import FP8, I32, Maker
from bench.checks.kernel_checks import device_error, same_bits
from l4kernels import STATUS, ops, testing
from l4kernels.bench.counters import count
from l4kernels.ops import flash_decode, merge_attention_states
from l4kernels.ops.decode_plan import PLAN_WORDS
from l4kernels.testing import assert_close, chained, emulated, relative_error

pytestmark = pytest.mark.skipif(
    "flash_decode" not in STATUS.kernels, reason=STATUS.reason or "no kernel"
)
SCALE = 128**-0.5


@pytest.fixture
def make() -> Maker:
    return Maker("cpu", torch.bfloat16, seed=5)


def paged(
    make: Maker,
    lengths: list[int],
    heads: int,
    kv_heads: int,
    tokens: int = 1,
    page: int = 16,
    cache: torch.dtype = torch.bfloat16,
) -> list[Tensor]:
    """Arguments of flash_decode. Slots past a sequence's end are NaN, entries past it are -1."""
    counts = [-(-length // page) for length in lengths]
    order = make.permutation(sum(counts)).tolist()
    k, v = (make.randn(sum(counts), page, kv_heads, 128).to(cache) for _ in range(2))
    table = torch.full((len(lengths), max([*counts, 1]) + 1), -1, dtype=I32)
    for b, (length, n) in enumerate(zip(lengths, counts, strict=True)):
        table[b, :n] = torch.tensor([order.pop() for _ in range(n)], dtype=I32)
        if length % page:
            for t in (k, v):
                t[table[b, n - 1].item(), length % page :] = float("nan")
    return [make.randn(len(lengths), tokens, heads, 128), k, v, make.tensor(lengths), table]


def in_bf16(q: Tensor, k: Tensor, v: Tensor, factor: float) -> Tensor:
    """One sequence's attention as PyTorch computes it in bfloat16."""
    heads = q.shape[1] // k.shape[1]
    k, v = (t.bfloat16().repeat_interleave(heads, 1).transpose(0, 1) for t in (k, v))
    scores = torch.matmul(q.transpose(0, 1), k.mT) * factor
    tokens, keys = scores.shape[-2:]
    hidden = torch.ones(tokens, keys, dtype=torch.bool).triu(keys - tokens + 1)
    weights = scores.masked_fill(hidden, float("-inf")).float().softmax(-1).bfloat16()
    return torch.matmul(weights, v).transpose(0, 1)


@pytest.mark.parametrize("cache, times", [(torch.bfloat16, 2), (FP8, 3)], ids=str)
@pytest.mark.parametrize("spread", [0.3, 4.0])
def test_error_is_that_of_the_same_precision_in_pytorch(make, cache, times, spread):
    """Against exact attention of the same inputs, flat and sharp softmax."""
    length, tokens = 1000, 3
    args = paged(make, [length], 10, 2, tokens, cache=cache)
    args[0] *= spread
    with emulated():
        got = flash_decode(*args, softmax_scale=SCALE).out[0]
    pages = args[4][0, : -(-length // 16)].long()
    k, v = (t[pages].flatten(0, 1)[:length].float() for t in args[1:3])
    exact = flash_decode.reference(
        args[0].float(), *(t.float() for t in args[1:3]), *args[3:], softmax_scale=SCALE
    ).out[0]
    theirs = relative_error(in_bf16(args[0][0], k, v, SCALE), exact)
    assert relative_error(got, exact) <= times * theirs


@pytest.mark.parametrize("seed", range(24))
def test_batches_drawn_at_random(seed):
    draw = random.Random(seed)
    pick = draw.choice
    chunk, page = pick([0, 0, 1, 3, 16, 64, 100, 128]), pick([16, 32, 48, 64, 80, 128, 256])
    group, tokens, kv_heads = pick([1, 2, 4, 5, 8, 16]), pick([1, 2, 5, 16]), pick([1, 2, 3])
    lengths = [pick([0, 1, tokens, draw.randrange(400), draw.randrange(2500)]) for _ in range(3)]
    cache = (torch.bfloat16, FP8)[seed % 2]
    make = Maker("cpu", torch.bfloat16, seed)
    args = paged(make, lengths, group * kv_heads, kv_heads, tokens, page, cache)
    options = {"softmax_scale": SCALE * pick([0.1, 1, 4]), "chunk": chunk}
    if cache == FP8 and draw.random() < 0.5:
        options |= {s: make.uniform(kv_heads, low=0.5, high=2) for s in ("k_scale", "v_scale")}
    mode, sms = ("late", "early", "random")[seed % 3], pick([1, 2, 4, 7, 16])
    with emulated(mode=mode, seed=seed, sms=sms):
        got = flash_decode(*args, **options)
    expected = flash_decode.reference(*args, **options)
    assert_close(got.out, expected.out, 3e-3)
    assert_close(got.lse, expected.lse, 1e-4)


@pytest.mark.parametrize("cache", [torch.bfloat16, FP8], ids=str)
def test_positions_around_the_full_chunk(make, cache):
    args = paged(make, [8190, 8193, 16384, 16385], 5, 1, tokens=2, page=64, cache=cache)
    with emulated(sms=7):
        got = flash_decode(*args, softmax_scale=SCALE, chunk=8192)
    expected = flash_decode.reference(*args, softmax_scale=SCALE, chunk=8192)
    assert_close(got.out, expected.out, 3e-3)
    assert_close(got.lse, expected.lse, 1e-5)


@pytest.mark.parametrize("cache", [torch.bfloat16, FP8], ids=str)
def test_positions_at_ten_million(make, cache):
    """A ring of pages that holds the last chunk and the one before."""
    edge, page, ring = 10_485_760, 256, 64
    q, k, v, _, _ = paged(make, [ring * page], 5, 1, tokens=2, page=page, cache=cache)
    table = (torch.arange(edge // page + 1) % ring).to(I32).expand(3, -1)
    args = [q.expand(3, -1, -1, -1), k, v, make.tensor([edge, edge + 1, edge + 130]), table]
    with emulated(sms=5):
        got = flash_decode(*args, softmax_scale=SCALE, chunk=8192)
    expected = flash_decode.reference(*args, softmax_scale=SCALE, chunk=8192)
    assert device_error() == ""
    assert_close(got.out, expected.out, 3e-3)
    assert_close(got.lse, expected.lse, 1e-5)


@pytest.mark.parametrize("cache", [torch.bfloat16, FP8], ids=str)
def test_pages_behind_2_gi_elements(make, cache):
    """A sparse cache, of which a few pages exist."""
    args = paged(make, [900], 5, 1, page=256, cache=cache)
    far = torch.empty(1 << 17, 256, 1, 128, dtype=cache)
    pages = torch.tensor([[131_071, 70_000, 65_535, 100_001]])
    for source in args[1:3]:
        as_bytes = source.view(torch.uint8)[args[4][0, :4].long()]
        far.view(torch.uint8)[pages[0]] = as_bytes
        with emulated():
            got = flash_decode(args[0], far, far, args[3], pages.to(I32), softmax_scale=SCALE)
        expected = flash_decode.reference(args[0], source, source, *args[3:], softmax_scale=SCALE)
        assert_close(got, expected, 3e-3)


@pytest.mark.parametrize("cache", [torch.bfloat16, FP8], ids=str)
def test_sharp_rows_large_and_tiny_queries(make, cache):
    """Rows whose magnitudes differ by 2^60 share a tile; f16 holds each after its own scaling."""
    args = paged(make, [300], 4, 1, cache=cache)
    args[0] *= torch.tensor([2.0**30, 2.0**-30, 1.0, 0.0]).view(1, 1, 4, 1)
    with emulated():
        got = flash_decode(*args, softmax_scale=SCALE)
    assert_close(got, flash_decode.reference(*args, softmax_scale=SCALE), 3e-3)


@pytest.mark.parametrize("chunk", [0, 64])
def test_an_equal_sequence_has_equal_bits_at_any_place(make, chunk):
    lengths = [700, 3, 129, 0, 64, 700]
    args = paged(make, lengths, 10, 2, tokens=2)
    order = make.permutation(len(lengths)).long()
    moved = [t[order].contiguous() if i in (0, 3, 4) else t for i, t in enumerate(args)]
    with emulated(sms=5, perturb=False):
        whole = flash_decode(*args, softmax_scale=SCALE, chunk=chunk)
        again = flash_decode(*moved, softmax_scale=SCALE, chunk=chunk)
    for a, b in zip(whole, again, strict=True):
        assert same_bits(a[order], b)


@pytest.mark.parametrize("mode", ["late", "early", "random"])
def test_more_splits_than_a_warp_combines_at_once(make, mode):
    """40 splits in three groups, and the groups; a page that does not exist in one of them."""
    args = paged(make, [40 * 128 - 5], 5, 1, page=64)
    with emulated(mode=mode, seed=2, sms=40):
        got = flash_decode(*args, softmax_scale=SCALE)
        assert_close(got, flash_decode.reference(*args, softmax_scale=SCALE), 3e-3)
        args[4][0, 50] = -1
        out, lse = flash_decode(*args, softmax_scale=SCALE)
    assert device_error() == "flash_decode: block_table"
    assert not out.any() and (lse == -math.inf).all()


@pytest.mark.parametrize("bad", [-1, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("length", [40, 1000])
def test_a_page_that_does_not_exist_zeroes_its_sequence(make, bad, length):
    args = paged(make, [length, 33], 4, 2)
    expected = flash_decode.reference(*args, softmax_scale=SCALE)
    args[4][0, 1] = bad
    with emulated():
        out, lse = flash_decode(*args, softmax_scale=SCALE)
    assert device_error() == "flash_decode: block_table"
    assert not out[0].any() and (lse[0] == -math.inf).all()
    assert_close(out[1], expected.out[1], 3e-3)
    # Outside the chunk of the last token nobody looks at it.
    with emulated():
        out, _ = flash_decode(*args, softmax_scale=SCALE, chunk=32)
    assert device_error() == "" and out[0].any()


@pytest.mark.parametrize("bad", [-1, 2**31 - 1, 1 + 5 * 16])
def test_a_length_that_no_table_holds_zeroes_its_sequence(make, bad):
    args = paged(make, [40, 60], 4, 2)
    expected = flash_decode.reference(*args, softmax_scale=SCALE)
    args[3][0] = bad
    with emulated():
        out, lse = flash_decode(*args, softmax_scale=SCALE)
    assert device_error() == "flash_decode: seqlens_k"
    assert not out[0].any() and (lse[0] == -math.inf).all()
    assert_close(out[1], expected.out[1], 3e-3)


def test_a_slice_of_qkv_is_read_in_place(make):
    args = paged(make, [200, 30], 10, 2, tokens=2)
    qkv = make.randn(2, 2, 14, 128)
    args[0] = qkv[:, :, :10]
    with emulated():
        got = flash_decode(*args, softmax_scale=SCALE)
    assert_close(got, flash_decode.reference(*args, softmax_scale=SCALE), 3e-3)


def test_many_sequences_of_very_different_lengths(make):
    lengths = [0, 1, 700, 16, 90, 3, 0, 2000] + [17] * 400
    args = paged(make, lengths, 4, 1)
    with emulated(sms=6):
        got = flash_decode(*args, softmax_scale=SCALE)
    assert_close(got, flash_decode.reference(*args, softmax_scale=SCALE), 3e-3)


@pytest.mark.parametrize("cache", [torch.bfloat16, FP8], ids=str)
def test_keys_and_values_are_read_once_and_without_conflicts(make, cache):
    """Over 4096 keys, so that the partial results and half sectors are small beside them."""
    args = paged(make, [4096], 10, 2, cache=cache)
    for chunk in (0, 3000):
        c = count("flash_decode", tuple(args), {"softmax_scale": SCALE, "chunk": chunk})
        assert c.touched_bytes <= 1.05 * c.needed_bytes, str(c)
        assert c.bank_conflicts == 0 and c.launches == 2, str(c)  # the first plans


class Params(ctypes.Structure):
    """FlashDecodeParams of csrc/kernels/flash_decode/flash_decode.h."""

    _fields_ = [
        *((name, ctypes.c_int) for name in ("batch", "tokens", "kv_heads", "group", "chunk")),
        *((name, ctypes.c_int) for name in ("num_pages", "page_size", "max_pages")),
        *((f"page_blocks_{name}", ctypes.c_int) for name in ("factor", "shift")),
        ("q", ctypes.c_void_p),
        *((f"q_{name}_stride", ctypes.c_int64) for name in ("batch", "token", "head")),
        *((name, ctypes.c_void_p) for name in ("k_cache", "v_cache", "lengths", "block_table")),
        ("table_stride", ctypes.c_int64),
        *((n, ctypes.c_void_p) for n in ("k_scale", "v_scale", "out", "lse", "partials")),
        ("plan", ctypes.c_void_p),
        *((name, ctypes.c_bool) for name in ("makes_plan", "settled")),
        ("scale", ctypes.c_float),
        ("error", ctypes.c_void_p),
        ("fp8_cache", ctypes.c_bool),
    ]


@pytest.mark.parametrize("mode", ["late", "early", "random"])
def test_a_replay_follows_lengths_on_the_device(make, mode):
    """What a captured graph does: the same launches and workspaces over again, while only device
    memory changes; across a chunk boundary, between one split and many."""
    tokens, heads, kv_heads, page, chunk = 2, 10, 2, 16, 256
    library = ctypes.CDLL(str(testing.emulator.BUILD / "libl4kernels_emulated.so"))
    size = library._ZN3l4k22flash_decode_workspaceERKNS_17FlashDecodeParamsE
    launch = library._ZN3l4k12flash_decodeERKNS_17FlashDecodeParamsEP11CUstream_st
    size.restype = ctypes.c_int64
    q, k, v, lengths, table = paged(make, [600, 600, 600], heads, kv_heads, tokens)
    out, lse = torch.empty_like(q), torch.empty(3, heads, tokens)
    tensors: dict[str, Any] = {"q": q, "k_cache": k, "v_cache": v, "lengths": lengths}
    tensors |= {"block_table": table, "out": out, "lse": lse}
    with emulated(mode=mode, seed=3, sms=5, perturb=False) as control:
        params = Params(
            3, tokens, kv_heads, heads // kv_heads, chunk, k.shape[0], page, table.shape[1],
            1 << 27, 27, scale=SCALE / math.log(2), table_stride=table.stride(0), makes_plan=True,
            q_batch_stride=q.stride(0), q_token_stride=q.stride(1), q_head_stride=128,
        )  # fmt: skip
        tensors["partials"] = torch.full((size(ctypes.byref(params)),), -1, dtype=I32)
        tensors["plan"] = torch.full((PLAN_WORDS + 3,), -1, dtype=I32)
        for name, tensor in tensors.items():
            setattr(params, name, tensor.data_ptr())
            control.register_range(tensor.data_ptr(), tensor.nbytes)
        for now in ([255, 1, 600], [256, 2, 590], [257, 3, 0], [258, 500, 1], [512, 513, 514]):
            lengths.copy_(torch.tensor(now))
            out.fill_(float("nan"))
            lse.fill_(float("nan"))
            assert launch(ctypes.byref(params), None) == 0
            control.synchronize()
            assert control.last_report() is None
            given = [t.clone() for t in (q, k, v, lengths, table)]
            eager = flash_decode(*given, softmax_scale=SCALE, chunk=chunk)
            expected = flash_decode.reference(*given, softmax_scale=SCALE, chunk=chunk)
            assert_close((out, lse), expected, 3e-3)
            assert same_bits(out, eager.out) and same_bits(lse, eager.lse)
        for tensor in tensors.values():
            control.unregister_range(tensor.data_ptr(), tensor.nbytes)


@pytest.mark.parametrize("mode", ["late", "early", "random"])
@pytest.mark.parametrize("cache", [torch.bfloat16, FP8], ids=str)
def test_attention_in_a_chain_of_dependent_launches(make, mode, cache):
    """The new tokens' keys come from the launch before, and attention reads none of them early."""
    batch, tokens, heads, kv_heads, page = 2, 3, 10, 2, 16
    _, k, v, lengths, table = paged(make, [200, 77], heads, kv_heads, tokens, page, cache)
    qkv = make.randn(batch * tokens, (heads + 2 * kv_heads) * 128)
    positions = torch.tensor([n - tokens + i for n in lengths.tolist() for i in range(tokens)])
    rows = torch.arange(batch).repeat_interleave(tokens)
    slots = table[rows, positions // page].long() * page + positions % page
    starts, options = make.offsets([tokens] * batch), {"softmax_scale": SCALE, "chunk": 64}

    def layer(k: Tensor, v: Tensor) -> list[Tensor]:
        q = ops.rope_cache(qkv, positions, slots, k, v, num_heads=heads)
        a = flash_decode(q.view(batch, tokens, heads, 128), k, v, lengths, table, **options)
        b = ops.flash_prefill(q, k, v, starts, lengths, table, max_seqlen_q=tokens, **options)
        c = flash_decode(b.out.view(a.out.shape), k, v, lengths, table, **options)
        return [q, *a, *b, *c]

    caches = [k.clone(), v.clone()]
    with emulated(mode=mode, seed=7, sms=3), chained():
        got = layer(*caches)
    with l4kernels.reference():
        expected = layer(k, v)
    for a, b in zip(got, expected, strict=True):
        assert_close(a, b, 6e-3)


def test_attention_to_parts_of_the_keys_merges_into_attention_to_all(make):
    """Sequence parallelism: each rank owns some pages of one long context, one owns nothing."""
    q, k, v, lengths, table = paged(make, [700], 10, 2)
    ranks = ((0, 20), (20, 21), (21, 44), (44, 44))
    with emulated():
        parts = [
            flash_decode(
                q, k, v, make.tensor([max(0, min(700, 16 * end) - 16 * first)]),
                table[:, first : max(end, first + 1)].contiguous(), softmax_scale=SCALE,
            )
            for first, end in ranks
        ]  # fmt: skip
        got = merge_attention_states(*(torch.stack(t) for t in zip(*parts, strict=True)))
    expected = flash_decode.reference(q, k, v, lengths, table, softmax_scale=SCALE)
    assert_close(got.out, expected.out, 6e-3)  # one more rounding
    assert_close(got.lse, expected.lse, 1e-5)
