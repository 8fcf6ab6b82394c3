"""Images to tiles: canvas choice, resizing, padding, normalising (spec: Llama 4's processor).

Pixel-for-pixel the canvas, tile order and resampling of Hugging Face's processor; normalising is
done in float32, where theirs rounds to bfloat16.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
MAX_PIXELS = 80_000_000  # just below the size at which Pillow itself warns of a bomb
MAX_FILE_BYTES = 256 << 20


class ImageError(ValueError):
    """The file is no image that can be used; the message names it."""


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
        for name, value, limit in (
            ("tile_size", self.tile_size, 4096),
            ("max_tiles", self.max_tiles, 256),
        ):
            if not isinstance(value, int) or not 1 <= value <= limit:
                raise ValueError(f"image processor: expected {name} in 1..{limit}, got {value!r}")
        for name, values in (("image_mean", self.mean), ("image_std", self.std)):
            if len(values) != 3 or not all(map(math.isfinite, values)):
                raise ValueError(
                    f"image processor: expected {name} to hold 3 numbers, got {values!r}"
                )
        if self.max_tiles * self.tile_size**2 > MAX_PIXELS:
            raise ValueError(
                f"image processor: expected a canvas of at most {MAX_PIXELS:,} pixels, got "
                f"{self.max_tiles} tiles of {self.tile_size} x {self.tile_size}"
            )
        if min(self.std) <= 0:
            raise ValueError(f"image processor: expected image_std above 0, got {self.std}")

    @classmethod
    def from_pretrained(cls, path: str | Path) -> "ImageProcessor":
        """Reads `preprocessor_config.json` or `processor_config.json` of a checkpoint."""
        path = Path(path)
        for name in ("preprocessor_config.json", "processor_config.json"):
            file = path / name
            if file.is_file():
                try:
                    content = json.loads(file.read_text(encoding="utf-8"))
                    return cls.from_dict(content.get("image_processor", content))
                except (ValueError, TypeError, KeyError, AttributeError) as error:
                    raise ValueError(f"{file}: {error}") from error
        raise FileNotFoundError(
            f"{path}: no preprocessor_config.json or processor_config.json, so images cannot be "
            f"prepared as this model was trained; copy the file from the original checkpoint"
        )

    @classmethod
    def from_dict(cls, content: dict) -> "ImageProcessor":
        size = content.get("size", {"height": 336, "width": 336})
        side = size.get("height") if isinstance(size, dict) else size
        if isinstance(size, dict) and size.get("width", side) != side:
            raise ValueError(f"expected square tiles, got size {size}")
        for name, wanted in (("resample", 2), ("rescale_factor", 1 / 255), ("do_normalize", True)):
            if content.get(name) not in (None, wanted):
                raise ValueError(f"only {name} = {wanted} is supported, got {content[name]!r}")
        return cls(
            tile_size=side,
            max_tiles=content.get("max_patches", 16),
            mean=tuple(float(x) for x in content.get("image_mean", (0.5, 0.5, 0.5))),
            std=tuple(float(x) for x in content.get("image_std", (0.5, 0.5, 0.5))),
            resize_to_max_canvas=bool(content.get("resize_to_max_canvas", False)),
        )

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """The canvas of an image, as (rows, cols) of tiles.

        The tightest canvas that holds the image undiminished, else the one that shrinks it least;
        the smallest area among equals. Ratios are float32, as in the original, because ties are.
        """
        choices = canvases(self.max_tiles)
        sides = torch.tensor(choices) * self.tile_size
        scales = torch.minimum(sides[:, 0] / height, sides[:, 1] / width)
        holds = scales >= 1
        if bool(holds.any()):
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

    def tiles(self, image: Tensor) -> Tensor:
        """`image` uint8 [3, H, W] -> float32 [tiles, 3, tile_size, tile_size], global tile last."""
        if image.dtype != torch.uint8 or image.dim() != 3 or image.shape[0] != 3:
            raise ImageError(
                f"expected an image as [3, H, W] uint8, got {list(image.shape)} {image.dtype}"
            )
        if 0 in image.shape:
            raise ImageError(f"expected an image with pixels, got {list(image.shape)}")
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
        mean = torch.tensor(self.mean).view(3, 1, 1)
        std = torch.tensor(self.std).view(3, 1, 1)
        return (tiles / 255 - mean) / std

    def __call__(self, images: Sequence[Tensor]) -> Tiles:
        """Prepares all images of a prompt: uint8 [3, H, W] each, in prompt order."""
        if not images:
            raise ValueError("expected at least one image, got none")
        grids = [self.grid(image.shape[1], image.shape[2]) for image in images]
        return Tiles(torch.cat([self.tiles(image) for image in images]), grids)


def _float32(value: float) -> float:
    return torch.tensor(value, dtype=torch.float32).item()


def _resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(image.shape[1:]) == size:
        return image
    return torch.nn.functional.interpolate(
        image[None], size, mode="bilinear", align_corners=False, antialias=True
    )[0]


def decode_image(source: Any, *, name: str | None = None) -> Tensor:
    """Decodes PNG, JPEG, WEBP, BMP or the first frame of a GIF to uint8 [3, H, W].

    `source` is a path, the bytes of a file, or one of Pillow's images. Orientation tags are applied
    and transparency is laid over white. Raises `ImageError`, naming the file, for anything else,
    for damaged files and for images above `MAX_PIXELS`; the size is read from the header, before
    any pixel is decoded. Pillow's own messages are not passed on, because they may hold addresses.
    """
    import warnings
    from io import BytesIO

    from l4kernels.model.extras import require

    require("PIL", "vision")
    import numpy as np
    from PIL import Image, ImageOps, UnidentifiedImageError

    def pixels_of(image: Image.Image) -> Tensor:
        pixels = np.array(_to_rgb(ImageOps.exif_transpose(image)))
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()

    if isinstance(source, Image.Image):
        return pixels_of(source)
    if isinstance(source, bytes):
        name = name or "image"
        stream, size = BytesIO(source), len(source)
    else:
        path = Path(source)
        name = name or str(path)
        if not path.exists():
            raise ImageError(f"{name}: no such file")
        if not path.is_file():
            raise ImageError(f"{name}: not a regular file")
        stream, size = path, path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise ImageError(f"{name}: {size:,} bytes, more than the {MAX_FILE_BYTES:,} allowed")
    too_large = f"more than the {MAX_PIXELS:,} pixels allowed; scale the image down first"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(stream, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ImageError(f"{name}: {image.width} x {image.height}, {too_large}")
                image.load()
                return pixels_of(image)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: {too_large}") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: not an image ({', '.join(FORMATS)} are read)") from error
    except Exception as error:  # decoders raise almost anything on damaged data
        raise ImageError(f"{name}: the image is truncated or damaged") from error


def _to_rgb(image):
    """Any mode to RGB, transparency over white."""
    from PIL import Image

    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
