"""`l4k inspect`: what a checkpoint holds, from its headers alone."""

import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from l4kernels.checkpoint.choice import as_stored, said, stored_formats
from l4kernels.checkpoint.files.layout import Slot
from l4kernels.checkpoint.formats import open_checkpoint
from l4kernels.checkpoint.formats.unquantised import Unquantised
from l4kernels.cli.output import Cell, facts, line, print_json, styled, table, tokens
from l4kernels.layers.options import ModelOptions
from l4kernels.model.config import Llama4Config
from l4kernels.planning.footprint import kv_bytes, reserve_bytes
from l4kernels.planning.formats import KV_BYTES
from l4kernels.planning.gpus import GPUS

CONTEXT = 8192
_SHOWN_GPUS = "h100", "h200"


@dataclass
class Kind:
    """Weights of one kind, as they are stored."""

    tensors: int = 0
    params: int = 0
    bytes: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    """How many weights are in each."""


def run(model: Path, *, as_json: bool) -> None:
    if not model.is_dir():
        raise FileNotFoundError(f"{model}: no such checkpoint folder")
    config = Llama4Config.from_pretrained(model)
    source = open_checkpoint(model, config)
    plain = ModelOptions(torch.bfloat16, torch.device("cpu"))
    options = as_stored(plain, source, asked=False)
    kinds, sizes = stored_kinds(source), loaded_bytes(options, source)
    blocks = Counter((n.rpartition(".")[2], f.name) for n, f in stored_formats(source).items())
    quantisation = source.quantization
    result = {
        "model": config.name,
        "architecture": architecture(config),
        "quantisation": quantisation.method if quantisation else None,
        "files": {file.name: {"bytes": file.stat().st_size} for file in source.checkpoint.files},
        "stored": {
            name: {
                "tensors": kind.tensors,
                "params": kind.params,
                "bytes": kind.bytes,
                "formats": dict(kind.formats),
            }
            for name, kind in kinds.items()
        },
        "loaded": [
            {"block": block, "format": form, "count": count}
            for (block, form), count in blocks.items()
        ],
        "notes": said(options, source),
        "kv_scales": len(source.kv_scales),
        "weight_bytes": sizes,
        "fits": [room(config, sizes["bfloat16"], gpu) for gpu in _SHOWN_GPUS],
    }
    print_json(result) if as_json else _print(result)


def architecture(config: Llama4Config) -> dict[str, Any]:
    return {
        "layers": config.num_hidden_layers,
        "moe_layers": len(config.moe_layers),
        "experts": config.num_local_experts,
        "experts_per_token": config.num_experts_per_tok,
        "hidden_size": config.hidden_size,
        "heads": config.num_attention_heads,
        "kv_heads": config.num_key_value_heads,
        "vocab_size": config.vocab_size,
        "context": config.max_position_embeddings,
        "attention_chunk": config.attention_chunk_size,
        "tied": config.tie_word_embeddings,
        "vision_layers": config.vision.num_hidden_layers if config.vision else 0,
    }


def kind_of(name: str, slot: Slot) -> str:
    """What a user calls a weight."""
    if slot.target.startswith("vision."):
        return "vision"
    if ".experts." in name:
        return "routed experts"
    if ".shared_expert." in name:
        return "shared experts"
    if slot.kind == "router":
        return "router"
    if slot.block.endswith("feed_forward"):
        return "dense layers"
    if slot.block.endswith("attention"):
        return "attention"
    return slot.kind if slot.kind in ("lm_head", "embedding") else "norms"


def stored_kinds(source: Unquantised) -> dict[str, Kind]:
    kinds: dict[str, Kind] = {}
    for name, slot in source.slots.items():
        kind = kinds.setdefault(kind_of(name, slot), Kind())
        entries = [source.checkpoint.entries[piece] for piece in source.pieces[name]]
        params = math.prod(slot.shape)
        kind.tensors += len(entries)
        kind.params += params
        kind.bytes += sum(entry.bytes for entry in entries)
        form = source.form(name)
        types = "+".join(dict.fromkeys(entry.dtype.lower() for entry in entries))
        kind.formats[types if form.name == "bf16" else form.name] += params
    return kinds


