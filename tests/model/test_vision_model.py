"""Vision tower, adapter, projector and merging against transformers."""

import dataclasses

import pytest
import torch

from l4kernels import Llama4
from l4kernels.model import vision as vision_module
from tests.support.parity import (
    IMAGE_TOKEN,
    TILE,
    TOLERANCE,
    VOCAB,
    Case,
    difference,
    hf_logits,
    load_hf,
    prompt,
    random_case,
    save_model,
)

IMAGES = [(), ((1, 1),), ((1, 2),), ((3, 5),), ((1, 1), (2, 3)), ((2, 2), (1, 1), (1, 3))]


@pytest.mark.parametrize("images", IMAGES, ids=str)
def test_images_match_transformers(images):
    case = Case(vision=True, images=images, length=80, batch=1, chunk=7)
    assert difference(case, new_tokens=4) <= TOLERANCE


@pytest.mark.parametrize("seed", [100, 101, 104, 105])
def test_random_cases_with_images_match_transformers(seed):
    case = random_case(seed)
    if not case.images:
        length = max(case.length, 20)
        case = dataclasses.replace(case, images=((1, 2),), vision=True, length=length)
    assert difference(case, new_tokens=4) <= TOLERANCE, case


CASE = Case(vision=True, images=((1, 1), (1, 2)), length=40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("vision")
    save_model(CASE, str(path))
    return path


@pytest.fixture(scope="module")
def model(folder):
    return Llama4.from_pretrained(folder)


def test_features_match_the_tower_of_transformers(model, folder):
    hf = load_hf(CASE, str(folder))
    _, tiles = prompt(CASE)
    with torch.inference_mode():
        wanted = hf.multi_modal_projector(hf.vision_model(tiles).last_hidden_state.flatten(0, 1))
        got = model.vision(tiles)
    assert got.shape == (CASE.tiles * 4, CASE.hidden)
    assert (got - wanted).abs().max() <= 1e-5 * max(1.0, wanted.abs().max())


def test_bf16_features_are_as_good_as_transformers(folder):
    hf = load_hf(CASE, str(folder)), load_hf(CASE, str(folder), torch.bfloat16)
    ours = Llama4.from_pretrained(folder, dtype=torch.bfloat16)
    tiles = torch.rand(24, 3, TILE, TILE, generator=torch.Generator().manual_seed(1)) * 2 - 1

    def features(m, dtype):
        hidden = m.vision_model(tiles.to(dtype)).last_hidden_state.flatten(0, 1)
        return m.multi_modal_projector(hidden)

    with torch.inference_mode():
        exact, theirs = features(hf[0], torch.float32), features(hf[1], torch.bfloat16)
        got = ours.vision(tiles.bfloat16())
    assert (got - exact).norm() <= 2 * (theirs - exact).norm()


def test_slices_of_tiles_change_nothing(model, monkeypatch):
    tiles = torch.rand(11, 3, TILE, TILE, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        whole = model.vision(tiles)
        monkeypatch.setattr(vision_module, "TILES_PER_SLICE", 3)
        sliced = model.vision(tiles)
        alone = model.vision(tiles[4:5])
    assert (sliced - whole).abs().max() <= 1e-5
    assert (alone - whole[16:20]).abs().max() <= 1e-5


def test_patch_rows_are_padded_for_the_kernel():
    vision = Llama4.random(dataclasses.replace(small_config(), max_position_embeddings=64)).vision
    assert vision.config.patch_row == 3 * 8 * 8
    assert vision.patch_embedding.in_features == 256
    assert not vision.patch_embedding.weight[:, 192:].any()


def small_config():
    from l4kernels import Llama4Config
    from l4kernels.model.config import VisionConfig

    text = {"vocab_size": VOCAB, "hidden_size": 64, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 128}
    text |= {"intermediate_size": 32, "max_position_embeddings": 64, "moe_layers": []}
    vision = VisionConfig(64, 1, 2, 256, TILE, 8, 3, 1e4, 0.5, 48, 48, 48)
    return dataclasses.replace(
        Llama4Config.from_dict(text), vision=vision, image_token_index=IMAGE_TOKEN
    )


def test_several_images_across_a_batch(model, folder):
    case = dataclasses.replace(CASE, batch=2, images=((1, 1), (1, 2), (1, 1)), length=30)
    ids, tiles = prompt(case)
    assert (
        model.prompt_logits(ids, tiles) - hf_logits(load_hf(CASE, str(folder)), ids, tiles)
    ).abs().max() < 1e-4


def test_split_prefill_with_images_matches_one_shot(model):
    ids, tiles = prompt(CASE)  # chunks of 8: the patches of one image lie in several pieces
    whole = model.prompt_logits(ids, tiles)
    first = model.generate(ids, 1, pixel_values=tiles)[:, -1]
    assert torch.equal(first, whole[:, -1].argmax(-1))
    again = model.generate(ids, 5, pixel_values=tiles)
    assert torch.equal(again[:, : CASE.length + 1], torch.cat([ids, first[:, None]], 1))


def spoilt(tiles: torch.Tensor, value: float) -> torch.Tensor:
    """One value of the last tile; 1e39 is finite here, but not in the model's dtype."""
    tiles = tiles.double()
    tiles[-1, 1, 3, 5] = value
    return tiles


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda ids, tiles: (ids, tiles[:-1]), "expected 12 patch tokens .* got 16"),
        (lambda ids, tiles: (ids.masked_fill(ids == IMAGE_TOKEN, 1), tiles), "got 0"),
        (lambda ids, tiles: (ids, tiles[:, :, :-1]), r"\[tiles, 3, 32, 32\]"),
        (lambda ids, tiles: (ids, tiles[:, :1]), r"\[tiles, 3, 32, 32\]"),
        (lambda ids, tiles: (ids, tiles[0]), r"\[tiles, 3, 32, 32\]"),
        (lambda ids, tiles: (ids, tiles[:0]), r"\[tiles, 3, 32, 32\]"),
        (lambda ids, tiles: (ids, tiles.byte()), "normalised floats"),
        (lambda ids, tiles: (ids, tiles.tolist()), "pixel_values to be a tensor"),
        *((lambda ids, tiles, v=v: (ids, spoilt(tiles, v)), "pixel_values to be finite")
          for v in (float("nan"), float("inf"), -float("inf"), 1e39)),
    ],
)  # fmt: skip
def test_wrong_images(model, change, message):
    ids, tiles = change(*prompt(CASE))
    for call in (model.prompt_logits, lambda i, t: model.generate(i, 2, pixel_values=t)):
        with pytest.raises(ValueError, match=message):
            call(ids, tiles)
