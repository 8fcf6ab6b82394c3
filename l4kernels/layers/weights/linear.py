"""A weight in one of three formats, and the GEMM that reads it."""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from l4kernels import ops

FORMATS = ("bf16", "fp8", "int4")
_FP8 = torch.float8_e4m3fn
_MIN_PIECE, _MAX_PIECE = 1 << 18, 1 << 22
"""Weights are written in sixteenths of so many elements: quantising needs float32 copies, and they
should not be what decides how much memory loading takes; nor should calls decide the time."""


class Quantized(Protocol):
    """fp8 activations: `q` e4m3 and their scale factors."""

    @property
    def q(self) -> Tensor: ...
    @property
    def scale(self) -> Tensor: ...


class Fp8(NamedTuple):
    q: Tensor
    scale: Tensor


@dataclass(frozen=True)
class Build:
    """How the modules of a model are made: dtype of activations, device, format of weights."""

    dtype: torch.dtype
    device: torch.device
    weights: str = "bf16"

    def empty(self, *shape: int, dtype: torch.dtype | None = None) -> nn.Parameter:
        data = torch.empty(shape, dtype=dtype or self.dtype, device=self.device)
        return nn.Parameter(data, requires_grad=False)


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


class Linear(nn.Module):
    """`y = x @ weight.T`, weight `[N, K]`, or `[E, N, K]` with one slab per expert.

    "bf16" keeps the weight in the model's dtype. "fp8": e4m3 per output channel, activations
    e4m3 per token. "int4": groups of 128 along K, activations unquantised.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        build: Build,
        *,
        weights: str | None = None,
        experts: int | None = None,
        bias: bool = False,
    ):
        super().__init__()
        self.in_features, self.out_features, self.dtype = in_features, out_features, build.dtype
        self.weights = weights or build.weights
        if self.weights != "bf16" and in_features % 128:
            raise ValueError(
                f'weights="{self.weights}" needs input sizes that are multiples of 128, '
                f'got {in_features}; load this model with weights="bf16"'
            )
        rows = (out_features,) if experts is None else (experts, out_features)
        if self.weights == "int4":
            self.packed = build.empty(*rows, in_features // 8, dtype=torch.int32)
            self.scales = build.empty(*rows, in_features // 128, dtype=torch.bfloat16)
        elif self.weights == "fp8":
            self.weight = build.empty(*rows, in_features, dtype=_FP8)
            self.scale = build.empty(*rows, dtype=torch.float32)
        else:
            self.weight = build.empty(*rows, in_features)
        self.bias = build.empty(out_features) if bias else None

    def forward(
        self,
        x: "Tensor | Quantized",
        *,
        expert_offsets: Tensor | None = None,
        row_scale: Tensor | None = None,
        residual: Tensor | None = None,
        activation: str = "none",
        out_dtype: torch.dtype | None = None,
    ) -> "Tensor | Fp8":
        """`activation(row_scale * (x @ weight.T) + bias) + residual`; SwiGLU of fp8 stays fp8."""
        epilogue: dict[str, Any] = {
            "expert_offsets": expert_offsets,
            "row_scale": row_scale,
            "residual": residual,
            "bias": self.bias,
            "activation": activation,
            "out_dtype": out_dtype or self.dtype,
        }
        if self.weights == "int4":
            return ops.w4_gemm(x, self.packed, self.scales, **epilogue)
        if self.weights == "bf16":
            return ops.gemm(x, self.weight, **epilogue)
        q, scale = ops.quantize_fp8(x, "row") if isinstance(x, Tensor) else (x.q, x.scale)
        if activation == "swiglu":
            routed: dict[str, Any] = {"expert_offsets": expert_offsets, "row_scale": row_scale}
            return Fp8(*ops.gemm_swiglu_fp8(q, self.weight, sfa=scale, sfb=self.scale, **routed))
        return ops.gemm(q, self.weight, sfa=scale, sfb=self.scale, **epilogue)

    def store(self, weight: Tensor, rows: slice | str = "all", expert: int | None = None) -> None:
        """Writes `[n, K]` rows of a checkpoint into their place, quantising on the way.

        `rows` is a slice, or "gate" / "up": those are interleaved in blocks of 8 rows, so that
        one tile of the GEMM holds both factors of an output. "gate_up" is one above the other.
        """
        if rows == "gate_up":
            gate, up = weight.chunk(2)
            self.store(gate, "gate", expert)
            self.store(up, "up", expert)
            return
        blocked = rows in ("gate", "up")
        pad_n = -weight.shape[0] % 8 if blocked else 0
        if rows == "all":
            pad_n = self.out_features - weight.shape[0]
        pad_k = self.in_features - weight.shape[1]
        if pad_n or pad_k:
            weight = nn.functional.pad(weight, (0, pad_k, 0, pad_n))
        piece = min(_MAX_PIECE, max(_MIN_PIECE, weight.numel() // 16))
        step = max(8, piece // self.in_features // 8 * 8)
        for start in range(0, weight.shape[0], step):
            for target, value in self._quantised(weight[start : start + step].to(self.device)):
                target = _rows(target if expert is None else target[expert], rows)
                unit = 8 if blocked else 1
                view = target[start // unit : (start + step) // unit]
                view.copy_(value.unflatten(0, (-1, 8)) if blocked else value)

    def _quantised(self, weight: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The parameters of this format, each with what `weight` becomes in it."""
        if self.weights == "int4":
            packed, scales = ops.quantize_int4(weight.contiguous())
            return [(self.packed, packed), (self.scales, scales)]
        if self.weights == "fp8":
            # What the unquantised model would hold; also what the kernel takes.
            q, scale = ops.quantize_fp8(weight.to(self.dtype).contiguous(), "row")
            return [(self.weight, q), (self.scale, scale)]
        return [(self.weight, weight)]

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device


def _rows(target: Tensor, rows: slice | str) -> Tensor:
    if isinstance(rows, slice):
        return target[rows]
    if rows == "all":
        return target
    blocks = target.view(-1, 2, 8, *target.shape[1:])
    return blocks[:, 0 if rows == "gate" else 1]
