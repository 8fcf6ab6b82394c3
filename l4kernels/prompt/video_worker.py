"""The process that decodes a video, within a budget of time, memory and files.

The decoders are large C libraries and the video is a stranger's. What they can do is limited by
the operating system: processor time, address space, and no file or connection but the two that the
process is born with. It imports neither torch nor the package.

Standard input is the file; arguments are the folder that holds PyAV, and a job in JSON. Standard
output gets a line of JSON about the video, then for each frame a line and its pixels; or one line
with `error`. An end without it is told by the exit status.
"""

import json
import resource
import struct
import sys
from array import array
from bisect import bisect_right
from collections.abc import Generator, Iterable, Iterator
from importlib import import_module
from io import FileIO
from pathlib import Path
from pkgutil import walk_packages
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

# Decoders by FFmpeg's names. A container with anything else is refused, not probed.
CODECS = (
    "h264", "hevc", "av1", "libdav1d", "vp8", "vp9", "mpeg4", "mpeg2video", "mpeg1video",
    "h263", "mjpeg", "prores", "gif",
)  # fmt: skip
MAX_PACKETS = 1 << 19
MAX_SECONDS = 24 * 3600
MAX_DECODED = 10_000
DAMAGED = "the video is truncated or damaged"


class Refused(Exception):
    """The video cannot be used; the message says why."""


class Packets(NamedTuple):
    """What the container says about its frames. Times are in units of the stream's time base."""

    times: "array[int]"  # of display, in the order of decoding
    keys: "array[int]"  # positions in `times` at which decoding may begin
    position: dict[int, int]  # in `times`, of each time at which something is shown
    start: int
    end: int


class Group(NamedTuple):
    """Packets that are decoded in a row, from a keyframe to the last frame that is wanted."""

    first: int
    last: int
    wanted: list[int]  # times


def open_video(stream: FileIO, job: dict[str, Any]) -> tuple["InputContainer", "VideoStream"]:
    import av
    from av.stream import Disposition

    stream.seek(0)
    # No protocol, no other container inside this one, no decoder beside these.
    limits = {
        "protocol_whitelist": "none",
        "format_whitelist": job["container"],
        "codec_whitelist": ",".join(CODECS),
    }
    # Opening decodes a frame to learn its size, which must not fail for those that are too large.
    probe = {"max_pixels": str(16 * job["max_pixels"]), "threads": "1"}
    container = av.open(
        stream,
        "r",
        format=job["container"],
        options=probe,
        container_options=limits,
        metadata_errors="replace",
    )
    pictures = Disposition.attached_pic | Disposition.timed_thumbnails  # covers and their like
    video = next((s for s in container.streams.video if not s.disposition & pictures), None)
    if video is None:
        raise Refused("the file holds no video")
    if video.codec_context is None or video.codec_context.name not in CODECS:
        name = "unknown" if video.codec_context is None else video.codec_context.name
        raise Refused(f"the video's codec is {name}, which is not read")
    check_size(video.codec_context.width, video.codec_context.height, job["max_pixels"])
    video.codec_context.options = {"max_pixels": str(job["max_pixels"])}
    video.codec_context.thread_count = 1
    return container, video


def check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise Refused(
            f"{width} x {height}, more than the {max_pixels:,} pixels allowed; scale the video "
            f"down first"
        )


