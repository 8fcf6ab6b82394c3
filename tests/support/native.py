"""Tiny checkpoints in Meta's native form."""

import base64
import json
from pathlib import Path

import torch

from tools.fixtures import meta

FIXTURES = Path(__file__).parents[1] / "checkpoint" / "fixtures" / "meta"
COLUMNS = (
    "wo.weight", "fc2_weight", "w_out_shared_DF.weight", "mlp.c_proj.weight", "moe_w_in_eD_F",
    "moe_w_swiglu_eD_F",
)  # fmt: skip
TEXTS = [b" t", b"he", b" the", b"in", b"er", b" a", b"the"]


def fixture(name: str) -> dict:
    """`params`, `logits` and `ranks` that Meta's code gave."""
    return json.loads((FIXTURES / f"{name}.json").read_text())


def write_tokens(file: Path, count: int) -> None:
    """`count` tokens with their ranks, beside the control tokens."""
    tokens = [bytes([byte]) for byte in range(256)] + TEXTS
    tokens += [b"x" * length for length in range(2, count)]
    lines = (f"{base64.b64encode(t).decode()} {rank}\n" for rank, t in enumerate(tokens[:count]))
    file.write_text("".join(lines))


def split(params: dict, state: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """A checkpoint for two ranks: written out name by name, compared with Meta's in a test."""
    head = params["dim"] // params["n_heads"]
    q, kv = params["n_heads"] * head, params["n_kv_heads"] * head
    experts = params["moe_args"]["num_experts"]
    ranks: list[dict[str, torch.Tensor]] = [{}, {}]
    for name, data in state.items():
        if name.endswith("wqkv.weight"):
            parts = zip(*(part.chunk(2) for part in data.split((q, kv, kv))), strict=True)
            halves = [torch.cat(part) for part in parts]
        elif name.endswith("fc1_weight"):
            (w1, w1_other), (w3, w3_other) = (part.chunk(2) for part in data.chunk(2))
            halves = [torch.cat((w1, w3)), torch.cat((w1_other, w3_other))]
        elif name.endswith("moe_w_out_eF_D"):
            stack = data.unflatten(0, (experts, -1))
            halves = [half.flatten(0, 1) for half in stack.chunk(2, 1)]
        elif name.endswith(COLUMNS):
            halves = list(data.chunk(2, -1))
        elif name.endswith(
            ("norm.weight", "norm_weight", "router_DE", "stats_3E", "rope.freqs", "wo.bias")
        ) or any(part in name for part in (".ln_", "c_proj.bias", "class_emb", "positional")):
            halves = [data, data]
        else:
            halves = list(data.chunk(2, 0))
        for rank, half in zip(ranks, halves, strict=True):
            rank[name] = half.clone()
    return ranks


def write(folder: Path, params: dict, ranks: list[dict] | None = None) -> Path:
    """The folder; `ranks` are the state dictionaries, by default one with the formula's weights."""
    folder.mkdir(parents=True, exist_ok=True)
    for rank, state in enumerate(ranks or [meta.tensors(params)]):
        torch.save(state, folder / f"consolidated.{rank:02}.pth")
    (folder / "params.json").write_text(json.dumps(params))
    write_tokens(folder / "tokenizer.model", params["vocab_size"] - 2048)
    return folder
