"""Image files made byte by byte, and sound ones with broken metadata."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
IMAGE_FORMATS = {
    "png": {"format": "PNG"},
    "jpeg": {"format": "JPEG", "quality": 95},
    "progressive": {"format": "JPEG", "progressive": True},
    "webp": {"format": "WEBP", "quality": 90},
    "lossless": {"format": "WEBP", "lossless": True},
    "gif": {"format": "GIF"},
    "bmp": {"format": "BMP"},
}


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def saved(image: Image.Image, kind: str = "png", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **IMAGE_FORMATS[kind] | options)
    return buffer.getvalue()


def words(*values: int) -> bytes:
    return struct.pack(f">{len(values)}H", *values)


def chunk(kind: bytes, data: bytes) -> bytes:
    body = kind + data
    return len(data).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")


def bad_crc(kind: bytes, data: bytes) -> bytes:
    return chunk(kind, data)[:-1] + b"!"


def png_header(width: int, height: int, depth: int = 8, colour: int = 2) -> bytes:
    return PNG_MAGIC + chunk(
        b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    )


def png(rows: list[bytes], width: int, depth: int, colour: int, *chunks: bytes) -> bytes:
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    header = png_header(width, len(rows), depth, colour)
    return b"".join([header, *chunks, chunk(b"IDAT", pixels), chunk(b"IEND", b"")])


def png_bomb(width: int, height: int, depth: int = 8, colour: int = 2) -> bytes:
    """A small file of an all-black image."""
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    size, packer = height * (1 + (width * bits + 7) // 8), zlib.compressobj(1)
    pixels = b"".join(packer.compress(bytes(1 << 20)) for _ in range(size >> 20))
    pixels += packer.compress(bytes(size % (1 << 20))) + packer.flush()
    return png_header(width, height, depth, colour) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def exif(orientation: int, *entries: bytes, order: str = "<") -> bytes:
    """A TIFF block whose first directory holds the entries, then the orientation."""
    magic = b"II*\0" if order == "<" else b"MM\0*"
    entry = struct.pack(order + "HHIHH", 0x0112, 3, 1, orientation, 0)
    count = struct.pack(order + "H", len(entries) + 1)
    return magic + struct.pack(order + "I", 8) + count + b"".join(entries) + entry + bytes(4)


def rational(tag: int, offset: int, order: str = "<") -> bytes:
    return struct.pack(order + "HHII", tag, 5, 1, offset)


# What Pillow (13) cannot write back, read, or get past: -1/0 is at the end of the block.
BROKEN_EXIF = exif(6, rational(0x011A, 38)) + struct.pack("<ii", -1, 0)
XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>'


def jpeg_segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def with_segments(jpeg: bytes, *segments: bytes) -> bytes:
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def with_chunks(png: bytes, *chunks: bytes, last: bool = False) -> bytes:
    at = png.rindex(b"IEND") - 4 if last else png.index(b"IDAT") - 4
    return png[:at] + b"".join(chunks) + png[at:]


def riff(kind: bytes, data: bytes) -> bytes:
    return kind + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)


def with_riff(webp: bytes, width: int, height: int, *chunks: bytes, flags: int = 0x2C) -> bytes:
    """The extended form of a simple WebP file, chunks of metadata at its end."""
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = riff(b"VP8X", bytes([flags, 0, 0, 0]) + sides) + webp[12:] + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def gif_blocks(data: bytes) -> bytes:
    parts = [data[i : i + 255] for i in range(0, len(data), 255)]
    return b"".join(bytes([len(p)]) + p for p in parts) + b"\0"


def with_extensions(gif: bytes, *extensions: bytes) -> bytes:
    """Extensions follow the header and its table."""
    at = 13 + (3 << ((gif[10] & 7) + 1) if gif[10] & 0x80 else 0)
    return b"GIF89a" + gif[6:at] + b"".join(extensions) + gif[at:]


def rle_bmp(width: int, height: int, runs: bytes) -> bytes:
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(runs), 0, 0, 256, 0)
    table = b"".join(bytes([i, i, i, 0]) for i in range(256))
    return b"BM" + struct.pack("<IHHI", 1078 + len(runs), 0, 0, 1078) + info + table + runs


def odd_metadata(kind: str, size: tuple[int, int]) -> dict[str, bytes]:
    """Sound pixels of `noise(*size)` with metadata that a reader may trip over."""
    sound = saved(noise(*size), kind)
    if kind in ("webp", "lossless"):
        return _odd_webp(sound, size)
    odd = {"png": _odd_png, "jpeg": _odd_jpeg, "progressive": _odd_jpeg, "gif": _odd_gif}
    return odd[kind](sound) if kind in odd else {"trailing noise": sound + bytes(range(256)) * 99}


def _odd_png(sound: bytes) -> dict[str, bytes]:
    bomb = zlib.compress(bytes(64 << 20))
    before = {
        "text with a bad CRC": bad_crc(b"tEXt", b"k\0v"),
        "compressed text of 64 MB": chunk(b"zTXt", b"k\0\0" + bomb),
        "text that does not inflate": chunk(b"zTXt", b"k\0\0abc"),
        "unknown compression": chunk(b"zTXt", b"k\0\7abc"),
        "international text of 64 MB": chunk(b"iTXt", b"k\0\1\0\0\0" + bomb),
        "text in no encoding": chunk(b"iTXt", b"k\0\0\0\xff\0\xff\0\xff"),
        "profile of 64 MB": chunk(b"iCCP", b"k\0\0" + bomb),
        "profile that does not inflate": chunk(b"iCCP", b"k\0\0abc"),
        "profile without a name": chunk(b"iCCP", b""),
        "short resolution": chunk(b"pHYs", b"\0"),
        "short gamma": chunk(b"gAMA", b""),
        "short colours": chunk(b"cHRM", b"abc"),
        "long sRGB": chunk(b"sRGB", b"abc"),
        "empty sRGB": chunk(b"sRGB", b""),
        "broken exif": chunk(b"eXIf", b"II*\0\xff\xff\xff\xff"),
        "empty exif": chunk(b"eXIf", b""),
        "bad animation": chunk(b"acTL", b"") + chunk(b"fcTL", b"x"),
        "endless animation": chunk(b"acTL", b"\xff" * 8),
        "suggested palette": bad_crc(b"PLTE", b"ab") + bad_crc(b"hIST", b""),
        "private chunk": bad_crc(b"prIv", b"x" * 100),
        "many texts": chunk(b"tEXt", b"k\0v") * 50_000,
    }
    files = {name: with_chunks(sound, extra) for name, extra in before.items()}
    files["text that is cut off"] = sound[:-12] + chunk(b"tEXt", b"k\0v" * 99)[:20]
    files["text of 4 GB after the pixels"] = sound[:-12] + b"\xff\xff\xff\xfftEXtk\0v"
    return files


def _odd_jpeg(sound: bytes) -> dict[str, bytes]:
    segments = {
        "exif with -1/0": (0xE1, b"Exif\0\0" + exif(1, rational(0x011A, 38)) + b"\xff" * 8),
        "exif of noise": (0xE1, b"Exif\0\0" + bytes(range(256))),
        "endless exif": (0xE1, b"Exif\0\0II*\0\x08\0\0\0\xff\xff"),
        "exif that turns in circles": (0xE1, b"Exif\0\0II*\0\x08\0\0\0\0\0\x08\0\0\0"),
        "empty exif": (0xE1, b"Exif\0\0"),
        "broken xmp": (0xE1, b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="\xff'),
        "short JFIF": (0xE0, b"JFIF"),
        "profile in part 7 of 3": (0xE2, b"ICC_PROFILE\0\x07\x03abc"),
        "profile in part 0 of 0": (0xE2, b"ICC_PROFILE\0\0\0"),
        "short profile": (0xE2, b"ICC_PROFILE\0"),
        "pictures that are missing": (0xE2, b"MPF\0II*\0\x08\0\0\0\xff\xff" + b"\xff" * 99),
        "short Photoshop": (0xED, b"Photoshop 3.0\x008BIM\x03\xed"),
        "short Adobe": (0xEE, b"Adobe\0"),
        "FlashPix": (0xE2, b"FPXR\0\xff"),
        "comment": (0xFE, b"\xff\xd9\xff\xd8" * 99),
    }
    files = {n: with_segments(sound, jpeg_segment(*s)) for n, s in segments.items()}
    files["many comments"] = with_segments(sound, jpeg_segment(0xFE, b"abc") * 100_000)
    files["segment longer than it says"] = sound[:2] + b"\xff\xe1\0\x04ab" + b"junk" + sound[2:]
    files["segment of no length"] = sound[:2] + b"\xff\xe1\0\0" + sound[2:]
    files["further pictures"] = sound + sound[: len(sound) // 2]
    return files


def _odd_webp(sound: bytes, size: tuple[int, int]) -> dict[str, bytes]:
    chunks = {
        "exif of noise": riff(b"EXIF", bytes(range(256))),
        "empty chunks": riff(b"EXIF", b"") + riff(b"ICCP", b"") + riff(b"XMP ", b""),
        "profile of noise": riff(b"ICCP", bytes(range(99))),
        "unknown chunk": riff(b"\xff\xff\xff\xff", b"abc"),
        "exif that is cut off": riff(b"EXIF", bytes(99))[:40],
        "xmp of 4 GB": b"XMP \xff\xff\xff\xff",
    }
    return {n: with_riff(sound, *size, c) for n, c in chunks.items()}


def _odd_gif(sound: bytes) -> dict[str, bytes]:
    extensions = {
        "comment of 4 MB": b"!\xfe" + gif_blocks(bytes(4 << 20)),
        "many comments": (b"!\xfe" + gif_blocks(b"abc")) * 20_000,
        "short loop": b"!\xff" + gif_blocks(b"NETSCAPE2.0") + b"!\xff\x0bNETSCAPE2.0\x01\x01\0",
        "unknown extension": b"!\x99" + gif_blocks(b"abc"),
        "filling": bytes(9) + b"!\xfe\0" + bytes(9),
        "plain text": b"!\x01" + gif_blocks(b"abc"),
    }
    return {n: with_extensions(sound, e) for n, e in extensions.items()}
