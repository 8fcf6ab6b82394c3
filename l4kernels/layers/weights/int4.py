"""int4 weights, unquantised activations."""

from typing import Any

import torch
from torch import Tensor, nn

from l4kernels import ops
from l4kernels.layers.weights.linear import Activations, Linear, unquantised

GROUP = 128


class Int4Linear(Linear):
    """Eight weights in an int32, and one bfloat16 scale per group of 128 along K."""

    name = "int4"

    def allocate(self, *rows: int) -> None:
        self.packed = self.empty(*rows, self.in_features // 8, dtype=torch.int32)
        self.scales = self.empty(*rows, self.in_features // GROUP, dtype=torch.bfloat16)

    def quantise(self, weight: Tensor) -> list[tuple[nn.Parameter, Tensor]]:
        packed, scales = ops.quantize_int4(weight.contiguous())
        return [(self.packed, packed), (self.scales, scales)]

    def multiply(self, x: Activations, epilogue: dict[str, Any]) -> Tensor:
        return ops.w4_gemm(unquantised(x), self.packed, self.scales, **epilogue)
