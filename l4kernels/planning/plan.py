"""What fits where: memory and decode floor of a Llama 4 by format, GPU and context."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from l4kernels.inputs.files import shown
from l4kernels.layers.weights import FORMATS
from l4kernels.model.config import Llama4Config
from l4kernels.model.presets import PRESETS
from l4kernels.planning.footprint import (
    activation_bytes,
    kv_bytes,
    kv_read_bytes,
    reserve_bytes,
    weight_bytes,
    weight_read_bytes,
)
from l4kernels.planning.formats import KV_BYTES, Format, all_formats
from l4kernels.planning.gpus import GPUS, Gpu


class PlanError(ValueError):
    """A plan that cannot be made: unknown name or impossible size."""


@dataclass(frozen=True)
class Plan:
    """One row of the answer; sizes in bytes over all GPUs, times in milliseconds."""

    model: str
    estimate: bool
    format: str
    gpu: str
    num_gpus: int
    context: int
    batch: int
    kv_dtype: str
    weights: float
    kv: float
    activations: float  # estimate, part of the reserve
    reserve: float
    available: float
    fits: bool
    spare: float  # negative: what is missing
    max_context: int  # of every one of the `batch` sequences
    bytes_per_step: float
    step_floor_ms: float
    tokens_per_second_ceiling: float
    obstacles: tuple[str, ...]
    """What this version cannot do that the row asks for, in whole sentences."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def find_gpu(name: str) -> tuple[Gpu, int]:
    """`h100`, or `8xh100` for eight of them."""
    count, times, kind = str(name).lower().rpartition("x")
    if times and not 1 <= _whole(count) <= 4096:
        raise PlanError(f"expected a GPU as NAME or COUNTxNAME, got {shown(name)}")
    if kind not in GPUS:
        raise PlanError(f"unknown GPU {shown(name)}; known: {', '.join(GPUS)} (or 8xh100)")
    return GPUS[kind], _whole(count) if times else 1


def find_format(name: str) -> Format:
    known = all_formats()
    if name not in tuple(known):
        raise PlanError(f"unknown format {shown(name)}; known: {', '.join(known)}")
    return known[name]


def find_config(name: str) -> Llama4Config:
    """A preset's name, or else a checkpoint folder: of a folder `demo`, write `./demo`."""
    if name.lower() in PRESETS:
        return Llama4Config.preset(name.lower())
    if os.path.lexists(name):
        return Llama4Config.from_pretrained(name)
    if "/" in name or name.startswith("."):
        raise PlanError(f"{shown(name)}: no such folder")
    raise PlanError(
        f"expected a preset out of {', '.join(PRESETS)}, or a checkpoint folder, got {shown(name)}"
    )


def parse_tokens(text: str) -> int:
    """`8192`, `128k` (131,072) or `10M` (10,485,760)."""
    units: Mapping[str, int] = {"k": 1 << 10, "m": 1 << 20}
    unit = units.get(text[-1:].lower(), 1)
    tokens = _whole(text[:-1] if unit > 1 else text) * unit
    if not 0 < tokens <= 1 << 30:
        raise PlanError(f"expected a number of tokens such as 8192, 128k or 1M, got {shown(text)}")
    return tokens


def _whole(digits: str) -> int:
    """0 if it is not a number of at most ten digits."""
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= 10 else 0


def obstacles(form: str, num_gpus: int) -> tuple[str, ...]:
    """What keeps a model in this format, on this many GPUs, from running today.

    >>> obstacles("fp8", 1)
    ()
    """
    found = []
    if form not in FORMATS:
        found.append(
            f"Formats other than {', '.join(FORMATS)} cannot be loaded: for comparison only."
        )
    if num_gpus > 1:
        found.append("A model runs on one GPU only: more of them are for comparison.")
    return tuple(found)


def plan(
    config: Llama4Config,
    form: str = "bf16",
    gpu: str = "h100",
    context: int = 8192,
    batch: int = 1,
    kv_dtype: str | None = None,
) -> Plan:
    """Does `config` in format `form` fit, and how fast can it possibly decode?

    Args:
        form: a name of `all_formats()`.
        gpu: a name of `GPUS`; `8xh100` splits weights and KV evenly over eight.
        context: tokens of every sequence, prompt and reply together.
        kv_dtype: "bf16" or "fp8"; default fp8 with int4 weights, else bf16.
    """
    fmt = find_format(form)
    device, count = find_gpu(gpu)
    if kv_dtype is None:
        kv_dtype = "fp8" if fmt.fp8_cache else "bf16"
    if kv_dtype not in tuple(KV_BYTES):
        raise PlanError(f"unknown KV dtype {shown(kv_dtype)}; known: {', '.join(KV_BYTES)}")
    for name, value, limit in (("context", context, 1 << 30), ("batch", batch, 1 << 16)):
        if not isinstance(value, int) or not 1 <= value <= limit:
            raise PlanError(f"expected {name} in 1..{limit}, got {shown(value)}")
    if context > config.max_position_embeddings:
        raise PlanError(
            f"context {context} is beyond the model's {config.max_position_embeddings} positions"
        )
    element = KV_BYTES[kv_dtype]
    weights = weight_bytes(config, fmt)
    available = device.memory * count

    def spare(tokens: int) -> float:
        reserve = reserve_bytes(config, device, tokens, batch) * count
        return available - reserve - weights - batch * kv_bytes(config, tokens, element)

    low, high = 0, config.max_position_embeddings
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if spare(middle) >= 0 else (low, middle - 1)
    step = weight_read_bytes(config, fmt, batch) + batch * kv_read_bytes(config, context, element)
    seconds = step / (device.bandwidth * count)
    return Plan(
        model=config.name,
        estimate=config.estimate,
        format=form,
        gpu=device.name,
        num_gpus=count,
        context=context,
        batch=batch,
        kv_dtype=kv_dtype,
        weights=weights,
        kv=float(batch * kv_bytes(config, context, element)),
        activations=activation_bytes(config, context, batch) * count,
        reserve=reserve_bytes(config, device, context, batch) * count,
        available=available,
        fits=spare(context) >= 0,
        spare=spare(context),
        max_context=low,
        bytes_per_step=step,
        step_floor_ms=seconds * 1e3,
        tokens_per_second_ceiling=batch / seconds,
        obstacles=obstacles(form, count),
    )
