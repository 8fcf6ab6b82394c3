"""e4m3 weights and activations."""

from typing import Any

import torch
from torch import Tensor

from l4kernels import ops
from l4kernels.layers.weights.codes import Codes, Fp8Codes
from l4kernels.layers.weights.linear import Activations, Linear, Place, unquantised
from l4kernels.ops.check import FP8


class Fp8Linear(Linear):
    """e4m3 with one float32 scale per output channel, times e4m3 rows with one per token.

    RMSNorm, the permutation and the sum of an MoE, and SwiGLU write e4m3 rows themselves; rows that
    come unquantised are quantised here.
    """

    name = "fp8"

    def allocate(self, *rows: int) -> None:
        self.weight = self.empty(*rows, self.in_features, dtype=FP8)
        self.scale = self.empty(*rows, dtype=torch.float32)

    def write(self, weight: Tensor, place: Place) -> None:
        # What the unquantised model would hold; also what the kernel takes.
        self.write_codes(
            Fp8Codes(*ops.quantize_fp8(weight.to(self.dtype).contiguous(), "row")), place
        )

    def write_codes(self, codes: Codes, place: Place) -> None:
        assert isinstance(codes, Fp8Codes)
        place.fill(self.weight, codes.q)
        place.fill(self.scale, codes.scale)

    def multiply(self, x: Activations, epilogue: dict[str, Any]) -> Tensor | ops.Quantized:
        q, scale = ops.quantize_fp8(x, "row") if isinstance(x, Tensor) else (x.q, x.scale)
        if epilogue.get("activation") != "swiglu":
            epilogue = {"out_dtype": self.dtype, **epilogue}
            return ops.gemm(q, self.weight, sfa=scale, sfb=self.scale, **epilogue)
        routed: dict[str, Any] = {
            name: epilogue.get(name) for name in ("expert_offsets", "row_scale")
        }
        return ops.gemm_swiglu_fp8(q, self.weight, sfa=scale, sfb=self.scale, **routed)

    @staticmethod
    def rms_norm(x: Tensor, weight: Tensor, eps: float) -> ops.RmsNormFp8:
        return ops.rms_norm_fp8(x, weight, eps)

    @staticmethod
    def combine_norm(
        y: Tensor, inverse: Tensor, top_k: int, weight: Tensor, eps: float, residual: Tensor
    ) -> tuple[Tensor, ops.Quantized]:
        x, *rows = ops.moe_combine_norm_fp8(y, inverse, top_k, weight, eps, residual)
        return x, ops.Quantized(*rows)

    @staticmethod
    def by_expert(
        x: Activations, permutation: Tensor, top_k: int
    ) -> tuple[ops.Quantized, dict[str, Any]]:
        return ops.moe_permute_fp8(unquantised(x), permutation, top_k), {}
