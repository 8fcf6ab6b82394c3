"""A linear layer, whatever the format of its weight: where rows lie, bias, what GEMMs are asked."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from l4kernels import ops
from l4kernels.layers.weights import FORMATS, WeightFormat
from l4kernels.layers.weights.codes import Codes
from l4kernels.layers.weights.memory import TURNED, large_empty, lies_transposed, rows_first
from l4kernels.layers.weights.staging import ToDevice, Upload
from l4kernels.ops.epilogue import INTERLEAVE, MAX_GATHERED_ROWS

Activations = Tensor | ops.Quantized | ops.RmsNormFp8
"""Rows of a GEMM: unquantised, or e4m3 with scales."""

_MIN_PART, _MAX_PART = 1 << 18, 1 << 22
"""Elements of a part. A weight is written in 16 parts within these bounds: quantising needs float32
copies, which should not decide how much memory loading takes; nor should calls decide the time."""


class Place(NamedTuple):
    """Rows of a layer's weight; of a half, the first 8 of every 16 (gate) or the last 8 (up)."""

    first: int
    end: int
    half: int | None = None
    expert: int | None = None

    def of(self, parameter: Tensor) -> Tensor:
        """The matrix of a parameter in which the rows lie."""
        return parameter if self.expert is None else parameter[self.expert]

    def fill(self, parameter: Tensor, value: Tensor) -> None:
        """Copies what became of the rows to where they belong."""
        rows = self.of(parameter)[self.first : self.end]
        if self.half is not None:
            rows = rows.unflatten(0, (-1, 2, INTERLEAVE))[:, self.half]
            value = value.unflatten(0, (-1, INTERLEAVE))
        rows.copy_(value)


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
        form: WeightFormat | None = None,
    ):
        super().__init__()
        self.form = form or FORMATS[self.name]
        self.in_features, self.out_features = in_features, out_features
        self.dtype, self.device = dtype, device
        self.allocate(*([] if experts is None else [experts]), out_features)
        self.bias = self.empty(out_features) if bias else None

    def empty(self, *shape: int, dtype: torch.dtype | None = None) -> nn.Parameter:
        return empty_parameter(*shape, dtype=dtype or self.dtype, device=self.device)

    @abstractmethod
    def allocate(self, *rows: int) -> None:
        """Makes the parameters for rows `[N]` or `[E, N]`."""

    @abstractmethod
    def write(self, weight: Tensor, place: Place) -> None:
        """Quantises rows `[n, K]` of a weight into their place in the parameters."""

    def write_codes(self, codes: Codes, place: Place) -> None:
        """Writes rows that came in this layer's own format into their place, bit by bit."""
        raise NotImplementedError(f"{self.form.name} weights have no codes")

    @abstractmethod
    def multiply(self, x: Activations, epilogue: dict[str, Any]) -> Tensor | ops.Quantized:
        """The GEMM, with the arguments of `ops.gemm` by name."""

    @staticmethod
    def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Activations:
        """RMSNorm, as this format's `multiply` wants it."""
        return ops.rms_norm(x, weight, eps)

    @staticmethod
    def combine_norm(
        y: Tensor, inverse: Tensor, top_k: int, weight: Tensor, eps: float, residual: Tensor
    ) -> tuple[Tensor, Activations]:
        """`moe_combine`, and `rms_norm` of it."""
        return ops.moe_combine_norm(y, inverse, top_k, weight, eps, residual)

    @staticmethod
    def by_expert(
        x: Activations, permutation: Tensor, top_k: int
    ) -> tuple[Activations, dict[str, Any]]:
        """Rows for a product by expert, and what else that needs to know of them: a few are
        gathered by the product itself, more are sorted here.
        """
        if len(permutation) <= MAX_GATHERED_ROWS:
            return unquantised(x), {"permutation": permutation, "top_k": top_k}
        return ops.moe_permute(unquantised(x), permutation, top_k), {}

    def tie(self, embedding: nn.Parameter, *, filled: bool) -> None:
        """Makes the embedding's weights those of this layer, unless it was `filled` with others."""
        if not filled:
            self.store(embedding)

    def forward(self, x: Activations, **epilogue: Any) -> Tensor | ops.Quantized:
        """`activation(row_scale * (x @ weight.T) + bias) + residual`; SwiGLU of fp8 stays fp8.

        Args:
            epilogue: `expert_offsets`, `row_scale`, `residual`, `activation` and `out_dtype` as of
                `ops.gemm`, and what `by_expert` gave; those that are not its defaults: every
                argument of an op costs time. The default of `out_dtype` is the layer's.
        """
        if self.bias is not None:
            epilogue["bias"] = self.bias
        return self.multiply(x, epilogue)

    def store(
        self,
        weight: Tensor | Codes,
        rows: slice | str = "all",
        expert: int | None = None,
        upload: Upload | None = None,
    ) -> None:
        """Writes `[n, K]` rows of a checkpoint into their place; `upload` brings them here.

        Codes of this layer's format stay as they are; all else is quantised on the way.

        `rows` is a slice, or "gate" / "up": those are interleaved in blocks of INTERLEAVE rows, so
        that one tile of the GEMM holds both factors of an output. "gate_up" is one above the other.
        """
        if rows == "gate_up":
            width = weight.shape[0] // 2
            self.store(_rows(weight, 0, width), "gate", expert, upload)
            self.store(_rows(weight, width, 2 * width), "up", expert, upload)
            return
        half = ("gate", "up").index(rows) if rows in ("gate", "up") else None
        pad_n = 0 if half is None else -weight.shape[0] % INTERLEAVE
        if rows == "all":
            pad_n = self.out_features - weight.shape[0]
        pad_k = self.in_features - weight.shape[1]
        if pad_n or pad_k:
            weight = weight.dequantized() if isinstance(weight, Codes) else weight
            weight = nn.functional.pad(weight, (0, pad_k, 0, pad_n))
        count = weight.shape[0] * weight.shape[1]
        part = min(_MAX_PART, max(_MIN_PART, count // 16))
        stored = [weight] if isinstance(weight, Tensor) else weight.tensors().values()
        if any(map(lies_transposed, stored)):
            part = min(part, TURNED)
        step = max(INTERLEAVE, part // self.in_features // INTERLEAVE * INTERLEAVE)
        first = rows.start if isinstance(rows, slice) else 0
        stride = 1 if half is None else 2
        upload = upload or ToDevice(self.device)
        for start in range(0, weight.shape[0], step):
            own = _rows(weight, start, min(start + step, weight.shape[0]))
            own = rows_first(upload(own)) if isinstance(own, Tensor) else own.map(upload)
            begin = first + stride * start
            place = Place(begin, begin + stride * own.shape[0], half, expert)
            if isinstance(own, Tensor):
                self.write(own, place)
            elif self.form.holds(own.form):
                self.write_codes(own.map(rows_first), place)
            else:
                self.write(own.dequantized().to(self.dtype), place)


def _rows(weight: Tensor | Codes, first: int, end: int) -> Tensor | Codes:
    return weight[first:end] if isinstance(weight, Tensor) else weight.rows(first, end)


def empty_parameter(*shape: int, dtype: torch.dtype, device: torch.device) -> nn.Parameter:
    return nn.Parameter(large_empty(*shape, dtype=dtype, device=device), requires_grad=False)


def unquantised(x: Activations) -> Tensor:
    if isinstance(x, Tensor):
        return x
    raise TypeError("expected unquantised activations, got e4m3 rows with scales")
