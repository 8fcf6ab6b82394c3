"""What fits where: memory and decode floor of a Llama 4 by format, GPU and context.

Weights and KV are exact sums over the configuration. The reserve (CUDA context, workspaces,
activations, graphs) is an estimate: see `reserve_bytes`.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from l4kernels.inputs.files import shown
from l4kernels.model.config import Llama4Config
from l4kernels.model.presets import PRESETS

CONTEXT_BYTES = 1.5e9  # CUDA context, the library's code and captured graphs
PREFILL_TOKENS = 8192  # of all sequences: the KV cache cuts prompts so that no more are in flight


class PlanError(ValueError):
    """A plan that cannot be made: unknown name or impossible size."""


@dataclass(frozen=True)
class Gpu:
    name: str
    title: str
    memory: float  # bytes that CUDA reports
    budget: float  # of these, for weights and KV
    bandwidth: float  # bytes per second, datasheet


# The budget leaves 4 to 4.5 GB. Figures other than H100 SXM and H200 are vendor figures only.
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("h100", "H100 80 GB", 85.5e9, 81e9, 3.35e12),
        Gpu("h100-pcie", "H100 PCIe 80 GB", 85.5e9, 81e9, 2.0e12),
        Gpu("h100-nvl", "H100 NVL 94 GB", 100.5e9, 96e9, 3.9e12),
        Gpu("h20", "H20 96 GB", 102.6e9, 98e9, 4.0e12),
        Gpu("gh200", "GH200 96 GB", 102.6e9, 98e9, 4.0e12),
        Gpu("h200", "H200 141 GB", 150e9, 146e9, 4.8e12),
    )
}


@dataclass(frozen=True)
class Precision:
    """Storage of a weight matrix: bytes per weight, and per output row for its scale."""

    per_weight: float
    per_row: float = 0.0


BF16 = Precision(2.0)
FP8 = Precision(1.0, 4.0)  # one float32 scale per output channel
INT4 = Precision(0.5 + 2 / 128)  # one bf16 scale per group of 128
INT4_FP32 = Precision(0.5 + 4 / 128)


@dataclass(frozen=True)
class Format:
    """Precision of each kind of weight; embeddings, router, norms and vision stay bf16."""

    name: str
    title: str
    attention: Precision = BF16
    routed: Precision = BF16
    shared: Precision = BF16
    dense: Precision = BF16
    lm_head: Precision = BF16

    def of(self, block: str) -> Precision:
        return getattr(self, block, BF16)


def _format(name: str, title: str, **blocks: Precision) -> Format:
    ffn = blocks.pop("ffn", None)
    if ffn is not None:
        blocks = {"routed": ffn, "shared": ffn, "dense": ffn} | blocks
    return Format(name, title, **blocks)


FORMATS = {
    f.name: f
    for f in (
        _format("bf16", "bf16"),
        _format("fp8", "fp8 text linears and lm_head", attention=FP8, ffn=FP8, lm_head=FP8),
        _format("int4", "int4 text linears, fp8 lm_head", attention=INT4, ffn=INT4, lm_head=FP8),
        _format("int4+fp8attn", "int4 FFNs, fp8 attention and lm_head", attention=FP8, ffn=INT4,
                lm_head=FP8),
        _format("fp8-experts", "fp8 routed experts only (official Maverick FP8)", routed=FP8),
        _format("fp8-ffn", "fp8 FFNs, attention bf16 (FP8-dynamic)", ffn=FP8),
        _format("fp8-bf16head", "fp8 text linears, lm_head bf16", attention=FP8, ffn=FP8),
        _format("int4-ffn", "int4 FFNs, attention bf16 (W4A16)", ffn=INT4),
        _format("int4-bf16head", "int4 text linears, lm_head bf16", attention=INT4, ffn=INT4),
        _format("int4-meta", "int4 routed and shared, float32 scales", routed=INT4_FP32,
                shared=INT4_FP32),
    )
}  # fmt: skip
OWN_FORMATS = ("bf16", "fp8", "int4")
"""What `from_pretrained(weights=...)` makes; the others are for comparison."""
KV_BYTES = {"bf16": 2, "fp8": 1}
WITHOUT_KERNELS = {"int4": ("w4_gemm", "quantize_int4")}
"""Formats of which ops have no CUDA kernel yet."""


@dataclass(frozen=True)
class Block:
    """Weights of one kind: how many, in how many output rows."""

    params: int
    rows: int = 0

    def __mul__(self, count: int) -> "Block":
        return Block(self.params * count, self.rows * count)

    def bytes(self, precision: Precision) -> float:
        return self.params * precision.per_weight + self.rows * precision.per_row


def _mlp(hidden: int, inner: int) -> Block:
    return Block(3 * hidden * inner, 2 * inner + hidden)


def blocks(c: Llama4Config) -> dict[str, Block]:
    """Exact parameters of each kind of weight.

    >>> sum(b.params for b in blocks(Llama4Config.preset("scout")).values())
    108641793536
    """
    d, layers, moe = c.hidden_size, c.num_hidden_layers, len(c.moe_layers)
    q, kv = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    head = Block(c.vocab_size * d, c.vocab_size)
    result = {
        "embedding": head,
        "lm_head": Block(0) if c.tie_word_embeddings else head,
        "attention": Block(2 * d * q + 2 * d * kv, q + 2 * kv + d) * layers,
        "routed": _mlp(d, c.intermediate_size) * (moe * c.num_local_experts),
        "shared": _mlp(d, c.intermediate_size) * moe,
        "dense": _mlp(d, c.intermediate_size_mlp) * (layers - moe),
        "router": Block(moe * c.num_local_experts * d),
        "norms": Block((2 * layers + 1) * d),
    }
    if c.vision is not None:
        v = c.vision
        w, tokens = v.hidden_size, v.grid**2 + 1
        layer = 4 * (w * w + w) + 2 * w * v.intermediate_size + v.intermediate_size + w + 4 * w
        tower = v.patch_row * w + w + tokens * w + 4 * w + v.num_hidden_layers * layer
        adapter = v.intermediate_size * v.projector_input_dim
        adapter += v.projector_input_dim * v.projector_output_dim
        result["vision"] = Block(tower + adapter)
        result["projector"] = Block(v.vision_output_dim * d)
    return result


def active_params(c: Llama4Config) -> int:
    """Parameters that one text token meets, without the embedding table."""
    b = blocks(c)
    routed = b["routed"].params * c.num_experts_per_tok // max(c.num_local_experts, 1)
    kinds = ("lm_head", "attention", "shared", "dense", "router", "norms")
    tied = b["embedding"].params if c.tie_word_embeddings else 0
    return routed + tied + sum(b[kind].params for kind in kinds)


def weight_bytes(c: Llama4Config, form: Format) -> float:
    """Bytes of all weights, scales included."""
    return sum(block.bytes(form.of(name)) for name, block in blocks(c).items())


def kv_bytes(c: Llama4Config, context: int, element: int = 2) -> int:
    """KV of one sequence: a chunked layer keeps at most one chunk."""
    kept = (min(context, c.chunk(layer) or context) for layer in range(c.num_hidden_layers))
    return 2 * c.num_key_value_heads * c.head_dim * element * sum(kept)


def kv_read_bytes(c: Llama4Config, context: int, element: int = 2) -> int:
    """KV that one decode step of one sequence reads at position `context - 1`."""
    chunks = (c.chunk(layer) for layer in range(c.num_hidden_layers))
    seen = sum((context - 1) % chunk + 1 if chunk else context for chunk in chunks)
    return 2 * c.num_key_value_heads * c.head_dim * element * seen


def weight_read_bytes(c: Llama4Config, form: Format, batch: int = 1) -> float:
    """Weights that one decode step of `batch` sequences reads, experts chosen uniformly."""
    b = blocks(c)
    kinds = ["attention", "shared", "dense", "router"]
    kinds.append("embedding" if c.tie_word_embeddings else "lm_head")
    total = sum(b[kind].bytes(form.of(kind)) for kind in kinds)
    if c.num_local_experts:
        missed = (1 - c.num_experts_per_tok / c.num_local_experts) ** batch
        total += b["routed"].bytes(form.routed) * (1 - missed)
    return total


def activation_bytes(c: Llama4Config, context: int, batch: int) -> float:
    """Estimate of the largest moment: a MoE layer of a prefill slice, or the vision tower.

    bf16: residual, its norm, the permuted rows, the experts' inner and outer rows, the shared
    expert's; then float32 logits and one copy for the sampler.
    """
    tokens = max(batch, min(batch * context, PREFILL_TOKENS))
    k = c.num_experts_per_tok if c.moe_layers else 0
    inner = max((k + 1) * c.intermediate_size if k else 0, c.intermediate_size_mlp)
    attention = (2 * c.num_attention_heads + 2 * c.num_key_value_heads) * c.head_dim
    per_token = 2 * (2 * c.hidden_size + max((2 * k + 1) * c.hidden_size + inner, attention))
    total = tokens * per_token + 8 * batch * c.vocab_size
    if c.vision is not None:
        rows = 17 * (c.vision.grid**2 + 1)
        vision = 2 * rows * (5 * c.vision.hidden_size + c.vision.intermediate_size)
        total = max(total, vision)
    return float(total)


def reserve_bytes(c: Llama4Config, gpu: Gpu, context: int, batch: int) -> float:
    """Memory that is neither weights nor KV: the GPU's standing reserve, or what is estimated."""
    return max(gpu.memory - gpu.budget, CONTEXT_BYTES + activation_bytes(c, context, batch))


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
    if name not in tuple(FORMATS):
        raise PlanError(f"unknown format {shown(name)}; known: {', '.join(FORMATS)}")
    return FORMATS[name]


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
    """What keeps a model in this format, on so many GPUs, from running today.

    >>> obstacles("fp8", 1)
    ()
    """
    found = []
    if form not in OWN_FORMATS:
        found.append(
            f"Formats other than {', '.join(OWN_FORMATS)} cannot be loaded: for comparison only."
        )
    elif form in WITHOUT_KERNELS:
        names = " and ".join(WITHOUT_KERNELS[form])
        found.append(
            f"{form} has no CUDA kernels yet ({names}): on a GPU it runs on the typed references "
            f"only, slowly."
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
        form: a name of `FORMATS`.
        gpu: a name of `GPUS`; `8xh100` splits weights and KV evenly over eight.
        context: tokens of every sequence, prompt and reply together.
        kv_dtype: "bf16" or "fp8"; default fp8 with int4 weights, else bf16.
    """
    fmt = find_format(form)
    device, count = find_gpu(gpu)
    if kv_dtype is None:
        kv_dtype = "fp8" if form in ("int4", "int4+fp8attn") else "bf16"
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
