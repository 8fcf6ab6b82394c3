"""Vision tower, adapter and projector: tiles of pixels -> rows of the text model's embedding."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from l4kernels.layers.options import ModelOptions, round_up
from l4kernels.model.config import VisionConfig

TILES_PER_SLICE = 8
_EPS = 1e-5


class LayerNorm(nn.Module):
    def __init__(self, size: int, options: ModelOptions):
        super().__init__()
        self.weight, self.bias = options.empty(size), options.empty(size)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, _EPS)


class VisionBlock(nn.Module):
    def __init__(self, config: VisionConfig, options: ModelOptions):
        super().__init__()
        self.num_heads, self.head_dim = config.num_attention_heads, config.head_dim
        size = config.hidden_size
        self.input_layernorm = LayerNorm(size, options)
        self.qkv_proj = options.linear(size, 3 * size, bias=True)
        self.o_proj = options.linear(size, size, bias=True)
        self.post_attention_layernorm = LayerNorm(size, options)
        self.fc1 = options.linear(size, config.intermediate_size, bias=True)
        self.fc2 = options.linear(config.intermediate_size, size, bias=True)

    def forward(self, x: Tensor, rotation: Tensor, tiles: int) -> Tensor:
        qkv = self.qkv_proj(self.input_layernorm(x))
        q, k, v = qkv.view(tiles, -1, 3, self.num_heads, self.head_dim).transpose(1, 3).unbind(2)
        out = F.scaled_dot_product_attention(rotate(q, rotation), rotate(k, rotation), v)
        x = self.o_proj(out.transpose(1, 2).reshape(x.shape), residual=x)
        hidden = self.fc1(self.post_attention_layernorm(x), activation="gelu")
        return self.fc2(hidden, residual=x)


class VisionModel(nn.Module):
    """`[tiles, 3, H, W]` in [-1, 1] -> `[tiles * tokens_per_tile, text hidden size]`."""

    def __init__(self, config: VisionConfig, text_hidden_size: int, options: ModelOptions):
        super().__init__()
        self.config = config
        size = config.hidden_size
        # Patch rows (588 values) are padded: the GEMM takes K in multiples of 128.
        self.patch_embedding = options.linear(round_up(config.patch_row, 128), size)
        self.class_embedding = options.empty(size)
        self.positional_embedding = options.empty(config.grid**2 + 1, size)
        self.layernorm_pre = LayerNorm(size, options)
        self.blocks = nn.ModuleList(
            VisionBlock(config, options) for _ in range(config.num_hidden_layers)
        )
        self.layernorm_post = LayerNorm(size, options)
        self.adapter_fc1 = options.linear(config.intermediate_size, config.projector_input_dim)
        self.adapter_fc2 = options.linear(config.projector_output_dim, config.projector_output_dim)
        self.projector = options.linear(config.vision_output_dim, text_hidden_size)
        self.rotation = rotation_table(config).to(options.device)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return torch.cat([self._encode(part) for part in pixel_values.split(TILES_PER_SLICE)])

    def _encode(self, pixels: Tensor) -> Tensor:
        tiles = pixels.shape[0]
        patches = F.unfold(pixels, self.config.patch_size, stride=self.config.patch_size)
        patches = patches.transpose(1, 2).to(self.class_embedding.dtype)
        patches = F.pad(patches, (0, self.patch_embedding.in_features - patches.shape[-1]))
        x = self.patch_embedding(patches.flatten(0, 1)).view(tiles, self.config.grid**2, -1)
        # The class token comes last; it takes part in attention and is dropped at the end.
        x = torch.cat([x, self.class_embedding.expand(tiles, 1, -1)], 1)
        x = self.layernorm_pre(x + self.positional_embedding).flatten(0, 1)
        for block in self.blocks:
            x = block(x, self.rotation, tiles)
        x = self.layernorm_post(x).view(tiles, self.config.grid**2 + 1, -1)[:, :-1]
        x = self.adapter_fc1(self._shuffle(x), activation="gelu")
        return self.projector(self.adapter_fc2(x, activation="gelu"))

    def _shuffle(self, x: Tensor) -> Tensor:
        """Squares of patches become one token: `[tiles, grid^2, C]` -> `[tokens, C * side^2]`."""
        side, out = self.config.shuffle, self.config.grid // self.config.shuffle
        x = x.reshape(x.shape[0], out, side, out, side, -1).transpose(2, 3)
        return x.reshape(x.shape[0] * out * out, -1)


def rotation_table(config: VisionConfig) -> Tensor:
    """complex64 `[grid^2 + 1, head_dim / 2]`: the first half of the pairs turns with the column,
    the second with the row, both counted from 1; the class token is not turned."""
    pairs = config.head_dim // 2
    exact: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}
    exponent = torch.arange(0, pairs, 2, **exact) / pairs
    frequency = config.rope_theta**-exponent
    place = torch.arange(config.grid**2, **exact)
    column = torch.outer(place % config.grid + 1, frequency)
    row = torch.outer(place // config.grid + 1, frequency)
    angle = torch.cat([column, row], 1)
    angle = torch.cat([angle, torch.zeros(1, pairs, **exact)])
    return torch.polar(torch.ones_like(angle), angle).to(torch.complex64)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turns neighbouring pairs of the last dimension, in float32."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * rotation).flatten(-2).to(x.dtype)
