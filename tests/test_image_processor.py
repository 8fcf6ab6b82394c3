"""Images to tiles: the numbers of the original, and files that are no images."""

import io
import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from l4kernels.model import images
from l4kernels.model.chat import image_block
from l4kernels.model.image_processor import ImageProcessor, canvases
from l4kernels.model.images import ImageError, decode_image

HERE = Path(__file__).parent
# (width, height) -> (rows, cols), prompt tokens: from the published processor at 336 / 16 tiles.
GOLDEN = {
    (100, 80): ((1, 1), 147),
    (336, 336): ((1, 1), 147),
    (337, 336): ((1, 2), 437),
    (400, 300): ((1, 2), 437),
    (640, 480): ((2, 2), 727),
    (672, 672): ((2, 2), 727),
    (1024, 768): ((3, 4), 1887),
    (1920, 1080): ((3, 5), 2322),
    (3000, 2000): ((3, 5), 2322),
    (1500, 1500): ((4, 4), 2467),
    (500, 2000): ((6, 2), 1887),
    (4000, 300): ((1, 12), 1887),
    (30, 2000): ((6, 1), 1017),
}
CANVASES = (
    "1,16 2,8 1,4 4,4 3,3 2,2 1,1 8,2 4,1 16,1 1,15 3,5 5,3 15,1 1,14 2,7 7,2 14,1 1,13 13,1 1,12 "
    "2,6 1,3 3,4 4,3 6,2 3,1 12,1 1,11 11,1 1,10 2,5 5,2 10,1 1,9 9,1 1,8 2,4 1,2 4,2 2,1 8,1 1,7 "
    "7,1 1,6 2,3 3,2 6,1 1,5 5,1"
)


def test_canvases_in_order():
    assert " ".join(f"{r},{c}" for r, c in canvases(16)) == CANVASES


@pytest.mark.parametrize("size", GOLDEN)
def test_canvas_and_prompt_tokens(size):
    grid, tokens = GOLDEN[size]
    width, height = size
    assert ImageProcessor().grid(height, width) == grid
    assert len(image_block(grid, 144)) == tokens


def test_tiles_are_row_major_and_the_global_tile_is_last():
    image = torch.zeros(3, 64, 96, dtype=torch.uint8)
    for row in range(2):
        for col in range(3):
            image[:, row * 32 : row * 32 + 32, col * 32 : col * 32 + 32] = 40 * (3 * row + col)
    tiles = ImageProcessor(tile_size=32, max_tiles=6).tiles(image)
    assert tiles.shape == (7, 3, 32, 32)
    shown = ((tiles + 1) * 127.5).round()
    for index in range(6):
        assert (shown[index] == 40 * index).all()
    # The global tile is the whole image, squeezed: every tile's grey is somewhere in it.
    assert shown[6, 0, 0, 0] == 0 and shown[6, 0, -1, -1] == 200


def test_padding_is_black_at_the_right_and_bottom():
    image = torch.full((3, 20, 40), 255, dtype=torch.uint8)
    tiles = ImageProcessor(tile_size=32, max_tiles=4).tiles(image)  # canvas 32 x 64
    canvas = torch.cat([tiles[0], tiles[1]], dim=2)
    assert (canvas[:, :20, :40] == 1).all()
    assert (canvas[:, 20:] == -1).all() and (canvas[:, :, 40:] == -1).all()


def test_several_images_keep_their_order():
    processor = ImageProcessor(tile_size=32, max_tiles=4)
    dark = torch.zeros(3, 32, 32, dtype=torch.uint8)
    bright = torch.full((3, 32, 64), 255, dtype=torch.uint8)
    tiles = processor([dark, bright, dark])
    assert tiles.grids == [(1, 1), (1, 2), (1, 1)]
    assert [float(t.mean()) for t in tiles.pixel_values] == [-1, 1, 1, 1, -1]


def torchvision_folder() -> str | None:
    """Where a torchvision lies that only this test may see; "" if it is installed normally."""
    folder = Path(sys.prefix) / "oracles"
    if (folder / "torchvision").is_dir():
        return str(folder)
    try:
        import torchvision  # noqa: F401
    except ImportError:
        return None
    return ""


@pytest.mark.skipif(torchvision_folder() is None, reason="no torchvision (see requirements)")
def test_equals_hugging_face():
    path = os.pathsep.join(filter(None, [str(HERE.parent), torchvision_folder()]))
    done = subprocess.run(
        [sys.executable, HERE / "hf_image_parity.py"],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    rows = found["rows"]
    assert len([r for r in rows if r["tile"] == 336]) >= 30
    assert found["canvas_mismatches"] == []
    wrong = [r for r in rows if r["grid"] != r["hf_grid"] or r["difference"] > 1]
    assert wrong == []


def png(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def test_transparency_is_laid_over_white():
    rgba = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    rgba.putpixel((1, 0), (0, 0, 0, 128))
    pixels = decode_image(png(rgba))
    assert pixels[:, 0, 0].tolist() == [255, 255, 255]
    assert all(abs(v - 127) <= 1 for v in pixels[:, 0, 1].tolist())
    palette = Image.new("P", (1, 1), 0)
    assert decode_image(png(palette, transparency=0))[:, 0, 0].tolist() == [255, 255, 255]


def test_images_of_pillow_are_taken_as_files_are():
    rgba = Image.new("RGBA", (3, 2), (10, 200, 30, 128))
    assert torch.equal(decode_image(rgba), decode_image(png(rgba)))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "CMYK"])