def loaded_bytes(options: ModelOptions, source: Unquantised) -> dict[str, float]:
    """Of all weights in memory, by the dtype of what is not quantised: on a GPU bfloat16, on a CPU
    float32 unless told otherwise."""
    codes, floats = 0.0, 0
    for slot in source.slots.values():
        form = options.block(slot.block).format if slot.block else None
        if form is None or form.name == "bf16":
            floats += math.prod(slot.shape)
        else:
            n, k = slot.rows_shape
            codes += form.bytes(n, k, math.prod(slot.shape) // (n * k))
    return {name: codes + size * floats for name, size in (("bfloat16", 2), ("float32", 4))}


def room(config: Llama4Config, weights: float, gpu: str) -> dict[str, Any]:
    """What a GPU has left beside the weights and the cache of one sequence."""
    card, context = GPUS[gpu], min(CONTEXT, config.max_position_embeddings)
    spare = {
        name: card.memory
        - reserve_bytes(config, card, context, 1)
        - weights
        - kv_bytes(config, context, size)
        for name, size in KV_BYTES.items()
    }
    return {
        "gpu": gpu,
        "memory": card.memory,
        "context": context,
        "spare": spare,
        "fits": {name: left >= 0 for name, left in spare.items()},
    }


def _print(result: dict[str, Any]) -> None:
    shape, files = result["architecture"], result["files"]
    total = sum(file["bytes"] for file in files.values())
    experts = (
        f", {shape['moe_layers']} of them with {shape['experts']} experts "
        f"({shape['experts_per_token']} per token)"
    )
    vision = f"{shape['vision_layers']} layers" if shape["vision_layers"] else "none"
    facts(
        [
            ("model", result["model"]),
            ("layers", str(shape["layers"]) + (experts if shape["moe_layers"] else "")),
            ("hidden size", f"{shape['hidden_size']:,}"),
            ("heads", f"{shape['heads']}, {shape['kv_heads']} of keys and values"),
            ("vocabulary", f"{shape['vocab_size']:,}"),
            ("context", f"{tokens(shape['context'])}, chunks of {shape['attention_chunk']:,}"),
            ("vision", vision),
            ("quantised", result["quantisation"] or "no"),
            ("files", f"{len(files)}, {_size(total)}"),
        ]
    )
    line()
    rows: list[list[Cell]] = [
        [
            name,
            ", ".join(kind["formats"]),
            f"{kind['tensors']:,}",
            f"{kind['params']:,}",
            _size(kind["bytes"]),
        ]
        for name, kind in result["stored"].items()
    ]
    table("as stored", ["weights", "format", "tensors", "params", "size"], rows)
    line()
    for block in result["loaded"]:
        what = block["block"] + (f" of {block['count']} layers" if block["count"] > 1 else "")
        line(f"loads as {block['format']}: {what}")
    for note in result["notes"]:
        line(note)
    if result["kv_scales"]:
        line(f"scales for an fp8 cache of {result['kv_scales']} layers")
    sizes = result["weight_bytes"]
    line(
        f"weights in memory: {_size(sizes['bfloat16'])}; with float32 activations, as on a CPU, "
        f"{_size(sizes['float32'])}"
    )
    for fit in result["fits"]:
        for name, good in fit["fits"].items():
            left = _size(abs(fit["spare"][name]))
            text = f"fits, {left} to spare" if good else f"does not fit: {left} are missing"
            what = f"{fit['gpu']}, {tokens(fit['context'])} tokens, {name} cache: "
            line(what, styled(text, "green" if good else "red"))


def _size(value: float) -> str:
    return f"{value / 1e9:,.2f} GB" if value >= 1e9 else f"{value / 1e6:,.2f} MB"
