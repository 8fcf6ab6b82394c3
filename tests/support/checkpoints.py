"""Small synthetic checkpoints, written without transformers."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from l4kernels import Llama4Config
from l4kernels.checkpoint.files.layout import layout
from l4kernels.checkpoint.load import random_tensors

TEXT = {
    "model_type": "llama4_text",
    "vocab_size": 160,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 128,
    "intermediate_size": 40,
    "intermediate_size_mlp": 72,
    "num_local_experts": 4,
    "interleave_moe_layer_step": 2,
    "attention_chunk_size": 8,
    "floor_scale": 8,
    "use_qk_norm": True,
    "max_position_embeddings": 512,
    "eos_token_id": None,
    "pad_token_id": 159,
}
ALIGNED = {"hidden_size": 128, "intermediate_size": 128, "intermediate_size_mlp": 256}


def tensors_of(config: Llama4Config, seed: int = 0, dtype=torch.float32) -> dict:
    """Random tensors under the names and shapes of a text-only checkpoint."""
    whole: dict[str, list] = {}
    for name, _, data in random_tensors(layout(config), torch.device("cpu"), seed):
        whole.setdefault(name, []).append(data.to(dtype))
    slots = layout(config)
    return {
        name: torch.stack(parts) if len(slots[name].shape) == 3 else parts[0]
        for name, parts in whole.items()
    }


def write(folder: Path, tensors: dict, shards: int = 1, **changes) -> Path:
    """A checkpoint folder; with several shards also an index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**TEXT, **changes}))
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    names, weight_map = sorted(tensors), {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        own = names[shard::shards]
        save_file({name: tensors[name] for name in own}, folder / file)
        weight_map |= dict.fromkeys(own, file)
    write_index(folder, weight_map)
    return folder


def write_index(folder: Path, weight_map: dict) -> None:
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def unfused(tensors: dict) -> dict:
    """One tensor per expert and projection, `[out, in]`, as compressed-tensors files have them."""
    result = {}
    for name, data in tensors.items():
        if "experts.gate_up_proj" in name:
            for expert, matrix in enumerate(data):
                gate, up = matrix.t().chunk(2)
                stem = name.replace("gate_up_proj", str(expert))
                result[f"{stem}.gate_proj.weight"] = gate.contiguous()
                result[f"{stem}.up_proj.weight"] = up.contiguous()
        elif "experts.down_proj" in name:
            for expert, matrix in enumerate(data):
                stem = name.replace("down_proj", str(expert))
                result[f"{stem}.down_proj.weight"] = matrix.t().contiguous()
        else:
            result[name] = data
    return result
