"""`l4k generate --video`: frames in the prompt, and errors before weights are read."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from l4kernels.cli import main
from tests.support import tiny
from tests.support.videos import encoded, grey, numbered, sound


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    file = tmp_path_factory.mktemp("videos") / "clip.mp4"
    file.write_bytes(encoded("mp4 mpeg4", [grey(20 * n, (320, 180)) for n in range(12)]))
    return file


@pytest.fixture
def l4k(capsys):
    def run(*arguments) -> tuple[int, str, str]:
        code = main(["generate", "--prompt", "the answer?", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_a_frame_costs_one_tile_and_its_time(l4k, folder, clip, tmp_path):
    def prompt_tokens(*options) -> int:
        tail = ("--model", folder, "--max-new-tokens", 2, "--json")
        code, out, err = l4k(*options, *tail)
        assert (code, err) == (0, ""), out
        return json.loads(out)["prompt_tokens"]

    chat = prompt_tokens("--chat")
    two, three = (prompt_tokens("--video", clip, "--frames", n) for n in (2, 3))
    # <|image_start|>, <|image|>, 4 patches, <|image_end|>, and at most the 8 characters of a time.
    assert 7 < three - two <= 7 + 8
    assert two - chat <= 2 * (7 + 8) + len("Video of 1.2 s, 2 frames:\n")
    assert prompt_tokens("--video", clip) > three  # 8 frames

    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / "a.png")
    assert prompt_tokens("--image", tmp_path / "a.png", "--video", clip, "--frames", 2) == two + 7


BAD = {
    "frames without a video": (("--frames", 3), "--frames is the number of frames of a --video"),
    "no frames": (("--video", "CLIP", "--frames", 0), "expected 1 to 128 frames"),
    "many frames": (("--video", "CLIP", "--frames", 129), "expected 1 to 128 frames"),
    "half a frame": (("--video", "CLIP", "--frames", "0.5"), "--frames"),
    "no file": (("--video", "no.mp4"), "no.mp4: no such file"),
    "no video": (("--video", __file__), "test_video_option.py: not a video"),
    "a URL": (("--video", "https://127.0.0.1/a.mp4"), "a.mp4: no such file"),
    "two videos": (("--video", "CLIP", "--video", "no.mp4"), "no.mp4: no such file"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_requests(l4k, settings, clip, case):
    options, message = BAD[case]
    options = [clip if option == "CLIP" else option for option in options]
    code, out, err = l4k("--model", settings, *options)
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1


def test_damaged_videos_are_named(l4k, settings, tmp_path):
    for content, message in (
        (numbered("mp4 mpeg4", 5)[:900], "truncated or damaged"),
        (sound(), "holds no video"),
    ):
        (tmp_path / "clip\x1b.mp4").write_bytes(content)
        code, out, err = l4k("--model", settings, "--video", tmp_path / "clip\x1b.mp4")
        assert (code, out) == (2, "") and message in err and "\x1b" not in err


def test_many_frames_that_do_not_fit(l4k, settings, tmp_path):
    (tmp_path / "long.webm").write_bytes(numbered("webm vp9", 60))
    options = ("--video", tmp_path / "long.webm", "--frames", 60)
    code, _, err = l4k("--model", settings, *options)
    assert code == 2 and "does not fit the model's context of 512 tokens" in err


def test_a_checkpoint_without_a_vision_tower(l4k, tmp_path, clip):
    tiny.write_settings(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    text = config["text_config"]
    tiny.write_json(tmp_path / "config.json", text | {"model_type": "llama4_text"})
    code, _, err = l4k("--model", tmp_path, "--video", clip)
    assert code == 2 and "no vision tower" in err


def test_the_extra_is_named(l4k, settings, clip, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    code, _, err = l4k("--model", settings, "--video", clip)
    assert code == 2 and "pip install 'l4kernels[video]'" in err
