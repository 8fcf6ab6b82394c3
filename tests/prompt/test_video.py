"""Videos to frames: which ones, how turned, and what hostile files may cost."""

import io
import os
import random
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from l4kernels.model.config import Llama4Config
from l4kernels.prompt import video, video_worker
from l4kernels.prompt.chat import Prompter, user_message
from l4kernels.prompt.chat_template import ChatError
from l4kernels.prompt.image_processor import ImageProcessor
from l4kernels.prompt.video import Frame, Video, VideoError, sample_frames, video_parts
from tests.support import tiny
from tests.support.deadlines import within
from tests.support.videos import KINDS, STEP, encoded, grey, numbered, numbers, sound


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "ffv1" not in kind])
def test_the_middles_of_equal_parts(kind):
    found = sample_frames(numbered(kind, 30, keyframes=5), 4)
    assert numbers(found.frames) == [3, 11, 18, 26]  # at 0.375, 1.125, 1.875 and 2.625 s
    assert [frame.seconds for frame in found.frames] == pytest.approx([0.3, 1.1, 1.8, 2.6])
    assert found.seconds == pytest.approx(3, abs=0.02)


def test_one_frame_is_the_middle_and_few_frames_are_all():
    content = numbered("mp4 h264 with B-frames", 9)
    assert numbers(sample_frames(content, 1).frames) == [4]
    for count in (9, 10, video.MAX_FRAMES):
        assert numbers(sample_frames(content, count).frames) == [*range(9)]
    (only,) = sample_frames(numbered("webm vp9", 1), 8).frames
    assert only.seconds == 0 and only.pixels.shape == (3, 48, 64)


@pytest.mark.parametrize("kind", ["mp4 mpeg4", "webm vp9", "matroska h264"])
def test_a_variable_rate_is_sampled_by_its_times(kind):
    times = [0, 100, 110, 3000, 3500, 3600]
    content = numbered(kind, 6, times=times)
    every = sample_frames(content, 8)
    assert numbers(every.frames) == [*range(6)]
    assert [frame.seconds for frame in every.frames] == pytest.approx([t / 1000 for t in times])
    # Parts of 0.9 s and a bit: what stands for two of them is given once.
    assert numbers(sample_frames(content, 4).frames) == [2, 3]


def test_times_count_from_the_first_frame():
    content = numbered("webm vp8", 3, times=[70_000, 70_100, 70_200])
    found = sample_frames(content, 3)
    assert [f.seconds for f in found.frames] == pytest.approx([0, 0.1, 0.2])
    assert found.seconds == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize(
    "turn",
    [
        *[(1, 0, 0, 1), (-1, 0, 0, 1), (1, 0, 0, -1), (-1, 0, 0, -1)],
        *[(0, 1, 1, 0), (0, 1, -1, 0), (0, -1, 1, 0), (0, -1, -1, 0)],
    ],
)
def test_quarter_turns_and_mirrors(turn):
    a, b, c, d = turn
    picture = np.zeros((32, 64, 3), np.uint8)
    picture[:16, :16] = (255, 0, 0)  # a red corner, and a blue one beside it
    picture[:16, 48:] = (0, 0, 255)
    one = 1 << 16
    matrix = [a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30]
    (frame,) = sample_frames(encoded("mp4 mpeg4", [picture], matrix=matrix), 1).frames
    height, width = (32, 64) if a else (64, 32)
    assert frame.pixels.shape == (3, height, width)
    for (x, y), channel in (((8, 8), 0), ((56, 8), 2)):
        to_x, to_y = a * x + c * y, b * x + d * y
        pixel = frame.pixels[:, to_y % height, to_x % width].tolist()
        assert pixel[channel] > 180 and sum(pixel) - pixel[channel] < 120, (turn, pixel)


def test_a_slanted_matrix_is_no_turn():
    matrix = [46341, 46341, 0, -46341, 46341, 0, 0, 0, 1 << 30]
    (frame,) = sample_frames(numbered("mp4 mpeg4", 1, matrix=matrix), 1).frames
    assert frame.pixels.shape == (3, 48, 64)


