"""What callers hand in as prompts, checked, and as the lists of tokens that the engine takes."""

import itertools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from l4kernels.engine.images import PromptImages
from l4kernels.inputs.arguments import token_ids
from l4kernels.model.config import Llama4Config
from l4kernels.model.llama4 import Llama4Model
from l4kernels.ops.ambient import isolated
from l4kernels.ops.check import describe


class PromptTokens(NamedTuple):
    """The tokens of a prompt, and what its images put in place of some."""

    ids: list[int]
    images: PromptImages | None = None


@isolated
def prompts_of_batch(
    model: Llama4Model,
    input_ids: Tensor,
    pixel_values: Tensor | None = None,
    new_tokens: int = 0,
    attention_mask: Tensor | None = None,
) -> list[PromptTokens]:
    """The prompt of each row.

    Args:
        input_ids: int64 or int32 `[B, S]`.
        pixel_values: `[tiles, channels, H, W]` of all images in the order of their patch tokens,
            or None. Without images a patch token is a token like any other.
        new_tokens: how many tokens are to follow.
        attention_mask: `[B, S]` of any dtype, ones where a token is meant and zeros where it is
            padding, which is left out: a row is then as long as it has ones. None: all tokens are
            meant, and a row must not begin with the pad token, nor end with it if tokens are to
            follow.

    Raises:
        ValueError: an argument, named with what was expected and what came.
    """
    config = model.config
    _check_batch(input_ids)
    if attention_mask is None:
        _check_edges(config, input_ids, new_tokens > 0)
        rows = input_ids.tolist()
    else:
        kept = _checked_mask(input_ids, attention_mask)
        rows = [
            row[keep].tolist()
            for row, keep in zip(input_ids, kept.to(input_ids.device), strict=True)
        ]
    for row in rows:
        check_length(config, len(row), new_tokens)
        check_range(config, row)
    if pixel_values is None:
        return [PromptTokens(row) for row in rows]
    return _with_images(model, rows, pixel_values)


@isolated
def prompt_of(model: Llama4Model, ids: Any, pixel_values: Tensor | None = None) -> PromptTokens:
    """One prompt: token ids as a tensor or array `[S]` or any iterable of integers."""
    if isinstance(ids, Tensor):
        check_dense("prompt", ids)
    tokens = list(token_ids("prompt", ids, model.config.vocab_size))
    if not tokens:
        raise ValueError("the prompt is empty: expected at least one token")
    if pixel_values is None:
        return PromptTokens(tokens)
    return _with_images(model, [tokens], pixel_values)[0]


def check_length(config: Llama4Config, prompt_tokens: int, new_tokens: int) -> None:
    limit = config.max_position_embeddings
    if prompt_tokens + new_tokens > limit:
        raise ValueError(
            f"the prompt of {prompt_tokens} tokens and {new_tokens} new ones do not fit the "
            f"model's context of {limit} tokens; shorten the prompt or ask for fewer"
        )


def check_range(config: Llama4Config, ids: list[int]) -> None:
    low, high = min(ids), max(ids)
    if low < 0 or high >= config.vocab_size:
        raise ValueError(
            f"expected token ids in [0, {config.vocab_size}), got {low if low < 0 else high}"
        )


def check_dense(name: str, t: Tensor) -> None:
    if t.layout != torch.strided or t.is_nested or t.is_meta:
        kind = "nested" if t.is_nested else "meta" if t.is_meta else str(t.layout)
        raise ValueError(f"expected {name} to be a dense tensor with data, got a {kind} one")


def _check_batch(input_ids: Tensor) -> None:
    if not isinstance(input_ids, Tensor):
        ragged = isinstance(input_ids, (list, tuple)) and len(set(map(_length, input_ids))) > 1
        hint = f"; rows of several lengths: {_PADDED}" if ragged else ""
        raise ValueError(
            f"expected input_ids to be a tensor [batch, tokens], got {type(input_ids)}{hint}"
        )
    check_dense("input_ids", input_ids)
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


