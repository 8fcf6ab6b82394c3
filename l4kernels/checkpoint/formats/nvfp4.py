"""NVFP4: pairs of e2m1 codes in a byte, an e4m3 scale for 16 of them, a float32 one for all."""

import torch
from torch import Tensor

from l4kernels.ops.quant import fp8_values

GROUP = 16
_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_VALUES = torch.tensor([*_MAGNITUDES, *(-value for value in _MAGNITUDES)])
_PAIRS = torch.stack([_VALUES.repeat(16), _VALUES.repeat_interleave(16)], -1)
"""Of each byte the values of its two codes: that in the low bits first."""


def dequantised(packed: Tensor, scales: Tensor, whole: Tensor) -> Tensor:
    """float32 `[n, K]`, `value * scale * whole`.

    Args:
        packed: uint8 `[n, K / 2]`.
        scales: float8_e4m3fn `[n, K / 16]`.
        whole: float32, one.

    >>> packed = torch.tensor([[0x21] * 8], dtype=torch.uint8)
    >>> scales = torch.tensor([[2.0]]).to(torch.float8_e4m3fn)
    >>> dequantised(packed, scales, torch.tensor(3.0))[0, :2]
    tensor([3., 6.])
    """
    n, half = packed.shape
    values = _PAIRS.index_select(0, packed.reshape(-1).int()).view(n, -1, GROUP)
    return values.mul_((fp8_values(scales) * whole).unsqueeze(-1)).view(n, 2 * half)
