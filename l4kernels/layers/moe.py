"""Mixture of experts: the routed experts of a token and the shared one."""

import torch
from torch import Tensor, nn

from l4kernels import ops
from l4kernels.layers.linear import Build, Fp8, Linear, round_up
from l4kernels.layers.mlp import MLP
from l4kernels.ops.norm import RmsNormFp8


class MoE(nn.Module):
    """Each token visits `top_k` experts, its input scaled by sigmoid(router logit), and the shared
    expert, unscaled. Tokens are sorted by expert, so the cost follows the tokens, not the experts.
    """

    def __init__(
        self, hidden_size: int, intermediate_size: int, num_experts: int, top_k: int, build: Build
    ):
        super().__init__()
        self.num_experts, self.top_k = num_experts, top_k
        width = round_up(intermediate_size, 8)
        # The GEMM writes columns in multiples of 8; those past the experts are never looked at.
        self.router = Linear(hidden_size, round_up(num_experts, 8), build, weights="bf16")
        self.gate_up_proj = Linear(hidden_size, 2 * width, build, experts=num_experts)
        self.down_proj = Linear(width, hidden_size, build, experts=num_experts)
        self.shared_expert = MLP(hidden_size, intermediate_size, build)

    def forward(self, x: Tensor | RmsNormFp8, residual: Tensor) -> Tensor:
        tokens = x if isinstance(x, Tensor) else x.y
        logits = self.router(tokens, out_dtype=torch.float32)[:, : self.num_experts]
        routing = ops.moe_route(logits, self.top_k)
        rows: Tensor | Fp8
        if isinstance(x, Tensor):
            rows = ops.moe_permute(tokens, routing.permutation, self.top_k)
        else:
            rows = Fp8(*ops.moe_permute_fp8(tokens, routing.permutation, self.top_k))
        # The score scales the input of the first GEMM: SwiGLU is not homogeneous.
        hidden = self.gate_up_proj(
            rows,
            expert_offsets=routing.expert_offsets,
            row_scale=routing.row_scale,
            activation="swiglu",
        )
        routed = self.down_proj(hidden, expert_offsets=routing.expert_offsets)
        shared = self.shared_expert(x)
        return ops.moe_combine(routed, routing.inverse, self.top_k, shared, residual)
