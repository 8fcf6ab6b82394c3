"""Llama 4 at demo size in plain PyTorch; parameter names are those of the published checkpoints."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class TextShape:
    vocab: int = 1056
    hidden: int = 128
    layers: int = 8
    heads: int = 5
    kv_heads: int = 1
    head_dim: int = 128
    experts: int = 4
    expert_width: int = 128
    dense_width: int = 256
    moe_layers: tuple[int, ...] = (1, 3, 5, 7)
    no_rope_layers: tuple[int, ...] = (1, 1, 1, 0, 1, 1, 1, 0)  # 1 = rotated and chunked
    chunk: int = 64
    floor_scale: int = 64
    attn_scale: float = 0.1
    rope_theta: float = 10000.0
    rope_factor: float = 16.0
    rope_original: int = 64
    positions: int = 4096
    eps: float = 1e-5


@dataclass(frozen=True)
class VisionShape:
    hidden: int = 128
    layers: int = 2
    heads: int = 2
    width: int = 512
    tile: int = 32
    patch: int = 8
    adapter: int = 128
    rope_theta: float = 10000.0
    eps: float = 1e-5


def linear(out: int, inp: int, scale: float = 1.0, bias: bool = False) -> nn.Linear:
    layer = nn.Linear(inp, out, bias=bias)
    nn.init.normal_(layer.weight, std=scale / math.sqrt(inp))
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


def scaled_frequencies(s: TextShape) -> Tensor:
    """Scout's rule: pairs whose wavelength exceeds the original context turn `factor` × slower."""
    f = s.rope_theta ** (-torch.arange(0, s.head_dim, 2).float() / s.head_dim)
    return torch.where(2 * math.pi / f > s.rope_original, f / s.rope_factor, f)


