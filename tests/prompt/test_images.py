"""What may be given as an image, what its pixels mean, and what is refused by name."""

import gzip
import io
import os
import pathlib
import time
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

import l4kernels
from l4kernels import demo
from l4kernels.prompt import images
from l4kernels.prompt.chat import user_message
from l4kernels.prompt.images import ImageError, decode_image
from tests.support import pictures
from tests.support.pictures import chunk, noise, png, png_header, saved, words

WHITE = [255, 255, 255]


def of(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def pixel(source) -> list[int]:
    return decode_image(source)[:, 0, 0].tolist()


def test_every_source_of_one_image(tmp_path):
    image = noise(7, 5)
    array, content = np.asarray(image), saved(image)
    (tmp_path / "x.png").write_bytes(content)
    written = io.BytesIO()
    image.save(written, "PNG")  # leaves the position at the end
    sources = {
        "text path": str(tmp_path / "x.png"),
        "path": tmp_path / "x.png",
        "entry of a folder": next(os.scandir(tmp_path)),
        "bytes": content,
        "bytearray": bytearray(content),
        "memoryview": memoryview(content),
        "buffer": io.BytesIO(content),
        "buffer just written": written,
        "reader of ten bytes": Trickle(content),
        "Pillow": image,
        "Pillow, not loaded": Image.open(io.BytesIO(content)),
        "array": array,
        "reversed array": np.flip(np.ascontiguousarray(np.flip(array))),
        "read-only array": np.frombuffer(array.tobytes(), np.uint8).reshape(array.shape),
        "array with alpha": np.dstack([array, np.full(array.shape[:2], 255, np.uint8)]),
        "tensor": of(image),
    }
    strided = bytearray(2 * len(content))
    strided[::2] = content
    sources["strided memoryview"] = memoryview(strided)[::2]
    for name, source in sources.items():
        pixels = decode_image(source)
        assert torch.equal(pixels, of(image)) and pixels.dtype == torch.uint8, name
    for buffering in (0, -1):
        with open(tmp_path / "x.png", "rb", buffering=buffering) as stream:
            assert torch.equal(decode_image(stream), of(image))
    grey = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert torch.equal(decode_image(grey), torch.from_numpy(grey).expand(3, 2, 3))
    assert pixel(np.array([[[10, 20, 30, 0]]], np.uint8)) == WHITE


def test_the_prompter_takes_them_all():
    prompter = l4kernels.Prompter(demo.CHECKPOINT)
    content = saved(noise(8, 8))
    sources = [content, bytearray(content), memoryview(content), io.BytesIO(content)]
    sources += [noise(8, 8), np.asarray(noise(8, 8)), of(noise(8, 8))]
    prompt = prompter.chat([user_message("x", len(sources))], sources)
    first, *others = prompt.pixel_values
    assert len(others) == len(sources) - 1 and all(torch.equal(p, first) for p in others)
    for wrong in ("photo.png", pathlib.Path("photo.png"), noise(3, 3), of(noise(3, 3)), None):
        with pytest.raises(ValueError, match="expected a list of at least one image"):
            prompter.chat([user_message("x", 1)], wrong)


class Trickle:
    """A stream that gives little at a time and cannot seek."""

    def __init__(self, content: bytes):
        self.left = io.BytesIO(content)

    def read(self, size: int = -1) -> bytes:
        return self.left.read(min(size, 10) if size >= 0 else 10)


class Broken:
    def __init__(self, error: Exception):
        self.error = error

    def read(self, size: int = -1) -> bytes:
        raise self.error


@pytest.mark.parametrize(
    "source",
    [
        None, 3, 1.5, [], ["x.png"], {"path": "x.png"}, object(), io.StringIO("text"), io.BytesIO,
        Broken(OSError("gone")), Broken(zlib.error("bad")), Broken(RuntimeError()),
        gzip.GzipFile(fileobj=io.BytesIO(gzip.compress(bytes(100))[:-5])),
        np.zeros((4, 4, 3)), np.full((4, 4, 3), np.nan), np.zeros((4, 4, 3), np.int64),
        np.zeros((3, 5, 5), np.uint8), np.zeros((4, 4, 2), np.uint8), np.zeros(4, np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8), np.zeros((0, 4, 3), np.uint8), np.array("x"),
        np.array([[None]]), np.zeros((1, 40_000), np.uint8),
        torch.zeros(3, 4, 4), torch.full((3, 4, 4), torch.inf), torch.zeros(1, 3, 4, 4).byte(),
        torch.zeros(3, 0, 4).byte(), torch.zeros(3, 1, 40_000).byte(),
        torch.zeros(3, 4, 4).byte().to_sparse(),
        "", "http://example.org/a.png", "HTTPS://example.org/a.png", "file:///a.png",
        "data:image/png;base64,iVBORw0KGgo=", "s3://bucket/a.png", "a\0b", "x" * 10_000,
        "iVBORw0KGgo" * 100_000, b"", bytearray(), memoryview(b""), b"hello", io.BytesIO(),
    ],
)  # fmt: skip
def test_other_sources_are_refused_by_name(source):
    with pytest.raises(ImageError) as error:
        decode_image(source, name="upload 3")
    message = str(error.value)
    if isinstance(source, Broken):
        assert type(source.error).__name__ in message
    assert len(message) < 500 and ("upload 3" in message or isinstance(source, str))
    if isinstance(source, str) and ":/" in source:
        assert "URLs are not fetched" in message


def test_what_is_no_file(tmp_path):
    (tmp_path / "note.png").write_text("hello")
    (tmp_path / "empty.png").write_bytes(b"")
    Image.new("RGB", (2, 2)).save(tmp_path / "x.ppm")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "loop.png").symlink_to("loop.png")
    with open(tmp_path / "large.png", "wb") as large:
        large.truncate(10 << 30)
    opened = len(os.listdir("/proc/self/fd"))
    for name, message in {
        "note.png": "not an image",
        "empty.png": "not an image",
        "x.ppm": "not an image",
        "missing.png": "no such file",
        "note.png/x": "cannot be read",
        "pipe.png": "expected a regular file, got a pipe",
        "zero.png": "expected a regular file, got a device",
        "loop.png": "cannot be read",
        "large.png": "more than the 268,435,456 allowed",
        ".": "expected a regular file, got a folder",
    }.items():
        started = time.monotonic()
        with pytest.raises(ImageError, match=message) as error:
            decode_image(tmp_path / name)
        assert str(error.value).startswith(str(tmp_path / name).rstrip("/."))
        assert time.monotonic() - started < 2
    assert len(os.listdir("/proc/self/fd")) == opened


