"""The training program of the demo checkpoint: it learns, it exports, what it exports loads."""

import json

import pytest
import torch

pytest.importorskip("PIL")

from tools.train_demo.batches import IGNORE
from tools.train_demo.data import (
    FORMS,
    HELD_OUT_CHAPTERS,
    HELD_OUT_DIGITS,
    load_chapters,
    load_digits,
    split_chapters,
)
from tools.train_demo.evaluate import bits_per_byte, digits_correct
from tools.train_demo.export import export, read_checkpoint, read_data
from tools.train_demo.tokenizer import SPECIAL_ID, VOCAB, encode
from tools.train_demo.train import Data, Settings, Trainer

PAIRS = (("wide", 1), ("tall", 1), ("two_images", 1))


@pytest.fixture(scope="module")
def data() -> Data:
    train, held = split_chapters(load_chapters())
    train_digits, held_digits = load_digits()
    assert (len(held), len(train)) == (HELD_OUT_CHAPTERS, 1189 - HELD_OUT_CHAPTERS)
    assert not {c.name for c in held} & {c.name for c in train}
    assert len(held_digits.labels) == HELD_OUT_DIGITS == 1797 - len(train_digits.labels)
    return Data(train[:40], held[:2], train_digits, held_digits)


@pytest.fixture(scope="module")
def trainer(data, tmp_path_factory) -> Trainer:
    settings = Settings(steps=6, windows=1, singles=4, pairs=PAIRS, chats=1, warmup=1)
    return Trainer(settings, data, tmp_path_factory.mktemp("run"))


def test_a_few_steps_lower_the_loss_and_resume_repeats_them(trainer, data):
    first = trainer.train_step()
    for trainer.step in (1, 2, 3):
        trainer.train_step()
    trainer.step = 4
    trainer.save()
    later = trainer.train_step()
    assert later["text"] < first["text"] - 0.2
    assert later["digits"] < first["digits"] - 0.2

    again = Trainer(trainer.settings, data, trainer.folder)
    again.resume()
    assert again.step == 4
    assert again.train_step() == pytest.approx(later, abs=1e-4)


def test_a_whole_run_starts_from_token_pairs_and_ends_at_full_depth(data, tmp_path, capsys):
    settings = Settings(
        steps=2, windows=1, singles=2, pairs=PAIRS, chats=1, bigram_steps=30, vision_steps=2
    )
    run = Trainer(settings, data, tmp_path)
    run.run()
    line = json.loads(capsys.readouterr().out.splitlines()[0])
    assert line["bigram_loss"] < 5.0  # a uniform guess is at 6.96
    assert run.model.language_model.model.depth == run.model.text.layers // 2
    export(run, tmp_path / "out")
    assert run.model.language_model.model.depth == run.model.text.layers
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 2


def test_growth_changes_no_output(trainer, data, tmp_path):
    model = Trainer(trainer.settings, data, tmp_path).model
    text = model.language_model.model
    ids = torch.arange(100)[None]
    with torch.no_grad():
        for p in text.parameters():
            p.add_(torch.randn_like(p), alpha=0.02)
        before = model(ids)
        text.grow()
        assert text.depth == 4
        torch.testing.assert_close(model(ids), before)


def test_export_loads_and_keeps_the_rounded_model(trainer, tmp_path):
    export(trainer, tmp_path)
    model, tokenizer = read_checkpoint(tmp_path / "checkpoint")
    for name, p in trainer.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], p.bfloat16().float()), name
    chapters, digits = read_data(tmp_path / "data")
    assert chapters == trainer.data.held_text
    assert torch.equal(digits.images, trainer.data.held_digits.images)
    assert torch.equal(digits.labels, trainer.data.held_digits.labels)
    bits = bits_per_byte(model, tokenizer, chapters[:1])
    assert 1.0 < bits < 5.0
    assert digits_correct(model, tokenizer, digits, ("one",))["one"] < HELD_OUT_DIGITS


def test_config_names_the_tokens(trainer, tmp_path):
    export(trainer, tmp_path)
    config = json.loads((tmp_path / "checkpoint" / "config.json").read_text())
    tokens = json.loads((tmp_path / "checkpoint" / "tokenizer.json").read_text())
    ids = {t["content"]: t["id"] for t in tokens["added_tokens"]}
    assert ids == SPECIAL_ID
    assert config["image_token_index"] == ids["<|patch|>"]
    assert config["text_config"]["vocab_size"] == VOCAB == max(ids.values()) + 1


def test_only_answers_are_learned(trainer):
    generator = torch.Generator().manual_seed(0)
    inputs, targets, tiles = trainer.digits.batch({"wide": 2}, generator)
    prompt = encode(trainer.tokenizer, FORMS["wide"])
    patch = SPECIAL_ID["<|patch|>"]
    assert inputs[0, : len(prompt)].tolist() == prompt
    assert (targets[:, : len(prompt) - 1] == IGNORE).all()
    assert (targets[:, len(prompt) - 1 :] != IGNORE).all()
    assert len(tiles) == 6
    assert int((inputs == patch).sum()) == 4 * len(tiles)


def test_prompts_of_a_two_tile_image_follow_the_published_layout():
    patches = "<|patch|>" * 4
    assert (
        f"<|image_start|>{patches}<|tile_x_separator|>{patches}<|tile_y_separator|>"
        f"<|image|>{patches}<|image_end|>" in FORMS["wide"]
    )
    assert (
        f"<|image_start|>{patches}<|tile_y_separator|>{patches}<|tile_y_separator|>"
        f"<|image|>{patches}<|image_end|>" in FORMS["tall"]
    )


def test_two_chunks_do_not_see_each_other_where_layers_rotate(trainer, data, tmp_path):
    """A changed token moves later positions of its own chunk at once, the next chunk only
    through the layers without RoPE."""
    whole = Trainer(trainer.settings, data, tmp_path).model
    model = whole.language_model.model
    attention = model.layers[0].self_attn
    torch.nn.init.normal_(attention.o_proj.weight, std=0.1)  # a new model's are zero
    x = torch.randn(1, 130, whole.text.hidden)
    y = x.clone()
    y[0, 10] += 1
    with torch.no_grad():
        tables = model.turns[:130], model.temperature[:130]
        moved = (attention(x, *tables) - attention(y, *tables)).abs().amax(-1)[0] > 1e-6
    assert not moved[:10].any()
    assert moved[10:64].all()
    assert not moved[64:].any()
