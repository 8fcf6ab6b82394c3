"""How the modules of a model are made."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from l4kernels.layers.weights import FORMATS, WeightFormat
from l4kernels.layers.weights.linear import Linear, empty_parameter
from l4kernels.ops.check import FP8

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class ModelOptions:
    """dtype of activations and of what is not quantised, device, format of weights."""

    dtype: torch.dtype
    device: torch.device
    weights: str | WeightFormat = "bf16"
    """A name of `FORMATS`, or a format that only checkpoints have."""
    blocks: Mapping[str, WeightFormat] = field(default_factory=dict)
    """Formats of single blocks: "layers.3.attention", "layers.3.feed_forward", "lm_head"."""

    @classmethod
    def parse(
        cls, device: str | torch.device, dtype: str | torch.dtype, weights: str | None
    ) -> "ModelOptions":
        """Options as users spell them; `weights` None is "bf16"."""
        place, weights = find_device(device), "bf16" if weights is None else weights
        if weights not in tuple(FORMATS):
            raise ValueError(f"expected weights to be one of {', '.join(FORMATS)}, got {weights!r}")
        compute = _named(dtype, DTYPES)
        if compute not in DTYPES.values():
            raise ValueError(f"expected dtype to be float32 or bfloat16, got {compute}")
        return cls(compute, place, weights)

    @property
    def format(self) -> WeightFormat:
        return FORMATS[self.weights] if isinstance(self.weights, str) else self.weights

    def part(self, weights: str | WeightFormat) -> "ModelOptions":
        """Options of a part of the model whose weights are in another format; "": in this one."""
        return replace(self, weights=weights) if weights else self

    def block(self, name: str) -> "ModelOptions":
        """Options of a block: of its own format, or what this format has for blocks of its kind."""
        if name in self.blocks:
            return self.part(self.blocks[name])
        kind = name.rpartition(".")[2]
        return self.part(
            {"attention": self.format.attention, "lm_head": self.format.head}.get(kind, "")
        )

    @property
    def linear_class(self) -> type[Linear]:
        module, _, name = self.format.linear.rpartition(".")
        found: type[Linear] = getattr(importlib.import_module(module), name)
        return found

    def empty(self, *shape: int) -> nn.Parameter:
        return empty_parameter(*shape, dtype=self.dtype, device=self.device)

    def linear(
        self,
        in_features: int,
        out_features: int,
        *,
        experts: int | None = None,
        bias: bool = False,
    ) -> Linear:
        """A linear layer in this format."""
        for kind, size, multiple in (
            ("input", in_features, self.format.k_multiple),
            ("output", out_features, self.format.n_multiple),
        ):
            if size % multiple:
                raise ValueError(
                    f"{self.format.name} weights need {kind} sizes that are multiples of "
                    f'{multiple}, got {size}; load this model with weights="bf16"'
                )
        return self.linear_class(
            in_features,
            out_features,
            dtype=self.dtype,
            device=self.device,
            experts=experts,
            bias=bias,
            form=self.format,
        )


def find_device(device: str | torch.device) -> torch.device:
    """`device`, if a model can run there and it is there."""
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        found = torch.device("meta")
    if found.type not in ("cpu", "cuda"):
        raise ValueError(f"expected device to be cpu, cuda or cuda:N, got {str(device)!r}")
    count = torch.cuda.device_count()
    if found.type == "cuda" and (found.index or 0) >= count:
        raise ValueError(
            f"device {found}: {count} CUDA devices are visible; `l4k env` says what is installed"
        )
    return found


def find_kv_dtype(kv_dtype: str | torch.dtype | None, compute: torch.dtype) -> torch.dtype:
    """That of the KV cache: the activations', or e4m3."""
    found = compute if kv_dtype is None else _named(kv_dtype, {**DTYPES, "fp8": FP8})
    if found not in (compute, FP8):
        raise ValueError(f'expected kv_dtype to be None, {compute} or "fp8", got {kv_dtype!r}')
    return found


def _named(dtype: str | torch.dtype, names: dict[str, torch.dtype]) -> Any:
    """The dtype of that name; what is no name comes back."""
    return names.get(dtype, dtype) if isinstance(dtype, str) else dtype


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