def test_endless_and_large_content(monkeypatch):
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 1000)
    with open("/dev/zero", "rb") as zero, pytest.raises(ImageError, match="the 1,000 allowed"):
        decode_image(zero)
    with pytest.raises(ImageError, match="more than the 1,000 allowed"):
        decode_image(saved(noise(30, 30)))


@pytest.mark.parametrize("side", [10_000, 50_000])
def test_decompression_bomb_is_refused_from_its_header(side, tmp_path):
    file = tmp_path / "bomb.png"
    file.write_bytes(png_header(side, side) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)))
    with pytest.raises(ImageError, match=r"bomb\.png.*80,000,000 pixels"):
        decode_image(file)


# Mode, stored value, and its meaning; the values are Pillow's own.
MODES = [
    ("1", 1, WHITE), ("1", 0, [0, 0, 0]), ("L", 77, [77] * 3),
    ("LA", (77, 255), [77] * 3), ("LA", (77, 0), WHITE), ("LA", (0, 128), [127] * 3),
    ("La", (77, 255), [77] * 3), ("La", (0, 0), WHITE), ("La", (64, 128), [191] * 3),
    ("RGB", (1, 2, 3), [1, 2, 3]), ("RGBX", (1, 2, 3, 0), [1, 2, 3]),
    ("RGBA", (1, 2, 3, 255), [1, 2, 3]), ("RGBA", (1, 2, 3, 0), WHITE),
    ("RGBA", (255, 0, 0, 128), [255, 127, 127]),
    ("RGBa", (1, 2, 3, 255), [1, 2, 3]), ("RGBa", (0, 0, 0, 0), WHITE),
    ("RGBa", (128, 0, 0, 128), [255, 127, 127]),
    ("CMYK", (255, 0, 0, 0), [0, 255, 255]), ("CMYK", (0, 0, 0, 255), [0, 0, 0]),
    ("YCbCr", (76, 85, 255), [254, 0, 0]), ("HSV", (85, 255, 255), [0, 255, 0]),
    ("I;16", 0x1234, [0x12] * 3), ("I;16", 0xFFFF, WHITE), ("I;16", 255, [0, 0, 0]),
    ("I;16L", 0x1234, [0x12] * 3), ("I;16B", 0x1234, [0x12] * 3), ("I;16N", 0x1234, [0x12] * 3),
]  # fmt: skip


