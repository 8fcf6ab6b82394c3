"""SwiGLU: the dense layers' MLP and the shared expert."""

from torch import Tensor, nn

from l4kernels.layers.linear import Build, Linear, Quantized, round_up


class MLP(nn.Module):
    """`down(silu(gate(x)) * up(x)) + residual`"""

    def __init__(self, hidden_size: int, intermediate_size: int, build: Build):
        super().__init__()
        # Gate and up rows alternate in blocks of 8; rows added to fill the last one stay zero.
        width = round_up(intermediate_size, 8)
        self.gate_up_proj = Linear(hidden_size, 2 * width, build)
        self.down_proj = Linear(width, hidden_size, build)

    def forward(self, x: "Tensor | Quantized", residual: Tensor | None = None) -> Tensor:
        hidden = self.gate_up_proj(x, activation="swiglu")
        return self.down_proj(hidden, residual=residual)
