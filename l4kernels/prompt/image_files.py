"""Image files without their metadata: what the pixels depend on, the size and the orientation.

A profile, a comment or a tag that the model never sees must not cost the image, nor time or memory.
So the decoder is given only those parts of a file that decide its pixels, and of an animation only
the first frame; size and orientation are read here, before anything is decoded.
"""

import re
import struct
import zlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

MAX_PARTS = 1 << 19  # chunks, segments or blocks of one file
MAX_TAGS = 8  # blocks of EXIF or XMP that are searched


class Stripped(NamedTuple):
    """One picture of a file, ready for a decoder."""

    format: str  # as Pillow names it
    parts: list[bytes | memoryview]  # the file without what pixels do not depend on
    width: int  # as stored, before the orientation
    height: int
    orientation: int = 1  # of EXIF: 1 ... 8
    cost: int = 1  # of decoding a pixel, in time or memory; 1 is a plain pass over the pixels


def strip(content: bytes) -> Stripped | None:
    """The picture in a PNG, JPEG, GIF, WebP or BMP file, or None for any other content.

    Raises `ValueError`, `IndexError` or `struct.error` if the parts that matter are damaged.

    >>> bmp = b"BM" + bytes(12) + struct.pack("<IiiHHI", 40, 2, -1, 1, 24, 0) + bytes(20)
    >>> strip(bmp)[2:]
    (2, 1, 1, 1)
    """
    for magic, parse in _PARSERS.values():
        if re.match(magic, content, re.DOTALL):
            return parse(memoryview(content))
    return None


def orientation_of(tags: Iterable[bytes]) -> int:
    """The orientation in blocks of EXIF or XMP, 1 (upright) if none can be read."""
    found = (_exif_orientation(tag) or _xmp_orientation(tag) for tag in tags)
    return next(filter(None, found), 1)


