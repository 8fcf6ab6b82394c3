"""Images to tiles: the numbers of the original, and the settings of a checkpoint."""

import json
import os
import subprocess
import sys
import weakref
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from l4kernels.prompt import image_processor
from l4kernels.prompt.chat import image_block
from l4kernels.prompt.image_processor import ImageProcessor, canvases
from l4kernels.prompt.images import ImageError
from tests.support.pictures import noise, saved
from tools.nvcc import ROOT

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
    path = os.pathsep.join(filter(None, [str(ROOT), torchvision_folder()]))
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.hf_image_parity"],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["settings"] == repr(ImageProcessor())  # as read from what they write
    rows = found["rows"]
    assert len([r for r in rows if r["tile"] == 336]) >= 30
    assert found["canvas_mismatches"] == []
    wrong = [r for r in rows if r["grid"] != r["hf_grid"] or r["difference"] > 1]
    assert wrong == []


STATES = {
    "bfloat16 by default": lambda: _default(torch.set_default_dtype, torch.bfloat16, torch.float32),
    "float64 by default": lambda: _default(torch.set_default_dtype, torch.float64, torch.float32),
    "meta by default": lambda: torch.device("meta"),
    "deterministic": lambda: _default(torch.set_deterministic_debug_mode, "error", "default"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference": torch.inference_mode,
    "grad": torch.enable_grad,
    "no grad": torch.no_grad,
}


@contextmanager
def _default(change, value, before):
    change(value)
    try:
        yield
    finally:
        change(before)


def prepared() -> tuple:
    """What the processor makes of sizes whose canvas is a matter of the last bit."""
    small = ImageProcessor(tile_size=32, max_tiles=5, mean=(0.3, 0.4, 0.5), std=(0.1, 0.2, 0.3))
    sizes = [(673, 671), (671, 673), (1345, 1344), (4032, 3024), (999, 333), (1, 500), (30, 2000)]
    grids = [(ImageProcessor().grid(*s), ImageProcessor().resized(*s)) for s in sizes]
    enlarged = ImageProcessor(resize_to_max_canvas=True)
    grids += [(enlarged.grid(*s), enlarged.resized(*s)) for s in sizes]
    tiles = small([np.asarray(noise(w, h)) for w, h in ((70, 50), (32, 32), (9, 40))])
    return grids, tiles.grids, tiles.pixel_values


@pytest.mark.parametrize("state", STATES)
def test_no_state_of_torch_changes_a_bit(state):
    assert ImageProcessor().grid(673, 671) == (3, 2)
    grids, tile_grids, pixels = prepared()
    with STATES[state]():
        got = prepared()
    assert got[:2] == (grids, tile_grids)
    assert got[2].dtype == torch.float32 and torch.equal(got[2], pixels)


def test_images_of_every_kind_in_their_order(tmp_path):
    image = noise(40, 20)
    (tmp_path / "x.png").write_bytes(saved(image))
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    sources = [tmp_path / "x.png", saved(image), image, array, tensor]
    processor = ImageProcessor(tile_size=32, max_tiles=4)
    tiles = processor(sources)
    assert tiles.grids == [(1, 2)] * 5
    assert torch.equal(tiles.pixel_values, processor.tiles(tensor).repeat(5, 1, 1, 1))


def test_a_bad_image_among_several_is_named():
    good = torch.zeros(3, 4, 4, dtype=torch.uint8)
    with pytest.raises(ImageError, match="image 2: not an image"):
        ImageProcessor()([good, b"hello"])
    for images in ([], "photo.png", good, None, noise(3, 3)):
        with pytest.raises(ImageError, match="expected a list of at least one image, got"):
            ImageProcessor()(images)


def test_one_image_is_decoded_at_a_time(monkeypatch):
    alive = []

    def decode(source, name):
        image = torch.zeros(3, 40, 40, dtype=torch.uint8)
        assert not any(ref() is not None for ref in alive)
        alive.append(weakref.ref(image))
        return image

    monkeypatch.setattr(image_processor, "decode_image", decode)
    monkeypatch.setattr(ImageProcessor, "tiles", lambda self, image: torch.zeros(1))
    assert len(ImageProcessor()(["a"] * 3).grids) == 3


def test_processor_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"preprocessor_config\.json"):
        ImageProcessor.from_pretrained(tmp_path)
    settings = {"size": {"height": 32, "width": 32}, "max_patches": 4}
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
    assert ImageProcessor.from_pretrained(tmp_path) == ImageProcessor(32, 4)
    # As for transformers, a nested processor wins; without one the other file counts.
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0, 0, 0]}))
    assert ImageProcessor.from_pretrained(tmp_path) == ImageProcessor(32, 4)
    (tmp_path / "processor_config.json").write_text(json.dumps({"patch_size": 14}))
    assert ImageProcessor.from_pretrained(tmp_path).mean == (0.0, 0.0, 0.0)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="with an image_processor"):
        ImageProcessor.from_pretrained(tmp_path)
    for size in (48, [48, 48], {"height": 48}, {"height": 48, "width": 48}):
        assert ImageProcessor.from_dict({"size": size}).tile_size == 48
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
        {"resize_to_max_canvas": "no"},
        {"resize_to_max_canvas": 1},
        {"do_resize": False},
        {"do_rescale": "yes"},
        {"do_convert_rgb": 0},
        {"resample": "bilinear"},
        {"rescale_factor": "1/255"},
        {"image_processor_type": "CLIPImageProcessor"},
        {"image_processor_type": ["Llama4ImageProcessor"]},
        {"max_patches": "16"},
        {"max_patches": 2.5},
        {"max_patches": []},
        {"size": {"shortest_edge": 336}},
        {"size": [32, 48]},
        {"size": {"height": "32"}},
        {"size": {"height": [32]}},
        {"image_mean": ["a", 1, 1]},
        {"image_mean": [[0.5], 0.5, 0.5]},
        {"image_mean": [True, True, True]},
        {"image_mean": {"r": 1}},
        {"image_mean": "0.5"},
        {"image_std": [1e-9, 1, 1]},
        {"image_std": [-1, 1, 1]},
        {"image_mean": [10**400, 1, 1]},
        {"image_processor": None},
        {"image_processor": [1]},
        {"image_processor": {"resample": 3}},
    ],
)
def test_absurd_processor_files(content, tmp_path):
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"preprocessor_config\.json"):
        ImageProcessor.from_pretrained(tmp_path)


