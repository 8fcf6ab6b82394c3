"""What callers hand in as prompts: checked, by what is expected."""

from typing import Any

import torch
from torch import Tensor

from l4kernels.model.config import Llama4Config
from l4kernels.ops.check import describe


def check_length(config: Llama4Config, prompt_tokens: int, new_tokens: int) -> None:
    limit = config.max_position_embeddings
    if prompt_tokens + new_tokens > limit:
        raise ValueError(
            f"the prompt of {prompt_tokens} tokens and {new_tokens} new ones do not fit the "
            f"model's context of {limit} tokens; shorten the prompt or ask for fewer"
        )


def check_ids(
    config: Llama4Config, input_ids: Tensor, new_tokens: int, attention_mask: Tensor | None
) -> None:
    """A batch of prompts without padding, that `new_tokens` are to follow."""
    _check_batch(input_ids)
    check_length(config, input_ids.shape[1], new_tokens)
    low, high = int(input_ids.min()), int(input_ids.max())
    if low < 0 or high >= config.vocab_size:
        raise ValueError(
            f"expected token ids in [0, {config.vocab_size}), got {low if low < 0 else high}"
        )
    if attention_mask is None:
        _check_edges(config, input_ids, new_tokens > 0)
    else:
        _check_mask(input_ids, attention_mask)


def _check_batch(input_ids: Tensor) -> None:
    if not isinstance(input_ids, Tensor):
        ragged = isinstance(input_ids, (list, tuple)) and len(set(map(_length, input_ids))) > 1
        hint = f"; rows of several lengths: {_UNPADDED}" if ragged else ""
        raise ValueError(
            f"expected input_ids to be a tensor [batch, tokens], got {type(input_ids)}{hint}"
        )
    _check_dense("input_ids", input_ids)
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


def _check_dense(name: str, t: Tensor) -> None:
    if t.layout != torch.strided or t.is_nested or t.is_meta:
        kind = "nested" if t.is_nested else "meta" if t.is_meta else str(t.layout)
        raise ValueError(f"expected {name} to be a dense tensor with data, got a {kind} one")


def _length(row: Any) -> int:
    return len(row) if hasattr(row, "__len__") else -1


def _check_mask(input_ids: Tensor, mask: Tensor) -> None:
    if isinstance(mask, Tensor):
        _check_dense("attention_mask", mask)
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


def check_pixels(config: Llama4Config, ids: Tensor, pixels: Tensor, dtype: torch.dtype) -> Tensor:
    """Tiles `[tiles, channels, H, W]` for the patch tokens of `ids` `[B, S]`, in `dtype` and on
    the device of `ids`."""
    vision = config.vision
    if vision is None:
        raise ValueError(
            "this checkpoint is text-only (no vision_config), but pixel_values were given"
        )
    wanted = (vision.num_channels, vision.image_size, vision.image_size)
    if not isinstance(pixels, Tensor):
        raise ValueError(f"expected pixel_values to be a tensor, got {type(pixels)}")
    _check_dense("pixel_values", pixels)
    shaped = pixels.dim() == 4 and tuple(pixels.shape[1:]) == wanted and len(pixels) > 0
    if not shaped or not pixels.is_floating_point():
        raise ValueError(
            f"expected pixel_values to be normalised floats [tiles, "
            f"{', '.join(map(str, wanted))}], got {describe(pixels)}"
        )
    pixels = pixels.to(ids.device, dtype)
    # The extremes are NaN if any value is; one transfer tells both.
    finite = torch.stack(pixels.aminmax()).isfinite().all()
    assert config.image_token_index is not None
    count = torch.eq(ids, config.image_token_index).sum()
    count, finite = torch.stack([count, finite.long()]).tolist()
    if not finite:
        raise ValueError(f"expected pixel_values to be finite in {dtype}, got NaN or infinity")
    needed = pixels.shape[0] * vision.tokens_per_tile
    if count != needed:
        raise ValueError(
            f"expected {needed} patch tokens (id {config.image_token_index}) in the prompt: "
            f"{pixels.shape[0]} tiles of {vision.tokens_per_tile}; got {count}"
        )
    return pixels
