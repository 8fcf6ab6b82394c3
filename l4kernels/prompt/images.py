"""Images to pixels: whatever holds an image becomes uint8 [3, H, W], within bounds.

Files come from strangers. Their size is read from the header and checked before anything is
decoded, metadata never reaches a decoder, and the peak of memory is below 1 GB: about seven bytes
a pixel, of a progressive JPEG 12, of a WebP 16.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from l4kernels.inputs.extras import require
from l4kernels.inputs.files import open_regular
from l4kernels.prompt import image_files

if TYPE_CHECKING:
    from PIL import Image

MAX_FILE_BYTES = 256 << 20
MAX_PIXELS = 80_000_000  # just below the size at which Pillow itself warns of a bomb
# A row or column is resized to a tile's side before the other: a longer side would make more of an
# image than its pixels are.
MAX_SIDE = 32_768
MAX_COST = 20 * MAX_PIXELS  # 20 scans of a progressive JPEG of the largest size
STRIP_PIXELS = 1 << 17  # stays in a cache

# What the modes of Pillow's images mean: converted by Pillow, with transparency over white.
_EIGHT_BITS = (
    "1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV",
)  # fmt: skip
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")  # grey


class ImageError(ValueError):
    """The image cannot be used; the message names it and says why."""


def decode_image(source: Any, *, name: str = "image") -> Tensor:
    """The pixels of one image as uint8 `[3, H, W]` on the CPU.

    Args:
        source: a path (`str` or `Path`); the content of a file as bytes, bytearray, memoryview or a
            binary file object, which is read from its beginning; one of Pillow's images; a NumPy
            array uint8 `[H, W]` (grey), `[H, W, 3]` or `[H, W, 4]` (with alpha); or a tensor uint8
            `[3, H, W]`, whose memory the result shares.
        name: what messages call a source that has no path.

    A file is PNG, JPEG, WEBP, BMP or GIF; of an animation the first frame counts. Orientation tags
    are applied, transparency is laid over white, 16 bits become their high 8, and other metadata,
    colour profiles among them, has no effect.

    Raises:
        ImageError: anything else; a damaged image; more than `MAX_PIXELS`, a side above `MAX_SIDE`,
            a file above `MAX_FILE_BYTES`. URLs are not fetched.
        MissingExtra: Pillow is needed (for all but tensors) and not installed.

    >>> decode_image(np.full((2, 5), 7, np.uint8)).shape
    torch.Size([3, 2, 5])
    """
    if isinstance(source, Tensor):
        return _of_tensor(source, name)
    require("PIL", "vision")
    from PIL import Image

    if isinstance(source, np.ndarray):
        with _as_image_error(name):
            return _pixels(Image.fromarray(_checked_array(source, name)), 1, name)
    if isinstance(source, Image.Image):
        with _as_image_error(name):
            check_size(source.width, source.height, name)
            source.load()
            return _pixels(source, _orientation(source), name)
    if isinstance(source, (str, os.PathLike)):
        path = os.fsdecode(source)
        shown = path if len(path) <= 300 else f"{path[:200]}... ({len(path):,} characters)"
        return _decode(_read_path(path, shown), shown)
    if hasattr(source, "read"):
        return _decode(_read_stream(source, name), name)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decode(source, name)
    raise ImageError(
        f"{name}: expected a path, the bytes of a file, a binary file object, a Pillow image, a "
        f"NumPy array or a tensor, got {type(source).__name__}"
    )


def check_size(width: int, height: int, name: str = "image") -> None:
    """Raises `ImageError` unless the image has pixels, and neither too many nor too long a side."""
    if min(width, height) < 1:
        raise ImageError(f"{name}: expected an image with pixels, got {width} x {height}")
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{name}: {width} x {height}, more than the {MAX_PIXELS:,} pixels allowed; scale "
            f"the image down first"
        )
    if max(width, height) > MAX_SIDE:
        raise ImageError(
            f"{name}: {width} x {height}, a side longer than the {MAX_SIDE:,} pixels allowed; "
            f"scale the image down or cut it first"
        )


def _check_bytes(size: int, name: str) -> None:
    if size > MAX_FILE_BYTES:
        raise ImageError(f"{name}: {size:,} bytes, more than the {MAX_FILE_BYTES:,} allowed")


def _of_tensor(image: Tensor, name: str) -> Tensor:
    good = image.dtype == torch.uint8 and image.dim() == 3 and image.shape[0] == 3
    if not good or image.layout != torch.strided or image.is_meta:
        raise ImageError(
            f"{name}: expected an image as [3, H, W] uint8, got {list(image.shape)} {image.dtype} "
            f"on {image.device}"
        )
    check_size(image.shape[2], image.shape[1], name)
    return image.detach().cpu()


def _checked_array(image: np.ndarray, name: str) -> np.ndarray:
    shaped = image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (3, 4))
    if image.dtype != np.uint8 or not shaped:
        raise ImageError(
            f"{name}: expected a NumPy array uint8 [H, W], [H, W, 3] or [H, W, 4], got "
            f"{image.dtype} {list(image.shape)}"
        )
    check_size(image.shape[1], image.shape[0], name)
    return np.ascontiguousarray(image)


def _read_path(path: str, name: str) -> bytes:
    if re.match(r"data:|[A-Za-z][A-Za-z0-9+.-]*://", path):
        raise ImageError(f"{name}: URLs are not fetched; give the path or the bytes of the image")
    try:
        with open_regular(path, ImageError) as stream:
            _check_bytes(os.fstat(stream.fileno()).st_size, name)
            return _read_stream(stream, name)
    except FileNotFoundError:
        raise ImageError(f"{name}: no such file") from None
    except ImageError as error:
        raise ImageError(str(error).replace(path, name)) from None


def _read_stream(stream: Any, name: str) -> bytes:
    parts, left = [], MAX_FILE_BYTES + 1
    try:
        if hasattr(stream, "seekable") and stream.seekable():
            stream.seek(0)  # as Pillow does: often the image has just been written
        while left > 0 and (part := stream.read(left)):
            if not isinstance(part, (bytes, bytearray, memoryview)):
                raise ImageError(
                    f"{name}: expected a file object opened in binary mode, whose read gives "
                    f"bytes; got {type(part).__name__}"
                )
            parts.append(part)
            left -= len(part)
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # a stream's own: of a damaged archive, of a connection
        raise ImageError(f"{name}: cannot be read ({error!r:.200})") from error
    return b"".join(parts)


def _decode(content: bytes | bytearray | memoryview, name: str) -> Tensor:
    from PIL import Image

    _check_bytes(memoryview(content).nbytes, name)
    with _as_image_error(name):
        file = image_files.strip(bytes(content))
        if file is None:
            raise ImageError(
                f"{name}: not an image ({', '.join(image_files.IMAGE_FORMATS)} are read)"
            )
        check_size(file.width, file.height, name)
        if file.width * file.height * file.cost > MAX_COST:
            raise ImageError(
                f"{name}: {file.width} x {file.height}, encoded in a way that is too costly to "
                f"decode at this size; save it anew, as PNG for example"
            )
        form, orientation, stream = file.format, file.orientation, BytesIO(b"".join(file.parts))
        del content, file  # the decoder's copy is enough
        with Image.open(stream, formats=[form]) as image:
            check_size(image.width, image.height, name)
            image.load()
            stream.close()  # the file's memory
            return _pixels(image, orientation, name)


@contextmanager
def _as_image_error(name: str) -> Iterator[None]:
    """Decoders raise almost anything on damaged data, and their messages may hold addresses."""
    from PIL import Image

    try:
        yield
    except (ImageError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(
            f"{name}: more pixels than Pillow allows in this process; raise Image.MAX_IMAGE_PIXELS"
        ) from error
    except Exception as error:
        raise ImageError(f"{name}: the image is truncated or damaged") from error


def _orientation(image: "Image.Image") -> int:
    try:
        value = image.getexif().get(0x0112, 1)
    except Exception:  # metadata must not cost the image
        exif = image.info.get("exif")
        value = image_files.orientation_of([exif]) if isinstance(exif, bytes) else 1
    return value if isinstance(value, int) else 1


def _pixels(image: "Image.Image", orientation: int, name: str) -> Tensor:
    """Strip by strip, so that nothing but the result has the size of the image."""
    if image.mode not in _EIGHT_BITS + _SIXTEEN_BITS:
        raise ImageError(
            f"{name}: Pillow's mode {image.mode} has no agreed meaning as a picture; convert the "
            f"image to RGB first"
        )
    width, height = image.size
    sideways = orientation in (5, 6, 7, 8)
    pixels = np.empty((width, height, 3) if sideways else (height, width, 3), np.uint8)
    stored = pixels[:: -1 if orientation in (3, 4, 7, 8) else 1]
    stored = stored[:, :: -1 if orientation in (2, 3, 6, 7) else 1]
    stored = stored.swapaxes(0, 1) if sideways else stored
    rows = max(STRIP_PIXELS // width, 1)
    for top in range(0, height, rows):
        strip = image.crop((0, top, width, min(top + rows, height)))
        stored[top : top + rows] = _rgb(strip)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _rgb(image: "Image.Image") -> np.ndarray:
    """uint8 `[H, W, 3]`, or `[H, W, 1]` where the three are equal."""
    from PIL import Image

    if image.mode in _SIXTEEN_BITS:
        values = np.asarray(image)
        grey = (values >> 8).astype(np.uint8)
        grey[values == image.info.get("transparency", -1)] = 255
        return grey[:, :, None]
    if image.mode in ("La", "RGBa"):  # premultiplied
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
