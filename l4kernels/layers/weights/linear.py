"""A linear layer, whatever the format of its weight: where rows lie, bias, what GEMMs are asked."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from l4kernels import ops
from l4kernels.ops.epilogue import INTERLEAVE

Activations = Tensor | ops.Quantized | ops.RmsNormFp8
"""Rows of a GEMM: unquantised, or e4m3 with scales."""

_MIN_PART, _MAX_PART = 1 << 18, 1 << 22
"""Elements of a part. A weight is written in 16 parts within these bounds: quantising needs float32
copies, which should not decide how much memory loading takes; nor should calls decide the time."""


class Linear(nn.Module, ABC):
    """`y = x @ weight.T`, weight `[N, K]`, or `[E, N, K]` with one matrix per expert.

    A format of weights is a subclass and an entry of `FORMATS` (docs/adding-a-format.md): the
    parameters that hold a weight, how it is quantised into them and multiplied by, and which form
    it wants activations in.
    """

    name: ClassVar[str]
    """Of its format in `FORMATS`."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
        experts: int | None = None,
        bias: bool = False,
    ):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.dtype, self.device = dtype, device
        self.allocate(*([] if experts is None else [experts]), out_features)
        self.bias = self.empty(out_features) if bias else None

    def empty(self, *shape: int, dtype: torch.dtype | None = None) -> nn.Parameter:
        return empty_parameter(*shape, dtype=dtype or self.dtype, device=self.device)

    @abstractmethod
    def allocate(self, *rows: int) -> None:
        """Makes the parameters, each `[*rows]` or `[*rows, ...]`; rows are `[N]` or `[E, N]`."""

    @abstractmethod
    def quantise(self, weight: Tensor) -> list[tuple[nn.Parameter, Tensor]]:
        """The parameters, each with what rows `[n, K]` of a weight become in it."""

    @abstractmethod
    def multiply(self, x: Activations, epilogue: dict[str, Any]) -> Tensor | ops.Quantized:
        """The GEMM, with the arguments of `ops.gemm` by name."""

    @staticmethod
    def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Activations:
        """RMSNorm, as this format's `multiply` wants it."""
        return ops.rms_norm(x, weight, eps)

    @staticmethod
    def permute(x: Activations, permutation: Tensor, top_k: int) -> Activations:
        """Rows sorted by expert, as this format's `multiply` wants them."""
        return ops.moe_permute(unquantised(x), permutation, top_k)

    def tie(self, embedding: nn.Parameter, *, filled: bool) -> None:
        """Makes the embedding's weights those of this layer, unless it was `filled` with others."""
        if not filled:
            self.store(embedding)

    def forward(self, x: Activations, **epilogue: Any) -> Tensor | ops.Quantized:
        """`activation(row_scale * (x @ weight.T) + bias) + residual`; SwiGLU of fp8 stays fp8.

        Args:
            epilogue: `expert_offsets`, `row_scale`, `residual`, `activation` and `out_dtype` as of
                `ops.gemm`, those that are not its defaults: every argument of an op costs time. The
                default of `out_dtype` is the layer's.
        """
        if self.bias is not None:
            epilogue["bias"] = self.bias
        return self.multiply(x, epilogue)

    def store(self, weight: Tensor, rows: slice | str = "all", expert: int | None = None) -> None:
        """Writes `[n, K]` rows of a checkpoint into their place, quantising on the way.

        `rows` is a slice, or "gate" / "up": those are interleaved in blocks of INTERLEAVE rows, so
        that one tile of the GEMM holds both factors of an output. "gate_up" is one above the other.
        """
        if rows == "gate_up":
            gate, up = weight.chunk(2)
            self.store(gate, "gate", expert)
            self.store(up, "up", expert)
            return
        blocked = rows in ("gate", "up")
        pad_n = -weight.shape[0] % INTERLEAVE if blocked else 0
        if rows == "all":
            pad_n = self.out_features - weight.shape[0]
        pad_k = self.in_features - weight.shape[1]
        if pad_n or pad_k:
            weight = nn.functional.pad(weight, (0, pad_k, 0, pad_n))
        part = min(_MAX_PART, max(_MIN_PART, weight.numel() // 16))
        step = max(INTERLEAVE, part // self.in_features // INTERLEAVE * INTERLEAVE)
        for start in range(0, weight.shape[0], step):
            for parameter, value in self.quantise(weight[start : start + step].to(self.device)):
                target = _rows(parameter if expert is None else parameter[expert], rows)
                unit = INTERLEAVE if blocked else 1
                view = target[start // unit : (start + step) // unit]
                view.copy_(value.unflatten(0, (-1, INTERLEAVE)) if blocked else value)


def empty_parameter(*shape: int, dtype: torch.dtype, device: torch.device) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=dtype, device=device), requires_grad=False)


def unquantised(x: Activations) -> Tensor:
    if isinstance(x, Tensor):
        return x
    raise TypeError("expected unquantised activations, got e4m3 rows with scales")


def _rows(target: Tensor, rows: slice | str) -> Tensor:
    if isinstance(rows, slice):
        return target[rows]
    if rows == "all":
        return target
    blocks = target.view(-1, 2, INTERLEAVE, *target.shape[1:])
    return blocks[:, 0 if rows == "gate" else 1]
