"""Image files as strangers send them: odd metadata, damage, and small files of large images."""

import json
import os
import random
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps

from l4kernels.prompt import image_files
from l4kernels.prompt.image_processor import ImageProcessor
from l4kernels.prompt.images import ImageError, decode_image
from tests.support import pictures
from tests.support.pictures import (
    IMAGE_FORMATS,
    chunk,
    exif,
    jpeg_segment,
    noise,
    riff,
    saved,
    words,
)
from tools.nvcc import ROOT

SIZE = (40, 24)


def decoded_by_pillow(content: bytes) -> torch.Tensor:
    """The oracle, for files without metadata."""
    import io

    with Image.open(io.BytesIO(content)) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


@pytest.mark.parametrize("kind", IMAGE_FORMATS)
def test_what_the_model_never_sees_does_not_cost_the_image(kind):
    wanted = decoded_by_pillow(saved(noise(*SIZE), kind))
    for name, content in pictures.odd_metadata(kind, SIZE).items():
        started = time.process_time()
        assert torch.equal(decode_image(content, name=name), wanted), name
        assert time.process_time() - started < 2, name


def test_orientation_beside_a_broken_rational():
    """Pillow can read this orientation, but not write the tags back."""
    sound = saved(noise(*SIZE), "jpeg")
    turned = pictures.with_segments(sound, jpeg_segment(0xE1, b"Exif\0\0" + pictures.BROKEN_EXIF))
    assert torch.equal(decode_image(turned), decoded_by_pillow(sound).flip(1).transpose(1, 2))


JUNK = st.binary(max_size=80) | st.sampled_from(
    [b"Exif\0\0II*\0", b"ICC_PROFILE\0", b"MPF\0", b"Adobe", b"JFIF\0", b"Photoshop 3.0\x008BIM"]
)
LETTERS = st.text("ABCXYZabcxyz", min_size=3, max_size=3).map(str.encode)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(LETTERS, JUNK), max_size=4), st.integers(0, 255))
def test_metadata_of_any_content_changes_nothing(blocks, byte):
    for kind in ("png", "jpeg", "webp", "gif"):
        sound = saved(noise(8, 6), kind)
        if kind == "png":  # a small first letter: no decoder needs the chunk
            extra = [pictures.bad_crc(b"z" + name, data) for name, data in blocks]
            content = pictures.with_chunks(sound, *extra, last=byte % 2 == 1)
        elif kind == "jpeg":
            extra = [jpeg_segment(0xE1 + byte % 13, data) for _, data in blocks]
            content = pictures.with_segments(sound, *extra)
        elif kind == "webp":
            extra = [riff(b"z" + name, data) for name, data in blocks]
            content = pictures.with_riff(sound, 8, 6, *extra, riff(b"EXIF", bytes([byte])))
        else:
            extra = [b"!\xfe" + pictures.gif_blocks(data) for _, data in blocks]
            content = pictures.with_extensions(sound, *extra)
        assert torch.equal(decode_image(content), decode_image(sound)), kind


def tagged(way: str, orientation: int) -> bytes:
    """A sound file that tells its orientation in one of the ways in use."""
    little, big = exif(orientation), exif(orientation, order=">")
    xmp = pictures.XMP % orientation
    png, jpeg = (saved(noise(*SIZE), kind) for kind in ("png", "jpeg"))
    webp = saved(noise(*SIZE), "lossless")
    raw = f"\nexif\n{len(little):8}\n{little.hex()}\n".encode()
    if way.startswith("png"):
        return pictures.with_chunks(
            png,
            {
                "png": chunk(b"eXIf", little),
                "png, last": chunk(b"eXIf", big),
                "png, xmp": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
                "png, hex": chunk(b"tEXt", b"Raw profile type exif\0" + raw),
                "png, packed hex": chunk(
                    b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(raw)
                ),
            }[way],
            last=way == "png, last",
        )
    if way.startswith("webp"):
        extra = riff(b"XMP ", xmp) if way == "webp, xmp" else riff(b"EXIF", big)
        return pictures.with_riff(webp, *SIZE, extra)
    segments = {
        "jpeg": [b"Exif\0\0" + little],
        "jpeg, big-endian": [b"Exif\0\0" + big],
        "jpeg, two segments": [b"Exif\0\0" + big[:10], b"Exif\0\0" + big[10:]],
        "jpeg, xmp": [b"http://ns.adobe.com/xap/1.0/\0" + xmp],
    }[way]
    return pictures.with_segments(jpeg, *(jpeg_segment(0xE1, s) for s in segments))


