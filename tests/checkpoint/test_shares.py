"""Several ranks, each of which reads its part of a checkpoint: the hook of tensor parallelism."""

import math

import pytest
import torch

from l4kernels import Llama4Config
from l4kernels.checkpoint import formats
from l4kernels.checkpoint.files import reader
from l4kernels.checkpoint.files.reader import CheckpointError
from l4kernels.checkpoint.files.shares import Piece, Share
from l4kernels.checkpoint.formats import open_checkpoint
from l4kernels.checkpoint.formats.unquantised import Unquantised
from tests.support.checkpoints import ALIGNED, TEXT, tensors_of, unfused, write

GROUP = 16
SIZES = {**ALIGNED, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64}
SIZES |= {"num_hidden_layers": 2}


class Grouped(Unquantised):
    """int8 with a scale for every 16 of K, of experts one by one."""

    methods = ("grouped",)

    def pieces_of(self, name, slot):
        if not slot.block:
            return super().pieces_of(name, slot)
        n, k = slot.shape
        scale = Piece((n, k // GROUP), slot.axes)
        return {name: Piece(slot.shape, slot.axes, ("I8",)), f"{name}_scale": scale}

    def decode(self, name, read):
        if len(self.pieces[name]) == 1:
            return super().decode(name, read)
        return read(name).float() * read(f"{name}_scale").repeat_interleave(GROUP, 1)


def grouped(tensors):
    stored = {}
    for name, data in unfused(tensors).items():
        stored[name] = data
        if "_proj" in name or "lm_head" in name:
            scale = data.unflatten(1, (-1, GROUP)).abs().amax(-1) / 127
            stored[name] = (data / scale.repeat_interleave(GROUP, 1)).round().to(torch.int8)
            stored[f"{name}_scale"] = scale
    return stored


KINDS = {"fused": (dict, {}), "one by one": (unfused, {})}
KINDS["groups"] = (grouped, {"quantization_config": {"quant_method": "grouped"}})


@pytest.fixture(params=KINDS)
def source(request, tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "READERS", (Grouped, *formats.READERS))
    change, fields = KINDS[request.param]
    config = Llama4Config.from_dict({**TEXT, **SIZES})
    folder = write(tmp_path, change(tensors_of(config)), shards=2, **SIZES, **fields)
    return open_checkpoint(folder, config)


def whole_again(slot, parts):
    """The ranks' parts of a tensor, rows first, put together."""
    if slot.split == "":
        assert all(torch.equal(part, parts[0]) for part in parts)
        return parts[0]
    if slot.split == "k":
        return torch.cat(parts, 1)
    if slot.rows != "gate_up":
        return torch.cat(parts)
    gates, ups = zip(*(part.chunk(2) for part in parts), strict=True)
    return torch.cat([*gates, *ups])


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_parts_of_all_ranks_are_the_whole(source, ranks):
    want = list(source.tensors(torch.float32))
    parts = [list(source.tensors(torch.float32, Share(rank, ranks))) for rank in range(ranks)]
    assert len(want) > 20 and {len(part) for part in parts} == {len(want)}
    for (name, expert, data), *of_ranks in zip(want, *parts, strict=True):
        assert {(n, e) for n, e, _ in of_ranks} == {(name, expert)}
        assert torch.equal(whole_again(source.slots[name], [t for *_, t in of_ranks]), data), name


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_rank_reads_its_part_alone(source, ranks, monkeypatch):
    read, part = [], reader._part
    monkeypatch.setattr(reader, "_part", lambda *a: (read.append(part(*a)), read[-1])[1])
    list(source.tensors(torch.float32, Share(1, ranks)))
    shared = whole = 0
    for pieces in source.pieces.values():
        for name, piece in pieces.items():
            if piece.split:
                shared += source.checkpoint.entries[name].bytes
            else:
                whole += source.checkpoint.entries[name].bytes
    assert shared > 50 * whole
    assert sum(tensor.nbytes for tensor in read) == shared // ranks + whole


def test_a_slice_is_a_view_of_the_mapped_file(source):
    """So pages that no slice touches are not read; gate and up of a stack are two slices."""
    for slot_name in (n for n, s in source.slots.items() if s.split == "k"):
        (name, piece), *_ = source.pieces[slot_name].items()
        entry = source.checkpoint.entries[name]
        with reader._Opened(entry.file) as opened:
            expert = 0 if piece.axes.startswith("e") else None
            got = reader._part(opened, name, piece, expert, Share(1, 4))
        assert got.numel() == math.prod(piece.shape[-2:]) // 4
        assert got.untyped_storage().nbytes() == entry.bytes


def test_gate_and_up_are_both_divided():
    with pytest.raises(ValueError, match="expected 4 ranks to divide a dimension of 252 twice"):
        Share(0, 4).parts("g", 252, "n")


@pytest.mark.parametrize(
    "sizes, ranks, message",
    [
        ({}, 3, "divides the . heads of queries and divides the 4 heads of keys .* got 3"),
        ({}, 6, "divides the . heads of queries and divides the 4 heads of keys .* got 6"),
        ({"intermediate_size_mlp": 254}, 4, "model-.*safetensors: .*_proj.weight: expected 4 ra"),
        (
            {"intermediate_size": 126},
            4,
            "expert.*_proj.*: expected 4 ranks to divide a dimension of",
        ),
        ({"vocab_size": 162}, 4, "(embed_tokens|lm_head).weight: expected 4 ranks to divide"),
    ],
)
def test_what_ranks_cannot_share_is_named(tmp_path, monkeypatch, sizes, ranks, message):
    sizes = {**SIZES, **sizes}
    config = Llama4Config.from_dict({**TEXT, **sizes})
    folder = write(tmp_path, tensors_of(config), shards=2, **sizes)
    source = open_checkpoint(folder, config)
    monkeypatch.setattr(reader, "_part", lambda *a: pytest.fail("something was read"))
    with pytest.raises(CheckpointError, match=message) as error:
        source.tensors(torch.float32, Share(0, ranks))
    assert str(tmp_path) in str(error.value)
