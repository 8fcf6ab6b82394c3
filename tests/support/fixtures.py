"""The checkpoints of tests/checkpoint/fixtures, changed copies of them, and what a model made of
them holds."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from l4kernels import Llama4Config, ops
from l4kernels.checkpoint.files.layout import Slot
from l4kernels.checkpoint.files.shares import Share
from l4kernels.checkpoint.formats import open_checkpoint
from l4kernels.checkpoint.formats.unquantised import Unquantised
from l4kernels.layers.weights.codes import Codes, Int4Codes
from l4kernels.ops.epilogue import INTERLEAVE

ROOT = Path(__file__).parents[1] / "checkpoint/fixtures"


def tensors_of_fixture(name: str) -> dict:
    return load_file(ROOT / name / "model.safetensors")


def config_of(name: str) -> dict:
    return json.loads((ROOT / name / "config.json").read_text())


def expected(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids, and the logits of the library's own weights in transformers."""
    found = load_file(ROOT / name / "expected.safetensors")
    return found["ids"], found["logits"]


def rewritten(folder: Path, tensors: dict, config: dict, **others: dict) -> Path:
    """A checkpoint folder; `others` are further JSON files."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors")
    for name, content in {"config": config, **others}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def opened(folder: Path) -> Unquantised:
    return open_checkpoint(folder, Llama4Config.from_pretrained(folder))


def held(model: torch.nn.Module, slot: Slot, parameter: str, expert: int | None = None):
    """The rows of a parameter of a `Linear` (or of its tiles: "packed", "scales", "zeros") that a
    tensor of the layout fills, gate and up apart."""
    linear = model.get_submodule(slot.target)
    expert = slot.expert if expert is None else expert
    if hasattr(linear, "tiles"):
        tiles = linear.tiles if expert is None else linear.tiles[expert]
        data = getattr(ops.untile_int4(tiles), parameter)
    else:
        data = getattr(linear, parameter)
        data = data if expert is None else data[expert]
    if data is None:  # zero points
        return None
    if isinstance(slot.rows, slice):
        return data[slot.rows]
    if slot.rows == "all":
        return data
    halves = data.unflatten(0, (-1, 2, INTERLEAVE))
    gate, up = halves[:, 0].flatten(0, 1), halves[:, 1].flatten(0, 1)
    return {"gate": gate, "up": up, "gate_up": torch.cat([gate, up])}[slot.rows]


def values(data: torch.Tensor | Codes) -> torch.Tensor:
    if not isinstance(data, Int4Codes):
        return data.dequantized() if isinstance(data, Codes) else data.float()
    # By hand: a share of a tiny weight is less than a kernel's block.
    zeros = torch.full_like(data.group_scales, 8) if data.zeros is None else data.zeros
    group = data.shape[1] // zeros.shape[1]
    zeros, scales = (t.float().repeat_interleave(group, 1) for t in (zeros, data.group_scales))
    return (ops.unpack_int4(data.packed) + 8 - zeros) * scales


def read_by_ranks(source: Unquantised, ranks: int = 2) -> None:
    """Asserts that the shares of several ranks are what of the whole they should read."""
    whole = {(n, e): values(t) for n, e, t in source.tensors(torch.float32)}
    for rank in range(ranks):
        share = Share(rank, ranks)
        for name, expert, data in source.tensors(torch.float32, share):
            slot, want = source.slots[name], whole[name, expert]
            keys = name.endswith(("k_proj.weight", "v_proj.weight"))
            own = share.of_heads(source.config.num_key_value_heads) if keys else share
            if slot.split == "n":
                kind = "g" if slot.rows == "gate_up" else "n"
                parts = own.parts(kind, want.shape[0], "n")
                want = torch.cat([want[part] for part in parts])
            elif slot.split == "k":
                (part,) = share.parts("k", want.shape[1], "k")
                want = want[:, part]
            assert torch.equal(values(data), want), name


# Changes of a checkpoint's tensors and of its record, for tables of what is refused.


def put(name, change):
    return lambda tensors, record: tensors.update({name: change(tensors[name])})


def say(**changes):
    return lambda tensors, record: record.update(changes)


def drop(name):
    return lambda tensors, record: tensors.pop(name)


def first(value):
    def change(data):
        data.view(-1)[0] = value
        return data

    return change
