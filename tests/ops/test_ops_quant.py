"""Formats: codes, scales, error bounds, packing."""

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.checks.inputs import FP8, I32
from l4kernels import ops

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


WHOLE, BROKEN = [-9, 8, 15, -100], [0.5, -8.001, torch.nan, torch.inf]


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.int64, torch.float32])
def test_what_is_no_code_never_reaches_its_neighbours(dtype):
    for value in WHOLE + BROKEN * dtype.is_floating_point:
        for place in range(16):
            codes = torch.zeros(2, 16, dtype=dtype)
            codes[1, place] = value
            with pytest.raises(ValueError, match="expected whole numbers from -8 to 7, got"):
                ops.pack_int4(codes)


def test_packing_needs_whole_words():
    for wrong in (torch.zeros(9), torch.zeros(2, 12), torch.tensor(1)):
        with pytest.raises(ValueError, match="rows of a multiple of 8 codes, got"):
            ops.pack_int4(wrong)
    assert ops.pack_int4(torch.zeros(0, 16)).shape == (0, 2)


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


CLIP_RATIOS = (1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.76, 0.7)


def searched(w):
    """The definition, one candidate after the other: codes and scales of groups `[..., 128]`."""
    extreme = w.gather(-1, w.abs().argmax(-1, keepdim=True))
    best, least, codes = None, None, None
    for base in (extreme.abs() / torch.tensor(7.5), extreme / torch.tensor(-8.0)):
        for ratio in CLIP_RATIOS:
            scale = (base * ratio).bfloat16().float()
            scale = torch.where(scale == 0, 1.0, scale)
            own = (w / scale).round().clamp(-8, 7)
            error = (own * scale - w).square().sum(-1, keepdim=True)
            better = torch.ones_like(error, dtype=torch.bool) if best is None else error < least
            best = torch.where(better, scale, scale if best is None else best)
            codes = torch.where(better, own, own if codes is None else codes)
            least = torch.where(better, error, error if least is None else least)
    return codes.to(torch.int8), best.bfloat16()


def int4_weights(kind):
    generator = torch.Generator().manual_seed(1)
    w = torch.randn(24, 512, generator=generator)
    made = {
        "normal": w,
        "heavy tails": w**3,
        "on its grid": torch.randint(-8, 8, w.shape, generator=generator).float(),
        "ties of both signs": w.sign() * (w.abs() > 1),
        "bfloat16": w.bfloat16(),
        "float16": w.half(),
        "sparse": w * (w > 2.5),
        "one value": torch.full_like(w, -0.3),
        "zeros": torch.zeros_like(w),
        "transposed": w.view(512, 24).t(),
        "experts": w.view(3, 8, 512),
    }
    return made[kind]


KINDS = ["normal", "heavy tails", "on its grid", "ties of both signs", "bfloat16", "float16"]
KINDS += ["sparse", "one value", "zeros", "transposed", "experts"]


@pytest.mark.parametrize("kind", KINDS)
def test_int4_search_is_its_definition(kind, monkeypatch):
    from l4kernels.ops import quant

    w = int4_weights(kind)
    codes, scales = searched(w.float().reshape(*w.shape[:-1], -1, 128))
    for piece in (1 << 19, 256, 768):  # in one piece, and in several
        monkeypatch.setattr(quant, "_PIECE", piece)
        packed, got = ops.quantize_int4(w)
        assert torch.equal(got, scales.squeeze(-1))
        assert torch.equal(ops.unpack_int4(packed), codes.flatten(-2))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_int4_does_not_depend_on_the_default_dtype(dtype):
    w = int4_weights("normal")
    packed, scales = ops.quantize_int4(w)
    back = ops.dequantize_int4(packed, scales)
    torch.set_default_dtype(dtype)
    try:
        again = ops.quantize_int4(w)
        assert torch.equal(packed, again.packed) and torch.equal(scales, again.scales)
        assert torch.equal(back, ops.dequantize_int4(packed, scales))
        assert torch.equal(packed, ops.pack_int4(ops.unpack_int4(packed)))
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("search", [True, False])
@pytest.mark.parametrize("power", [-145, -130, -126, -120, -41, -40, 0, 60, 61, 100, 120, 125])
def test_int4_of_any_magnitude(search, power):
    """Scaled by a power of two, weights keep their codes; at the ends bfloat16 rounds scales."""
    w = torch.randn(8, 256, generator=torch.Generator().manual_seed(2))
    plain = ops.quantize_int4(w, search=search)
    scaled = w.double().mul(2.0**power).float()
    packed, scales = ops.quantize_int4(scaled, search=search)
    back = ops.dequantize_int4(packed, scales)
    assert back.isfinite().all()
    if power > -116:
        assert torch.equal(packed, plain[0])
        assert torch.equal(scales.double(), plain[1].double() * 2.0**power)
        return
    error = (back.double() - scaled.double()).abs()
    if search:
        other = ops.dequantize_int4(*ops.quantize_int4(scaled, search=False))
        other = (other.double() - scaled.double()).view(-1, 128).norm(dim=-1)
        assert (error.view(-1, 128).norm(dim=-1) <= other).all()
    else:  # half a step of the smallest bfloat16, eight times; or no scale is left at all
        step = scales.double().abs().repeat_interleave(128, -1)
        assert (
            error <= torch.minimum(step * (0.5 + 7.5 / 256), scaled.double().abs()) + 8 * 2.0**-134
        ).all()


