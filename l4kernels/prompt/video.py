"""Videos to frames, and frames to the parts of a message: what Llama 4 sees of a video.

A video is a few of its frames, as images with the times at which they are shown; sound is not
read. The file is a stranger's, so it is decoded in a process of its own (`video_worker`) that can
neither hang nor crash this one, nor open anything that the file names.
"""

import json
import os
import re
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from l4kernels.inputs.extras import require
from l4kernels.inputs.files import open_regular, shown
from l4kernels.prompt.renderer import interpreter, one_line

MAX_FILE_BYTES = 512 << 20
MAX_PIXELS = 9_437_184  # 4096 x 2304: the largest frame of H.264's level 5.2
FRAMES, MAX_FRAMES = 8, 128
SECONDS = 20  # of processor time for a video
MEMORY = 1536 << 20  # bytes of address space: 17 frames of the largest size in any format
PATIENCE = 60.0  # seconds of wall time, for a machine that gives the process no time
WORKER = Path(__file__).with_name("video_worker.py")
MAX_LINE = 4096  # bytes of what the process says about a frame
CONTAINERS = {  # FFmpeg's names and how a file begins
    "mov": rb".{4}(ftyp|moov|mdat|wide|free|skip)",
    "matroska": rb"\x1aE\xdf\xa3",
    "avi": rb"RIFF.{4}AVI ",
    "gif": rb"GIF8[79]a",
}


class VideoError(ValueError):
    """The video cannot be used; the message names it and says why."""


class Frame(NamedTuple):
    """A picture of a video."""

    seconds: float  # from the first frame
    pixels: Tensor  # uint8 [3, H, W]


class Video(NamedTuple):
    """Frames of a video, in the order of their times."""

    seconds: float  # from the first frame to the end of the last
    frames: list[Frame]


def container_of(content: bytes) -> str | None:
    """FFmpeg's name of the container that begins so, None if it is not one that is read.

    >>> container_of(b"RIFF....AVI LIST"), container_of(b"#EXTM3U")
    ('avi', None)
    """
    begins = (name for name, magic in CONTAINERS.items() if re.match(magic, content, re.DOTALL))
    return next(begins, None)


def sample_frames(
    source: Any,
    frames: int = FRAMES,
    *,
    name: str = "video",
    max_side: int | None = None,
    max_pixels: int = MAX_PIXELS,
    max_seconds: int = SECONDS,
) -> Video:
    """Frames of a video at evenly spaced times.

    Of `n` frames, frame `i` is the one shown in the middle of part `i` of `n` equal parts: at
    `(i + 1/2) / n` of the time from the first frame to the end of the last. One frame is then the
    middle of the video, and neither the first frame (often black) nor the last (often credits)
    takes a place, as with `linspace` over the frames. Times come from the file, so a video may
    have any rate or none. A frame that stands for several parts is given once; a video of at most
    `n` frames is given whole.

    Args:
        source: a path (`str` or `Path`), the content of a file as bytes, bytearray or memoryview,
            or a binary file object, which is read from its beginning.
        frames: at most so many, 1 to `MAX_FRAMES`.
        name: what messages call a source that has no path.
        max_side: frames with a longer side are scaled down to it, with their shape kept. A frame
            no larger than the image processor's tile becomes one tile, a larger one up to 17.
        max_pixels: of a frame as it is stored; larger ones are refused.
        max_seconds: of processor time. A short file can ask for any time.

    Containers are MP4 and QuickTime, WebM and Matroska, AVI and GIF; codecs those of
    `video_worker.CODECS`. Quarter turns and mirrors of the display matrix are applied,
    transparency is laid over white, pixels are taken as squares.

    Raises:
        VideoError: anything else; a damaged video; a file above `MAX_FILE_BYTES`; more time or
            more than `MEMORY` bytes to decode it. URLs are not fetched.
        MissingExtra: PyAV is needed and not installed.
    """
    if type(frames) is not int or not 1 <= frames <= MAX_FRAMES:
        raise VideoError(f"expected 1 to {MAX_FRAMES} frames of a video, got {shown(frames)}")
    require("av", "video")
    if isinstance(source, (str, os.PathLike)):
        name = os.fsdecode(source)
        name = name if len(name) <= 300 else f"{name[:200]}... ({len(name):,} characters)"
    with _opened(source, name) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > MAX_FILE_BYTES:
            raise VideoError(f"{name}: {size:,} bytes, more than the {MAX_FILE_BYTES:,} allowed")
        # The process shares the position in the file, so nothing here may depend on it.
        container = container_of(os.pread(stream.fileno(), 16, 0))
        if container is None:
            raise VideoError(f"{name}: not a video (MP4, QuickTime, WebM, Matroska, AVI, GIF)")
        job = {
            "container": container,
            "frames": frames,
            "max_pixels": max_pixels,
            "seconds": max_seconds,
            "memory": MEMORY,
        }
        try:
            with _Worker(stream, job, name) as worker:
                seconds = _seconds(worker.line())
                return Video(seconds, [*worker.frames(frames, max_pixels, max_side)])
        except VideoError:
            raise
        except (LookupError, TypeError, ValueError):
            raise VideoError(f"{name}: the video is damaged, it changed its decoder") from None