WAYS = (
    "jpeg", "jpeg, big-endian", "jpeg, two segments", "jpeg, xmp", "png", "png, last", "png, xmp",
    "png, hex", "png, packed hex", "webp", "webp, xmp",
)  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_every_orientation_in_every_place(way):
    kind = way.split(",")[0]
    upright = saved(noise(*SIZE), "lossless" if kind == "webp" else kind)
    for orientation in (*range(10), 65535):
        pixels = decode_image(tagged(way, orientation))
        image = Image.fromarray(decoded_by_pillow(upright).permute(1, 2, 0).numpy())
        image.getexif()[0x0112] = orientation
        assert torch.equal(
            pixels, torch.from_numpy(np.array(ImageOps.exif_transpose(image))).permute(2, 0, 1)
        ), orientation


@pytest.mark.parametrize("kind", IMAGE_FORMATS)
def test_truncated_files_are_refused(kind, monkeypatch):
    """At every sixteenth, whatever the process has told Pillow to do about it."""
    whole = saved(noise(64, 48), kind)
    for tolerant in (False, True):
        monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", tolerant)
        for part in range(16):
            with pytest.raises(ImageError, match=r"^photo: (the image is trunc|not an image)"):
                decode_image(whole[: len(whole) * part // 16], name="photo")


@pytest.mark.parametrize("kind", IMAGE_FORMATS)
def test_flipped_bits_end_in_pixels_or_in_an_error(kind):
    whole, draw = saved(noise(16, 12), kind), random.Random(0)
    refused = 0
    for _ in range(150):
        at = draw.choice((draw.randrange(len(whole)), draw.randrange(60)))
        damaged = bytearray(whole)
        damaged[at] ^= 1 << draw.randrange(8)
        try:
            pixels = decode_image(bytes(damaged))
        except ImageError:
            refused += 1
        else:
            assert pixels.dtype == torch.uint8 and pixels.dim() == 3 and pixels.shape[0] == 3
    assert refused > 10


def test_every_flipped_bit_of_a_png_s_pixels_is_found():
    whole = saved(noise(6, 5))
    start, stop = whole.index(b"IDAT"), whole.rindex(b"IEND") - 4
    for bit in range(8 * start, 8 * stop):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ImageError, match="damaged"):
            decode_image(bytes(damaged))


def test_the_first_frame_of_what_has_several():
    frames = [Image.new("RGB", (9, 7), c) for c in ("red", "blue", "green")]
    more = {"save_all": True, "append_images": frames[1:]}
    files = {
        "gif": saved(frames[0], "gif", **more),
        "apng": saved(frames[0], "png", **more),
        "webp": saved(frames[0], "lossless", **more),
        "mpo": saved(frames[0], "jpeg", format="MPO", **more),
    }
    for name, content in files.items():
        pixels = decode_image(content)
        assert (pixels - torch.tensor([254, 0, 0]).view(3, 1, 1)).abs().max() <= 1, name
        assert len(b"".join(image_files.strip(content).parts)) < len(content), name


def test_run_lengths_are_read_as_far_as_a_picture_needs():
    single = pictures.rle_bmp(1, 30_000, b"\1\5\0\0" * 30_000)  # four bytes for each pixel
    assert decode_image(single).unique().tolist() == [5]
    for width, height in ((1, 30_000), (30_000, 1), (300, 300)):
        endless = pictures.rle_bmp(width, height, b"\0\2\0\0" * (1 << 20))
        read = len(b"".join(image_files.strip(endless).parts))
        assert read <= (1 << 16) + 2 * (width + 1) * height


def bombs() -> dict[str, bytes]:
    """Small files of large images or of much work."""
    start, scan = scans_of(2000)
    frame = saved(Image.new("L", (8, 8)), "jpeg")
    return {
        "1 x 10,000,000": pictures.png_bomb(1, 10_000_000),
        "1 x 79,999,999": pictures.png_bomb(1, 79_999_999, colour=0),
        "79,999,999 x 1": pictures.png_bomb(79_999_999, 1, colour=0),
        "10,000,000 x 8": pictures.png_bomb(10_000_000, 8),
        "32,769 x 1": pictures.png_bomb(32_769, 1),
        "80 M pixels + 1": pictures.png_bomb(1, 80_000_001, colour=0),
        "header of 4 G x 4 G": pictures.png_header(2**32 - 1, 2**32 - 1) + chunk(b"IDAT", b""),
        "no width": pictures.png_header(0, 7) + chunk(b"IDAT", b""),
        "two headers": pictures.png_header(9, 9) + pictures.png_header(2**31, 2**31)[8:],
        "countless chunks": pictures.png_header(9, 9) + chunk(b"tEXt", b"") * (1 << 20),
        "65,535 x 65,535": frame.replace(words(8, 8), words(65535, 65535)),
        "1 x 65,535": frame.replace(words(8, 8), words(65535, 1)),
        "no height": frame.replace(words(8, 8), words(0, 8)),
        "canvas of a gif": b"GIF89a" + b"\xff\xff\xff\xff\0\0\0,\0\0\0\0\1\0\1\0\0\2\2D\1\0;",
        "frame of a gif": b"GIF89a\1\0\1\0\0\0\0,\xff\xff\xff\xff\1\0\1\0\0\2\2D\1\0;",
        "countless blocks": b"GIF89a\1\0\1\0\0\0\0!\xfe" + b"\1a" * (1 << 20),
        "countless extensions": b"GIF89a\1\0\1\0\0\0\0" + b"!\xfe\0" * (1 << 20),
        "countless segments": b"\xff\xd8" + jpeg_segment(0xE1, b"") * (1 << 20),
        "a thousand scans": start + scan * 1000 + b"\xff\xd9",
        "largest webp": webp_bomb(16383, 4880),
        "canvas of a webp": pictures.with_riff(saved(noise(8, 8), "webp"), 1 << 24, 1 << 24),
        "run lengths": pictures.rle_bmp(2441, 32768, b"\1\5\0\0" * 32768),
        "runs of nothing": pictures.rle_bmp(9, 9, b"\0\2\0\0" * (16 << 20)),
        "bmp of 2 G x 2 G": b"BM" + bytes(12) + b"\x28\0\0\0\xff\xff\xff\x7f\xff\xff\xff\x7f" * 9,
        "largest bmp, cut off": pictures.rle_bmp(8944, 8944, b"")[:30] + bytes(1000),
    }


def webp_bomb(width: int, height: int) -> bytes:
    """The bits of one colour are those of any size, which the header tells."""
    small = bytearray(saved(Image.new("RGB", (8, 8)), "lossless"))
    small[21:25] = (width - 1 | (height - 1) << 14).to_bytes(4, "little")
    return bytes(small)


def largest() -> dict[str, bytes]:
    """What is just allowed."""
    start, scan = scans_of(2000)
    frame, packed = saved(Image.new("L", (8, 8)), "jpeg"), zlib.compress(b"0" * (1 << 20))
    return {
        "80 M pixels of RGBA": pictures.png_bomb(8944, 8944, 8, 6),
        "tall": pictures.png_bomb(1, 32_768),
        "wide": pictures.png_bomb(32_768, 1),
        "scans": start + scan * 380 + b"\xff\xd9",
        "1,000 parts of exif": pictures.with_segments(
            frame, jpeg_segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(65_000)) * 1000
        ),
        "10,000 packed profiles": pictures.with_chunks(
            saved(noise(8, 8)), chunk(b"zTXt", b"Raw profile type exif\0\0" + packed) * 10_000
        ),
    }