HOSTILE_FILES = {
    "nested": b'{"size":' * 100_000,
    "huge number": b'{"max_patches": 1' + b"0" * 400 + b"}",
    "huge float": b'{"image_mean": [1e999, 0, 0]}',
    "not JSON": b"size = 336",
    "no text": bytes(range(256)),
    "utf-16": '{"size": 336}'.encode("utf-16"),
    "nothing": b"",
}


@pytest.mark.parametrize("name", ["preprocessor_config.json", "processor_config.json"])
def test_hostile_processor_files(name, tmp_path):
    file = tmp_path / name
    for content in HOSTILE_FILES.values():
        file.write_bytes(content if name[:3] == "pre" else b'{"image_processor": %b}' % content)
        with pytest.raises(ValueError, match=name):
            ImageProcessor.from_pretrained(tmp_path)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(ValueError, match=f"{name}: expected a regular file, got a pipe"):
        ImageProcessor.from_pretrained(tmp_path)


def test_settings_given_to_the_processor_are_checked():
    for wrong in (
        {"tile_size": 0}, {"tile_size": 10**5000}, {"tile_size": True},
        {"tile_size": 32.0}, {"max_tiles": 0}, {"max_tiles": 257},
        {"mean": 0.5}, {"mean": [0.5] * 3}, {"std": (0, 1, 1)}, {"std": (1.0, 1.0, float("nan"))},
        {"resize_to_max_canvas": "no"}, {"resize_to_max_canvas": 1},
    ):  # fmt: skip
        with pytest.raises(ValueError, match="image processor: expected"):
            ImageProcessor(**wrong)
    for sides in ((0, 5), (5, -1), (1, 40_000)):
        with pytest.raises(ImageError):
            ImageProcessor().grid(*sides)


def test_tensors_that_are_no_images():
    processor = ImageProcessor()
    nan = torch.full((3, 4, 4), torch.nan)
    for bad in (
        torch.zeros(3, 4, 4), nan, torch.zeros(4, 4, dtype=torch.uint8),
        torch.zeros(4, 4, 3, dtype=torch.uint8), torch.zeros(3, 4, 4, dtype=torch.int8),
        torch.zeros(3, 4, 4, dtype=torch.uint8, device="meta"),
    ):  # fmt: skip
        with pytest.raises(ImageError, match="uint8"):
            processor.tiles(bad)
    with pytest.raises(ImageError, match="with pixels"):
        processor.tiles(torch.zeros(3, 0, 4, dtype=torch.uint8))
