"""RMSNorm in front of a block."""

from torch import Tensor, nn

from l4kernels.layers.options import ModelOptions
from l4kernels.layers.weights.linear import Activations


class RMSNorm(nn.Module):
    """`x * rsqrt(mean(x^2) + eps) * weight`.

    `options` are those of the product that follows: before one of fp8 weights the result comes
    quantised per token.
    """

    def __init__(self, size: int, eps: float, options: ModelOptions):
        super().__init__()
        self.eps, self.linear = eps, options.linear_class
        self.weight = options.empty(size)

    def forward(self, x: Tensor) -> Activations:
        return self.linear.rms_norm(x, self.weight, self.eps)

    def of_combined(
        self, y: Tensor, inverse: Tensor, top_k: int, residual: Tensor
    ) -> tuple[Tensor, Activations]:
        """`moe_combine` of its arguments, and this norm of what that gives, in one launch."""
        return self.linear.combine_norm(y, inverse, top_k, self.weight, self.eps, residual)
