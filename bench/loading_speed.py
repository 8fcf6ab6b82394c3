"""How fast checkpoints load from the page cache: GB/s of the files' bytes, best of several.

`python -m bench.loading_speed /tmp/loading` makes synthetic checkpoints there, once, with Scout's
widths in one layer: experts fused, experts one by one, and a dense layer. `--only fused` and
`--weights bf16 fp8` narrow it down. On a machine that does other work, too, threads that spin while
they wait for each other cost most of the time: set OMP_WAIT_POLICY=PASSIVE, as `l4k` does.
"""

import argparse
import cProfile
import json
import os
import pstats
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from l4kernels import Llama4, Llama4Config
from l4kernels.checkpoint.files.layout import Slot, layout

TEXT = {
    "model_type": "llama4_text",
    "vocab_size": 16_384,
    "hidden_size": 5120,
    "num_hidden_layers": 1,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 8192,
    "intermediate_size_mlp": 16_384,
    "num_local_experts": 8,
    "interleave_moe_layer_step": 1,
    "attention_chunk_size": 8192,
    "max_position_embeddings": 8192,
    "eos_token_id": None,
    "pad_token_id": 0,
}
KINDS = {
    "fused": {},
    "experts": {},
    "dense": {"interleave_moe_layer_step": 2, "num_hidden_layers": 2, "moe_layers": []},
}
"""What each has other than TEXT."""


def slots_of(kind: str) -> dict[str, Slot]:
    """Every tensor of a kind."""
    config = Llama4Config.from_dict({**TEXT, **KINDS[kind]})
    one_by_one = "model.layers.0.feed_forward.experts.0.gate_proj.weight"
    return layout(config, (one_by_one, "model.norm.weight") if kind == "experts" else ())


def write(folder: Path, kind: str) -> None:
    """A checkpoint of one file. All tensors repeat the same values: drawing them takes minutes."""
    values = torch.randn(1 << 22, generator=torch.Generator().manual_seed(0)).mul_(0.02).bfloat16()
    tensors = {}
    for name, slot in slots_of(kind).items():
        tensor = torch.empty(slot.shape, dtype=torch.bfloat16)
        flat = tensor.view(-1)
        for start in range(0, flat.numel(), values.numel()):
            piece = flat[start : start + values.numel()]
            piece.copy_(values[: piece.numel()])
        tensors[name] = tensor
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**TEXT, **KINDS[kind]}))


def measure(folder: Path, weights: str, repeats: int) -> str:
    """Loads a few times; a line of the best."""
    size = (folder / "model.safetensors").stat().st_size
    walls, cpus = [], []
    for _ in range(repeats):
        started, cpu = time.perf_counter(), time.process_time()
        model = Llama4.from_pretrained(folder, dtype=torch.bfloat16, weights=weights)
        walls.append(time.perf_counter() - started)
        cpus.append(time.process_time() - cpu)
        del model
    return (
        f"{folder.name:8} -> {weights:5} {size / 1e9:.2f} GB in {min(walls):5.2f} s: "
        f"{size / 1e9 / min(walls):5.2f} GB/s ({min(cpus):5.2f} s of the processor, "
        f"{torch.get_num_threads()} threads)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.loading_speed", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the checkpoints are, or will be: 6 GB")
    parser.add_argument("--only", nargs="+", choices=tuple(KINDS), default=tuple(KINDS))
    parser.add_argument("--weights", nargs="+", default=["bf16", "fp8", "int4"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--profile", action="store_true", help="which functions take the time")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for kind in options.only:
        folder = options.folder / kind
        if not folder.exists():
            write(folder, kind)
        file = os.open(folder / "model.safetensors", os.O_RDONLY)
        while os.read(file, 1 << 24):  # into the page cache
            pass
        os.close(file)
        for weights in options.weights:
            with cProfile.Profile() as profile:
                if not options.profile:
                    profile.disable()
                print(measure(folder, weights, options.repeats), flush=True)
            if options.profile:
                pstats.Stats(profile).sort_stats("tottime").print_stats(12)


if __name__ == "__main__":
    main()