def test_every_mode_becomes_rgb(mode, tmp_path):
    file = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    Image.new(mode, (5, 4)).save(file)
    assert decode_image(file).shape == (3, 4, 5)


def test_orientation_is_applied(tmp_path):
    image = Image.fromarray(np.zeros((4, 6, 3), np.uint8))
    exif = Image.Exif()
    exif[274] = 6  # turned by a quarter
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert decode_image(tmp_path / "turned.jpg").shape == (3, 6, 4)


def test_gif_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (4, 4), c) for c in ("red", "blue")]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert decode_image(tmp_path / "x.gif")[:, 0, 0].tolist() == [255, 0, 0]


def chunk(kind: bytes, data: bytes) -> bytes:
    body = kind + data
    return len(data).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")


def png_header(width: int, height: int) -> bytes:
    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size + b"\x08\x02\x00\x00\x00")


@pytest.mark.parametrize("side", [10_000, 50_000])
def test_decompression_bomb_is_refused_from_its_header(side, tmp_path):
    file = tmp_path / "bomb.png"
    file.write_bytes(png_header(side, side) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)))
    with pytest.raises(ImageError, match=r"bomb\.png.*80,000,000 pixels"):
        decode_image(file)


def test_compressed_text_bomb_is_refused(tmp_path):
    file = tmp_path / "text.png"
    text = b"k\0\0" + zlib.compress(b"\0" * (64 << 20))
    file.write_bytes(png_header(4, 4) + chunk(b"zTXt", text))
    with pytest.raises(ImageError, match=r"text\.png: the image is truncated or damaged"):
        decode_image(file)


def test_truncated_and_damaged_files(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    whole = png(Image.fromarray(noise))
    for name, data in {
        "half.png": whole[: len(whole) // 2],
        "flipped.png": whole[:60] + bytes([whole[60] ^ 255]) + whole[61:],
    }.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ImageError, match=f"{name}: the image is truncated or damaged"):
            decode_image(tmp_path / name)


def test_what_is_no_image(tmp_path):
    (tmp_path / "note.png").write_text("hello")
    (tmp_path / "empty.png").write_bytes(b"")
    Image.new("RGB", (2, 2)).save(tmp_path / "x.ppm")
    os.mkfifo(tmp_path / "pipe.png")
    for name, message in {
        "note.png": "not an image",
        "empty.png": "not an image",
        "x.ppm": "not an image",
        "missing.png": "no such file",
        "pipe.png": "not a regular file",
        ".": "not a regular file",
    }.items():
        with pytest.raises(ImageError, match=message):
            decode_image(tmp_path / name)
    with pytest.raises(ImageError, match="upload 3: not an image"):
        decode_image(b"hello", name="upload 3")


def test_file_size_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 10)
    with pytest.raises(ImageError, match="more than the 10 allowed"):
        decode_image(png(Image.new("RGB", (2, 2))))


def test_processor_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"preprocessor_config\.json"):
        ImageProcessor.from_pretrained(tmp_path)
    settings = {"size": {"height": 32, "width": 32}, "max_patches": 4}
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
    assert ImageProcessor.from_pretrained(tmp_path) == ImageProcessor(32, 4)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0, 0, 0]}))
    assert ImageProcessor.from_pretrained(tmp_path).mean == (0.0, 0.0, 0.0)
    tiny = {"resample": 2, "rescale_factor": 1 / 255, "do_normalize": None}
    assert ImageProcessor.from_dict(tiny) == ImageProcessor()


@pytest.mark.parametrize(
    "content",
    [
        {"size": {"height": 32, "width": 64}},
        {"size": {"height": 0}},
        {"size": "large"},
        {"max_patches": 10**9},
        {"image_std": [0, 1, 1]},
        {"image_mean": [1]},
        {"image_mean": 3},
        {"image_mean": [0.5, float("nan"), 0.5]},
        {"image_std": [float("inf"), 1, 1]},
        {"size": {"height": 4096}, "max_patches": 256},  # one canvas: 50 GB
        {"resample": 3},
        {"rescale_factor": 1},
        {"do_normalize": False},
        [],
    ],
)
def test_absurd_processor_files(content, tmp_path):
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"preprocessor_config\.json"):
        ImageProcessor.from_pretrained(tmp_path)


def test_tensors_that_are_no_images():
    processor = ImageProcessor()
    for bad in (torch.zeros(3, 4, 4), torch.zeros(4, 4, dtype=torch.uint8)):
        with pytest.raises(ImageError, match="uint8"):
            processor.tiles(bad)
    with pytest.raises(ImageError, match="with pixels"):
        processor.tiles(torch.zeros(3, 0, 4, dtype=torch.uint8))
