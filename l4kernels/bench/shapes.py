"""What is measured: every op at the shapes of a preset, so that no benchmark can quote a shape
that no model has.

A case is made on any device; on "meta" it costs nothing and still knows its floor.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from l4kernels.bench.inputs import CHOICES, Inputs, planned
from l4kernels.model.config import Llama4Config
from l4kernels.ops import OPS, Work
from l4kernels.ops.check import FP8
from l4kernels.ops.epilogue import MAX_GATHERED_ROWS
from l4kernels.ops.router import router_tokens
from l4kernels.ops.step import words
from l4kernels.planning.gpus import Gpu

PHASES = {"decode": (1, 64), "prefill": (1024, 16_384)}
"""Tokens of a call. Attention: keys of a sequence."""
SIZES: dict[str, dict[str, tuple[int, ...]]] = {
    "gemm": {"decode": (1, 16, 64, 128), "prefill": (1024, 4096, 8192, 16_384)},
    "gemm_swiglu_fp8": {"decode": (1, 16, 64, 128), "prefill": (1024, 4096, 8192, 16_384)},
    "w4_gemm": {"decode": (1, 4, 8, 16, 64), "prefill": (1024, 8192)},
    "flash_prefill": {"prefill": (8192, 32_768, 131_072)},
    "flash_decode": {"decode": (1024, 8192, 131_072, 1 << 20, 10 << 20)},
    "flash_decode_append": {"decode": (1024, 8192, 131_072)},
}
FIRST_SIZES: dict[str, dict[str, tuple[int, ...]]] = {
    "gemm": {"decode": (1, 64), "prefill": (1024, 8192)},
    "gemm_swiglu_fp8": {"decode": (1, 64), "prefill": (1024, 8192)},
    "w4_gemm": {"decode": (1, 8, 16), "prefill": (1024,)},
    "flash_prefill": {"prefill": (8192, 32_768, 131_072)},
    "flash_decode": {"decode": (1024, 8192, 131_072)},
    "flash_decode_append": {"decode": (1024, 8192, 131_072)},
}
"""What a GPU run measures first, of our own kernels alone; of other ops all sizes."""
PAGE = 64
MIXED = [256 << b % 8 for b in range(64)]
"""Keys of the sequences of a batch: 256 to 32,768, mean 8,160."""
SCALINGS = {
    "fp8_row": ("row", "row"),
    "fp8_fast": ("row", "row"),
    "fp8_block": ("1x128", "128x128"),
    "fp8_mixed": ("1x128", "row"),  # what follows gemm_swiglu_fp8
}


Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass
class Call:
    """One call of an op: its arguments, made when they are needed."""

    op: str
    model: str
    phase: str
    label: str  # what distinguishes it from the op's other cases
    make: Callable[[str], Arguments]

    @property
    def key(self) -> str:
        return f"bench.{self.op}.{self.model}.{self.label}"

    def work(self) -> Work:
        args, kwargs = self.make("meta")
        return OPS[self.op].work(*args, **kwargs)

    def floor_us(self, gpu: Gpu) -> float:
        """Products of e4m3 operands are held against the e4m3 peak."""
        args, _ = self.make("meta")
        return gpu.floor_us(self.work(), fp8=args[0].dtype == FP8)


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
    sizes: Mapping[str, tuple[int, ...]] | None = None,
) -> Iterator[Call]:
    """Every case of an op for the models and phases asked for; `sizes` are tokens by phase."""
    by_phase: Mapping[str, tuple[int, ...]] = sizes or SIZES.get(op) or PHASES
    for model in models:
        config = Llama4Config.preset(model)
        for phase in phases:
            for tokens in by_phase.get(phase, ()):
                for label, make in _CALLS[op](config, tokens):
                    name = f"{tokens}{'.' + label if label else ''}"
                    yield Call(op, model, phase, name, _on_device(make))


def _on_device(make: Callable[[Inputs], Arguments]) -> Callable[[str], Arguments]:
    return lambda device: make(Inputs(device))


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

    def make(i: Inputs, cache: torch.dtype) -> Arguments:
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
    yield "kv_fp8", lambda i: make(i, FP8)


@_of("moe_route")
def _moe_route(config: Llama4Config, tokens: int) -> Iterator[tuple[str, Any]]:
    experts, top_k = config.num_local_experts, config.num_experts_per_tok
    yield "", lambda i: ((i.normal(tokens, experts, dtype=torch.float32), top_k, True), {})


@_of("moe_router")
def _moe_router(config: Llama4Config, tokens: int) -> Iterator[tuple[str, Any]]:
    d, experts, top_k = config.hidden_size, config.num_local_experts, config.num_experts_per_tok

    def make(i: Inputs) -> Arguments:
        weights = i.normal(d), i.normal(experts, d)
        return (i.normal(tokens, d), *weights, experts, config.rms_norm_eps, top_k, True), {}

    if tokens <= router_tokens(experts):
        yield "", make


@_of("moe_permute")
def _moe_permute(config: Llama4Config, tokens: int) -> Iterator[tuple[str, Any]]:
    d = config.hidden_size
    yield "", lambda i: ((i.normal(tokens, d), i.permutation(tokens), CHOICES), {})


@_of("moe_permute_fp8")
def _moe_permute_fp8(config: Llama4Config, tokens: int) -> Iterator[tuple[str, Any]]:
    d = config.hidden_size
    yield "row", lambda i: ((i.normal(tokens, d), i.permutation(tokens), CHOICES), {})


@_of("moe_combine")
def _moe_combine(config: Llama4Config, tokens: int) -> Iterator[tuple[str, Any]]:
    yield "", lambda i: _combined(i, config.hidden_size, tokens)


@_of("moe_combine_norm", "moe_combine_norm_fp8")
def _moe_combine_norm(config: Llama4Config, tokens: int) -> Iterator[tuple[str, Any]]:
    d = config.hidden_size
    yield "", lambda i: _combined(i, d, tokens, i.normal(d))


def _combined(i: Inputs, width: int, tokens: int, *norm_weight: Tensor) -> Arguments:
    inverse = i.permutation(tokens).argsort().to(torch.int32)
    y, residual = i.normal(CHOICES * tokens, width), i.normal(tokens, width)
    return (y, inverse, CHOICES, *norm_weight), {"residual": residual}


@_of("merge_attention_states")
def _merge_attention_states(config: Llama4Config, tokens: int) -> Iterator[tuple[str, Any]]:
    heads, parts = config.num_attention_heads, 8

    def make(i: Inputs) -> Arguments:
        lses = i.normal(parts, heads, tokens, dtype=torch.float32)
        return (i.normal(parts, tokens, heads, config.head_dim), lses), {}

    yield f"{parts}_parts", make


@_of("embed")
def _embed(config: Llama4Config, tokens: int) -> Iterator[tuple[str, Any]]:
    def make(i: Inputs) -> Arguments:
        ids = i.integers(config.vocab_size, tokens, dtype=torch.int64)
        return (ids, i.normal(config.vocab_size, config.hidden_size)), {}

    yield "", make


@_of("sample")
def _sample(config: Llama4Config, tokens: int) -> Iterator[tuple[str, Any]]:
    if tokens > 64:
        return

    def make(i: Inputs, temperature: float) -> Arguments:
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


@_of("process_logits")
def _process_logits(config: Llama4Config, tokens: int) -> Iterator[tuple[str, Any]]:
    if tokens > 64:
        return

    def make(i: Inputs) -> Arguments:
        shape = tokens, config.vocab_size
        masks = [i.full(bits, tokens, words(shape[1]), dtype=torch.int32) for bits in (-1, 0)]
        counts = [i.full(9, tokens, dtype=torch.int64) for _ in range(2)]
        factors = [i.full(value, tokens) for value in (1.1, 0.5, 0.5)]
        logits, bias = (i.normal(*shape, dtype=torch.float32) for _ in range(2))
        tally = i.integers(3, *shape, dtype=torch.int32)
        return (logits, tally, bias, *masks, *counts, *factors, i.numbers(torch.ones(tokens))), {}

    yield "", make


@_of("advance_step")
def _advance_step(config: Llama4Config, tokens: int) -> Iterator[tuple[str, Any]]:
    """Two kinds of layers, of which each row has a million positions."""
    if tokens > 64:
        return

    def make(i: Inputs) -> Arguments:
        long = {"dtype": torch.int64}
        ids, positions, generated = (i.full(9, tokens, **long) for _ in range(3))
        args = (
            i.integers(config.vocab_size, tokens, **long), ids, positions,
            i.numbers(torch.full((tokens,), 10)), generated, i.full(1 << 40, tokens, **long),
            i.full(0, tokens, words(config.vocab_size), dtype=torch.int32),
            i.full(9, 2, tokens, **long),
            i.integers(99, 2, tokens, (1 << 20) // PAGE, dtype=torch.int32),
            i.full(0, 2, tokens, **long),
        )  # fmt: skip
        tally = i.full(0, tokens, config.vocab_size, dtype=torch.int32)
        return args, {"page_size": PAGE, "tally": tally}

    yield "", make


def products(c: Llama4Config, tokens: int) -> dict[str, tuple[int, int, int]]:
    """Weights by name: experts, the shared one among them (0: dense), N, K; what Maverick shares
    with Scout is Scout's. `gate_up` and `down` are one expert's, as a product of its own."""
    d, width, wide = c.hidden_size, c.intermediate_size, c.intermediate_size_mlp
    q, kv = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    experts = c.num_local_experts + 1
    grouped = {"moe_gate_up": (experts, 2 * width, d), "moe_down": (experts, d, width)}
    if tokens > 8192:
        return grouped
    if len(c.moe_layers) < c.num_hidden_layers:
        return {"mlp_gate_up": (0, 2 * wide, d), "mlp_down": (0, d, wide)} | grouped
    dense = {"qkv": (q + 2 * kv, d), "o": (d, q), "gate_up": (2 * width, d), "down": (d, width)}
    dense["head"] = c.vocab_size, d
    return {name: (0, *shape) for name, shape in dense.items()} | grouped


def expert_offsets(experts: int, tokens: int) -> Tensor:
    """Of tokens that each chose one expert and the shared one, which is the last."""
    chosen = torch.randint(experts - 1, (tokens,), generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(chosen, minlength=experts)
    counts[-1] = tokens
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0))


def _product(
    i: Inputs, tokens: int, shape: tuple[int, int, int], form: str
) -> tuple[tuple[Tensor, Tensor], dict[str, Any]]:
    experts, n, k = shape
    weight, rows = ((experts, n), CHOICES * tokens) if experts else ((n,), tokens)
    options: dict[str, Any] = {}
    if experts:
        options["expert_offsets"] = i.numbers(expert_offsets(experts, tokens))
    if form == "bf16":
        return (i.normal(rows, k), i.normal(*weight, k)), options
    of_a, of_b = SCALINGS[form]
    blocks = k // 128
    options["sfa"] = i.full(1.0, rows, *((blocks,) if of_a == "1x128" else ()))
    scales = (*weight[:-1], -(-n // 128), blocks) if of_b == "128x128" else weight
    options["sfb"] = i.full(1.0, *scales)
    return (i.fp8(rows, k), i.fp8(*weight, k)), options


def _gathers(i: Inputs, args: tuple[Any, ...], options: dict[str, Any]) -> Arguments:
    """The product of as many tokens as have these rows, which it takes in their order."""
    rows, *weights = args
    tokens = len(rows) // CHOICES
    order = {"permutation": i.permutation(tokens), "top_k": CHOICES}
    return (rows[:tokens], *weights), options | order


@_of("gemm")
def _gemm(config: Llama4Config, tokens: int) -> Iterator[tuple[str, Any]]:
    def make(i: Inputs, shape: tuple[int, int, int], form: str, epilogue: str) -> Any:
        args, options = _product(i, tokens, shape, form)
        if epilogue:
            options |= {"activation": "swiglu", "row_scale": i.full(0.5, len(args[0]))}
        if form == "fp8_fast":
            options["fast_accum"] = True
        return args, options

    for name, shape in products(config, tokens).items():
        forms = (
            ["bf16", "fp8_row", "fp8_fast", "fp8_block"] if tokens >= 64 else ["bf16", "fp8_row"]
        )
        for form in forms + ["fp8_mixed"] * name.endswith("down"):
            yield f"{name}.{form}", lambda i, s=shape, f=form: make(i, s, f, "")
        if name == "moe_gate_up":
            yield f"{name}.bf16.swiglu", lambda i, s=shape: make(i, s, "bf16", "swiglu")
            if CHOICES * tokens <= MAX_GATHERED_ROWS:
                label = f"{name}.bf16.gathered"
                yield label, lambda i, s=shape: _gathers(i, *make(i, s, "bf16", "swiglu"))


@_of("w4_gemm")
def _w4_gemm(config: Llama4Config, tokens: int) -> Iterator[tuple[str, Any]]:
    """As the model calls it; its head is not int4."""

    def make(i: Inputs, shape: tuple[int, int, int], swiglu: bool) -> Arguments:
        experts, n, k = shape
        options: dict[str, Any] = {"static_weights": True}
        rows = CHOICES * tokens if experts else tokens
        if experts:
            options["expert_offsets"] = i.numbers(expert_offsets(experts, tokens))
        if swiglu:
            options |= {"activation": "swiglu", "row_scale": i.full(0.5, rows)}
        weight = i.int4_tiles(*((experts, n, k) if experts else (n, k)))
        return (i.normal(rows, k), weight), options

    for name, shape in products(config, tokens).items():
        if name == "head":
            continue
        yield name, lambda i, s=shape: make(i, s, False)
        if name == "moe_gate_up":
            yield f"{name}.swiglu", lambda i, s=shape: make(i, s, True)
            if CHOICES * tokens <= MAX_GATHERED_ROWS:
                label = f"{name}.gathered"
                yield label, lambda i, s=shape: _gathers(i, *make(i, s, True))


@_of("gemm_swiglu_fp8")
def _gemm_swiglu_fp8(config: Llama4Config, tokens: int) -> Iterator[tuple[str, Any]]:
    for name, shape in products(config, tokens).items():
        if name.endswith("gate_up"):
            yield f"{name}.fp8_row", lambda i, s=shape: _product(i, tokens, s, "fp8_row")


def _paged(
    i: Inputs, c: Llama4Config, lengths: list[int], cache: torch.dtype, page: int = PAGE
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Caches, lengths and block table; the pages of a sequence lie in order."""
    pages = torch.tensor([-(-length // page) for length in lengths])
    shape = (int(pages.sum()), page, c.num_key_value_heads, c.head_dim)
    k, v = (i.normal(*shape).to(cache) for _ in "kv")
    first = (pages.cumsum(0) - pages)[:, None]
    table = (first + torch.arange(int(pages.max()))).clamp(max=shape[0] - 1)
    return k, v, i.numbers(torch.tensor(lengths)), i.numbers(table)


def _masks(c: Llama4Config, tokens: int) -> Iterator[tuple[str, int, torch.dtype]]:
    yield "full", 0, torch.bfloat16
    yield "full.kv_fp8", 0, FP8
    if tokens > c.attention_chunk_size:
        yield "chunk", c.attention_chunk_size, torch.bfloat16


@_of("flash_prefill")
def _flash_prefill(config: Llama4Config, tokens: int) -> Iterator[tuple[str, Any]]:
    def make(
        i: Inputs, chunk: int, cache: torch.dtype, new: int = tokens, page: int = PAGE
    ) -> Arguments:
        q = i.normal(new, config.num_attention_heads, config.head_dim)
        k, v, lengths, table = _paged(i, config, [tokens], cache, page)
        options = {"softmax_scale": config.head_dim**-0.5, "max_seqlen_q": new, "chunk": chunk}
        return (q, k, v, i.numbers(torch.tensor([0, new])), lengths, table), options

    for label, chunk, cache in _masks(config, tokens):
        if cache != FP8 or tokens <= 32_768:
            yield label, lambda i, c=chunk, t=cache: make(i, c, t)
    if tokens == 8192:  # small pages: four times as many boxes, issued one after the other
        yield "page16", lambda i: make(i, 0, torch.bfloat16, page=16)
    if tokens == SIZES["flash_prefill"]["prefill"][-1]:
        for new in (20, 100):  # the last tokens of a long prompt whose rest is in the cache
            yield f"last{new}", lambda i, n=new: make(i, 0, torch.bfloat16, n)


@_of("flash_decode")
def _flash_decode(config: Llama4Config, tokens: int) -> Iterator[tuple[str, Any]]:
    def make(i: Inputs, lengths: list[int], chunk: int, kv: torch.dtype, new: int = 1) -> Arguments:
        q = i.normal(len(lengths), new, config.num_attention_heads, config.head_dim)
        options = {"softmax_scale": config.head_dim**-0.5, "chunk": chunk}
        return (q, *_paged(i, config, lengths, kv)), options

    for label, chunk, cache in _masks(config, tokens):
        yield label, lambda i, c=chunk, t=cache: make(i, [tokens], c, t)
    if tokens <= 131_072:
        for new in (4, 16):  # guessed tokens that one step verifies
            yield f"new{new}", lambda i, n=new: make(i, [tokens], 0, torch.bfloat16, n)
    if tokens <= 8192:
        yield "planned", lambda i: planned(config, make(i, [tokens], 0, torch.bfloat16))
    for name, cache in _mixed_batches(tokens):
        yield name, lambda i, t=cache: make(i, MIXED, 0, t)


def _mixed_batches(tokens: int) -> Iterator[tuple[str, torch.dtype]]:
    if tokens == 8192:
        yield from (("batch64", torch.bfloat16), ("batch64.kv_fp8", FP8))


@_of("flash_decode_append")
def _flash_decode_append(config: Llama4Config, tokens: int) -> Iterator[tuple[str, Any]]:
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads

    def make(i: Inputs, lengths: list[int], chunk: int, cache: torch.dtype) -> Arguments:
        k, v, numbers, table = _paged(i, config, lengths, cache)
        pages = torch.tensor([-(-length // PAGE) for length in lengths]).cumsum(0)
        last = torch.tensor(lengths) - 1
        slots = (pages - 1) * PAGE + last % PAGE  # in the last page of each
        at = (t.to(i.device) for t in (last, slots))
        options = {"num_heads": heads, "softmax_scale": config.head_dim**-0.5, "chunk": chunk}
        if chunk:
            options["cos_sin"] = i.normal(8192, config.head_dim, dtype=torch.float32)
            options["qk_norm_eps"] = config.rms_norm_eps if config.use_qk_norm else None
        else:
            options["attn_scale"] = config.attn_scale
        qkv = i.normal(len(lengths), (heads + 2 * kv_heads) * config.head_dim)
        return (qkv, *at, k, v, numbers, table), options

    for label, chunk, cache in _masks(config, tokens):
        yield label, lambda i, c=chunk, t=cache: make(i, [tokens], c, t)
    if tokens <= 8192:
        yield "planned", lambda i: planned(config, make(i, [tokens], 0, torch.bfloat16))
    for name, cache in _mixed_batches(tokens):
        yield name, lambda i, t=cache: make(i, MIXED, 0, t)
