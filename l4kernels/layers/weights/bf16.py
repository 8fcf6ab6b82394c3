"""Unquantised weights."""

from typing import Any

import torch
from torch import Tensor, nn

from l4kernels import ops
from l4kernels.layers.weights.linear import Activations, Linear, Place, unquantised


class Bf16Linear(Linear):
    """Weight `[(E,) N, K]` in the dtype of the model: bfloat16, or float32 on request."""

    name = "bf16"

    def allocate(self, *rows: int) -> None:
        self.weight = self.empty(*rows, self.in_features)

    def write(self, weight: Tensor, place: Place) -> None:
        place.fill(self.weight, weight)

    def multiply(self, x: Activations, epilogue: dict[str, Any]) -> Tensor:
        return ops.gemm(unquantised(x), self.weight, **epilogue)

    def tie(self, embedding: nn.Parameter, *, filled: bool) -> None:
        """The embedding's own memory, so that it is held once."""
        if not filled or torch.equal(self.weight, embedding):
            self.weight = embedding
