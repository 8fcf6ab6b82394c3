"""`l4k bench e2e`: a whole model with random weights of the real shapes, from prompt to tokens.

Time to first token, time between tokens, bytes a second against the floor of a decode step, and
memory against `l4k plan`. What does not fit the GPU runs with fewer layers, and the row says so.
"""

import argparse
import itertools
import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from l4kernels import Llama4, Llama4Config
from l4kernels.bench.rows import Rows, current_gpu
from l4kernels.engine.kv_cache import CacheShape
from l4kernels.inputs.parser import Parser
from l4kernels.layers.weights import FORMATS
from l4kernels.planning.footprint import active_params, blocks
from l4kernels.planning.gpus import GPUS
from l4kernels.planning.machine import gpu_problem
from l4kernels.planning.plan import plan


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(prog="l4k bench e2e", description=__doc__)
    parser.add_argument("--model", choices=["scout", "maverick", "demo"], default="demo")
    parser.add_argument("--format", choices=list(FORMATS), default="bf16")
    parser.add_argument("--batch", type=int, default=1, help="sequences at once")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of each prompt")
    parser.add_argument("--new", type=int, default=32, help="tokens to generate, at least 2")
    parser.add_argument("--layers", type=int, help="as many as fit, if not given")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="folder for rows")
    parser.add_argument("--json", action="store_true", help="print the row as JSON")
    options = parser.parse_args(arguments)
    least = {"batch": 1, "prompt": 1, "new": 2, "layers": 1}
    for name, low in least.items():
        value = getattr(options, name)
        if value is not None and value < low:
            parser.error(f"--{name}: expected at least {low}, got {value}")
    return options


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    problem = gpu_problem(options.format)
    if problem and options.model != "demo":
        raise ValueError(f"{options.model} needs a Hopper GPU: {problem}; --model demo runs here")
    device = "cpu" if problem else "cuda"
    if problem:
        print(f"l4k: on the CPU: {problem}", file=sys.stderr)
    row = run(
        device,
        options.model,
        options.format,
        options.batch,
        options.prompt,
        options.new,
        options.layers,
    )
    if device == "cuda":
        rows = Rows(options.out, current_gpu())
        row = rows.add(
            key(options.model, options.format, options.batch, options.prompt), True, **row
        )
    print(json.dumps(row) if options.json else text(row))
    return 0


def key(model: str, form: str, batch: int, prompt: int) -> str:
    return f"e2e.{model}.{form}.batch{batch}.prompt{prompt}"


def shortened(config: Llama4Config, layers: int) -> Llama4Config:
    """The first layers of a text model; embedding and head stay whole."""
    return replace(
        config,
        num_hidden_layers=layers,
        moe_layers=tuple(layer for layer in config.moe_layers if layer < layers),
        rope_layers=config.rope_layers[:layers],
        chunked_layers=config.chunked_layers[:layers],
        vision=None,
    )


def layers_that_fit(config: Llama4Config, form: str, gpu: str, context: int, batch: int) -> int:
    largest = 8.0 * config.vocab_size * config.hidden_size  # bytes of a tensor while it is made
    for layers in range(config.num_hidden_layers, 0, -1):
        planned = plan(shortened(config, layers), form, gpu, context, batch)
        if planned.spare >= largest:
            return layers
    raise ValueError(f"not one layer of {config.name} in {form} fits a {gpu}")


def prefill_flops(config: Llama4Config, batch: int, prompt: int) -> float:
    """Products of every layer for every token, attention inside the mask, one row of logits."""
    b = blocks(config)
    head = b["lm_head"].params or b["embedding"].params
    pairs = 0
    for layer in range(config.num_hidden_layers):
        chunk = config.chunk(layer) or prompt
        whole, rest = divmod(prompt, chunk)
        pairs += (whole * chunk * (chunk + 1) + rest * (rest + 1)) // 2
    attention = 4 * pairs * config.num_attention_heads * config.head_dim
    return batch * (2 * prompt * (active_params(config) - head) + attention + 2 * head)


def host_call_us(device: str) -> float:
    """What torch itself takes for a call on a small tensor: eager steps are compared beside it."""
    x = torch.ones(64, device=device)
    for _ in range(100):
        x * x
    began = time.perf_counter()
    for _ in range(500):  # fewer than a stream takes before it lets the host wait
        x * x
    return (time.perf_counter() - began) * 1e6 / 500


