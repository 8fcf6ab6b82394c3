"""Grouped-query attention over a paged cache, global or inside a chunk."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor, nn

from l4kernels import ops
from l4kernels.layers.options import ModelOptions
from l4kernels.layers.weights.linear import Activations
from l4kernels.ops.attention import MAX_DECODE_TOKENS


@dataclass(frozen=True, eq=False)
class AttentionMetadata:
    """Where the T tokens of B sequences of any lengths lie: one sequence after the other.

    Layers of one kind share it; chunked layers keep their keys in pages of their own, so `slots`
    and `block_table` are others there. `T == B * max_seqlen_q` says that every sequence has
    `max_seqlen_q` new tokens.

    Args:
        positions: int64 `[T]`, from 0.
        slots: int64 `[T]`, where keys and values go: page * page_size + offset.
        cu_seqlens_q: int32 `[B + 1]`, where each sequence's tokens begin, and the end.
        seqlens_k: int32 `[B]`, keys of each sequence, those of the new tokens included.
        block_table: int32 `[B, pages]`, the page of each sequence's logical pages.
        max_seqlen_q: at least the new tokens of every sequence.
        plan: what the layers of this kind share, of `planned`; None: each plans for itself.
    """

    positions: Tensor
    slots: Tensor
    cu_seqlens_q: Tensor
    seqlens_k: Tensor
    block_table: Tensor
    max_seqlen_q: int
    plan: Tensor | None = None

    @property
    def decodes(self) -> bool:
        """Whether every sequence has the same few tokens."""
        length = self.max_seqlen_q
        few = length <= MAX_DECODE_TOKENS
        return few and self.positions.shape[0] == self.seqlens_k.shape[0] * length

    def planned(self, shape: "AttentionShape", cache: "LayerCache") -> "AttentionMetadata":
        """With the plan of layers of this shape."""
        if self.decodes:
            return self
        plan = ops.flash_prefill_plan(
            self.cu_seqlens_q,
            self.seqlens_k,
            rows=self.positions.shape[0],
            num_heads=shape.num_heads,
            kv_heads=shape.num_kv_heads,
            capacity=self.block_table.shape[1] * cache.k.shape[1],
            max_seqlen_q=self.max_seqlen_q,
            chunk=shape.chunk,
        )
        return replace(self, plan=plan)


class LayerCache(NamedTuple):
    """The pages of one layer, `[pages, page_size, kv_heads, head_dim]`, written in place; an fp8
    cache has scales, float32 `[kv_heads]`."""

    k: Tensor
    v: Tensor
    k_scale: Tensor | None = None
    v_scale: Tensor | None = None


@dataclass(frozen=True)
class AttentionShape:
    num_heads: int
    num_kv_heads: int
    head_dim: int
    chunk: int  # 0: global
    rope: bool
    qk_norm_eps: float | None
    attn_scale: float  # query temperature, 0.0: off
    floor_scale: int


class Attention(nn.Module):
    def __init__(self, hidden_size: int, shape: AttentionShape, options: ModelOptions):
        super().__init__()
        self.shape = shape
        self.rotation: dict[str, Any] = {"num_heads": shape.num_heads}
        if shape.qk_norm_eps is not None:
            self.rotation["qk_norm_eps"] = shape.qk_norm_eps
        if shape.attn_scale:
            self.rotation |= {"attn_scale": shape.attn_scale, "floor_scale": shape.floor_scale}
        heads = shape.num_heads + 2 * shape.num_kv_heads
        self.qkv_proj = options.linear(hidden_size, heads * shape.head_dim)
        self.o_proj = options.linear(shape.num_heads * shape.head_dim, hidden_size)

    def forward(
        self,
        x: Activations,
        residual: Tensor,
        metadata: AttentionMetadata,
        cache: LayerCache,
        cos_sin: Tensor,
    ) -> Tensor:
        s, m = self.shape, metadata
        scales: dict[str, Any] = {}
        if cache.k_scale is not None:  # every argument of an op costs time
            scales = {"k_scale": cache.k_scale, "v_scale": cache.v_scale}
        rotation = self.rotation if not s.rope else {**self.rotation, "cos_sin": cos_sin}
        qkv, k, v = self.qkv_proj(x), cache.k, cache.v
        lengths = m.seqlens_k, m.block_table
        options: dict[str, Any] = {"softmax_scale": s.head_dim**-0.5, "chunk": s.chunk, **scales}
        if m.decodes:
            options |= rotation
            options["tokens"] = m.max_seqlen_q
            out, _ = ops.flash_decode_append(qkv, m.positions, m.slots, k, v, *lengths, **options)
        else:
            q = ops.rope_cache(qkv, m.positions, m.slots, k, v, **rotation, **scales)
            options["max_seqlen_q"] = m.max_seqlen_q
            if m.plan is not None:
                options["plan"] = m.plan
            out, _ = ops.flash_prefill(q, k, v, m.cu_seqlens_q, *lengths, **options)
        return self.o_proj(out.reshape(qkv.shape[0], -1), residual=residual)