def _exif_orientation(exif: bytes) -> int:
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return 0
    try:
        (at,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, at)
        for entry in range(at + 2, at + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", exif, entry)
            if tag == 0x0112:
                form = {1: "B", 3: "H", 4: "I"}.get(kind, "H")
                (value,) = struct.unpack_from(order + form, exif, entry + 8)
                return value if 1 <= value <= 8 else 0
    except (struct.error, TypeError):
        pass
    return 0


def _xmp_orientation(xmp: bytes) -> int:
    found = re.search(rb"tiff:Orientation(?:=[\"']|>)([1-8])[\"'<]", xmp)
    return int(found[1]) if found else 0


class _Budget:
    """Bounds the work on a file of countless tiny parts."""

    def __init__(self) -> None:
        self.left = MAX_PARTS

    def spend(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise ValueError(f"more than {MAX_PARTS:,} parts")


_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"


def _png(data: memoryview) -> Stripped:
    parts: list[bytes | memoryview] = [data[:8]]
    tags: list[bytes] = []
    kinds: set[bytes] = set()
    at, budget = 8, _Budget()
    width = height = depth = colour = 0
    while at + 12 <= len(data):
        budget.spend()
        length, kind = struct.unpack_from(">I4s", data, at)
        body, end = data[at + 8 : at + 8 + length], at + 12 + length
        # A palette beside true colours is only a suggestion.
        if kind in (b"IHDR", b"tRNS", b"IDAT") or (kind == b"PLTE" and colour == 3):
            if int.from_bytes(data[end - 4 : end], "big") != zlib.crc32(data[at + 4 : end - 4]):
                raise ValueError(f"{kind!r} is damaged")
            if (kind == b"IHDR") != (not kinds):
                raise ValueError("the header is missing or repeated")
            if kind == b"IHDR":
                width, height, depth, colour = struct.unpack_from(">IIBB", body)
            parts.append(_png_key(body, depth, colour) if kind == b"tRNS" else data[at:end])
            kinds.add(kind)
        elif kind == b"IEND":
            break
        elif kind in (b"eXIf", b"iTXt", b"tEXt", b"zTXt") and len(tags) < MAX_TAGS:
            tags += _png_tag(kind, bytes(body))
        at = end
    if b"IDAT" not in kinds or (colour == 3 and b"PLTE" not in kinds):
        raise ValueError("the pixels or their palette are missing")
    return Stripped("PNG", [*parts, _PNG_END], width, height, orientation_of(tags))


def _png_key(key: memoryview | bytes, depth: int, colour: int) -> bytes:
    """The tRNS chunk, a transparent colour in the 8 bits to which Pillow brings the pixels."""
    if colour == 0 and depth in (2, 4):
        level = struct.unpack(">H", key)[0] & ((1 << depth) - 1)
        key = struct.pack(">H", level * (255 // ((1 << depth) - 1)))
    elif colour == 2 and depth == 16:
        key = struct.pack(">3H", *(level >> 8 for level in struct.unpack(">3H", key)))
    elif colour in (4, 6):
        raise ValueError("a transparent colour beside an alpha channel")
    body = b"tRNS" + key
    return struct.pack(">I", len(key)) + body + struct.pack(">I", zlib.crc32(body))


def _png_tag(kind: bytes, body: bytes) -> list[bytes]:
    """What may tell the orientation: EXIF, XMP, or EXIF as ImageMagick writes it, in hex."""
    if kind == b"eXIf" or body.startswith(b"XML:com.adobe.xmp\0"):
        return [body]
    keyword, _, text = body.partition(b"\0")
    if keyword != b"Raw profile type exif":
        return []
    try:
        if kind == b"zTXt":
            text = zlib.decompressobj().decompress(text[1:], 1 << 20)
        return [bytes.fromhex(b"".join(text.split(b"\n")[3:]).decode())]
    except (ValueError, zlib.error):
        return [b""]


# Neither an escaped 0xff, nor fill, nor a marker that stands alone.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")


def _jpeg(data: memoryview) -> Stripped:
    parts: list[bytes | memoryview] = [data[:2]]
    exif: list[bytes] = []
    xmp = b""
    at, scans, budget = 2, 0, _Budget()
    size: tuple[int, int] | None = None
    while found := _JPEG_MARKER.search(data, at):
        # Between segments there is nothing, after one that is a scan its pixels.
        start = at if scans else found.start()
        kind, at = data[found.end() - 1], found.end()
        if kind == 0xD9:  # what follows are further pictures, such as a depth map
            parts.append(data[start:at])
            break
        budget.spend()
        (length,) = struct.unpack_from(">H", data, at)
        body, at = data[at + 2 : at + length], at + max(length, 2)
        if kind == 0xFE or (0xE0 <= kind <= 0xEF and not _sets_colours(kind, body)):
            if start < found.start():
                parts.append(data[start : found.start()])
            if kind == 0xE1 and bytes(body[:6]) == b"Exif\0\0":
                exif.append(bytes(body[6:]))  # a long one is cut into several segments
            elif kind == 0xE1:
                xmp = xmp or bytes(body)
            continue
        parts.append(data[start:at])
        if kind == 0xDA:
            scans += 1
        elif 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", body, 1)
            size = size or (width, height)
    if size is None or not scans or parts[-1][-2:] != b"\xff\xd9":
        raise ValueError("no frame, no scan or no end")
    return Stripped("JPEG", parts, *size, orientation_of([b"".join(exif), xmp]), scans)


def _sets_colours(kind: int, body: memoryview) -> bool:
    """JFIF and Adobe segments tell the decoder which colours the components are."""
    jfif = kind == 0xE0 and bytes(body[:5]) == b"JFIF\0" and len(body) >= 14
    return jfif or (kind == 0xEE and bytes(body[:5]) == b"Adobe" and len(body) >= 12)


def _gif(data: memoryview) -> Stripped:
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at, budget = 13 + _gif_table(flags), _Budget()
    parts: list[bytes | memoryview] = [data[:at]]
    while (lead := data[at]) != 0x2C:
        budget.spend()
        if lead == 0x3B:
            raise ValueError("no frame")
        if lead != 0x21:
            at += 1  # decoders skip what lies between blocks
            continue
        end = _gif_blocks(data, at + 2, budget)
        if data[at + 1] == 0xF9:  # names the transparent colour of the next frame
            parts.append(data[at:end])
        at = end
    left, top, columns, rows, flags = struct.unpack_from("<4HB", data, at + 1)
    end = _gif_blocks(data, at + 11 + _gif_table(flags), budget)
    width, height = max(width, left + columns), max(height, top + rows)
    return Stripped("GIF", [*parts, data[at:end], b";"], width, height)


def _gif_table(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _gif_blocks(data: memoryview, at: int, budget: _Budget) -> int:
    """Where the sequence of blocks at `at` ends."""
    budget.spend()
    while size := data[at]:
        at += size + 1
        budget.spend()
    return at + 1


def _webp(data: memoryview) -> Stripped:
    parts: list[bytes | memoryview] = []
    tags: list[bytes] = []
    size: tuple[int, int] | None = None
    at, framed, budget = 12, False, _Budget()
    stop = min(len(data), 8 + struct.unpack_from("<I", data, 4)[0])
    while at + 8 <= stop:
        kind, length = struct.unpack_from("<4sI", data, at)
        body, end = data[at + 8 : at + 8 + length], at + 8 + length + length % 2
        budget.spend()
        if kind == b"VP8X":
            # A frame of an animation has its own size, the canvas decides.
            size = _webp_canvas(body)
            # No profile, EXIF or XMP follows.
            parts += [data[at : at + 8], bytes([body[0] & ~0x2C]), body[1:]]
        elif kind in (b"VP8 ", b"VP8L", b"ALPH", b"ANIM") or (kind == b"ANMF" and not framed):
            framed = framed or kind == b"ANMF"
            if len(body) < length:
                raise ValueError(f"{kind!r} is cut off")
            size = size or _webp_frame(kind, body)
            parts += [data[at : at + 8], body, bytes(length % 2)]
        elif kind in (b"EXIF", b"XMP ") and len(tags) < MAX_TAGS:
            tags.append(bytes(body))
        at = end
    if size is None:
        raise ValueError("no frame")
    parts = [b"RIFF", struct.pack("<I", 4 + sum(map(len, parts))), b"WEBP", *parts]
    # Pillow's decoder holds four copies of the canvas.
    return Stripped("WEBP", parts, *size, orientation_of(tags), cost=40)


def _webp_canvas(body: memoryview) -> tuple[int, int]:
    _, width, high_width, height, high_height = struct.unpack("<IHBHB", body[:10])
    return (high_width << 16) + width + 1, (high_height << 16) + height + 1


def _webp_frame(kind: bytes, body: memoryview) -> tuple[int, int] | None:
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", body, 6)
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", body, 1)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return None


def _bmp(data: memoryview) -> Stripped:
    offset, header = struct.unpack_from("<II", data, 10)
    if header == 12:
        width, height, _, bits = struct.unpack_from("<4H", data, 18)
        compression = 0
    else:
        width, height, _, bits, compression = struct.unpack_from("<iiHHI", data, 18)
    height = abs(height)
    if compression in (1, 2):
        # Pillow reads run lengths in Python: 0.1 us a pixel, and time for runs of no pixels, too.
        # Two bytes for each pixel and each end of a row is the most that these need.
        longest = (1 << 16) + 2 * (width + 1) * height
        return Stripped("BMP", [data[:longest]], width, height, cost=400)
    if len(data) < offset + (width * bits + 31) // 32 * 4 * (height - 1) + (width * bits + 7) // 8:
        raise ValueError("the pixels are cut off")
    return Stripped("BMP", [data], width, height)


_PARSERS: dict[str, tuple[bytes, Callable[[memoryview], Stripped]]] = {
    "PNG": (rb"\x89PNG\r\n\x1a\n", _png),
    "JPEG": (rb"\xff\xd8\xff", _jpeg),
    "WEBP": (rb"RIFF....WEBP", _webp),
    "BMP": (rb"BM", _bmp),
    "GIF": (rb"GIF8[79]a", _gif),
}
IMAGE_FORMATS = tuple(_PARSERS)
