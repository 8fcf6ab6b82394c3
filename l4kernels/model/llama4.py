"""Llama 4 on one page: the forward pass and nothing else."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from l4kernels import ops
from l4kernels.layers.attention import Attention, AttentionMetadata, AttentionShape, LayerCache
from l4kernels.layers.mlp import MLP
from l4kernels.layers.moe import MoE
from l4kernels.layers.norm import RMSNorm
from l4kernels.layers.options import ModelOptions
from l4kernels.layers.weights.linear import Activations
from l4kernels.model.config import Llama4Config
from l4kernels.model.vision import VisionModel
from l4kernels.ops.ambient import outside_inference

Model = TypeVar("Model", bound="Llama4Model")

_FIRST_POSITIONS = 8192
"""What the table of rotations has room for at first, unless the model needs less."""
_growing = threading.Lock()


class DecoderLayer(nn.Module):
    def __init__(self, config: Llama4Config, layer: int, options: ModelOptions):
        super().__init__()
        moe, rope = config.is_moe(layer), config.rope_layers[layer]
        size, eps = config.hidden_size, config.rms_norm_eps
        shape = AttentionShape(
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            chunk=config.chunk(layer),
            rope=rope,
            qk_norm_eps=eps if rope and config.use_qk_norm else None,
            attn_scale=0.0 if rope or not config.attn_temperature_tuning else config.attn_scale,
            floor_scale=config.floor_scale,
        )
        attention = options.block(f"layers.{layer}.attention")
        feed_forward = options.block(f"layers.{layer}.feed_forward")
        self.input_layernorm = RMSNorm(size, eps, attention)
        self.attention = Attention(size, shape, attention)
        # A router and the gather of the experts' rows take them unquantised in every format.
        normed = options.part("bf16") if moe else feed_forward
        self.post_attention_layernorm = RMSNorm(size, eps, normed)
        self.feed_forward: MoE | MLP
        if moe:
            experts, top_k = config.num_local_experts, config.num_experts_per_tok
            self.feed_forward = MoE(size, config.intermediate_size, experts, top_k, feed_forward)
        else:
            self.feed_forward = MLP(size, config.intermediate_size_mlp, feed_forward)

    def forward(
        self,
        x: Tensor,
        normed: Activations,
        metadata: AttentionMetadata,
        cache: LayerCache,
        cos_sin: Tensor,
        next_norm: RMSNorm | None,
    ) -> tuple[Tensor, Activations | None]:
        """The residual stream, and `next_norm` of it: of `x` on the way in, `input_layernorm`."""
        x = self.attention(normed, x, metadata, cache, cos_sin)
        own = self.post_attention_layernorm
        if next_norm is not None and isinstance(self.feed_forward, MoE):
            return self.feed_forward.forward_then_norm(x, own, next_norm)
        x = self.feed_forward(x, own)
        return x, None if next_norm is None else next_norm(x)


class Llama4Model(nn.Module):
    """The text model, and the vision model if the checkpoint has one.

    It knows no sequences and keeps no state: which tokens these are and where their keys lie is
    said by tensors that the caller makes. Every computation is an op of `l4kernels.ops` and runs
    where the weights are.

    Args:
        kv_dtype: of the caches it is called with: None (the activations') or float8_e4m3fn.
    """

    cos_sin: Tensor
    """float32 `[R, head_dim]`, rotations of position p in row p % R."""
    kv_scales: Mapping[int, tuple[float, float]]
    """By layer: what the codes of keys and of values in an e4m3 cache are multiplied by; 1 where
    the checkpoint says nothing. Other caches have none."""

    def __init__(
        self, config: Llama4Config, options: ModelOptions, *, kv_dtype: torch.dtype | None = None
    ):
        super().__init__()
        self.config, self.options, self.kv_dtype = config, options, kv_dtype or options.dtype
        self.kv_scales = {}
        size = config.hidden_size
        self.embedding = options.empty(config.vocab_size, size)
        self.layers = nn.ModuleList(
            DecoderLayer(config, layer, options) for layer in range(config.num_hidden_layers)
        )
        head, plain = options.block("lm_head"), options.part("bf16")
        self.norm = RMSNorm(size, config.rms_norm_eps, head)
        self.lm_head = head.linear(size, config.vocab_size)
        self.vision = VisionModel(config.vision, size, plain) if config.vision else None
        table = rope_table(config, _rope_rows(config, _FIRST_POSITIONS))
        self.register_buffer("cos_sin", table.to(options.device), persistent=False)

    @property
    def device(self) -> torch.device:
        return self.options.device

    def forward(
        self, x: Tensor, metadata: Sequence[AttentionMetadata], caches: Sequence[LayerCache]
    ) -> Tensor:
        """All layers over the new tokens of several sequences.

        Args:
            x: token ids, int64 or int32 `[T]`, or their embeddings `[T, hidden_size]`.
            metadata: of each layer; one object for all layers of a kind.
            caches: of each layer. The new tokens' keys and values are written before anything
                reads them.

        Returns:
            `[T, hidden_size]`, the last layer's output, for `compute_logits`.

        >>> config = Llama4Config.from_dict({"vocab_size": 9, "hidden_size": 8, "head_dim": 4,
        ...     "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 1,
        ...     "num_local_experts": 0, "intermediate_size": 8, "intermediate_size_mlp": 8,
        ...     "max_position_embeddings": 64, "rope_theta": 1e4})
        >>> model = Llama4Model(config, ModelOptions(torch.float32, torch.device("cpu")))
        >>> i32 = lambda *values: torch.tensor(values, dtype=torch.int32)
        >>> p = torch.tensor([0, 1, 0])  # two tokens of one sequence, one of another
        >>> slots = torch.tensor([0, 1, 16])
        >>> m = AttentionMetadata(p, slots, i32(0, 2, 3), i32(2, 1), i32(0, 1)[:, None], 2)
        >>> hidden = model(p, [m], [LayerCache(*torch.zeros(2, 2, 16, 1, 4))])
        >>> model.compute_logits(hidden[[1, 2]]).shape
        torch.Size([2, 9])
        """
        if not len(metadata) == len(caches) == len(self.layers):
            raise ValueError(
                f"expected metadata and caches of {len(self.layers)} layers, got {len(metadata)} "
                f"and {len(caches)}"
            )
        if not x.is_floating_point():
            x = self.embed(x)
        first, *others = cast("Sequence[DecoderLayer]", self.layers)
        normed = first.input_layernorm(x)
        # The next layer's norm is a part of the launch that ends an MoE layer.
        norms = (*(layer.input_layernorm for layer in others), None)
        for layer, seen, cache, norm in zip(self.layers, metadata, caches, norms, strict=True):
            x, normed = layer(x, normed, seen, cache, self.cos_sin, norm)
        return x

    def plan(
        self, metadata: Sequence[AttentionMetadata], caches: Sequence[LayerCache]
    ) -> list[AttentionMetadata]:
        """Metadata for `forward` with what all layers of a kind share, made once; `embed` follows,
        which is the fence that a plan needs."""
        made: dict[tuple[int, int], AttentionMetadata] = {}

        def planned(
            layer: DecoderLayer, seen: AttentionMetadata, cache: LayerCache
        ) -> AttentionMetadata:
            kind = id(seen), layer.attention.shape.chunk
            if kind not in made:
                made[kind] = seen.planned(layer.attention.shape, cache)
            return made[kind]

        layers = cast("Sequence[DecoderLayer]", self.layers)
        return [planned(*of) for of in zip(layers, metadata, caches, strict=True)]

    def embed(
        self, ids: Tensor, features: Tensor | None = None, rows: Tensor | None = None
    ) -> Tensor:
        """`[T, hidden_size]` of ids `[T]`; where `rows` (int32 `[T]`) is not -1, that row of the
        image features `[R, hidden_size]`, which `self.vision` makes, instead."""
        return ops.embed(ids, self.embedding, features, rows)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """float32 `[T, vocab_size]` of the rows `[T, hidden_size]` that `forward` returns."""
        return self.lm_head(self.norm(hidden), out_dtype=torch.float32)

    def rotate_up_to(self, positions: int) -> None:
        """Makes room in `cos_sin` for that many positions, before any step uses them.

        A table of one chunk serves chunked layers at any length, and exactly. Only layers that
        rotate without chunks (no published Llama 4) need a row per position.
        """
        rows = _rope_rows(self.config, positions)
        with _growing:  # a shorter table of another thread must not come after a longer one
            if rows > len(self.cos_sin):
                self.cos_sin = rope_table(self.config, rows).to(self.device)

    def _apply(self: Model, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Model:
        """`.to()`, `.cuda()`, `.bfloat16()` and their like: formats were chosen at loading."""
        if any(fn(parameter) is not parameter for parameter in self.parameters()):
            raise RuntimeError(
                f"this Llama4 was loaded to {self.device} in {self.options.dtype} and stays there; "
                f"load it with from_pretrained(..., device=..., dtype=...) instead"
            )
        return self


def _rope_rows(config: Llama4Config, positions: int) -> int:
    unchunked = any(
        rope and not chunked
        for rope, chunked in zip(config.rope_layers, config.chunked_layers, strict=True)
    )
    chunk = 0 if unchunked else config.attention_chunk_size
    return min(max(positions, _FIRST_POSITIONS), chunk or config.max_position_embeddings)


@outside_inference()
def rope_table(config: Llama4Config, rows: int) -> Tensor:
    """`ops.rope_table` with the config's frequencies: float32 `[rows, head_dim]` on the CPU."""
    scaling = None
    if config.rope_scaling:
        scaling = {"rope_type": "llama3", **asdict(config.rope_scaling)}
    return ops.rope_table(rows, theta=config.rope_theta, scaling=scaling, head_dim=config.head_dim)
