"""What a model needs: parameters, bytes of weights, of the KV cache and of a step, of activations.

Weights and KV are exact sums over the configuration. What is neither (CUDA context, workspaces,
activations, graphs) is an estimate: see `reserve_bytes`.
"""

from dataclasses import dataclass

from l4kernels.model.config import Llama4Config
from l4kernels.planning.formats import Format, Precision
from l4kernels.planning.gpus import Gpu

CONTEXT_BYTES = 1.5e9  # CUDA context, the library's code and captured graphs
MAX_PREFILL_TOKENS = 8192
"""Of one step, those of all sequences together: the engine splits prompts so."""


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


def experts_met(c: Llama4Config, tokens: int) -> float:
    """Routed experts of a layer that at least one of the tokens visits, chosen uniformly: the mean.

    >>> experts_met(Llama4Config.preset("scout"), 2)
    1.9375
    """
    missed = (1 - c.num_experts_per_tok / c.num_local_experts) ** tokens
    return c.num_local_experts * (1 - missed)


def weight_read_bytes(c: Llama4Config, form: Format, batch: int = 1) -> float:
    """Weights that one decode step of `batch` sequences reads, experts chosen uniformly."""
    b = blocks(c)
    kinds = ["attention", "shared", "dense", "router"]
    kinds.append("embedding" if c.tie_word_embeddings else "lm_head")
    total = sum(b[kind].bytes(form.of(kind)) for kind in kinds)
    if c.num_local_experts:
        met = experts_met(c, batch) / c.num_local_experts
        total += b["routed"].bytes(form.routed) * met
    return total


def activation_bytes(c: Llama4Config, context: int, batch: int) -> float:
    """Estimate of the largest moment: a MoE layer of a prefill slice, or the vision tower.

    bf16: residual, its norm, the permuted rows, the experts' inner and outer rows, those of the
    shared expert among them; then float32 logits and one copy for the sampler.
    """
    tokens = max(batch, min(batch * context, MAX_PREFILL_TOKENS))
    rows = c.num_experts_per_tok + 1 if c.moe_layers else 0
    experts = rows * (2 * c.hidden_size + c.intermediate_size)
    dense = c.hidden_size + c.intermediate_size_mlp
    attention = (2 * c.num_attention_heads + 2 * c.num_key_value_heads) * c.head_dim
    per_token = 2 * (2 * c.hidden_size + max(experts, dense, attention))
    total = tokens * per_token + 8 * batch * c.vocab_size
    if c.vision is not None:
        rows = 17 * (c.vision.grid**2 + 1)
        vision = 2 * rows * (5 * c.vision.hidden_size + c.vision.intermediate_size)
        total = max(total, vision)
    return float(total)


def reserve_bytes(c: Llama4Config, gpu: Gpu, context: int, batch: int) -> float:
    """Memory that is neither weights nor KV: the GPU's standing reserve, or what is estimated."""
    return max(gpu.memory - gpu.usable, CONTEXT_BYTES + activation_bytes(c, context, batch))