def video_parts(video: Video) -> tuple[list[dict[str, str]], list[Tensor]]:
    """A video as the parts of a message's content, and the images of their image parts.

    The times are text before each image, as no token of Llama 4 stands for a time.

    >>> still = Frame(61.5, torch.zeros(3, 4, 4, dtype=torch.uint8))
    >>> [part.get("text") for part in video_parts(Video(123.0, [still]))[0]]
    ['Video of 123.0 s, 1 frame:\\n[1:01.5]', None]
    """
    count = len(video.frames)
    head = f"Video of {video.seconds:.1f} s, {count} frame{'s' * (count != 1)}:\n"
    parts = []
    for number, frame in enumerate(video.frames):
        text = f"{head if number == 0 else ''}[{_clock(frame.seconds)}]"
        parts += [{"type": "text", "text": text}, {"type": "image"}]
    return parts, [frame.pixels for frame in video.frames]


def _clock(seconds: float) -> str:
    """`1:02:03.4`, the hours only if there are any."""
    minutes, tenths = divmod(round(seconds * 10), 600)
    hours, minutes = divmod(minutes, 60)
    text = f"{tenths // 10:02}.{tenths % 10}"
    return f"{hours}:{minutes:02}:{text}" if hours else f"{minutes}:{text}"


@contextmanager
def _opened(source: Any, name: str) -> Iterator[BinaryIO]:
    """The source as a file of the system, whose descriptor another process can have."""
    if isinstance(source, (str, os.PathLike)):
        path = os.fsdecode(source)
        if re.match(r"data:|[A-Za-z][A-Za-z0-9+.-]*://", path):
            raise VideoError(f"{name}: URLs are not fetched; give the path or bytes of the video")
        try:
            stream = open_regular(path, VideoError)
        except FileNotFoundError:
            raise VideoError(f"{name}: no such file") from None
        except VideoError as error:
            raise VideoError(str(error).replace(path, name)) from None
        with stream:
            yield stream
        return
    if isinstance(source, (bytes, bytearray, memoryview)):
        source = BytesIO(source)
    if not hasattr(source, "read"):
        raise VideoError(
            f"{name}: expected a path, the bytes of a file or a binary file object, got "
            f"{type(source).__name__}"
        )
    with _memory_file() as copy:
        _copy(source, copy, name)
        yield copy


def _memory_file() -> BinaryIO:
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("video"), "w+b")
    return tempfile.TemporaryFile()


def _copy(source: Any, copy: BinaryIO, name: str) -> None:
    left = MAX_FILE_BYTES + 1
    try:
        if hasattr(source, "seekable") and source.seekable():
            source.seek(0)
        while left > 0 and (part := source.read(min(left, 1 << 20))):
            copy.write(part)
            left -= len(part)
        copy.flush()
    except MemoryError:
        raise
    except Exception as error:  # a stream's own, or one that is not opened in binary mode
        raise VideoError(f"{name}: cannot be read ({error!r:.200})") from error


