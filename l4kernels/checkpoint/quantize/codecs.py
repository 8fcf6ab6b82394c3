"""How a weight is stored in compressed-tensors: which tensors stand for it, and what is in them."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from l4kernels import ops
from l4kernels.checkpoint.files.planned import Planned
from l4kernels.checkpoint.files.reader import Weight
from l4kernels.checkpoint.formats.nibbles import in_order
from l4kernels.layers.weights import FORMATS, WeightFormat
from l4kernels.layers.weights.codes import Codes, Fp8Codes, Int4Codes
from l4kernels.ops.check import FP8
from l4kernels.ops.quant import BLOCK

_PART = 1 << 22
"""Weights that are quantised to e4m3 at a time: their float32 copies take memory."""


class Codec(ABC):
    """A format of `FORMATS` as compressed-tensors spells it."""

    name: ClassVar[str]
    """What it calls the format."""
    scheme: ClassVar[dict[str, Any]]
    """What it says of weights and activations."""
    form: ClassVar[WeightFormat]

    @abstractmethod
    def planned(self, name: str, shape: tuple[int, int]) -> dict[str, Planned]:
        """The stored tensors of the weight `name` (ends in ".weight"), `[out, in]`."""

    @abstractmethod
    def encoded(self, name: str, weight: Weight) -> Iterator[tuple[str, Tensor]]:
        """What is in them. Codes of this format stay as they are, all else is quantised."""


def _arguments(bits: int, kind: str, strategy: str, **more: Any) -> dict[str, Any]:
    return {"num_bits": bits, "type": kind, "strategy": strategy, "symmetric": True, **more}


class Int4(Codec):
    """Groups of 128 along K, scales in bfloat16; activations are not quantised.

    A word holds element 8j + i of its row in bits 4i to 4i+3, as code + 8. As the search for the
    least error has it, a scale may be negative.
    """

    name = "pack-quantized"
    scheme: ClassVar[dict[str, Any]] = {
        "weights": _arguments(4, "int", "group", group_size=BLOCK, dynamic=False),
    }
    form = FORMATS["int4"]

    def planned(self, name: str, shape: tuple[int, int]) -> dict[str, Planned]:
        n, k = shape
        return {
            f"{name}_shape": Planned((2,), torch.int64),
            f"{name}_packed": Planned((n, k // 8), torch.int32),
            f"{name}_scale": Planned((n, k // BLOCK), torch.bfloat16),
        }

    def encoded(self, name: str, weight: Weight) -> Iterator[tuple[str, Tensor]]:
        if isinstance(weight, Int4Codes) and self.form.holds(weight.form):
            codes = weight
        else:
            codes = Int4Codes(*ops.quantize_int4(_floats(weight).contiguous()))
        yield f"{name}_shape", torch.tensor(codes.shape)
        yield f"{name}_packed", in_order(codes.packed)
        yield f"{name}_scale", codes.group_scales.to(torch.bfloat16)


class Fp8(Codec):
    """e4m3, a float32 scale per output channel; activations are quantised when they come, a scale
    per token."""

    name = "float-quantized"
    scheme: ClassVar[dict[str, Any]] = {
        "weights": _arguments(8, "float", "channel", dynamic=False),
        "input_activations": _arguments(8, "float", "token", dynamic=True),
    }
    form = FORMATS["fp8"]

    def planned(self, name: str, shape: tuple[int, int]) -> dict[str, Planned]:
        return {
            name: Planned(shape, FP8),
            f"{name}_scale": Planned((shape[0], 1), torch.float32),
        }

    def encoded(self, name: str, weight: Weight) -> Iterator[tuple[str, Tensor]]:
        if isinstance(weight, Fp8Codes):
            codes = weight
        else:
            rows = _floats(weight)
            parts = rows.split(max(1, _PART // rows.shape[1]))
            quantised = [ops.quantize_fp8(part.contiguous(), "row") for part in parts]
            codes = Fp8Codes(*(torch.cat(of) for of in zip(*quantised, strict=True)))
        yield name, codes.q
        yield f"{name}_scale", codes.scale[:, None]


def _floats(weight: Weight) -> Tensor:
    return weight.dequantized() if isinstance(weight, Codes) else weight