def test_transparency_is_laid_over_white():
    from PIL import Image

    clear = Image.new("RGBA", (20, 10), (0, 0, 0, 0))
    clear.paste((200, 0, 0, 255), (0, 0, 10, 10))
    file = io.BytesIO()
    clear.save(file, "GIF")
    (frame,) = sample_frames(file, 1).frames
    assert frame.pixels[:, 5, 15].tolist() == [255, 255, 255]
    assert frame.pixels[:, 5, 5].tolist() == pytest.approx([200, 0, 0], abs=8)


@pytest.mark.parametrize("size", [(640, 360), (30, 20), (48, 200), (1000, 2)])
def test_a_frame_costs_one_tile(size):
    processor = ImageProcessor(tile_size=48)
    content = encoded("mp4 mpeg4", [grey(100, size)])
    (frame,) = sample_frames(content, 1, max_side=48).frames
    assert max(frame.pixels.shape[1:]) <= 48 and min(frame.pixels.shape[1:]) >= 1
    assert abs(frame.pixels.float().mean().item() - 100) < 3
    assert processor.tiles(frame.pixels).shape[0] == 1
    if size == (640, 360):
        assert frame.pixels.shape == (3, 27, 48)
        assert processor.tiles(sample_frames(content, 1).frames[0].pixels).shape[0] > 1


def test_every_source_is_the_same_video(tmp_path):
    content = numbered("webm vp9", 4)
    (tmp_path / "clip").write_bytes(content)

    class OneByOne:
        """A stream that cannot seek and gives what it likes."""

        def __init__(self):
            self.left = io.BytesIO(content)

        def read(self, size):
            return self.left.read(min(size, 777))

    half_read = io.BytesIO(content)
    half_read.read(100)
    sources = [tmp_path / "clip", str(tmp_path / "clip"), bytearray(content), memoryview(content)]
    for source in [*sources, half_read, OneByOne()]:
        assert numbers(sample_frames(source, 4).frames) == [0, 1, 2, 3]


def cut(kind: str, share: float) -> bytes:
    content = encoded(kind, list(noise(20)))
    return content[: int(len(content) * share)]


def noise(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (count, 48, 64, 3), dtype=np.uint8)


def patched(content: bytes, old: bytes, new: bytes) -> bytes:
    assert content.count(old) >= 1 and len(old) == len(new)
    return content.replace(old, new)


def huge(kind: str) -> bytes:
    """A small file that says its frames are large."""
    content = numbered(kind, 3)
    if kind == "mov mjpeg":  # 65,500 pixels wide and high by the header of each picture
        return patched(content, b"\x08" + struct.pack(">HH", 48, 64), b"\x08\xff\xdc\xff\xdc")
    if kind == "webm vp8":  # in the container, and in the keyframe
        content = patched(content, b"\xb0\x81\x40\xba\x81\x30", b"\xb0\x81\x41\xba\x81\x31")
        start = struct.pack("<HH", 64, 48)
        return patched(content, b"\x9d\x01\x2a" + start, b"\x9d\x01\x2a\xff\x3f\xff\x3f")
    return patched(content, struct.pack("<HH", 64, 48), struct.pack("<HH", 65500, 65500))


