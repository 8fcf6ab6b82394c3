"""`l4k bench e2e`: a whole model with random weights of the real shapes, through the engine.

Requests come all at once, or at a rate. Time to first token, time between tokens, tokens a second,
the floor of a decode step, and memory against `l4k plan`. What does not fit the GPU runs with fewer
layers, and the row says so.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from l4kernels import Llama4, Llama4Config
from l4kernels.bench.rows import Rows, current_gpu
from l4kernels.bench.serving import Latencies, Load, serve, warm
from l4kernels.engine.engine import Engine
from l4kernels.engine.kv_cache import CacheShape
from l4kernels.inputs.parser import Parser
from l4kernels.layers.weights import FORMATS
from l4kernels.planning.footprint import active_params, blocks
from l4kernels.planning.gpus import GPUS
from l4kernels.planning.machine import gpu_problem
from l4kernels.planning.plan import Plan, plan


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(prog="l4k bench e2e", description=__doc__)
    parser.add_argument("--model", choices=["scout", "maverick", "demo"], default="demo")
    parser.add_argument("--format", choices=list(FORMATS), default="bf16")
    parser.add_argument("--batch", type=int, default=1, help="sequences at once, at most")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of each prompt")
    parser.add_argument("--new", type=int, default=32, help="tokens to generate, at least 2")
    parser.add_argument(
        "--rate",
        type=float,
        nargs="+",
        metavar="R",
        help="requests a second, as a Poisson process; each is a row. All at once, if not given",
    )
    parser.add_argument(
        "--requests",
        type=int,
        help="as many as --batch, at a rate four times as many, if not given",
    )
    parser.add_argument("--layers", type=int, help="as many as fit, if not given")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="folder for rows")
    parser.add_argument("--json", action="store_true", help="print the row as JSON")
    options = parser.parse_args(arguments)
    least = {"batch": 1, "prompt": 1, "new": 2, "layers": 1, "requests": 1}
    for name, low in least.items():
        value = getattr(options, name)
        if value is not None and value < low:
            parser.error(f"--{name}: expected at least {low}, got {value}")
    for rate in options.rate or ():
        if not 0 < rate < math.inf:
            parser.error(f"--rate: expected positive numbers of requests a second, got {rate}")
    return options


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    problem = gpu_problem(options.format)
    if problem and options.model != "demo":
        raise ValueError(f"{options.model} needs a Hopper GPU: {problem}; --model demo runs here")
    device = "cpu" if problem else "cuda"
    if problem:
        print(f"l4k: on the CPU: {problem}", file=sys.stderr)
    rows = Rows(options.out, current_gpu()) if device == "cuda" else None
    shape = options.model, options.format, options.batch, options.prompt
    trial = Trial(device, *shape, options.new, options.layers)
    for row in run(trial, options.rate, options.requests):
        if rows is not None:
            row = rows.add(key(*shape, row["rate"]), True, **row)
        print(json.dumps(row) if options.json else text(row), flush=True)
    return 0


def key(model: str, form: str, batch: int, prompt: int, rate: float | None = None) -> str:
    paced = "" if rate is None else f".rate{rate:g}"
    return f"e2e.{model}.{form}.batch{batch}.prompt{prompt}{paced}"


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


@dataclass(frozen=True)
class Trial:
    """A model on a device, the slots of its engine, and what each request is."""

    device: str
    model: str
    form: str
    batch: int
    prompt: int
    new_tokens: int
    num_layers: int | None = None
    """None: as many as fit."""

    @property
    def gpu(self) -> str:
        return current_gpu() if self.device == "cuda" else "h200"

    @property
    def context(self) -> int:
        return self.prompt + self.new_tokens

    @property
    def kv_dtype(self) -> str:
        """As `l4k generate` has it."""
        return "fp8" if self.device == "cuda" and FORMATS[self.form].fp8_cache else "bf16"

    @cached_property
    def whole(self) -> Llama4Config:
        return Llama4Config.preset(self.model)

    @cached_property
    def config(self) -> Llama4Config:
        most, layers = self.whole.num_hidden_layers, self.num_layers
        if layers is None:
            layers = layers_that_fit(self.whole, self.form, self.gpu, self.context, self.batch)
        if layers > most:
            raise ValueError(f"{self.model} has {most} layers, got --layers {layers}")
        return shortened(self.whole, layers)

    def network(self) -> Llama4:
        kv_dtype = self.kv_dtype if self.kv_dtype == "fp8" else None
        return Llama4.random(self.config, self.device, torch.bfloat16, self.form, kv_dtype)

    def engine(self, network: Llama4) -> Engine:
        """With the pages of as many sequences as it has slots, and none to find again."""
        shape = CacheShape.of(self.config, network.kv_dtype)
        room = self.batch * shape.pages(self.context) * shape.page_size
        slots, context = self.batch, self.context
        return Engine(network, slots=slots, context=context, kv_tokens=room, prefix_cache=False)

    def plan(self, batch: int) -> Plan:
        return plan(self.config, self.form, self.gpu, self.context, batch, self.kv_dtype)

    def prefill_floor_s(self, batch: int) -> float:
        """Products at the peaks of their formats, or the weights read once, if that is longer."""
        own, gpu = FORMATS[self.form], GPUS[self.gpu]
        attention = 2 * batch * self.prompt * blocks(self.config)["attention"].params
        rest = prefill_flops(self.config, batch, self.prompt) - attention
        seconds = sum(
            flops / gpu.peak(fp8=FORMATS[name].fp8_products)
            for flops, name in ((rest, self.form), (attention, own.attention or self.form))
        )
        return max(seconds, self.plan(batch).weights / gpu.bandwidth)


def run(
    trial: Trial, rates: Sequence[float] | None = None, requests: int | None = None
) -> Iterator[dict[str, Any]]:
    """Builds the model and its engine; a row for each rate, or one of requests all at once."""
    began = time.perf_counter()
    network = trial.network()
    facts = {
        "op": None,
        "model": trial.model,
        "format": trial.form,
        "device": trial.device,
        "batch": trial.batch,
        "prompt": trial.prompt,
        "new_tokens": trial.new_tokens,
        "layers": trial.config.num_hidden_layers,
        "layers_of_the_model": trial.whole.num_hidden_layers,
        "host_call_us": host_call_us(trial.device),
        "weights_bytes": sum(p.nbytes for p in network.parameters()),
        "kv_bytes": kv_bytes(network, trial.batch, trial.context),
    }
    with trial.engine(network) as engine:
        warm(engine, trial.batch, trial.prompt, trial.new_tokens)
        facts["build_s"] = time.perf_counter() - began
        for rate in rates or (None,):
            count = requests or (trial.batch if rate is None else 4 * trial.batch)
            if trial.device == "cuda":
                torch.cuda.reset_peak_memory_stats()  # without what building took
            load = Load(count, trial.prompt, trial.new_tokens, rate)
            yield facts | measured(trial, load, Latencies.of(serve(engine, load)))


def measured(trial: Trial, load: Load, found: Latencies) -> dict[str, Any]:
    """Latencies, and floors and sizes beside them. The step's floor is that of as many sequences as
    were answered at once on average."""
    full, planned = trial.plan(trial.batch), trial.plan(max(1, round(found.at_once)))
    row = {
        "rate": load.rate,
        "requests": load.requests,
        "time_to_first_token_ms": found.first_p50,
        "time_to_first_token_ms_p99": found.first_p99,
        "inter_token_ms": found.between_p50,
        "inter_token_ms_p99": found.between_p99,
        "tokens_per_second": found.tokens_per_second,
        "sequences_at_once": found.at_once,
        "bytes_per_step": planned.bytes_per_step,
        "bytes_per_second": planned.bytes_per_step / (found.between_p50 * 1e-3),
        "planned_weights_bytes": full.weights,
        "planned_kv_bytes": full.kv,
    }
    if trial.device == "cuda":
        together = trial.batch if load.rate is None else 1
        row |= {
            "step_floor_ms": planned.step_floor_ms,
            "share_of_step_floor": planned.step_floor_ms / found.between_p50,
            "first_token_floor_ms": trial.prefill_floor_s(together) * 1e3,
            "peak_memory_bytes": torch.cuda.max_memory_allocated(),
            "planned_memory_bytes": full.weights + full.kv + full.reserve,
        }
    return row


def kv_bytes(network: Llama4, batch: int, context: int) -> int:
    """Of a KV cache for that many sequences."""
    shape = CacheShape.of(network.config, network.kv_dtype)
    needed = shape.needed(context)
    return batch * sum(a * b for a, b in zip(needed, shape.page_bytes, strict=True))


def text(row: dict[str, Any]) -> str:
    where = (
        "on the CPU, typed references: not a GPU figure" if row["device"] == "cpu" else row["gpu"]
    )
    part = f"{row['layers']} of {row['layers_of_the_model']} layers"
    pace = "at once" if row["rate"] is None else f"at {row['rate']:g} a second"
    lines = [
        f"{row['model']} {row['format']} ({where}), {part}, batch {row['batch']}, prompt "
        f"{row['prompt']}, {row['new_tokens']} new tokens, {row['requests']} requests {pace}",
        f"  first token    {row['time_to_first_token_ms']:10.2f} ms "
        f"(p99 {row['time_to_first_token_ms_p99']:.2f})",
        f"  between tokens {row['inter_token_ms']:10.2f} ms (p99 {row['inter_token_ms_p99']:.2f}), "
        f"{row['sequences_at_once']:.1f} sequences at once, {row['bytes_per_second'] / 1e9:.2f} "
        f"GB/s of the {row['bytes_per_step'] / 1e9:.3f} GB a step must read",
        f"  all of it      {row['tokens_per_second']:10.1f} tokens/s",
        f"  memory         weights {row['weights_bytes'] / 1e9:.3f} GB (plan "
        f"{row['planned_weights_bytes'] / 1e9:.3f}), KV {row['kv_bytes'] / 1e9:.4f} GB (plan "
        f"{row['planned_kv_bytes'] / 1e9:.4f})",
    ]
    if row["device"] == "cuda":
        lines[1] += f", floor {row['first_token_floor_ms']:.2f} ms"
        lines[2] += f"; floor {row['step_floor_ms']:.3f} ms, {row['share_of_step_floor']:.0%} of it"
        lines[4] += (
            f", peak {row['peak_memory_bytes'] / 1e9:.2f} GB "
            f"(plan {row['planned_memory_bytes'] / 1e9:.2f})"
        )
    return "\n".join(lines)