def read_packets(container: "InputContainer", video: "VideoStream", clock: str) -> Packets:
    """Of one pass through the file, in which nothing is decoded."""
    times, keys = array("q"), array("q")
    position: dict[int, int] = {}
    end = step = 0
    for packet in container.demux(video):
        if packet.is_corrupt:
            raise Refused(DAMAGED)
        at, time = len(times), getattr(packet, clock)
        if packet.size:
            if time is None:
                raise Refused("the frames of the video have no times")
            if packet.is_keyframe or not keys:
                keys.append(at)
            if not packet.is_discard:  # by an edit list
                step = max(packet.duration or step, 0)
                end = max(end, time + step) if position else time + step
                position[time] = at
        times.append(time or 0)
        if at > MAX_PACKETS:
            raise Refused(f"more than {MAX_PACKETS:,} frames; cut the video first")
    # The last packet is one that tells decoders of the end. PyAV has the index from 17 on; before,
    # a file that ends just between two frames is taken as it is.
    index = getattr(video, "index_entries", ())
    if container.format.name.startswith("mov") and len(times) - 1 < len(index):
        raise Refused(DAMAGED)
    if not position:
        raise Refused("the video holds no frame")
    start = min(position)
    if (end - start) * (video.time_base or 1) > MAX_SECONDS:
        raise Refused(f"longer than {MAX_SECONDS // 3600} hours; cut the video first")
    return Packets(times, keys, position, start, end)


