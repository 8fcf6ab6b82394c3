"""Small videos, encoded here: frame `i` of a test video is grey, of level `8 * i`."""

import io
from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np

STEP = 8
SIZE = (64, 48)
# Container as written, encoder, pixel format.
KINDS = {
    "mp4 mpeg4": ("mp4", "mpeg4", "yuv420p"),
    "mp4 h264 with B-frames": ("mp4", "libx264", "yuv420p"),
    "mp4 av1": ("mp4", "libsvtav1", "yuv420p"),
    "mov mjpeg": ("mov", "mjpeg", "yuvj420p"),
    "webm vp8": ("webm", "libvpx", "yuv420p"),
    "webm vp9": ("webm", "libvpx-vp9", "yuv420p"),
    "matroska h264": ("matroska", "libx264", "yuv420p"),
    "matroska ffv1": ("matroska", "ffv1", "yuv420p"),
    "avi mpeg4": ("avi", "mpeg4", "yuv420p"),
    "gif": ("gif", "gif", "rgb8"),
}


def grey(level: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.full((size[1], size[0], 3), level % 256, np.uint8)


def encoded(
    kind: str,
    pictures: Sequence[np.ndarray],
    *,
    rate: int = 10,
    times: Sequence[int] | None = None,
    keyframes: int | None = None,
    matrix: Sequence[int] | None = None,
    options: dict[str, str] | None = None,
    metadata: dict[str, str] | None = None,
) -> bytes:
    """A video of pictures uint8 `[H, W, 3]`, at `rate` a second or at `times` in milliseconds, with
    a keyframe every so many frames, a display matrix, options of the encoder."""
    form, codec, pixels = KINDS[kind]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=form) as container:
        container.metadata.update(metadata or {})
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.pix_fmt = pixels
        stream.height, stream.width = pictures[0].shape[:2]
        if keyframes:
            stream.codec_context.gop_size = keyframes
        if matrix:
            stream.set_display_matrix(matrix)
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if times:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def numbered(kind: str, count: int, **options) -> bytes:
    return encoded(kind, [grey(STEP * number) for number in range(count)], **options)


def numbers(frames) -> list[int]:
    """The numbers of the frames of such a video."""
    return [round(frame.pixels.float().mean().item() / STEP) for frame in frames]


def sound(form: str = "mp4") -> bytes:
    """A file with sound alone."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=form) as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), "fltp", "mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()
