"""Images to tiles: canvas choice, resizing, padding, normalising (spec: Llama 4's processor).

Pixel-for-pixel the canvas, tile order and resampling of Hugging Face's processor; normalising is
done in float32, where theirs rounds to bfloat16.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from l4kernels.inputs.fields import ConfigError, Fields
from l4kernels.inputs.files import read_object, shown
from l4kernels.prompt.images import ImageError, check_size, decode_image

MAX_TILE_SIZE = 4096
MAX_TILES = 256
MAX_CANVAS_PIXELS = 1 << 24  # nine times Scout's; 200 MB of tiles


class Tiles(NamedTuple):
    """All images of a prompt, in prompt order."""

    pixel_values: Tensor  # [tiles, 3, tile_size, tile_size] float32
    grids: list[tuple[int, int]]  # (rows, cols) of each image


@lru_cache
def canvases(max_tiles: int) -> tuple[tuple[int, int], ...]:
    """Every (rows, cols) with at most `max_tiles` tiles, grouped by aspect ratio.

    The order decides exact ties of area, so it is part of the format.

    >>> canvases(4)
    ((1, 4), (2, 2), (1, 1), (4, 1), (1, 3), (3, 1), (1, 2), (2, 1))
    """
    by_ratio: dict[float, list[tuple[int, int]]] = {}
    for count in range(max_tiles, 0, -1):
        for rows in range(1, count + 1):
            if count % rows == 0:
                cols = count // rows
                by_ratio.setdefault(rows / cols, []).append((rows, cols))
    return tuple(grid for grids in by_ratio.values() for grid in grids)


@dataclass(frozen=True)
class ImageProcessor:
    """Turns decoded images into the vision tower's tiles.

    Args:
        tile_size: side of a tile in pixels (the vision tower's `image_size`).
        max_tiles: most tiles of one image, the global tile not counted.
        mean, std: per channel, applied after scaling to [0, 1].
        resize_to_max_canvas: enlarge small images to the largest canvas that fits them.
    """

    tile_size: int = 336
    max_tiles: int = 16
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    resize_to_max_canvas: bool = False

    def __post_init__(self) -> None:
        where = "image processor"
        for name, value, limit in (
            ("tile_size", self.tile_size, MAX_TILE_SIZE),
            ("max_tiles", self.max_tiles, MAX_TILES),
        ):
            if type(value) is not int or not 1 <= value <= limit:
                raise ValueError(f"{where}: expected {name} in 1..{limit}, got {shown(value)}")
        for name, values, low in (("image_mean", self.mean, -1e4), ("image_std", self.std, 1e-4)):
            numbers = isinstance(values, tuple) and all(type(v) in (int, float) for v in values)
            if not numbers or len(values) != 3 or not all(low <= v <= 1e4 for v in values):
                raise ValueError(
                    f"{where}: expected {name} to hold 3 numbers in [{low:g}, 10000], got "
                    f"{shown(values)}"
                )
        if type(self.resize_to_max_canvas) is not bool:
            raise ValueError(
                f"{where}: expected resize_to_max_canvas to be true or false, got "
                f"{shown(self.resize_to_max_canvas)}"
            )
        if self.max_tiles * self.tile_size**2 > MAX_CANVAS_PIXELS:
            raise ValueError(
                f"{where}: expected a canvas of at most {MAX_CANVAS_PIXELS:,} pixels, got "
                f"{self.max_tiles} tiles of {self.tile_size} x {self.tile_size}"
            )

    @classmethod
    def from_pretrained(cls, path: str | Path) -> "ImageProcessor":
        """Reads a checkpoint's `processor_config.json`, which wins if it has an `image_processor`,
        or its `preprocessor_config.json`; `ConfigError` names the file and the field."""
        path = Path(path)
        for name in ("processor_config.json", "preprocessor_config.json"):
            file = path / name
            try:
                content = read_object(file, ConfigError)
            except FileNotFoundError:
                continue
            if name == "preprocessor_config.json" or "image_processor" in content:
                return cls.from_dict(content.get("image_processor", content), str(file))
        raise FileNotFoundError(
            f"{path}: no preprocessor_config.json and no processor_config.json with an "
            f"image_processor, so images cannot be prepared as this model was trained; copy the "
            f"file from the original checkpoint"
        )

    @classmethod
    def from_dict(
        cls, content: Mapping[str, Any], where: str = "image processor"
    ) -> "ImageProcessor":
        """From the content of such a file; `where` opens every message."""
        fields = Fields(content, where)
        for name in ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"):
            if not fields.boolean(name, True):
                fields.fail(f"only {name} = true is supported")
        fields.expect("resample", 2, 2)
        fields.expect("rescale_factor", 1 / 255, 1 / 255)
        kind = fields.data.get("image_processor_type")
        if kind is not None and not str(kind).startswith("Llama4ImageProcessor"):
            fields.fail(f"expected image_processor_type Llama4ImageProcessor, got {shown(kind)}")
        try:
            return cls(
                tile_size=_side(fields),
                max_tiles=fields.integer("max_patches", 1, MAX_TILES, cls.max_tiles),
                mean=_tuple(fields.data.get("image_mean"), cls.mean),
                std=_tuple(fields.data.get("image_std"), cls.std),
                resize_to_max_canvas=fields.boolean("resize_to_max_canvas", False),
            )
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError(f"{where}: {error}") from None

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """The canvas of an image, as (rows, cols) of tiles.

        The tightest canvas that holds the image undiminished, else the one that shrinks it least;
        the smallest area among equals. Ratios are float32, as in the original, because ties are.
        """
        check_size(width, height)
        choices = canvases(self.max_tiles)
        sides = np.array(choices, np.float32) * np.float32(self.tile_size)
        scales = (sides / np.array((height, width), np.float32)).min(1)
        holds = scales >= 1
        if holds.any():
            kept = scales[holds]
            best = kept.max() if self.resize_to_max_canvas else kept.min()
        else:
            best = scales.max()
        candidates = [g for g, s in zip(choices, (scales == best).tolist(), strict=True) if s]
        return min(candidates, key=lambda g: g[0] * g[1])

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Size of the image inside its canvas: enlarged only until its side reaches one tile."""
        rows, cols = self.grid(height, width)
        canvas = rows * self.tile_size, cols * self.tile_size
        free = canvas
        if not self.resize_to_max_canvas:
            free = max(height, self.tile_size), max(width, self.tile_size)
        limit_h, limit_w = min(free[0], canvas[0]), min(free[1], canvas[1])
        # The original divides a tensor, hence in float32, wherever the canvas is the limit.
        narrow_h, narrow_w = (
            self.resize_to_max_canvas or c < f for c, f in zip(canvas, free, strict=True)
        )
        scale_h = _float32(limit_h / height) if narrow_h else limit_h / height
        scale_w = _float32(limit_w / width) if narrow_w else limit_w / width
        mixed = narrow_h or narrow_w
        if (_float32(scale_w) < _float32(scale_h)) if mixed else scale_w < scale_h:
            fitted = height * scale_w
            return max(min(int(_float32(fitted) if narrow_w else fitted), limit_h), 1), limit_w
        fitted = width * scale_h
        return limit_h, max(min(int(_float32(fitted) if narrow_h else fitted), limit_w), 1)

    def tiles(self, image: Any) -> Tensor:
        """Of one image: float32 [tiles, 3, tile_size, tile_size], the global tile last."""
        image = decode_image(image)
        height, width = image.shape[1:]
        side = self.tile_size
        rows, cols = self.grid(height, width)
        inner = _resize(image, self.resized(height, width))
        canvas = image.new_zeros(3, rows * side, cols * side)
        canvas[:, : inner.shape[1], : inner.shape[2]] = inner
        tiles = canvas.view(3, rows, side, cols, side).permute(1, 3, 0, 2, 4)
        tiles = tiles.reshape(rows * cols, 3, side, side)
        if rows * cols > 1:
            tiles = torch.cat([tiles, _resize(image, (side, side))[None]])
        # From NumPy, because torch's defaults for dtype and device are the caller's.
        mean, std = (
            torch.from_numpy(np.array(v, np.float32)).view(3, 1, 1) for v in (self.mean, self.std)
        )
        normalised: Tensor = tiles.float().div_(255).sub_(mean).div_(std)
        return normalised

    def __call__(self, images: Sequence[Any]) -> Tiles:
        """Prepares all images of a prompt, in prompt order: each what `decode_image` takes.

        Only one of them is decoded at a time.
        """
        if not isinstance(images, (list, tuple)) or not images:
            came = "none" if isinstance(images, (list, tuple)) else type(images).__name__
            raise ImageError(f"expected a list of at least one image, got {came}")
        parts = [self._prepare(source, f"image {n}") for n, source in enumerate(images, 1)]
        return Tiles(torch.cat([tiles for tiles, _ in parts]), [grid for _, grid in parts])

    def _prepare(self, source: Any, name: str) -> tuple[Tensor, tuple[int, int]]:
        image = decode_image(source, name=name)
        return self.tiles(image), self.grid(image.shape[1], image.shape[2])


def _float32(value: float) -> float:
    return float(np.float32(value))


def _resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(image.shape[1:]) == size:
        return image
    return torch.nn.functional.interpolate(
        image[None], size, mode="bilinear", align_corners=False, antialias=True
    )[0]


def _tuple(values: Any, default: tuple[float, ...]) -> Any:
    """A JSON list as the tuple that `ImageProcessor` checks."""
    return default if values is None else tuple(values) if isinstance(values, list) else values


def _side(fields: Fields) -> int:
    """`size` as a number, as a pair, or as height and width."""
    size = fields.data.get("size")
    if size is None:
        return ImageProcessor.tile_size
    if not isinstance(size, Mapping):
        return fields.square("size", MAX_TILE_SIZE)
    sides = Fields(size, f"{fields.where}: size")
    height: int = sides.integer("height", 1, MAX_TILE_SIZE)
    sides.equal("height", height, "width", sides.integer("width", 1, MAX_TILE_SIZE, height))
    return height
