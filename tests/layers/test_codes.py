"""Codes that stand for no number are counted, in parts of any size."""

import pytest
import torch

from l4kernels import ops
from l4kernels.layers.weights import codes
from l4kernels.layers.weights.codes import Fp8Codes, Int4Codes


@pytest.mark.parametrize("part", [1, 1000, 1 << 20])
def test_nan_codes_are_counted(part, monkeypatch):
    monkeypatch.setattr(codes, "_PART", part)
    q = torch.arange(256, dtype=torch.uint8).repeat(3, 2).view(torch.float8_e4m3fn)
    scale = torch.tensor([1.0, -1.0, torch.inf])
    assert Fp8Codes(q, torch.ones(3)).invalid() == int(q.float().isnan().sum()) == 12
    assert Fp8Codes(q, scale).invalid() == 14
    assert Fp8Codes(q[:, :512:2].contiguous(), torch.zeros(3)).invalid() == 3


def test_scales_below_zero_are_those_of_the_search():
    packed, scales = ops.quantize_int4(torch.linspace(-1, 1, 2048).view(2, 1024))
    assert (scales < 0).any() and (scales > 0).any()
    assert Int4Codes(packed, scales).invalid() == 0
    bad = scales.clone()
    bad[0, 0], bad[0, 1], bad[1, 0] = 0, torch.nan, torch.inf
    assert Int4Codes(packed, bad).invalid() == 3
    zeros = torch.full_like(scales, 8, dtype=torch.uint8)
    assert Int4Codes(packed, scales, zeros).invalid() == 0