class _Worker:
    """The process that decodes, and what it says. Nothing that it says is trusted: what the
    decoder of a hostile video may have become is held to the form of a reply."""

    def __init__(self, stream: BinaryIO, job: dict[str, Any], name: str) -> None:
        self.name, self._seconds = name, job["seconds"]
        spec = find_spec("av")
        folder = str(Path(spec.origin).parent.parent) if spec and spec.origin else ""
        os.lseek(stream.fileno(), 0, os.SEEK_SET)
        try:
            self._process = subprocess.Popen(
                [interpreter(), "-I", "-S", str(WORKER), folder, json.dumps(job)],
                stdin=stream.fileno(),
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        except OSError as error:
            raise VideoError(f"{name}: the decoder cannot be started ({error})") from None
        self._late = threading.Timer(PATIENCE, self._give_up)
        self._gave_up = False

    def __enter__(self) -> "_Worker":
        self._late.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._late.cancel()
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def line(self) -> dict[str, Any]:
        """What the process says next; `VideoError` if that is an error, or nothing."""
        assert self._process.stdout is not None
        text = self._process.stdout.readline(MAX_LINE)
        if len(text) == MAX_LINE:
            raise ValueError("expected a short line")
        if not text.endswith(b"\n"):
            raise VideoError(f"{self.name}: {self._end()}")
        said: dict[str, Any] = json.loads(text)
        if "error" in said:
            raise VideoError(f"{self.name}: {one_line(str(said['error']))}")
        return said

    def frames(self, count: int, max_pixels: int, max_side: int | None) -> Iterator[Frame]:
        assert self._process.stdout is not None
        while "end" not in (said := self.line()):
            height, width, channels = said["shape"]
            count -= 1
            if count < 0 or not 0 < height * width <= max_pixels or channels not in (3, 4):
                raise ValueError("expected a frame within the limits")
            content = self._process.stdout.read(height * width * channels)
            if len(content) < height * width * channels:
                raise VideoError(f"{self.name}: {self._end()}")
            stored = np.frombuffer(content, np.uint8).reshape(height, width, channels)
            yield Frame(_seconds(said), _pixels(stored, said["matrix"], max_side))

    def _give_up(self) -> None:
        self._gave_up = True
        self._process.kill()

    def _end(self) -> str:
        status = self._process.wait()
        if self._gave_up:
            return f"is not decoded within {PATIENCE:g} s"
        if status in (-signal.SIGXCPU, -signal.SIGKILL):
            return (
                f"takes more than {self._seconds} s of processor time to decode; ask for fewer "
                f"frames, or encode the video anew: smaller, or with more keyframes"
            )
        return "the video is damaged, it ended its decoder"


def _seconds(said: dict[str, Any]) -> float:
    seconds = float(said["seconds"])
    if not 0 <= seconds < 1e6:
        raise ValueError("expected a time within the limits")
    return seconds


def _pixels(stored: np.ndarray, matrix: list[int], max_side: int | None) -> Tensor:
    """A frame as it is to be shown, uint8 `[3, H, W]`; from uint8 `[H, W, 3 or 4]`."""
    if stored.shape[2] == 4:
        colours, alpha = stored[:, :, :3].astype(np.uint16), stored[:, :, 3:].astype(np.uint16)
        stored = ((colours * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    pixels = torch.from_numpy(stored.copy()).permute(2, 0, 1)
    a, b, c, d = matrix
    if a == 0:
        pixels, a, d = pixels.transpose(1, 2), c, b
    pixels = pixels.flip([axis for axis, sign in ((1, d), (2, a)) if sign < 0])
    height, width = pixels.shape[1:]
    if max_side is None or max(height, width) <= max_side:
        return pixels
    scale = max_side / max(height, width)
    size = max(round(height * scale), 1), max(round(width * scale), 1)
    return torch.nn.functional.interpolate(
        pixels[None], size, mode="bilinear", align_corners=False, antialias=True
    )[0]
