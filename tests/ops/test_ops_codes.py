"""Codes to values and back, outside the ops: which types, and scales of which shape, they take."""

import re

import pytest
import torch

from l4kernels import ops

INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", [*INTEGERS, *FLOATS])
def test_codes_of_any_type_are_packed(dtype):
    codes = torch.arange(0 if dtype == torch.uint8 else -8, 8).repeat(2)
    packed = ops.pack_int4(codes.to(dtype))
    assert torch.equal(ops.unpack_int4(packed), codes.to(torch.int8))
    for outside in {8, 100} | ({torch.iinfo(dtype).max} if dtype in INTEGERS else set()):
        with pytest.raises(ValueError, match=f"expected whole numbers from -8 to 7, got {outside}"):
            ops.pack_int4(torch.tensor([outside] * 8).to(dtype))


SHAPES = [
    ((128,), "tensor"), ((128,), "row"), ((128,), "1x128"), ((3, 256), "tensor"),
    ((3, 256), "row"), ((3, 256), "1x128"), ((300, 256), "128x128"), ((2, 3, 256), "tensor"),
    ((2, 3, 256), "row"), ((2, 3, 256), "1x128"), ((2, 300, 256), "128x128"), ((0, 256), "row"),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "scaling"), SHAPES)
def test_scales_of_another_shape_are_refused(shape, scaling):
    x = torch.randn(shape)
    q, scale = ops.quantize_fp8(x, scaling)
    back = ops.dequantize_fp8(q, scale, scaling)
    torch.testing.assert_close(back, x, rtol=2**-4, atol=0.02)
    wrong = [scale[None], torch.ones(()), scale.new_ones(*scale.shape[:-1], 7)]
    for other in wrong:
        if other.shape == scale.shape:
            continue
        expected = re.escape(f"dequantize_fp8: expected scale to be {list(scale.shape)}, got")
        with pytest.raises(ValueError, match=expected):
            ops.dequantize_fp8(q, other, scaling)


def test_other_types_and_scalings_are_refused():
    q, scale = ops.quantize_fp8(torch.ones(3, 8), "row")
    with pytest.raises(ValueError, match="expected scaling to be one of tensor, row, 1x128"):
        ops.dequantize_fp8(q, scale, "block")
    with pytest.raises(TypeError, match="expected q to be float8_e4m3fn, got"):
        ops.dequantize_fp8(torch.ones(3, 8), scale, "row")
    with pytest.raises(TypeError, match="expected scale to be float32, got"):
        ops.dequantize_fp8(q, scale.double(), "row")
    with pytest.raises(TypeError, match=r"gate and up of one dtype, got torch\.float32 and"):
        ops.interleave_gate_up(torch.ones(8, 2), torch.ones(8, 2).half())
