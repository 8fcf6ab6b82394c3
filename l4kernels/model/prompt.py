"""A checked prompt: token ids, and what the images put in place of their patch tokens."""

import time

import torch
from torch import Tensor

from l4kernels import ops
from l4kernels.model.config import Llama4Config
from l4kernels.ops.check import describe


def check_length(config: Llama4Config, prompt_tokens: int, new_tokens: int) -> None:
    limit = config.max_position_embeddings
    if prompt_tokens + new_tokens > limit:
        raise ValueError(
            f"the prompt of {prompt_tokens} tokens and {new_tokens} new ones do not fit the "
            f"model's context of {limit} tokens; shorten the prompt or ask for fewer"
        )


class Prompt:
    """Token ids `[B, S]` and the features of all images in the order of their patch tokens.

    Args:
        model: a `Llama4`.
        input_ids: integers `[B, S]`, no padding; `S` counts towards the model's context.
        pixel_values: `[tiles, channels, H, W]` of all images, or None. Without images a patch
            token is a token like any other.
        new_tokens: how many tokens are to follow.
    """

    def __init__(
        self,
        model: "torch.nn.Module",
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        new_tokens: int = 0,
    ):
        if not isinstance(input_ids, Tensor) or input_ids.dim() != 2:
            shown = list(input_ids.shape) if isinstance(input_ids, Tensor) else type(input_ids)
            raise ValueError(f"expected input_ids to be a tensor [batch, tokens], got {shown}")
        if input_ids.is_floating_point():
            raise ValueError(f"expected input_ids to be integers, got {input_ids.dtype}")
        self.batch, self.length = input_ids.shape
        if not self.batch or not self.length:
            raise ValueError(
                f"the prompt is empty: expected at least one token, got {list(input_ids.shape)}"
            )
        check_length(model.config, self.length, new_tokens)
        low, high = int(input_ids.min()), int(input_ids.max())
        if low < 0 or high >= model.config.vocab_size:
            raise ValueError(
                f"expected token ids in [0, {model.config.vocab_size}), "
                f"got {low if low < 0 else high}"
            )
        self.input_ids = input_ids.to(model.device, torch.int64)
        self.features = self.rows = None
        self.image_seconds = 0.0
        if pixel_values is not None:
            self._encode_images(model, pixel_values)

    def embeddings(self, table: Tensor, start: int, stop: int) -> Tensor:
        """`[B * (stop - start), D]` for positions start ... stop - 1."""
        rows = None if self.rows is None else self.rows[:, start:stop].flatten()
        return ops.embed(self.input_ids[:, start:stop].flatten(), table, self.features, rows)

    def _encode_images(self, model: "torch.nn.Module", pixels: Tensor) -> None:
        vision, token = model.config.vision, model.config.image_token_index
        if vision is None:
            raise ValueError(
                "this checkpoint is text-only (no vision_config), but pixel_values were given"
            )
        wanted = (vision.num_channels, vision.image_size, vision.image_size)
        if not isinstance(pixels, Tensor):
            raise ValueError(f"expected pixel_values to be a tensor, got {type(pixels)}")
        shaped = pixels.dim() == 4 and tuple(pixels.shape[1:]) == wanted and len(pixels) > 0
        if not shaped or not pixels.is_floating_point():
            raise ValueError(
                f"expected pixel_values to be normalised floats [tiles, "
                f"{', '.join(map(str, wanted))}], got {describe(pixels)}"
            )
        pixels = pixels.to(model.device, model.build.dtype)
        is_patch = self.input_ids == token
        # The extremes are NaN if any value is; one transfer tells both.
        finite = torch.stack(pixels.aminmax()).isfinite().all()
        count, finite = torch.stack([is_patch.sum(), finite.long()]).tolist()
        if not finite:
            raise ValueError(
                f"expected pixel_values to be finite in {model.build.dtype}, got NaN or infinity"
            )
        needed = pixels.shape[0] * vision.tokens_per_tile
        if count != needed:
            raise ValueError(
                f"expected {needed} patch tokens (id {token}) in the prompt: {pixels.shape[0]} "
                f"tiles of {vision.tokens_per_tile}; got {count}"
            )
        started = time.perf_counter()
        self.features = model.vision(pixels)
        order = is_patch.flatten().cumsum(0).view(is_patch.shape) - 1
        self.rows = torch.where(is_patch, order, -1).to(torch.int32)
        self.image_seconds = time.perf_counter() - started