@pytest.mark.parametrize(("mode", "value", "meaning"), MODES)
def test_what_a_mode_of_pillow_means(mode, value, meaning):
    image = Image.new(mode, (3, 2))
    for x in range(3):
        for y in range(2):
            image.putpixel((x, y), value)
    pixels = decode_image(image)
    assert pixels.shape == (3, 2, 3)
    assert (pixels.int() - torch.tensor(meaning).view(3, 1, 1)).abs().max() <= 1


def test_every_other_mode_of_pillow_is_refused_by_name():
    known = {mode for mode, _, _ in MODES} | {"P", "PA"}
    refused = set()
    for mode in {*Image.MODES, "I;16N", "BGR;15", "BGR;16", "BGR;24", "I;32B"} - known:
        try:
            image = Image.new(mode, (2, 2))
        except ValueError:  # unknown to this Pillow
            continue
        with pytest.raises(ImageError, match=f"mode {mode} has no agreed meaning"):
            decode_image(image)
        refused.add(mode)
    assert refused >= {"LAB", "I", "F"}


def test_palettes():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 0])
    image.putpixel((1, 0), 1)
    assert decode_image(image)[:, 0].T.tolist() == [[10, 20, 30], [200, 100, 0]]
    for transparency, first in ((0, WHITE), (b"\0", WHITE), (b"\xff", [10, 20, 30])):
        image.info["transparency"] = transparency
        assert decode_image(image)[:, 0].T.tolist() == [first, [200, 100, 0]]
    pa = Image.new("PA", (1, 1), (1, 0))
    pa.putpalette([10, 20, 30, 200, 100, 0])
    assert pixel(pa) == WHITE
    own = Image.new("P", (1, 1))
    own.putpalette([10, 20, 30, 0], "RGBA")  # alpha in the palette itself
    assert pixel(own) == WHITE
    assert decode_image(saved(noise(9, 9).quantize(16), "gif")).shape == (3, 9, 9)


TABLE = chunk(b"PLTE", bytes([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9]))
# Depth, colour type, a row, its chunks -> the pixels of the row.
PNGS = {
    "1 bit": (1, 0, b"\xa0", [], [255, 0, 255]),
    "2 bits": (2, 0, b"\x1b", [], [0, 85, 170, 255]),
    "4 bits": (4, 0, b"\x1f", [], [17, 255]),
    "8 bits": (8, 0, b"\x07", [], [7]),
    "16 bits": (16, 0, words(0x1234, 0xFFFF), [], [0x12, 255]),
    "1 bit, key": (1, 0, b"\x40", [chunk(b"tRNS", words(0))], [255, 255]),
    "2 bits, key": (2, 0, b"\x1b", [chunk(b"tRNS", words(1))], [0, 255, 170, 255]),
    "4 bits, key": (4, 0, b"\x12", [chunk(b"tRNS", words(2))], [17, 255]),
    "8 bits, key": (8, 0, b"\x07\x08", [chunk(b"tRNS", words(8))], [7, 255]),
    "16 bits, key": (16, 0, words(0x1234, 0x1235), [chunk(b"tRNS", words(0x1234))], [255, 0x12]),
    "palette of 1 bit": (1, 3, b"\x40", [TABLE], [(255, 0, 0), (0, 255, 0)]),
    "palette of 2 bits": (2, 3, b"\x60", [TABLE], [(0, 255, 0), (0, 0, 255)]),
    "palette of 4 bits": (4, 3, b"\x13", [TABLE], [(0, 255, 0), 9]),
    "palette of 8 bits": (8, 3, b"\x02", [TABLE], [(0, 0, 255)]),
    "palette with alpha": (8, 3, b"\0\1", [TABLE, chunk(b"tRNS", b"\0")], [255, (0, 255, 0)]),
    "half transparent": (8, 3, b"\0", [TABLE, chunk(b"tRNS", b"\x80")], [(255, 127, 127)]),
    "RGB": (8, 2, b"\1\2\3", [], [(1, 2, 3)]),
    "RGB, key": (8, 2, b"\1\2\3\4\5\6", [chunk(b"tRNS", words(1, 2, 3))], [255, (4, 5, 6)]),
    "RGB of 16 bits": (16, 2, words(0x1234, 0x8000, 0xFFFF), [], [(0x12, 0x80, 0xFF)]),
    "RGB of 16 bits, key": (16, 2, words(9, 512, 768), [chunk(b"tRNS", words(9, 512, 768))], [255]),
    "grey and alpha": (8, 4, b"\x07\xff\x07\0", [], [7, 255]),
    "grey and alpha of 16 bits": (16, 4, words(0x1234, 0xFFFF, 0x1234, 0), [], [0x12, 255]),
    "RGBA": (8, 6, b"\1\2\3\xff\1\2\3\0", [], [(1, 2, 3), 255]),
    "RGBA of 16 bits": (16, 6, words(0x100, 0x200, 0x300, 0xFFFF), [], [(1, 2, 3)]),
}  # fmt: skip


