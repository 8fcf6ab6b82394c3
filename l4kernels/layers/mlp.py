"""SwiGLU: the MLP of a dense layer."""

from torch import Tensor, nn

from l4kernels.layers.norm import RMSNorm
from l4kernels.layers.options import ModelOptions, round_up


class MLP(nn.Module):
    """`down(silu(gate(y)) * up(y)) + x`, y = norm(x)"""

    def __init__(self, hidden_size: int, intermediate_size: int, options: ModelOptions):
        super().__init__()
        # Gate and up rows alternate in blocks of 8; rows added to fill the last one stay zero.
        width = round_up(intermediate_size, 8)
        self.gate_up_proj = options.linear(hidden_size, 2 * width)
        self.down_proj = options.linear(width, hidden_size)

    def forward(self, x: Tensor, norm: RMSNorm) -> Tensor:
        hidden = self.gate_up_proj(norm(x), activation="swiglu")
        return self.down_proj(hidden, residual=x)