@pytest.mark.parametrize("search", [True, False])
@pytest.mark.parametrize("value", [3e38, -3e38, 3.4e38, -3.4028234e38, 1e-45, -1e-38])
def test_int4_of_one_extreme_value(search, value):
    started = time.monotonic()
    w = torch.full((64, 256), value)
    back = ops.dequantize_int4(*ops.quantize_int4(w, search=search))
    assert back.isfinite().all()
    error = (back.double() - w.double()).abs().max().item()
    assert error <= max(abs(value) / (60 if search else 7), 8 * 2.0**-134)
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("search", [True, False])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_int4_of_what_is_not_finite_is_nan_in_its_group_only(search, value):
    w = int4_weights("normal")
    clean = ops.dequantize_int4(*ops.quantize_int4(w, search=search))
    w[3, 200] = value
    back = ops.dequantize_int4(*ops.quantize_int4(w, search=search))
    assert back[3, 128:256].isnan().all()
    back[3, 128:256] = clean[3, 128:256]
    assert torch.equal(back, clean)


class Traffic(TorchDispatchMode):
    """Counts torch's kernels, and the bytes of what they read and write."""

    launches = bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        result = function(*args, **kwargs)
        if not function.is_view and "empty" not in function.name():
            kwargs.pop("out", None)  # it is the result
            self.launches += 1
            self.bytes += sum(
                t.nbytes for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor)
            )
        return result


@pytest.mark.parametrize("search, moved", [(True, 998), (False, 93)])
def test_a_gpu_quantises_int4_at_a_gigabyte_a_second(search, moved, monkeypatch):
    """By count: a slab as loading has it, 8 MB of bfloat16 in one piece, at half of an H100's
    bandwidth and 10 us a launch. docs/numerics.md has the sum."""
    from l4kernels.ops import quant

    w = torch.randn(1024, 4096).bfloat16()
    monkeypatch.setattr(quant, "_PIECE", w.numel())
    with Traffic() as quantising:
        weight = ops.quantize_int4.body(w, search)
    with Traffic() as tiling:
        ops.untile_int4(ops.tile_int4(*weight))
    assert quantising.bytes / w.numel() == pytest.approx(moved, rel=0.01)
    assert tiling.bytes / w.numel() <= 21
    launches = quantising.launches + tiling.launches
    seconds = (quantising.bytes + tiling.bytes) / 1.675e12 + launches * 1e-5
    assert launches <= 220 and w.nbytes / seconds >= 1e9


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


def words(n, k):
    return torch.zeros(n, k // 8, dtype=I32), torch.zeros(n, k // 128)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.quantize_fp8(torch.zeros(2, 8), "block"), "one of tensor, row, 1x128"),
        (lambda: ops.quantize_fp8(torch.zeros(2, 100), "1x128"), "multiple of 128, got 100"),
        (lambda: ops.quantize_fp8(torch.zeros(128), "128x128"), r"x to be \[\.\.\., N, K\]"),
        (lambda: ops.quantize_fp8(torch.zeros(2, 8, dtype=FP8), "row"), "x to be float32 or"),
        (lambda: ops.quantize_int4(torch.zeros(2, 100)), "multiple of 128, got 100"),
        (lambda: ops.quantize_int4(torch.zeros(128)), r"w to be \[\.\.\., N, K\]"),
        (lambda: ops.quantize_int4(torch.zeros(3, 0)), r"at least one group along K, got \[3, 0\]"),
        (lambda: ops.dequantize_int4(*words(3, 0)), r"K a multiple of 128, got \[3, 0\]"),
        (lambda: ops.dequantize_int4(words(3, 256)[0], torch.ones(3, 1)), r"scales to be \[3, 2\]"),
        (lambda: ops.dequantize_int4(torch.ones(16), torch.ones(1)), "packed to be int32"),
        (lambda: ops.dequantize_int4(words(3, 128)[0], None), "scales to be a tensor, got None"),
        (lambda: ops.pack_int4([1] * 8), r"pack_int4: expected q to be a tensor, got \[1, 1"),
        (lambda: ops.pack_int4(torch.ones(8).bool()), "q to be int8 or .* float64, got .* bool"),
        (lambda: ops.pack_int4(torch.zeros(8, dtype=torch.cfloat)), "q to be int8 .* complex64"),
        (lambda: ops.unpack_int4(torch.zeros(2, dtype=torch.int64)), "packed to be int32, got"),
        (lambda: ops.unpack_int4(torch.tensor(1, dtype=I32)), r"packed to be \[\.\.\., K / 8\]"),
        (lambda: ops.w4_gemm(torch.zeros(2, 0), *words(4, 0)), r"at least 128 columns .*\[2, 0\]"),
        (lambda: ops.w4_gemm(torch.zeros(2, 128), *words(0, 128)), r"N > 0, got \[0, 16\]"),
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