@pytest.mark.parametrize("case", PNGS)
def test_every_depth_and_colour_type_of_png(case):
    depth, colour, row, chunks, wanted = PNGS[case]
    pixels = decode_image(png([row], len(wanted), depth, colour, *chunks))
    assert pixels[:, 0].T.tolist() == [list(p) if isinstance(p, tuple) else [p] * 3 for p in wanted]


def test_png_without_what_its_pixels_depend_on():
    missing = png([b"\0"], 1, 8, 3)
    damaged = png([b"\0"], 1, 8, 3, TABLE, pictures.bad_crc(b"tRNS", b"\0"))
    twice = png([b"\0\0"], 1, 8, 4, chunk(b"tRNS", words(0)))
    for content in (missing, damaged, twice, png([b"\0"], 1, 8, 5), png([b"\0"], 1, 3, 0)):
        with pytest.raises(ImageError, match="truncated or damaged"):
            decode_image(content)


def test_cmyk_files_are_stored_inverted():
    content = saved(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "jpeg", quality=100)
    assert b"Adobe" in content and pixel(content) == [0, 255, 255]


def test_interlaced_bmp_and_gif_forms():
    image = noise(9, 7).quantize(8)
    assert torch.equal(
        decode_image(saved(image, "gif", interlace=1)),
        decode_image(saved(image, "gif", interlace=0)),
    )
    runs = pictures.rle_bmp(3, 2, b"\3\7\0\0\3\x09\0\1")
    assert decode_image(runs)[0].tolist() == [[9] * 3, [7] * 3]


def test_transparency_of_files_is_laid_over_white():
    rgba = Image.new("RGBA", (3, 2), (10, 200, 30, 128))
    assert torch.equal(decode_image(rgba), decode_image(saved(rgba)))
    assert torch.equal(decode_image(rgba), decode_image(saved(rgba, "lossless")))
    wide = np.zeros((700, 400, 4), np.uint8)  # several strips
    wide[..., 3] = np.arange(700)[:, None] % 256
    white = Image.new("RGBA", (400, 700), "white")
    wanted = Image.alpha_composite(white, Image.fromarray(wide)).convert("RGB")
    assert torch.equal(decode_image(wide), of(wanted))


def test_images_of_pillow_keep_the_promises_of_files(monkeypatch):
    content = saved(noise(64, 48), "jpeg")
    with pytest.raises(ImageError, match="photo: the image is truncated or damaged"):
        decode_image(Image.open(io.BytesIO(content[: len(content) // 2])), name="photo")
    closed = noise(4, 4)
    closed.close()
    with pytest.raises(ImageError, match="truncated or damaged"):
        decode_image(closed)
    with pytest.raises(ImageError, match="80,000,000 pixels"):
        decode_image(Image.new("1", (10_000, 10_000)))
    with pytest.raises(ImageError, match="32,768 pixels"):
        decode_image(Image.new("1", (1, 40_000)))
    with pytest.raises(ImageError, match="with pixels"):
        decode_image(Image.new("RGB", (0, 4)))
    for tags in (pictures.BROKEN_EXIF, b"Exif\0\0" + pictures.BROKEN_EXIF):
        odd = noise(6, 4)
        odd.info["exif"] = tags
        assert torch.equal(decode_image(odd), of(noise(6, 4)).flip(1).transpose(1, 2))
    odd = noise(6, 4)
    odd.info["exif"], odd.info["xmp"] = b"II*\0\xff", 7
    assert torch.equal(decode_image(odd), of(noise(6, 4)))


def test_a_lower_limit_of_the_process_is_no_damage(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for kind in pictures.IMAGE_FORMATS:
        with pytest.raises(ImageError, match=r"raise Image\.MAX_IMAGE_PIXELS"):
            decode_image(saved(noise(20, 20), kind))


def test_no_warning_and_no_change_of_the_process(recwarn):
    before = ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS
    for content in (pictures.png_header(9500, 9500), saved(noise(4, 4))):
        try:
            decode_image(content + chunk(b"IDAT", b""))
        except ImageError as error:
            assert "80,000,000" in str(error)
    assert not recwarn.list
    assert before == (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS)
