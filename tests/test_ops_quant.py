"""Formats: codes, scales, error bounds, packing."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from l4kernels import ops
from tests.making import FP8, I32

SCALINGS = ("tensor", "row", "1x128", "128x128")


@pytest.mark.parametrize("scaling", SCALINGS)
def test_fp8_error_bound(scaling):
    """Half a step: 2^-4 of a value, or 2^-10 of the scale among the subnormals."""
    torch.manual_seed(0)
    x = torch.randn(200, 384) * torch.logspace(-3, 3, 200)[:, None]
    q, scale = ops.quantize_fp8(x, scaling)
    back = ops.dequantize_fp8(q, scale, scaling)
    step = ops.dequantize_fp8(torch.full_like(x, 2.0**-9).to(FP8), scale, scaling)
    assert ((back - x).abs() <= torch.maximum(x.abs() * 2.0**-4, step / 2) * 1.001).all()


@pytest.mark.parametrize("scaling", SCALINGS)
def test_fp8_uses_the_whole_range(scaling):
    torch.manual_seed(0)
    q, scale = ops.quantize_fp8(torch.randn(256, 256) * 1e-3, scaling)
    assert q.float().abs().max() == 448 and torch.isfinite(q.float()).all()
    assert (scale > 0).all()


@pytest.mark.parametrize("value", [1e-44, 1e-30, 1e30, 3e38])
def test_fp8_extremes(value):
    q, scale = ops.quantize_fp8(torch.tensor([[value, -value]]), "row")
    assert torch.isfinite(q.float()).all() and torch.isfinite(scale).all() and (scale > 0).all()


def test_fp8_of_every_e4m3_code_is_exact():
    codes = torch.arange(256, dtype=torch.uint8).view(FP8)
    codes = codes[torch.isfinite(codes.float())]
    q, scale = ops.quantize_fp8(codes.float()[None], "row")
    assert scale.item() == 1 and torch.equal(q[0].float(), codes.float())


def test_every_e4m3_code_has_its_value():
    codes = torch.arange(256, dtype=torch.uint8).view(FP8).view(16, 16)
    for q in (codes, codes.T, codes[3:5, ::2]):
        value = ops.dequantize_fp8(q, torch.ones(1), "tensor")
        assert torch.equal(value.nan_to_num(-1e3), q.float().nan_to_num(-1e3))


def test_fp8_scale_of_zeros_is_one():
    for scaling in SCALINGS:
        q, scale = ops.quantize_fp8(torch.zeros(128, 128), scaling)
        assert (scale == 1).all() and (q.float() == 0).all()


def test_fp8_blocks_do_not_leak_into_each_other():
    x = torch.ones(256, 256)
    x[:128, :128] = 1000.0
    q, scale = ops.quantize_fp8(x, "128x128")
    assert torch.equal(scale * 448, torch.tensor([[1000.0, 1.0], [1.0, 1.0]]))
    assert (q.float() == 448).all()


def test_fused_quantisers_equal_the_plain_one():
    torch.manual_seed(0)
    x, weight, residual = torch.randn(9, 256), torch.randn(256), torch.randn(9, 256)
    for scaling in ("row", "1x128"):
        fused = ops.rms_norm_fp8(x, weight, 1e-5, scaling, residual, keep_y=True)
        plain = ops.add_rms_norm(x, residual, weight, 1e-5)
        assert torch.equal(fused.y, plain.y) and torch.equal(fused.residual, plain.residual)
        for got, wanted in zip(fused[:2], ops.quantize_fp8(plain.y, scaling), strict=True):
            assert torch.equal(got.float(), wanted.float())
        order = torch.randperm(18).to(I32)
        permuted = ops.moe_permute_fp8(x, order, 2, scaling)
        plain = ops.quantize_fp8(ops.moe_permute(x, order, 2), scaling)
        for got, wanted in zip(permuted, plain, strict=True):
            assert torch.equal(got.float(), wanted.float())


def test_gemm_swiglu_fp8_is_gemm_then_quantize():
    torch.manual_seed(0)
    a, sfa = ops.quantize_fp8(torch.randn(5, 128), "row")
    b, sfb = ops.quantize_fp8(torch.randn(256, 128), "row")
    fused = ops.gemm_swiglu_fp8(a, b, sfa=sfa, sfb=sfb)
    wide = ops.gemm(a, b, sfa=sfa, sfb=sfb, activation="swiglu", out_dtype=torch.float32)
    for got, wanted in zip(fused, ops.quantize_fp8(wide, "1x128"), strict=True):
        assert torch.equal(got.float(), wanted.float())


def test_fp8_gemm_of_integers_is_exact():
    torch.manual_seed(0)
    a, b = torch.randint(-8, 9, (5, 256)).float(), torch.randint(-8, 9, (16, 256)).float()
    sfa, sfb = 2.0 ** torch.randint(-3, 4, (5, 2)), 2.0 ** torch.randint(-3, 4, (16,))
    d = ops.gemm(a.to(FP8), b.to(FP8), sfa=sfa, sfb=sfb, out_dtype=torch.float32)
    scaled = a.double() * sfa.double().repeat_interleave(128, 1)
    assert torch.equal(d.double(), scaled @ (b.double() * sfb.double()[:, None]).T)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(-8, 7), min_size=8, max_size=8), min_size=1, max_size=9))
def test_packing_round_trip(words):
    codes = torch.tensor(words, dtype=torch.int8).flatten()[None]
    packed = ops.pack_int4(codes)
    assert packed.dtype == I32 and packed.shape == (1, len(words))
    assert torch.equal(ops.unpack_int4(packed), codes)


def test_every_code_at_every_place_of_a_word():
    for code in range(-8, 8):
        for place in range(8):
            codes = torch.full((8,), 0)
            codes[place] = code
            packed = ops.pack_int4(codes)
            assert ops.unpack_int4(packed)[place] == code
            # A kernel's view: one mask gives a pair of neighbours, one in each half word.
            word = np.uint32(packed.item() & 0xFFFFFFFF)
            pair = int(word >> (4 * (place // 2))) & 0x000F000F
            assert (pair >> (16 * (place % 2)) & 15) - 8 == code


def test_packing_needs_whole_words():
    with pytest.raises(ValueError, match="multiple of 8 codes in a row, got 9"):
        ops.pack_int4(torch.zeros(9))


def test_int4_error_bound_without_search():
    """Half a step, plus the bfloat16 rounding of the scale and half a step of clipping."""
    torch.manual_seed(0)
    w = torch.randn(64, 512)
    packed, scales = ops.quantize_int4(w, search=False)
    error = (ops.dequantize_int4(packed, scales) - w).abs().unflatten(-1, (-1, 128)).amax(-1)
    amax = w.abs().unflatten(-1, (-1, 128)).amax(-1)
    torch.testing.assert_close(scales.float(), amax / 7.5, rtol=2**-8, atol=0)
    assert (error <= scales.float() * (0.5 + 7.5 * 2**-8)).all()


def test_int4_search_never_loses_and_usually_wins():
    torch.manual_seed(0)
    w = torch.randn(64, 512)
    w[3, 77], w[9, 400] = 30.0, -30.0

    def errors(search):
        back = ops.dequantize_int4(*ops.quantize_int4(w, search=search))
        return (back - w).square().unflatten(-1, (-1, 128)).sum(-1)

    plain, searched = errors(False), errors(True)
    assert (searched <= plain).all()
    assert searched.sum() < 0.9 * plain.sum()


def test_int4_search_is_exact_on_its_own_grid():
    codes = torch.randint(-8, 8, (4, 128))
    codes[:, 0] = -8
    w = codes * torch.tensor([0.25, -0.5, 1.0, -2.0])[:, None]
    packed, scales = ops.quantize_int4(w)
    assert torch.equal(ops.dequantize_int4(packed, scales), w)
    assert scales.flatten().tolist() == [0.25, -0.5, 1.0, -2.0]


def test_int4_pieces_join_up(monkeypatch):
    from l4kernels.ops import quant

    w = torch.randn(5, 384)
    whole = ops.quantize_int4(w)
    monkeypatch.setattr(quant, "_SEARCH_ELEMENTS", 256)
    assert all(torch.equal(a, b) for a, b in zip(whole, ops.quantize_int4(w), strict=True))


def test_w4_gemm_equals_gemm_on_dequantised_weights():
    torch.manual_seed(0)
    a, w = torch.randn(7, 256), torch.randn(3, 48, 256)
    packed, scales = ops.quantize_int4(w)
    options = {
        "expert_offsets": torch.tensor([0, 3, 3, 7], dtype=I32),
        "row_scale": torch.rand(7),
        "activation": "swiglu",
    }
    dense = ops.gemm(a, ops.dequantize_int4(packed, scales), **options)
    assert torch.equal(ops.w4_gemm(a, packed, scales, **options), dense)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.quantize_fp8(torch.zeros(2, 8), "block"), "one of tensor, row, 1x128"),
        (lambda: ops.quantize_fp8(torch.zeros(2, 100), "1x128"), "multiple of 128, got 100"),
        (lambda: ops.quantize_fp8(torch.zeros(128), "128x128"), r"x to be \[\.\.\., N, K\]"),
        (lambda: ops.quantize_fp8(torch.zeros(2, 8, dtype=FP8), "row"), "x to be float32 or"),
        (lambda: ops.quantize_int4(torch.zeros(2, 100)), "multiple of 128, got 100"),
        (lambda: ops.quantize_int4(torch.zeros(128)), r"w to be \[\.\.\., N, K\]"),
        (lambda: ops.silu_mul_fp8(torch.zeros(2, 200), "1x128"), "F, half of .* got 100"),
        (lambda: ops.silu_mul_fp8(torch.zeros(2, 256), "tensor"), "one of row, 1x128"),
        (lambda: ops.silu_mul(torch.zeros(2, 7)), "multiple of 2, got 7"),
        (lambda: ops.silu_mul(torch.zeros(8, 2).T), "last dimension of x to be contiguous"),
        (lambda: ops.rms_norm(torch.zeros(2, 8), torch.zeros(7)), r"weight to be \[8\]"),
        (lambda: ops.rms_norm(torch.zeros(2, 8), torch.zeros(8).half()), "weight to be float32"),
        (
            lambda: ops.add_rms_norm(torch.zeros(2, 8), torch.zeros(3, 8), torch.zeros(8)),
            r"residual to be \[2, 8\], got \[3, 8\]",
        ),
        (
            lambda: ops.rms_norm_fp8(torch.zeros(2, 100), torch.zeros(100), scaling="1x128"),
            "multiple of 128, got 100",
        ),
    ],
)
def test_arguments(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
