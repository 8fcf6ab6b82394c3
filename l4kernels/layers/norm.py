"""RMSNorm in front of a block."""

from torch import Tensor, nn

from l4kernels import ops
from l4kernels.layers.linear import Build
from l4kernels.ops.norm import RmsNormFp8


class RMSNorm(nn.Module):
    """`x * rsqrt(mean(x^2) + eps) * weight`.

    In an fp8 model the result comes quantised per token for the GEMM behind it, with the
    unquantised rows beside it (`keep`) where a router or the experts want them.
    """

    def __init__(self, size: int, eps: float, build: Build, *, keep: bool = False):
        super().__init__()
        self.eps, self.keep, self.fp8 = eps, keep, build.weights == "fp8"
        self.weight = build.empty(size)

    def forward(self, x: Tensor) -> Tensor | RmsNormFp8:
        if self.fp8:
            return ops.rms_norm_fp8(x, self.weight, self.eps, keep_y=self.keep)
        return ops.rms_norm(x, self.weight, self.eps)