BAD = {
    "nothing": (lambda: b"", "not a video"),
    "garbage": (lambda: random.Random(0).randbytes(5000), "not a video"),
    "garbage behind a good start": (lambda: b"\0\0\0\x18ftypisom" + bytes(5000), "damaged"),
    "a playlist": (lambda: b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "not a video"),
    "a list of files": (lambda: b"ffconcat version 1.0\nfile /etc/passwd\n", "not a video"),
    "a text": (lambda: b"hello " * 99, "not a video"),
    "a picture": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(99), "not a video"),
    "sound": (sound, "holds no video"),
    "sound in matroska": (lambda: sound("matroska"), "holds no video"),
    "an mp4 without its index": (lambda: cut("mp4 mpeg4", 0.6), "damaged"),
    "an avi that ends early": (lambda: cut("avi mpeg4", 0.6), "damaged"),
    "another codec": (lambda: encoded("matroska ffv1", [grey(0)]), "codec is ffv1"),
    "a webm of its header": (lambda: numbered("webm vp9", 3)[:200], "damaged|no frame|no video"),
    "large frames": (
        lambda: encoded("mov mjpeg", [grey(0, (7680, 4320))]),
        "7680 x 4320, more than the 9,437,184 pixels",
    ),
    "huge frames of mov": (lambda: huge("mov mjpeg"), "damaged"),
    "huge frames of gif": (lambda: huge("gif"), "damaged"),
    "huge frames within webm": (lambda: huge("webm vp8"), "pixels allowed|damaged"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files(case):
    make, message = BAD[case]
    content = make()
    with pytest.raises(VideoError, match=f"^holiday: .*({message})"):
        within(10, lambda: sample_frames(content, 4, name="holiday"))


@pytest.mark.parametrize("kind", ["webm vp8", "matroska h264", "gif"])
def test_a_recording_that_ends_early_is_what_it_holds(kind):
    found = sample_frames(cut(kind, 0.7), 30)
    assert 5 < len(found.frames) < 20


def test_an_mp4_that_lost_whole_frames(tmp_path):
    import av

    with av.open(str(tmp_path / "a.mp4"), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for picture in noise(9):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode())
    content = (tmp_path / "a.mp4").read_bytes()
    with av.open(io.BytesIO(content)) as container:
        last = [packet for packet in container.demux(video=0) if packet.size][-1]
    assert len(sample_frames(content, 9).frames) == 9
    with pytest.raises(VideoError, match="damaged"):
        sample_frames(content[: last.pos], 9)


BAD_SOURCES = {
    "a URL": ("http://127.0.0.1/a.mp4", "URLs are not fetched"),
    "a data URI": ("data:video/mp4;base64,AAAA", "URLs are not fetched"),
    "a protocol": ("concat:/etc/passwd|/etc/group", "no such file"),
    "no file": ("/nowhere/a.mp4", "/nowhere/a.mp4: no such file"),
    "a folder": ("/", "expected a regular file, got a folder"),
    "a device": ("/dev/zero", "expected a regular file, got a device"),
    "a name that no file has": ("a\0b", "cannot be read"),
    "text": (io.StringIO("abc"), "clip: cannot be read"),
    "a number": (5, "clip: expected a path, the bytes"),
    "none": (None, "clip: expected a path, the bytes"),
}


@pytest.mark.parametrize("case", BAD_SOURCES)
def test_bad_sources(case):
    source, message = BAD_SOURCES[case]
    with pytest.raises(VideoError, match=message):
        within(10, lambda: sample_frames(source, name="clip"))


@pytest.mark.parametrize("frames", [0, -1, video.MAX_FRAMES + 1, 2.0, True, "8", None])
def test_bad_numbers_of_frames(frames):
    with pytest.raises(VideoError, match=r"expected 1 to 128 frames"):
        sample_frames(b"", frames)


def test_limits(monkeypatch, tmp_path):
    content = numbered("mp4 mpeg4", 30, keyframes=100)
    with pytest.raises(VideoError, match="64 x 48, more than the 3,000 pixels"):
        sample_frames(content, max_pixels=3000)
    monkeypatch.setattr(video, "MEMORY", 1 << 20)
    with pytest.raises(VideoError, match=r"needs more than 1 MiB|damaged"):
        sample_frames(encoded("mp4 mpeg4", [grey(9, (1280, 720))]))
    monkeypatch.undo()
    monkeypatch.setattr(video, "MAX_FILE_BYTES", len(content) - 1)
    (tmp_path / "a.mp4").write_bytes(content)
    for source in (content, io.BytesIO(content), tmp_path / "a.mp4"):
        with pytest.raises(VideoError, match="bytes, more than the"):
            sample_frames(source)


WORKERS = {
    "crashes": ("import os; os.abort()", "ended its decoder"),
    "needs all its time": (
        "import resource as r; r.setrlimit(r.RLIMIT_CPU, (1, 1))\nwhile True: pass",
        "more than 20 s of processor time",
    ),
    "says nothing": ("", "ended its decoder"),
    "never ends its line": ("print('x' * 99999)", "changed its decoder"),
    "speaks otherwise": ("print('hello')", "changed its decoder"),
    "has no time": ("print('{\"seconds\": null}')", "changed its decoder"),
    "lasts for ever": ("print('{\"seconds\": 1e999}')", "changed its decoder"),
    "controls the terminal": (
        'print(\'{"error": "\\\\u001b[2J"}\')',
        r"clip: \\x1b\[2J$",
    ),
    "gives a huge frame": (
        'print(\'{"seconds": 1}\'); print(\'{"seconds": 1, "shape": [99999, 99999, 3]}\')',
        "changed its decoder",
    ),
    "gives less than it says": (
        'print(\'{"seconds": 1}\'); print(\'{"seconds": 1, "shape": [9, 9, 3]}\')',
        "ended its decoder",
    ),
    "gives frames for ever": (
        "print('{\"seconds\": 1}')\n"
        'while True: print(\'{"seconds": 1, "shape": [1, 1, 3], "matrix": [1, 0, 0, 1]}\\nabc\', '
        "end='')",
        "changed its decoder",
    ),
}


@pytest.mark.parametrize("case", WORKERS)
def test_a_decoder_that_is_taken_over(case, monkeypatch, tmp_path):
    program, message = WORKERS[case]
    (tmp_path / "worker.py").write_text(program)
    monkeypatch.setattr(video, "WORKER", tmp_path / "worker.py")
    content = numbered("mp4 mpeg4", 3)
    with pytest.raises(VideoError, match=message):
        within(10, lambda: sample_frames(content, name="clip"))


def test_a_small_file_that_takes_long():
    """A canvas of 9 million pixels, and frames of one pixel: each costs a copy of the canvas."""
    head = b"GIF89a" + struct.pack("<HHBBB", 3000, 3000, 0x80, 0, 0) + bytes(6)
    pixel = b"!\xf9\x04\x04\x0a\0\0\0," + struct.pack("<HHHHB", 0, 0, 1, 1, 0)
    content = head + (pixel + b"\x02\x02\x44\x01\0") * 5000 + b";"
    started = time.monotonic()
    with pytest.raises(VideoError, match="takes more than 1 s of processor time"):
        sample_frames(content, 1, max_seconds=1)
    assert time.monotonic() - started < 5


def test_a_decoder_that_waits_is_ended(monkeypatch, tmp_path):
    (tmp_path / "worker.py").write_text("import time; time.sleep(60)")
    monkeypatch.setattr(video, "WORKER", tmp_path / "worker.py")
    monkeypatch.setattr(video, "PATIENCE", 0.3)
    content = numbered("mp4 mpeg4", 3)
    with pytest.raises(VideoError, match=r"not decoded within 0\.3 s"):
        within(10, lambda: sample_frames(content))


def test_the_process_can_open_nothing():
    program = (
        "import sys; sys.path.append(sys.argv[1]); import video_worker, socket, os\n"
        "video_worker.limit(5, 1 << 30)\n"
        "for attempt in (lambda: open('/dev/null'), socket.socket, os.pipe):\n"
        "    try: attempt(); print('opened')\n"
        "    except OSError as error: print(error.errno)\n"
    )
    folder = os.path.dirname(video_worker.__file__)
    done = subprocess.run([sys.executable, "-I", "-c", program, folder], capture_output=True)
    assert done.stdout.split() == [b"24"] * 3, done.stderr  # EMFILE


def test_metadata_in_no_encoding_does_not_cost_the_video():
    content = numbered("mp4 mpeg4", 2, metadata={"title": "AAAAAAAA"})
    (first, _) = sample_frames(patched(content, b"AAAAAAAA", b"\xff\xfe\x80\xc0AAAA"), 2).frames
    assert first.pixels.shape == (3, 48, 64)


def test_no_process_is_left_behind():
    import psutil

    before = {child.pid for child in psutil.Process().children()}
    sample_frames(numbered("mp4 mpeg4", 3))
    with pytest.raises(VideoError):
        sample_frames(cut("mp4 mpeg4", 0.5))
    assert {child.pid for child in psutil.Process().children()} <= before


@pytest.mark.parametrize("kind", ["mp4 mpeg4", "webm vp9", "avi mpeg4", "gif"])
def test_flipped_bytes(kind):
    content, rng = encoded(kind, list(noise(6))), random.Random(kind)
    for _ in range(8):
        damaged = bytearray(content)
        for _ in range(rng.choice((1, 4, 30))):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        started = time.monotonic()
        try:
            found = sample_frames(damaged, 3)
        except VideoError as error:
            assert "Errno" not in str(error) and "/" not in str(error)
        else:
            assert 1 <= len(found.frames) <= 3
        assert time.monotonic() - started < 8


def packets(times: list[int], keys: list[int]) -> video_worker.Packets:
    position = {time: at for at, time in enumerate(times)}
    return video_worker.Packets(times, keys, position, min(times), max(times) + 1)


def test_a_frame_before_its_keyframe_is_decoded_from_the_one_before():
    """The order of decoding: keyframe 4 comes before 2 and 3, which need what is before it."""
    open_group = packets([0, 1, 4, 2, 3, 5, 6], keys=[0, 2])
    plan = video_worker.plan
    assert plan(open_group, [1]) == [(0, 1, [1])]
    assert plan(open_group, [5]) == [(2, 5, [5])]
    assert plan(open_group, [2]) == [(0, 3, [2])]
    assert plan(open_group, [2, 6]) == [(0, 6, [2, 6])]  # packets are read once


def test_rare_keyframes_cost_no_more_than_is_allowed(monkeypatch):
    long = packets([*range(20_000)], keys=[0])
    assert video_worker.plan(long, [9_999]) == [(0, 9_999, [9_999])]
    with pytest.raises(video_worker.Refused, match="15,001 frames would have to be decoded"):
        video_worker.plan(long, [5, 15_000])


def test_times_in_the_prompt():
    still = torch.zeros(3, 4, 4, dtype=torch.uint8)
    times = [0, 9.96, 59.96, 61.5, 3600, 36_000.04]
    parts, images = video_parts(Video(36_001.25, [Frame(t, still) for t in times]))
    assert [part["type"] for part in parts] == ["text", "image"] * 6
    assert [part["text"] for part in parts[::2]] == [
        "Video of 36001.2 s, 6 frames:\n[0:00.0]",
        *("[0:10.0]", "[1:00.0]", "[1:01.5]", "[1:00:00.0]", "[10:00:00.0]"),
    ]
    assert len(images) == 6 and all(image is still for image in images)


@pytest.fixture(scope="module")
def prompter(tmp_path_factory):
    path = tmp_path_factory.mktemp("settings")
    tiny.write_settings(path)
    return Prompter(path, Llama4Config.from_pretrained(path))


def test_a_prompt_with_a_video(prompter):
    content = encoded("mp4 mpeg4", [grey(STEP * n, (200, 100)) for n in range(6)])
    found = sample_frames(content, 3, max_side=prompter.tile_size)
    parts, images = video_parts(found)
    prompt = prompter.chat([user_message("what?", video=parts)], images)
    assert prompt.grids == [(1, 1)] * 3 and prompt.pixel_values.shape[0] == 3
    text = prompter.tokenizer.decode(prompt.ids)
    order = ["Video of 0.6 s, 3 frames:\n", "[0:00.1]", "[0:00.3]", "[0:00.5]", "what?"]
    places = [text.index(piece) for piece in order]
    assert places == sorted(places)


def test_no_tiles_without_a_vision_tower(prompter, tmp_path):
    from dataclasses import replace

    blind = Prompter(prompter.path, replace(prompter.config, vision=None))
    with pytest.raises(ChatError, match="no vision tower"):
        _ = blind.tile_size