def unit(angle: Tensor) -> Tensor:
    return torch.polar(torch.ones_like(angle), angle)


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Interleaved pairs (2i, 2i+1) as complex numbers; turns are e^(i·angle)."""
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turns).flatten(-2)


class Attention(nn.Module):
    def __init__(self, s: TextShape, layer: int) -> None:
        super().__init__()
        self.s, self.use_rope = s, bool(s.no_rope_layers[layer])
        self.q_proj = linear(s.heads * s.head_dim, s.hidden)
        self.k_proj = linear(s.kv_heads * s.head_dim, s.hidden)
        self.v_proj = linear(s.kv_heads * s.head_dim, s.hidden)
        self.o_proj = linear(s.hidden, s.heads * s.head_dim, 0.0)

    def forward(self, x: Tensor, turns: Tensor, temperature: Tensor) -> Tensor:
        s, (batch, length, _) = self.s, x.shape
        q = self.q_proj(x).view(batch, length, s.heads, s.head_dim)
        k = self.k_proj(x).view(batch, length, s.kv_heads, s.head_dim)
        v = self.v_proj(x).view(batch, length, s.kv_heads, s.head_dim)
        if self.use_rope:
            q, k = rotate(q, turns), rotate(k, turns)
            q = F.rms_norm(q, (s.head_dim,), eps=s.eps)
            k = F.rms_norm(k, (s.head_dim,), eps=s.eps)
        else:
            q = q * temperature
        o = self.chunked(q, k, v) if self.use_rope else self.full(q, k, v)
        return self.o_proj(o.flatten(2))

    def full(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        k, v = (t.repeat_interleave(self.s.heads // self.s.kv_heads, 1) for t in (k, v))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)

    def chunked(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Each chunk is a causal problem of its own, with the heads of a group as extra rows."""
        s, (batch, length, heads, dim) = self.s, q.shape
        chunk = min(s.chunk, length)
        pad = -length % chunk  # on the right, where a causal mask makes it harmless
        if pad:
            q, k, v = (F.pad(t, (0, 0, 0, 0, 0, pad)) for t in (q, k, v))
        q = q.reshape(-1, chunk, s.kv_heads, heads // s.kv_heads * dim).transpose(1, 2)
        k, v = (t.reshape(-1, chunk, s.kv_heads, dim).transpose(1, 2) for t in (k, v))
        scores = (q.reshape(*k.shape[:2], -1, dim) @ k.mT) * dim**-0.5
        future = torch.ones(chunk, chunk, dtype=torch.bool).triu(1)
        future = future.repeat_interleave(heads // s.kv_heads, 0)
        p = scores.masked_fill(future, float("-inf")).softmax(-1)
        o = (p @ v).view(*k.shape[:2], chunk, -1).transpose(1, 2)
        return o.reshape(batch, length + pad, heads, dim)[:, :length]


class MLP(nn.Module):
    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.gate_proj = linear(width, hidden)
        self.up_proj = linear(width, hidden)
        self.down_proj = linear(hidden, width, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Experts(nn.Module):
    def __init__(self, s: TextShape) -> None:
        super().__init__()
        self.width = s.expert_width
        self.gate_up_proj = nn.Parameter(
            torch.randn(s.experts, s.hidden, 2 * self.width) / math.sqrt(s.hidden)
        )
        self.down_proj = nn.Parameter(torch.zeros(s.experts, self.width, s.hidden))

    def forward(self, x: Tensor, choice: Tensor) -> Tensor:
        order = choice.argsort(stable=True)
        counts = torch.bincount(choice, minlength=len(self.gate_up_proj)).tolist()
        outputs = []
        for e, rows in enumerate(x[order].split(counts)):
            gate, up = (rows @ self.gate_up_proj[e]).split(self.width, -1)
            outputs.append((F.silu(gate) * up) @ self.down_proj[e])
        return torch.cat(outputs)[order.argsort()]


class MoE(nn.Module):
    def __init__(self, s: TextShape) -> None:
        super().__init__()
        self.router = linear(s.experts, s.hidden, 0.5)
        self.experts = Experts(s)
        self.shared_expert = MLP(s.hidden, s.expert_width)
        self.balance_loss = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, -2)
        logits = self.router(flat)
        top, choice = logits.max(-1)
        if self.training:
            share = torch.bincount(choice, minlength=logits.shape[-1]) / len(flat)
            self.balance_loss = logits.shape[-1] * (share * logits.softmax(-1).mean(0)).sum()
        # Llama 4 weights an expert's input, not its output.
        routed = self.experts(flat * torch.sigmoid(top)[:, None], choice)
        return self.shared_expert(x) + routed.view_as(x)


class Layer(nn.Module):
    def __init__(self, s: TextShape, index: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(s.hidden, s.eps)
        self.self_attn = Attention(s, index)
        self.post_attention_layernorm = RMSNorm(s.hidden, s.eps)
        self.feed_forward = MoE(s) if index in s.moe_layers else MLP(s.hidden, s.dense_width)

    def forward(self, x: Tensor, *tables: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), *tables)
        return x + self.feed_forward(self.post_attention_layernorm(x))


class TextModel(nn.Module):
    def __init__(self, s: TextShape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(s.vocab, s.hidden)
        nn.init.normal_(self.embed_tokens.weight, std=0.3)
        self.layers = nn.ModuleList(Layer(s, i) for i in range(s.layers))
        self.depth = s.layers
        self.norm = RMSNorm(s.hidden, s.eps)
        position = torch.arange(s.positions).float()
        angle = position[:, None, None] * scaled_frequencies(s)
        floors = torch.floor((position + 1) / s.floor_scale)
        self.register_buffer("turns", unit(angle), persistent=False)
        temperature = (1 + s.attn_scale * torch.log1p(floors))[:, None, None]
        self.register_buffer("temperature", temperature, persistent=False)

    def forward(self, embeddings: Tensor) -> Tensor:
        n = embeddings.shape[1]
        x = embeddings
        for layer in self.layers[: self.depth]:
            x = layer(x, self.turns[:n], self.temperature[:n])
        return self.norm(x)

    @torch.no_grad()
    def grow(self) -> None:
        """Double the depth in use: the new layers repeat the old ones and add nothing at first."""
        both = self.layers[: 2 * self.depth]
        for old, new in zip(both[: self.depth], both[self.depth :], strict=True):
            new.load_state_dict(old.state_dict())
            for name, p in new.named_parameters():
                if "o_proj" in name or "down_proj" in name:
                    p.zero_()
        self.depth *= 2


class LanguageModel(nn.Module):
    def __init__(self, s: TextShape) -> None:
        super().__init__()
        self.model = TextModel(s)
        self.lm_head = linear(s.vocab, s.hidden, 0.1)


class VisionAttention(nn.Module):
    def __init__(self, v: VisionShape) -> None:
        super().__init__()
        self.heads = v.heads
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            scale = 0.5 if name == "o_proj" else 1.0
            setattr(self, name, linear(v.hidden, v.hidden, scale, bias=True))

    def forward(self, x: Tensor, turns: Tensor) -> Tensor:
        q, k, v = (
            p(x).unflatten(-1, (self.heads, -1)) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, turns), rotate(k, turns)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return self.o_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class VisionMLP(nn.Module):
    def __init__(self, v: VisionShape) -> None:
        super().__init__()
        self.fc1 = linear(v.width, v.hidden, bias=True)
        self.fc2 = linear(v.hidden, v.width, 0.5, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class VisionLayer(nn.Module):
    def __init__(self, v: VisionShape) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(v.hidden, v.eps)
        self.self_attn = VisionAttention(v)
        self.post_attention_layernorm = nn.LayerNorm(v.hidden, v.eps)
        self.mlp = VisionMLP(v)

    def forward(self, x: Tensor, turns: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), turns)
        return x + self.mlp(self.post_attention_layernorm(x))


def vision_angles(v: VisionShape) -> Tensor:
    """[patches + 1, 1, pairs]: columns turn the first half of the pairs, rows the second."""
    side, half = v.tile // v.patch, v.hidden // v.heads // 2
    f = v.rope_theta ** (-torch.arange(0, half, 2).float() / half)
    row, col = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    grid = torch.cat([(col.reshape(-1, 1) + 1) * f, (row.reshape(-1, 1) + 1) * f], -1)
    return torch.cat([grid, torch.zeros(1, half)])[:, None]


class VisionModel(nn.Module):
    def __init__(self, v: VisionShape) -> None:
        super().__init__()
        self.v, patches = v, (v.tile // v.patch) ** 2
        self.patch_embedding = nn.ModuleDict({"linear": linear(v.hidden, 3 * v.patch**2, 2.0)})
        self.class_embedding = nn.Parameter(torch.randn(v.hidden) * 0.1)
        self.positional_embedding_vlm = nn.Parameter(torch.randn(patches + 1, v.hidden) * 0.1)
        self.layernorm_pre = nn.LayerNorm(v.hidden, v.eps)
        self.model = nn.ModuleDict(
            {"layers": nn.ModuleList(VisionLayer(v) for _ in range(v.layers))}
        )
        self.layernorm_post = nn.LayerNorm(v.hidden, v.eps)
        fc1, fc2 = linear(v.adapter, 4 * v.hidden, 1.5), linear(v.adapter, v.adapter, 1.5)
        mlp = nn.ModuleDict({"fc1": fc1, "fc2": fc2})
        self.vision_adapter = nn.ModuleDict({"mlp": mlp})
        self.register_buffer("turns", unit(vision_angles(v)), persistent=False)

    def forward(self, tiles: Tensor) -> Tensor:
        """[tiles, 3, 32, 32] → [tiles, 4, adapter]."""
        v, side = self.v, self.v.tile // self.v.patch
        x = F.unfold(tiles, v.patch, stride=v.patch).transpose(1, 2)
        x = self.patch_embedding["linear"](x)
        x = torch.cat([x, self.class_embedding.expand(len(x), 1, -1)], 1)
        x = self.layernorm_pre(x + self.positional_embedding_vlm)
        for layer in self.model["layers"]:
            x = layer(x, self.turns)
        x = self.layernorm_post(x)[:, :-1]
        # Pixel shuffle: each token gathers a 2 × 2 square of patches.
        x = x.view(len(x), side // 2, 2, side // 2, 2, -1).transpose(2, 3)
        x = x.reshape(len(x), (side // 2) ** 2, -1)
        mlp = self.vision_adapter["mlp"]
        return F.gelu(mlp["fc2"](F.gelu(mlp["fc1"](x))))


class DemoLlama4(nn.Module):
    def __init__(self, text: TextShape, vision: VisionShape, patch_token: int) -> None:
        super().__init__()
        self.text, self.vision, self.patch_token = text, vision, patch_token
        self.language_model = LanguageModel(text)
        self.vision_model = VisionModel(vision)
        self.multi_modal_projector = nn.ModuleDict(
            {"linear_1": linear(text.hidden, vision.adapter, 0.5)}
        )

    def forward(self, ids: Tensor, tiles: Tensor | None = None) -> Tensor:
        """ids [B, S], tiles [T, 3, 32, 32] in prompt order → final hidden states [B, S, hidden]."""
        x = self.language_model.model.embed_tokens(ids)
        if tiles is not None:
            image = self.image_tokens(tiles)
            x = x.masked_scatter((ids == self.patch_token)[..., None], image)
        return self.language_model.model(x)

    def image_tokens(self, tiles: Tensor) -> Tensor:
        return self.multi_modal_projector["linear_1"](self.vision_model(tiles))

    def logits(self, hidden: Tensor) -> Tensor:
        return self.language_model.lm_head(hidden)

    def balance_loss(self) -> Tensor:
        text = self.language_model.model
        moe = [text.layers[i].feed_forward for i in self.text.moe_layers if i < text.depth]
        return sum(layer.balance_loss for layer in moe)