def run(
    device: str, model: str, form: str, batch: int, prompt: int, new: int, layers: int | None = None
) -> dict[str, Any]:
    """Builds the model on the device and measures one prompt and its continuation."""
    whole = Llama4Config.preset(model)
    gpu = current_gpu() if device == "cuda" else "h200"
    context = prompt + new
    layers = layers or layers_that_fit(whole, form, gpu, context, batch)
    if layers > whole.num_hidden_layers:
        raise ValueError(f"{model} has {whole.num_hidden_layers} layers, got --layers {layers}")
    config = shortened(whole, layers)
    began = time.perf_counter()
    fp8_cache = device == "cuda" and FORMATS[form].fp8_cache  # as `l4k generate` has it
    network = Llama4.random(config, device, torch.bfloat16, form, "fp8" if fp8_cache else None)
    ids = torch.randint(
        config.vocab_size, (batch, prompt), generator=torch.Generator().manual_seed(0)
    )
    # Library and allocator warm, with a cache of the same size; also ends the building.
    _generate(network, ids, new, 2)
    built = time.perf_counter() - began
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()  # without what building took
    first, gaps = _generate(network, ids, new)
    step = statistics.median(gaps)
    planned = plan(config, form, gpu, context, batch, "fp8" if fp8_cache else "bf16")
    weights = sum(p.numel() * p.element_size() for p in network.parameters())
    row = {
        "op": None,
        "model": model,
        "format": form,
        "device": device,
        "batch": batch,
        "prompt": prompt,
        "new_tokens": new,
        "layers": layers,
        "layers_of_the_model": whole.num_hidden_layers,
        "build_s": built,
        "time_to_first_token_ms": first * 1e3,
        "inter_token_ms": step * 1e3,
        "inter_token_ms_p90": sorted(gaps)[int(0.9 * (len(gaps) - 1))] * 1e3,
        "tokens_per_second": batch / step,
        "host_call_us": host_call_us(device),
        "bytes_per_step": planned.bytes_per_step,
        "bytes_per_second": planned.bytes_per_step / step,
        "weights_bytes": weights,
        "planned_weights_bytes": planned.weights,
        "kv_bytes": kv_bytes(network, batch, context),
        "planned_kv_bytes": planned.kv,
    }
    if device == "cuda":
        peak = GPUS[gpu].peak(fp8=FORMATS[form].fp8_products)
        flops = prefill_flops(config, batch, prompt)
        floor = max(flops / peak, planned.weights / GPUS[gpu].bandwidth)
        row |= {
            "step_floor_ms": planned.step_floor_ms,
            "share_of_step_floor": planned.step_floor_ms / (step * 1e3),
            "first_token_floor_ms": floor * 1e3,
            "peak_memory_bytes": torch.cuda.max_memory_allocated(),
            "planned_memory_bytes": planned.weights + planned.kv + planned.reserve,
        }
    return row


def kv_bytes(network: Llama4, batch: int, context: int) -> int:
    """Of a KV cache for that many sequences."""
    shape = CacheShape.of(network.config, network.kv_dtype)
    needed = shape.needed(context)
    return batch * sum(a * b for a, b in zip(needed, shape.page_bytes, strict=True))


def _generate(
    network: Llama4, ids: torch.Tensor, new: int, steps: int | None = None
) -> tuple[float, list[float]]:
    """Seconds to the first token, and between the others; each step ends with its tokens read."""
    times = [time.perf_counter()]
    for _ in itertools.islice(network.stream(ids, new, stop_ids=()), steps):
        times.append(time.perf_counter())
    gaps = [b - a for a, b in itertools.pairwise(times)]
    return gaps[0], gaps[1:]


def text(row: dict[str, Any]) -> str:
    where = (
        "on the CPU, typed references: not a GPU figure" if row["device"] == "cpu" else row["gpu"]
    )
    part = f"{row['layers']} of {row['layers_of_the_model']} layers"
    lines = [
        f"{row['model']} {row['format']} ({where}), {part}, batch {row['batch']}, prompt "
        f"{row['prompt']}, {row['new_tokens']} new tokens",
        f"  first token    {row['time_to_first_token_ms']:10.2f} ms",
        f"  between tokens {row['inter_token_ms']:10.2f} ms (p90 {row['inter_token_ms_p90']:.2f}), "
        f"{row['tokens_per_second']:.1f} tokens/s, {row['bytes_per_second'] / 1e9:.2f} GB/s of the "
        f"{row['bytes_per_step'] / 1e9:.3f} GB a step must read",
        f"  memory         weights {row['weights_bytes'] / 1e9:.3f} GB (plan "
        f"{row['planned_weights_bytes'] / 1e9:.3f}), KV {row['kv_bytes'] / 1e9:.4f} GB (plan "
        f"{row['planned_kv_bytes'] / 1e9:.4f})",
    ]
    if row["device"] == "cuda":
        lines[1] += f", floor {row['first_token_floor_ms']:.2f} ms"
        lines[2] += f"; floor {row['step_floor_ms']:.3f} ms, {row['share_of_step_floor']:.0%} of it"
        lines[3] += (
            f", peak {row['peak_memory_bytes'] / 1e9:.2f} GB "
            f"(plan {row['planned_memory_bytes'] / 1e9:.2f})"
        )
    return "\n".join(lines)
