"""Loading: what it reports, and that one class and one line add a published format."""

import sys

import pytest
import torch

from l4kernels import Llama4, Llama4Config
from l4kernels.checkpoint import formats
from l4kernels.checkpoint.files.reader import CheckpointError
from l4kernels.checkpoint.files.shares import Piece
from l4kernels.checkpoint.formats.unquantised import Unquantised
from l4kernels.cli.progress import loading_bar
from l4kernels.demo import CHECKPOINT
from tests.support.checkpoints import ALIGNED, TEXT, tensors_of, write
from tests.support.terminals import Terminal

CONFIG = Llama4Config.from_dict({**TEXT, **ALIGNED})
SCALE = "_scale"


def test_progress_counts_up_to_all_bytes():
    seen = []
    Llama4.from_pretrained(CHECKPOINT, progress=lambda *step: seen.append(step))
    size = sum(file.stat().st_size for file in CHECKPOINT.glob("*.safetensors"))
    assert seen == sorted(seen) and len(seen) > 50
    assert {total for _, total in seen} == {size} and seen[-1] == (size, size)
    assert 0 < size - seen[-2][0] < 1 << 20, "only the headers are left"


@pytest.mark.parametrize("progress", [True, "bar", 3, []])
def test_progress_is_a_function(progress):
    with pytest.raises(ValueError, match="expected progress to be a function, got"):
        Llama4.from_pretrained(CHECKPOINT, progress=progress)


def test_the_bar_is_drawn_on_a_terminal_alone(monkeypatch, capsys):
    with loading_bar() as progress:
        progress(1, 2)
    assert capsys.readouterr() == ("", "")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with pytest.raises(KeyError), loading_bar() as progress:
        progress(500_000, 2_000_000)
        raise KeyError
    assert "Loading" in terminal.getvalue() and "2.0 MB" in terminal.getvalue()


class Int8(Unquantised):
    """Linear weights in int8, `x_scale` beside `x`, one float32 for each row of `[.., out, in]`."""

    methods = ("int8",)
    supports = "int8"

    def pieces_of(self, name, slot):
        if name + SCALE not in self.checkpoint.entries:
            return super().pieces_of(name, slot)
        scale = Piece(slot.shape[:-1], slot.axes[:-1])
        return {name: Piece(slot.shape, slot.axes, ("I8",)), name + SCALE: scale}

    def decode(self, name, read):
        if len(self.pieces[name]) == 1:
            return super().decode(name, read)
        data = read(name).float() * read(name + SCALE)[..., None]
        return data.t() if self.slots[name].transposed else data


def quantised(tensors):
    """In int8, and what that stands for."""
    stored, plain = {}, {}
    for name, data in tensors.items():
        stored[name] = plain[name] = data
        if "_proj" in name:
            scale = data.abs().amax(-1) / 127
            stored[name] = (data / scale[..., None]).round().to(torch.int8)
            stored[name + SCALE] = scale
            plain[name] = stored[name].float() * scale[..., None]
    return stored, plain


@pytest.mark.parametrize("weights", ["bf16", "fp8"])
def test_one_line_adds_a_published_format(weights, tmp_path, monkeypatch):
    stored, plain = quantised(tensors_of(CONFIG))
    with pytest.raises(CheckpointError, match=r"config\.json: has no quantization_config, but"):
        Llama4.from_pretrained(write(tmp_path / "unsaid", stored, shards=3, **ALIGNED))
    said = {**ALIGNED, "quantization_config": {"quant_method": "int8"}}
    folder = write(tmp_path / "int8", stored, shards=3, **said)
    with pytest.raises(CheckpointError, match="quantised by 'int8' cannot be read; supported: "):
        Llama4.from_pretrained(folder)
    monkeypatch.setattr(formats, "READERS", (Int8, *formats.READERS))
    ids = torch.randint(0, 100, (2, 12))
    want = Llama4.from_pretrained(write(tmp_path / "plain", plain, **ALIGNED), weights=weights)
    seen = []
    got = Llama4.from_pretrained(folder, weights=weights, progress=lambda *s: seen.append(s))
    assert torch.equal(got.prompt_logits(ids), want.prompt_logits(ids))
    assert seen == sorted(seen)
    absent = next(name for name in stored if name.endswith(SCALE))
    stored[absent.removesuffix(SCALE)] = stored[absent.removesuffix(SCALE)].float()
    with pytest.raises(CheckpointError, match=r"to be one of I8, got F32"):
        Llama4.from_pretrained(write(tmp_path / "mixed", stored, **said))
    stored[absent][:] = torch.nan
    stored[absent.removesuffix(SCALE)] = torch.ones(plain[absent.removesuffix(SCALE)].shape).char()
    with pytest.raises(CheckpointError, match="values that are NaN"):
        Llama4.from_pretrained(write(tmp_path / "nan", stored, **said))