def _checked_mask(input_ids: Tensor, mask: Tensor) -> Tensor:
    """Where a token is meant, bool `[B, S]`."""
    if isinstance(mask, Tensor):
        check_dense("attention_mask", mask)
    if not isinstance(mask, Tensor) or mask.shape != input_ids.shape:
        shown = describe(mask) if isinstance(mask, Tensor) else type(mask)
        raise ValueError(
            f"expected attention_mask to be a tensor {list(input_ids.shape)} like input_ids, "
            f"got {shown}"
        )
    kept = mask == 1
    other = int((~kept & (mask != 0)).sum())
    if other:
        raise ValueError(
            f"expected attention_mask to be ones and zeros, got {other} of {mask.numel()} values "
            f"that are neither"
        )
    empty = (~kept.any(1)).nonzero()
    if len(empty):
        raise ValueError(
            f"the prompt of row {int(empty[0])} is empty: expected a one in its attention_mask"
        )
    return kept


def _check_edges(config: Llama4Config, input_ids: Tensor, to_be_continued: bool) -> None:
    """Pad tokens to the left would be read as text, and so would those before a new token."""
    pad = config.pad_token_id
    if pad is None or pad in (config.bos_token_id, *config.eos_token_ids):
        return
    edges = {"begins": 0, "ends": -1} if to_be_continued else {"begins": 0}
    for verb, column in edges.items():
        rows = (input_ids[:, column] == pad).nonzero()
        if len(rows):
            raise ValueError(
                f"row {int(rows[0])} of input_ids {verb} with the pad token (id {pad}): pass an "
                f"attention_mask, zeros where it is padding and ones where a token is meant"
            )


_PADDED = "fill them up to one length, and pass an attention_mask of ones and zeros"


def _with_images(
    model: Llama4Model, rows: list[list[int]], pixel_values: Tensor
) -> list[PromptTokens]:
    token = model.config.image_token_index
    counts = [row.count(token) for row in rows if token is not None]
    pixels = _checked_pixels(model, sum(counts), pixel_values)
    vision = model.config.vision
    assert vision is not None
    per_tile, first, prompts = vision.tokens_per_tile, 0, []
    for row, count in zip(rows, counts, strict=True):
        # A tile may begin in one row and end in the next: then both have it.
        tiles = pixels[first // per_tile : -(-(first + count) // per_tile)]
        place = itertools.count(first % per_tile)
        shown = [next(place) if i == token else -1 for i in row]
        first += count
        prompts.append(PromptTokens(row, PromptImages(tiles, shown, per_tile) if count else None))
    return prompts


def _checked_pixels(model: Llama4Model, patches: int, pixels: Tensor) -> Tensor:
    """Tiles `[tiles, channels, H, W]` for that many patch tokens, in the model's dtype and on its
    device."""
    vision, dtype = model.config.vision, model.options.dtype
    if vision is None:
        raise ValueError(
            "this checkpoint is text-only (no vision_config), but pixel_values were given"
        )
    wanted = (vision.num_channels, vision.image_size, vision.image_size)
    if not isinstance(pixels, Tensor):
        raise ValueError(f"expected pixel_values to be a tensor, got {type(pixels)}")
    check_dense("pixel_values", pixels)
    shaped = pixels.dim() == 4 and tuple(pixels.shape[1:]) == wanted and len(pixels) > 0
    if not shaped or not pixels.is_floating_point():
        raise ValueError(
            f"expected pixel_values to be normalised floats [tiles, "
            f"{', '.join(map(str, wanted))}], got {describe(pixels)}"
        )
    # A copy: they are looked at later, when the caller may have other pictures there.
    pixels = pixels.to(model.device, dtype, copy=True)
    # The extremes are NaN if any value is.
    if not bool(torch.stack(pixels.aminmax()).isfinite().all()):
        raise ValueError(f"expected pixel_values to be finite in {dtype}, got NaN or infinity")
    needed = pixels.shape[0] * vision.tokens_per_tile
    if patches != needed:
        raise ValueError(
            f"expected {needed} patch tokens (id {model.config.image_token_index}) in the prompt: "
            f"{pixels.shape[0]} tiles of {vision.tokens_per_tile}; got {patches}"
        )
    return pixels
