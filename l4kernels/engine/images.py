"""The images of a prompt: what they put in place of its patch tokens, and what names them."""

import hashlib
import time
from collections.abc import Iterable

import torch
from torch import Tensor

from l4kernels.model.llama4 import Llama4Model


class PromptImages:
    """Tiles of pixels, and the patch token that shows each of their rows.

    Args:
        pixels: `[tiles, channels, H, W]` on the model's device, in its dtype.
        rows: for every token of the prompt the row of features that it shows, or -1.
        tokens_per_tile: rows of a tile.
    """

    def __init__(self, pixels: Tensor, rows: list[int], tokens_per_tile: int):
        self.pixels, self.rows, self.tokens_per_tile = pixels, rows, tokens_per_tile
        self.features: Tensor | None = None
        """`[tiles * tokens_per_tile, hidden_size]`, once somebody needs them."""
        self._digests: list[bytes] = []

    def shown(self, start: int, end: int) -> bool:
        """Whether one of these tokens is a patch."""
        return any(row >= 0 for row in self.rows[start:end])

    def content(self, start: int, end: int) -> bytes:
        """What the patches among these tokens show: by content, so that the same picture is the
        same prefix wherever its pixels came from."""
        if not self._digests:
            tiles = self.pixels.to("cpu").contiguous().flatten(1).view(torch.uint8)
            self._digests = [
                hashlib.blake2b(memoryview(tile.numpy()), digest_size=16).digest() for tile in tiles
            ]
        parts = []
        for offset, row in enumerate(self.rows[start:end]):
            if row >= 0:
                tile, place = divmod(row, self.tokens_per_tile)
                parts.append(self._digests[tile] + f"{offset}:{place}".encode())
        return b"".join(parts)


def encode(model: Llama4Model, images: Iterable[PromptImages]) -> float:
    """Runs the vision model over those that have no features yet; returns the seconds it took."""
    fresh = [*dict.fromkeys(one for one in images if one.features is None)]  # samples share theirs
    if not fresh:
        return 0.0
    assert model.vision is not None
    started = time.perf_counter()
    features = model.vision(torch.cat([one.pixels for one in fresh]))
    sizes = [len(one.pixels) * one.tokens_per_tile for one in fresh]
    for one, rows in zip(fresh, features.split(sizes), strict=True):
        one.features = rows
    return time.perf_counter() - started