def scans_of(side: int) -> tuple[bytes, bytes]:
    """A progressive JPEG up to its last scan, and this scan, which may be repeated."""
    content = saved(Image.new("RGB", (side, side)), "progressive")
    last = content.rindex(b"\xff\xda")
    return content[:last], content[last:-2]


def test_bombs_are_refused_soon_and_in_little_memory():
    """In a process of its own, whose memory is only that of these files."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.prompt.test_image_files"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    refused, taken = json.loads(done.stdout)
    for row in refused:
        assert row["error"] == "ImageError" and row["seconds"] < 2 and row["megabytes"] < 400, row
    for row in taken:
        assert row["error"] == "" and row["seconds"] < 8 and row["megabytes"] < 700, row


def main() -> None:
    """Prints what each file costs on its way to Scout's tiles."""
    torch.set_num_threads(1)
    processor = ImageProcessor()
    processor([torch.zeros(3, 400, 400, dtype=torch.uint8)])  # what the first use costs
    print(json.dumps([[cost(processor, *f) for f in fs.items()] for fs in (bombs(), largest())]))


def cost(processor: ImageProcessor, name: str, content: bytes) -> dict:
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before, started, error = memory("VmRSS"), time.process_time(), ""
    try:
        processor([content])
    except Exception as problem:
        error = type(problem).__name__
    seconds, megabytes = time.process_time() - started, memory("VmHWM") - before
    return {"name": name, "error": error, "seconds": seconds, "megabytes": megabytes}


def memory(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) >> 10


if __name__ == "__main__":
    main()
