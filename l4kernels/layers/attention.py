"""Grouped-query attention over a paged cache, global or inside a chunk."""

from dataclasses import dataclass

from torch import Tensor, nn

from l4kernels import ops
from l4kernels.layers.options import ModelOptions
from l4kernels.layers.weights.linear import Activations
from l4kernels.ops.attention import MAX_DECODE_TOKENS


@dataclass(frozen=True)
class Tokens:
    """The tokens of one step: `batch` sequences with the same number of new tokens each."""

    batch: int
    positions: Tensor  # int64 [T]
    cu_seqlens_q: Tensor  # int32 [B + 1]
    seqlens_k: Tensor  # int32 [B], keys including the new ones
    cos_sin: Tensor  # float32 [R, head_dim]


@dataclass(frozen=True)
class LayerCache:
    """One layer's pages, and where this step's tokens lie in them."""

    k: Tensor  # [pages, page_size, kv_heads, head_dim]
    v: Tensor
    slots: Tensor  # int64 [T]
    block_table: Tensor  # int32 [B, logical pages]
    k_scale: Tensor | None  # float32 [kv_heads] for an fp8 cache
    v_scale: Tensor | None


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
        heads = shape.num_heads + 2 * shape.num_kv_heads
        self.qkv_proj = options.linear(hidden_size, heads * shape.head_dim)
        self.o_proj = options.linear(shape.num_heads * shape.head_dim, hidden_size)

    def forward(
        self, x: Activations, residual: Tensor, tokens: Tokens, cache: LayerCache
    ) -> Tensor:
        s = self.shape
        q = ops.rope_cache(
            self.qkv_proj(x),
            tokens.positions,
            cache.slots,
            cache.k,
            cache.v,
            num_heads=s.num_heads,
            cos_sin=tokens.cos_sin if s.rope else None,
            qk_norm_eps=s.qk_norm_eps,
            attn_scale=s.attn_scale,
            floor_scale=s.floor_scale,
            k_scale=cache.k_scale,
            v_scale=cache.v_scale,
        )
        new_tokens = q.shape[0] // tokens.batch
        options = {
            "softmax_scale": s.head_dim**-0.5,
            "chunk": s.chunk,
            "k_scale": cache.k_scale,
            "v_scale": cache.v_scale,
        }
        keys, lengths = (cache.k, cache.v), (tokens.seqlens_k, cache.block_table)
        if new_tokens <= MAX_DECODE_TOKENS:
            q = q.view(tokens.batch, new_tokens, s.num_heads, s.head_dim)
            out, _ = ops.flash_decode(q, *keys, *lengths, **options)
        else:
            options["max_seqlen_q"] = new_tokens
            out, _ = ops.flash_prefill(q, *keys, tokens.cu_seqlens_q, *lengths, **options)
        return self.o_proj(out.reshape(residual.shape[0], -1), residual=residual)
