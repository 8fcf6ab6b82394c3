"""One sequence: its tokens, what its images put in place of theirs, and how far it is."""

import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from l4kernels.engine.input_checks import check_ids, check_pixels
from l4kernels.model.llama4 import Llama4Model
from l4kernels.ops.ambient import isolated


@dataclass(eq=False)
class Sequence:
    """A prompt and what follows it.

    Args:
        ids: int64 `[S]` on the model's device, the prompt.
        features: `[R, hidden_size]`, what the vision tower made of images; or None.
        feature_rows: int32 `[S]`, with features: the row at a patch token, -1 at another one.
    """

    ids: Tensor
    features: Tensor | None = None
    feature_rows: Tensor | None = None
    position: int = 0
    """Its tokens that are in the KV cache."""
    new_tokens: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    """"stop" after an end token, "length" after as many tokens as it may have; None before."""

    def from_the_start(self) -> "Sequence":
        """Another one of the same prompt, of which nothing is in a cache."""
        return Sequence(self.ids, self.features, self.feature_rows)

    def append(self, token: int, stop_ids: frozenset[int], max_new_tokens: int) -> None:
        self.new_tokens.append(token)
        if token in stop_ids:
            self.finish_reason = "stop"
        elif len(self.new_tokens) == max_new_tokens:
            self.finish_reason = "length"

    def embeddings(self, model: Llama4Model, span: slice) -> Tensor:
        """`[n, hidden_size]` of a part of the prompt."""
        rows = None if self.feature_rows is None else self.feature_rows[span]
        return model.embed(self.ids[span], self.features, rows)


@isolated
def make_sequences(
    model: Llama4Model,
    input_ids: Tensor,
    pixel_values: Tensor | None = None,
    new_tokens: int = 0,
    attention_mask: Tensor | None = None,
) -> tuple[list[Sequence], float]:
    """A sequence of each row, and the seconds that its images took.

    Args:
        input_ids: int64 or int32 `[B, S]`, no padding; `S` counts towards the model's context.
        pixel_values: `[tiles, channels, H, W]` of all images in the order of their patch tokens,
            or None. Without images a patch token is a token like any other.
        new_tokens: how many tokens are to follow.
        attention_mask: `[B, S]` of any dtype, all ones: every token is meant, pad tokens as well.
            None: a row must not begin with the pad token, nor end with it if tokens are to follow.

    Raises:
        ValueError: an argument, named with what was expected and what came.
    """
    check_ids(model.config, input_ids, new_tokens, attention_mask)
    ids = input_ids.to(model.device, torch.int64)
    sequences = [Sequence(row) for row in ids]
    if pixel_values is None:
        return sequences, 0.0
    pixels = check_pixels(model.config, ids, pixel_values, model.options.dtype)
    token = model.config.image_token_index
    assert model.vision is not None and token is not None
    started = time.perf_counter()
    features, is_patch = model.vision(pixels), torch.eq(ids, token)
    order = is_patch.flatten().cumsum(0).view(ids.shape) - 1
    for sequence, rows in zip(sequences, torch.where(is_patch, order, -1), strict=True):
        sequence.features, sequence.feature_rows = features, rows.to(torch.int32)
    return sequences, time.perf_counter() - started