def choose(packets: Packets, count: int) -> list[int]:
    """Times of the frames that are shown in the middle of `count` equal parts; of few, all."""
    times = sorted(packets.position)
    if len(times) <= count:
        return times
    start, span = packets.start, packets.end - packets.start
    middles = [start + (2 * part + 1) * span // (2 * count) for part in range(count)]
    return sorted({times[bisect_right(times, middle) - 1] for middle in middles})


def plan(packets: Packets, wanted: Iterable[int]) -> list[Group]:
    """What has to be decoded for the frames of these times."""
    groups: dict[int, Group] = {}
    for time in wanted:
        at = packets.position[time]
        key = bisect_right(packets.keys, at) - 1
        # A frame that is shown before the keyframe it follows needs the keyframe before that.
        while key > 0 and packets.times[packets.keys[key]] > time:
            key -= 1
        first = packets.keys[max(key, 0)]
        group = groups.get(first, Group(first, at, []))
        groups[first] = Group(first, max(group.last, at), [*group.wanted, time])
    merged: list[Group] = []
    for first in sorted(groups):
        group = groups[first]
        if merged and first <= merged[-1].last:  # packets are read once
            before = merged.pop()
            last, times = max(before.last, group.last), sorted([*before.wanted, *group.wanted])
            group = Group(before.first, last, times)
        merged.append(group)
    decoded = sum(group.last - group.first + 1 for group in merged)
    if decoded > MAX_DECODED:
        raise Refused(
            f"{decoded:,} frames would have to be decoded, more than the {MAX_DECODED:,} allowed, "
            f"because keyframes are rare; ask for fewer frames, or encode the video anew"
        )
    return merged


def decode(
    container: "InputContainer", video: "VideoStream", groups: list[Group]
) -> Iterator[tuple[Group, Iterator["VideoFrame"]]]:
    """Each group with its frames, in the order of display. Packets between groups are passed over:
    no index of the file is trusted, and none is needed."""
    packets = enumerate(container.demux(video))

    def frames(group: Group) -> Generator["VideoFrame", None, None]:
        for at, packet in packets:
            if at >= group.first and packet.size:
                yield from video.codec_context.decode(packet)
            if at >= group.last:
                break
        yield from video.codec_context.decode(None)

    for group in groups:
        decoded = frames(group)
        yield group, decoded
        decoded.close()
        video.codec_context.flush_buffers()


def pick(
    frames: Iterable[tuple[int, "VideoFrame"]], wanted: list[int]
) -> Iterator[tuple[int, "VideoFrame"]]:
    """The frames that are shown at the times; the first one if nothing is shown yet.

    Usually their times are the wanted ones, but a packet may hold no frame that is shown.
    """
    left, before = list(wanted), None
    for time, frame in frames:
        while left and time >= left[0]:
            wanted_time = left.pop(0)
            if time == wanted_time or before is None:
                yield time, frame
            else:
                yield before
        before = time, frame
        if not left:
            break
    if left and before is not None:
        yield before


def orientation(frame: "VideoFrame") -> list[int]:
    """How the frame is to be turned: `[a, b, c, d]` of the display matrix, which takes the pixel at
    (x, y) to (ax + cy, bx + dy), if that turns by quarters or mirrors."""
    from av.sidedata.sidedata import Type

    extra: Any = frame.side_data
    try:
        matrix = struct.unpack("=9i", bytes(extra[Type.DISPLAYMATRIX]))
    except KeyError:
        return [1, 0, 0, 1]
    a, b, c, d = ((value > 0) - (value < 0) for value in (matrix[i] for i in (0, 1, 3, 4)))
    return [a, b, c, d] if abs(a) == abs(d) != abs(b) == abs(c) else [1, 0, 0, 1]


def pixels(frame: "VideoFrame") -> tuple[int, bytes]:
    """Channels (3, or 4 with alpha) and rows of a frame."""
    form = "rgba" if any(c.is_alpha for c in frame.format.components) else "rgb24"
    plane = frame.reformat(format=form).planes[0]
    channels = 4 if form == "rgba" else 3
    content, row = memoryview(plane), frame.width * channels
    starts = range(0, frame.height * plane.line_size, plane.line_size)
    return channels, b"".join(content[at : at + row] for at in starts)


def run(stream: FileIO, job: dict[str, Any], out: BinaryIO) -> None:
    clock = "dts" if job["container"] == "avi" else "pts"  # AVI has no times of display
    container, video = open_video(stream, job)
    packets = read_packets(container, video, clock)
    container.close()
    container, video = open_video(stream, job)
    groups = plan(packets, choose(packets, job["frames"]))
    unit = float(video.time_base or 1)
    send(out, {"seconds": (packets.end - packets.start) * unit})
    sent: set[int] = set()
    for group, frames in decode(container, video, groups):
        timed: Iterable[tuple[int, VideoFrame]]
        timed = ((frame.pts, frame) for frame in frames if frame.pts is not None)
        if clock == "dts":  # frames come in the order of display, at the times of the packets
            timed = zip(sorted(packets.times[group.first : group.last + 1]), frames, strict=False)
        for time, frame in pick(timed, group.wanted):
            if time in sent:
                continue
            sent.add(time)
            if frame.is_corrupt:
                raise Refused(DAMAGED)
            check_size(frame.width, frame.height, job["max_pixels"])
            channels, content = pixels(frame)
            about = {
                "seconds": (time - packets.start) * unit,
                "shape": [frame.height, frame.width, channels],
                "matrix": orientation(frame),
            }
            send(out, about, content)
    send(out, {"end": True})


def send(out: BinaryIO, about: dict[str, Any], content: bytes = b"") -> None:
    out.write(json.dumps(about).encode() + b"\n" + content)
    out.flush()


def limit(seconds: int, memory: int) -> None:
    """What is imported and open already stays; nothing else can be opened, connected or written."""
    try:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        used = 0
    limits = {
        resource.RLIMIT_AS: memory + used,
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_NOFILE: 3,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
    }
    for kind, most in limits.items():
        hard = resource.getrlimit(kind)[1]
        most = most if hard < 0 else min(most, hard)
        resource.setrlimit(kind, (most, most))


def main() -> None:
    sys.path.append(sys.argv[1])
    job = json.loads(sys.argv[2])
    import av

    for module in walk_packages(av.__path__, "av."):  # as long as files can be opened
        if not module.name.endswith("__main__"):
            import_module(module.name)
    av.logging.set_level(None)
    out = sys.stdout.buffer
    limit(job["seconds"], job["memory"])
    try:
        with open(0, "rb", buffering=0, closefd=False) as stream:
            run(stream, job, out)
    except Refused as error:
        send(out, {"error": str(error)})
    except MemoryError:
        send(out, {"error": f"needs more than {job['memory'] >> 20} MiB of memory"})
    except (AttributeError, ImportError) as error:
        send(out, {"error": f"PyAV {av.__version__} lacks what is needed here ({error})"})
    except Exception:  # decoders raise almost anything on damaged data
        send(out, {"error": DAMAGED})


if __name__ == "__main__":
    main()
