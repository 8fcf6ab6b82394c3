"""What is measured: every op at the shapes of a preset, so that no benchmark can quote a shape
that no model has.

A case is made on any device; on "meta" it costs nothing and still knows its floor.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from l4kernels.model.config import Llama4Config
from l4kernels.ops import OPS, Work

PHASES = {"decode": (1, 64), "prefill": (1024, 16_384)}
PAGE = 64


@dataclass
class Call:
    """One call of an op: its arguments, made when they are needed."""

    op: str
    model: str
    phase: str
    label: str  # what distinguishes it from the op's other cases
    make: Callable[[str], tuple[tuple[Any, ...], dict[str, Any]]]
    formats: str = "bf16"
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return f"bench.{self.op}.{self.model}.{self.label}"

    def work(self) -> Work:
        args, kwargs = self.make("meta")
        return OPS[self.op].work(*args, **kwargs)


class Inputs:
    """Random tensors on a device; on "meta" only their shapes."""

    def __init__(self, device: str):
        self.device = device

    def normal(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.randn(*shape, device=self.device, dtype=dtype)

    def integers(self, high: int, *shape: int, dtype: torch.dtype) -> Tensor:
        return torch.randint(high, shape, device=self.device, dtype=dtype)

    def arange(self, n: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.arange(n, device=self.device, dtype=dtype)

    def shuffled(self, n: int) -> Tensor:
        if self.device == "meta":
            return torch.empty(n, dtype=torch.int32, device="meta")
        return torch.randperm(n, device=self.device).to(torch.int32)

    def full(self, value: float, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.full(shape, value, device=self.device, dtype=dtype)


_CALLS: dict[str, Callable[[Llama4Config, int], Iterator[tuple[str, Any]]]] = {}


def _of(*names: str) -> Callable[..., Any]:
    def register(generator: Callable[..., Any]) -> Callable[..., Any]:
        for name in names:
            _CALLS[name] = generator
        return generator

    return register


def calls(
    op: str,
    models: tuple[str, ...],
    phases: tuple[str, ...],
    sizes: dict[str, tuple[int, ...]] = PHASES,
) -> Iterator[Call]:
    """Every case of an op for the models and phases asked for; `sizes` are tokens by phase."""
    for model in models:
        config = Llama4Config.preset(model)
        for phase in phases:
            for tokens in sizes[phase]:
                for label, make in _CALLS[op](config, tokens):
                    name = f"{tokens}{'.' + label if label else ''}"
                    yield Call(op, model, phase, name, lambda d, make=make: make(Inputs(d)))


def benchmarked_ops() -> list[str]:
    return sorted(_CALLS)


@_of("rms_norm")
def _rms_norm(config: Llama4Config, tokens: int) -> Iterator[tuple[str, Any]]:
    d = config.hidden_size
    yield "", lambda i: ((i.normal(tokens, d), i.normal(d)), {})


@_of("add_rms_norm")
def _add_rms_norm(config: Llama4Config, tokens: int) -> Iterator[tuple[str, Any]]:
    d = config.hidden_size
    yield "", lambda i: ((i.normal(tokens, d), i.normal(tokens, d), i.normal(d)), {})


@_of("rms_norm_fp8")
def _rms_norm_fp8(config: Llama4Config, tokens: int) -> Iterator[tuple[str, Any]]:
    d = config.hidden_size
    for scaling in ("row", "1x128"):
        yield scaling, lambda i, s=scaling: ((i.normal(tokens, d), i.normal(d)), {"scaling": s})


@_of("silu_mul")
def _silu_mul(config: Llama4Config, tokens: int) -> Iterator[tuple[str, Any]]:
    yield "", lambda i: ((i.normal(tokens, 2 * config.intermediate_size),), {})


@_of("silu_mul_fp8")
def _silu_mul_fp8(config: Llama4Config, tokens: int) -> Iterator[tuple[str, Any]]:
    width = 2 * config.intermediate_size
    for scaling in ("row", "1x128"):
        yield scaling, lambda i, s=scaling: ((i.normal(tokens, width),), {"scaling": s})


@_of("quantize_fp8")
def _quantize_fp8(config: Llama4Config, tokens: int) -> Iterator[tuple[str, Any]]:
    for scaling in ("row", "1x128"):
        yield scaling, lambda i, s=scaling: ((i.normal(tokens, config.hidden_size), s), {})


@_of("rope_cache")
def _rope_cache(config: Llama4Config, tokens: int) -> Iterator[tuple[str, Any]]:
    heads, kv_heads, size = (
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
    )

    def make(i: Inputs, cache: torch.dtype) -> tuple[tuple[Any, ...], dict[str, Any]]:
        pages = -(-tokens // PAGE)
        k, v = (i.normal(pages, PAGE, kv_heads, size).to(cache) for _ in "kv")
        options = {
            "num_heads": heads,
            "cos_sin": i.normal(8192, size, dtype=torch.float32),
            "qk_norm_eps": config.rms_norm_eps if config.use_qk_norm else None,
        }
        qkv = i.normal(tokens, (heads + 2 * kv_heads) * size)
        return (qkv, i.arange(tokens), i.arange(tokens), k, v), options

    yield "kv_bf16", lambda i: make(i, torch.bfloat16)
    yield "kv_fp8", lambda i: make(i, torch.float8_e4m3fn)


@_of("moe_route")
def _moe_route(config: Llama4Config, tokens: int) -> Iterator[tuple[str, Any]]:
    experts, top_k = config.num_local_experts, config.num_experts_per_tok
    yield "", lambda i: ((i.normal(tokens, experts, dtype=torch.float32), top_k), {})


@_of("moe_permute")
def _moe_permute(config: Llama4Config, tokens: int) -> Iterator[tuple[str, Any]]:
    d = config.hidden_size
    yield "", lambda i: ((i.normal(tokens, d), i.shuffled(tokens), 1), {})


@_of("moe_permute_fp8")
def _moe_permute_fp8(config: Llama4Config, tokens: int) -> Iterator[tuple[str, Any]]:
    d = config.hidden_size
    yield "row", lambda i: ((i.normal(tokens, d), i.shuffled(tokens), 1), {})


@_of("moe_combine")
def _moe_combine(config: Llama4Config, tokens: int) -> Iterator[tuple[str, Any]]:
    d = config.hidden_size

    def make(i: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
        y, shared, residual = (i.normal(tokens, d) for _ in range(3))
        return (y, i.shuffled(tokens), 1), {"shared": shared, "residual": residual}

    yield "", make


@_of("flash_decode")
def _flash_decode(config: Llama4Config, tokens: int) -> Iterator[tuple[str, Any]]:
    heads, kv_heads, size = (
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
    )

    def make(
        i: Inputs, lengths: list[int], cache: torch.dtype
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        counts = [-(-length // PAGE) for length in lengths]
        pages, table = i.shuffled(sum(counts)), i.full(-1, tokens, max(counts), dtype=torch.int32)
        for row, own in zip(table, pages.split(counts), strict=True):
            row[: len(own)] = own
        k, v = (i.normal(sum(counts), PAGE, kv_heads, size).to(cache) for _ in "kv")
        # The work model reads them, so they are real on "meta" too.
        device = "cpu" if i.device == "meta" else i.device
        lens = torch.tensor(lengths, dtype=torch.int32, device=device)
        return (i.normal(tokens, 1, heads, size), k, v, lens, table), {"softmax_scale": size**-0.5}

    if tokens == 1:
        contexts = {f"{n}_keys": [n] for n in (8192, 131_072, 1_048_576)}
    elif tokens <= 64:
        longest = 131_072 if tokens in PHASES["decode"] else 512
        contexts = {"mixed_keys": [longest >> b % 6 for b in range(tokens)]}
    else:
        return
    for label, n in contexts.items():
        yield f"{label}.kv_bf16", lambda i, n=n: make(i, n, torch.bfloat16)
        yield f"{label}.kv_fp8", lambda i, n=n: make(i, n, torch.float8_e4m3fn)


@_of("merge_attention_states")
def _merge_attention_states(config: Llama4Config, tokens: int) -> Iterator[tuple[str, Any]]:
    heads, parts = config.num_attention_heads, 8

    def make(i: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
        lses = i.normal(parts, heads, tokens, dtype=torch.float32)
        return (i.normal(parts, tokens, heads, config.head_dim), lses), {}

    yield f"{parts}_parts", make


@_of("embed")
def _embed(config: Llama4Config, tokens: int) -> Iterator[tuple[str, Any]]:
    def make(i: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
        ids = i.integers(config.vocab_size, tokens, dtype=torch.int64)
        return (ids, i.normal(config.vocab_size, config.hidden_size)), {}

    yield "", make


@_of("sample")
def _sample(config: Llama4Config, tokens: int) -> Iterator[tuple[str, Any]]:
    if tokens > 64:
        return

    def make(i: Inputs, temperature: float) -> tuple[tuple[Any, ...], dict[str, Any]]:
        logits = i.normal(tokens, config.vocab_size, dtype=torch.float32)
        rows = i.full(0, tokens, dtype=torch.int64)
        top_p = 0.9 if temperature else 1.0
        return (
            logits,
            i.full(temperature, tokens),
            i.full(0, tokens, dtype=torch.int32),
            i.full(top_p, tokens),
            i.full(0.0, tokens),
            rows,
            rows,
        ), {}

    yield "greedy", lambda i: make(i, 0.0)
    yield "top_p", lambda i: make(i, 0.7)
