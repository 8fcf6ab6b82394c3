"""A checked prompt: token ids, and what the images put in place of their patch tokens."""

import time
from typing import Any

import torch
from torch import Tensor

from l4kernels import ops
from l4kernels.model.config import Llama4Config
from l4kernels.ops.ambient import isolated
from l4kernels.ops.check import describe


def check_length(config: Llama4Config, prompt_tokens: int, new_tokens: int) -> None:
    limit = config.max_position_embeddings
    if prompt_tokens + new_tokens > limit:
        raise ValueError(
            f"the prompt of {prompt_tokens} tokens and {new_tokens} new ones do not fit the "
            f"model's context of {limit} tokens; shorten the prompt or ask for fewer"
        )


def _check_ids(input_ids: Tensor) -> None:
    if not isinstance(input_ids, Tensor):
        ragged = isinstance(input_ids, (list, tuple)) and len(set(map(_length, input_ids))) > 1
        hint = f"; rows of several lengths: {_UNPADDED}" if ragged else ""
        raise ValueError(
            f"expected input_ids to be a tensor [batch, tokens], got {type(input_ids)}{hint}"
        )
    if input_ids.dim() != 2:
        raise ValueError(
            f"expected input_ids to be a tensor [batch, tokens], got {list(input_ids.shape)}"
        )
    if input_ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"expected input_ids to be integers (int64, int32), got {input_ids.dtype}")
    if not input_ids.numel():
        raise ValueError(
            f"the prompt is empty: expected at least one token, got {list(input_ids.shape)}"
        )


def _length(row: Any) -> int:
    return len(row) if hasattr(row, "__len__") else -1


def _check_mask(input_ids: Tensor, mask: Tensor) -> None:
    if not isinstance(mask, Tensor) or mask.shape != input_ids.shape:
        shown = describe(mask) if isinstance(mask, Tensor) else type(mask)
        raise ValueError(
            f"expected attention_mask to be a tensor {list(input_ids.shape)} like input_ids, "
            f"got {shown}"
        )
    hidden = int((mask != 1).sum())
    if hidden:
        raise ValueError(
            f"padding is not supported yet: expected attention_mask to be all ones, got {hidden} "
            f"of {mask.numel()} values that are not; {_UNPADDED}"
        )


def _check_edges(config: Llama4Config, input_ids: Tensor, to_be_continued: bool) -> None:
    """Pad tokens to the left would be read as text, and so would those before a new token."""
    pad = config.pad_token_id
    if pad is None or pad in (config.bos_token_id, *config.eos_token_ids):
        return
    edges = {"begins": 0, "ends": -1} if to_be_continued else {"begins": 0}
    for verb, column in edges.items():
        rows = (input_ids[:, column] == pad).nonzero()
        if len(rows):
            first = int(rows[0])
            raise ValueError(
                f"row {first} of input_ids {verb} with the pad token (id {pad}), and padding "
                f"is not supported yet: {_UNPADDED}, or pass an attention_mask of ones if the "
                f"token is meant"
            )


_UNPADDED = "run sequences of one length together, or one by one"


class Prompt:
    """Token ids `[B, S]` and the features of all images in the order of their patch tokens.

    Args:
        model: a `Llama4`.
        input_ids: int64 or int32 `[B, S]`, no padding; `S` counts towards the model's context.
        pixel_values: `[tiles, channels, H, W]` of all images, or None. Without images a patch
            token is a token like any other.
        new_tokens: how many tokens are to follow.
        attention_mask: `[B, S]` of any dtype, all ones: every token is meant, pad tokens as well.
            None: a row must not begin with the pad token, nor end with it if tokens are to follow.

    Raises:
        ValueError: an argument, named with what was expected and what came.
    """

    @isolated
    def __init__(
        self,
        model: Any,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        new_tokens: int = 0,
        attention_mask: Tensor | None = None,
    ):
        _check_ids(input_ids)
        self.batch, self.length = input_ids.shape
        check_length(model.config, self.length, new_tokens)
        low, high = int(input_ids.min()), int(input_ids.max())
        if low < 0 or high >= model.config.vocab_size:
            raise ValueError(
                f"expected token ids in [0, {model.config.vocab_size}), "
                f"got {low if low < 0 else high}"
            )
        if attention_mask is None:
            _check_edges(model.config, input_ids, new_tokens > 0)
        else:
            _check_mask(input_ids, attention_mask)
        self.input_ids = input_ids.to(model.device, torch.int64)
        self.features: Tensor | None = None
        self.rows: Tensor | None = None
        self.image_seconds = 0.0
        if pixel_values is not None:
            self._encode_images(model, pixel_values)

    def embeddings(self, table: Tensor, start: int, stop: int) -> Tensor:
        """`[B * (stop - start), D]` for positions start ... stop - 1."""
        rows = None if self.rows is None else self.rows[:, start:stop].flatten()
        return ops.embed(self.input_ids[:, start:stop].flatten(), table, self.features, rows)

    def _encode_images(self, model: Any, pixels: Tensor) -> None:
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
        pixels = pixels.to(model.device, model.options.dtype)
        is_patch = self.input_ids == token
        # The extremes are NaN if any value is; one transfer tells both.
        finite = torch.stack(pixels.aminmax()).isfinite().all()
        count, finite = torch.stack([is_patch.sum(), finite.long()]).tolist()
        if not finite:
            raise ValueError(
                f"expected pixel_values to be finite in {model.options.dtype}, got NaN or infinity"
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
