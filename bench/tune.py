"""Which configuration of the GEMM, and how many splits of K, is the fastest for each product; and
from how many rows on int4 products are faster by wgmma than streamed.

The steps `tune.gemm.*` of a GPU run measure; `python -m bench.tune bench/results/h200` turns their
rows into csrc/kernels/gemm/tuned.h, which `choose_gemm` asks before its own model.
"""

import argparse
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.checks.edges_w4 import int4_configs
from l4kernels import ops
from l4kernels.bench import shapes
from l4kernels.bench.rows import load
from l4kernels.bench.timing import time_calls, time_graph
from tools.gemm_configs import CSRC, gemm_configs, max_splits

TOKENS = (1, 16, 64, 128, 256, 512, 1024, 4096, 8192)
INT4_TOKENS = (1, 2, 4, 8, 16, 24, 32, 64, 128, 1024)
OPERANDS = ("bf16", "fp8_row", "fp8_fast")
SPLIT_UP_TO = 256  # rows of A: more of them fill the GPU without
COPIES = 3  # of the weights, which a chain goes round: together more than L2 holds
MODEL = "-2"
"""The config that stands for the model's choice, tuned ones aside."""
HOPELESS = 1.5
"""Times the best so far: such a candidate is not timed properly, and has no figure."""
HEADER = CSRC / "kernels" / "gemm" / "tuned.h"
CONFIGS = gemm_configs()


def steps(model: str) -> Iterator[tuple[str, Callable[[], tuple[None, dict[str, Any]]]]]:
    """One step per product and format; its weights are made once."""
    config = shapes.Llama4Config.preset(model)
    for name, (experts, n, k) in shapes.products(config, 1).items():
        if name == "head":  # every row is at the bandwidth there
            continue
        for form in OPERANDS:
            yield (
                f"tune.gemm.{model}.{name}.{form}",
                lambda e=experts, n=n, k=k, form=form: (None, tune(e, n, k, form)),
            )


def tune(experts: int, n: int, k: int, form: str) -> dict[str, Any]:
    """Microseconds of every candidate: `{M: {config: us}}`."""
    make, fp8 = shapes.Inputs("cuda"), form != "bf16"
    shape = (experts, n, k) if experts else (n, k)
    weights = [
        make.fp8(*shape) if fp8 else make.normal(*shape)
        for _ in range(copies(shape, 1 if fp8 else 2))
    ]
    found = {}
    for tokens in TOKENS:
        options: dict[str, Any] = {"fast_accum": form == "fp8_fast"}
        m = tokens
        if experts:
            m *= shapes.CHOICES
            options["expert_offsets"] = make.numbers(shapes.expert_offsets(experts, tokens))
        if fp8:
            options |= {"sfa": make.full(1.0, m), "sfb": make.full(1.0, *shape[:-1])}
        a = make.fp8(m, k) if fp8 else make.normal(m, k)
        found[m] = candidates(a, weights, options)
    return {
        "op": None,
        "n": n,
        "k": k,
        "experts": experts or 1,
        "fp8": fp8,
        "fast_accum": form == "fp8_fast",
        "us": found,
    }


def int4_steps(model: str) -> Iterator[tuple[str, Callable[[], tuple[None, dict[str, Any]]]]]:
    """One step per product: config 0 streams, the others are those of csrc/kernels/w4_gemm."""
    config = shapes.Llama4Config.preset(model)
    for name, (experts, n, k) in shapes.products(config, 1).items():
        if name != "head":
            key = f"tune.w4_gemm.{model}.{name}"
            yield key, lambda e=experts, n=n, k=k: (None, tune_int4(e, n, k))


def tune_int4(experts: int, n: int, k: int) -> dict[str, Any]:
    """Microseconds of every configuration that takes the rows: `{M: {config: us}}`."""
    make = shapes.Inputs("cuda")
    shape = (experts, n, k) if experts else (n, k)
    tiles = [make.int4_tiles(*shape) for _ in range(copies(shape, 0.5))]
    found = {}
    for tokens in INT4_TOKENS:
        options: dict[str, Any] = {"static_weights": True}
        m = tokens
        if experts:
            m *= shapes.CHOICES
            options["expert_offsets"] = make.numbers(shapes.expert_offsets(experts, tokens))
        found[m] = int4_candidates(make.normal(m, k), tiles, options)
    return {"op": None, "n": n, "k": k, "experts": experts or 1, "us": found}


def int4_candidates(a: Tensor, tiles: list[Tensor], options: dict[str, Any]) -> dict[str, float]:
    times = {"-1": timed(a, tiles, options, ops.w4_gemm)}
    for config in int4_configs(lambda config: ops.w4_gemm(a, tiles[0], config=config, **options)):
        times[str(config)] = timed(a, tiles, options | {"config": config}, ops.w4_gemm)
    return times


def copies(shape: tuple[int, ...], bytes_each: float) -> int:
    size = torch.Size(shape).numel() * bytes_each
    return 1 if size > (128 << 20) else COPIES


def candidates(a: Tensor, weights: list[Tensor], options: dict[str, Any]) -> dict[str, float]:
    m = a.shape[0]
    times = {MODEL: timed(a, weights, options | {"config": int(MODEL)})}
    precise = "sfa" in options and not options["fast_accum"]
    for config in CONFIGS:
        if precise and not config.promote:
            continue
        for splits in range(1, max_splits() + 1 if m <= SPLIT_UP_TO else 2):
            chosen = options | {"config": 100 * splits + config.number}
            try:
                ops.gemm(a, weights[0], **chosen)
            except RuntimeError as error:
                if "expected config to be a row" not in str(error):
                    raise
                break  # not this one; nor more splits
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            ops.gemm(a, weights[-1], **chosen)
            end.record()
            torch.cuda.synchronize()
            once = begin.elapsed_time(end) * 1e3
            if once < HOPELESS * min(times.values()) + 40:  # a launch of its own costs that
                times[str(chosen["config"])] = timed(a, weights, chosen)
    # Once more: under load the clock falls, and the first would be at an advantage.
    times[MODEL] = (times[MODEL] + timed(a, weights, options | {"config": int(MODEL)})) / 2
    return times


def timed(
    a: Tensor, weights: list[Tensor], options: dict[str, Any], op: Callable[..., Any] = ops.gemm
) -> float:
    calls = [lambda w=w: op(a, w, **options) for w in weights]
    if a.shape[0] <= SPLIT_UP_TO and "expert_offsets" not in options:
        return time_graph(calls, chain=12, repeats=5).median
    return time_calls(calls[0], repeats=5, warmup=1).median


Entry = tuple[int, int, int, bool, bool, int, int]
"""n, k, experts, fp8, fast_accum, largest M, config."""


def entries(rows: list[dict[str, Any]], gain: float = 0.05) -> Iterator[Entry]:
    """The best candidate of every M, where the model's own choice is slower by more than `gain`.

    A measured M stands for those up to the middle between it and the next, and down to the middle
    between it and the one before. Where nothing is gained the model goes on choosing (config -1),
    which beyond the last gain needs no entry.
    """
    for row in rows:
        if not row["ok"] or not row["key"].startswith("tune.gemm."):
            continue
        product = row["n"], row["k"], row["experts"], row["fp8"], row["fast_accum"]
        measured = sorted((int(m), times) for m, times in row["us"].items())
        ends = [int((a * b) ** 0.5) for (a, _), (b, _) in pairwise(measured)] + [2**31 - 1]
        found: list[tuple[int, int]] = []  # last M, config
        for (_, times), end in zip(measured, ends, strict=True):
            allowed = [c for c in times if keeps_its_promise(int(c), row)]
            best = min(allowed, key=lambda config: times[config])
            model = times.get(MODEL, times.get("-1", 0.0))  # -1: rows from before there was a table
            config = int(best) if times[best] * (1 + gain) < model else -1
            if found and found[-1][1] == config:
                found.pop()
            found.append((end, config))
        if found[-1][1] == -1:
            found.pop()
        yield from ((*product, end, config) for end, config in found)


def keeps_its_promise(config: int, row: dict[str, Any]) -> bool:
    """A caller who did not ask for fast accumulation gets float32 sums of e4m3 products."""
    return config < 0 or not row["fp8"] or row["fast_accum"] or CONFIGS[config % 100].promote


def header(found: list[Entry]) -> str:
    lines = [
        "// Written by `python -m bench.tune` from the rows of a GPU run; not by hand.",
        "// clang-format off: one entry a line, its choice below where the model's was slower",
    ]
    for n, k, experts, fp8, fast, max_m, config in found:
        flags = f".fp8 = {str(fp8).lower()}, .fast_accum = {str(fast).lower()}"
        product = f"{{.n = {n}, .k = {k}, .num_experts = {experts}, {flags}, .max_m = {max_m}"
        if config >= 0:
            splits, number = divmod(config, 100)
            product += f',\n .choice = {{gemm_config("{CONFIGS[number].name}"), {splits}}}'
        lines.append(product + "},")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.tune", description=__doc__)
    parser.add_argument("rows", nargs="+", type=Path, help="files of rows, or folders of them")
    parser.add_argument("--out", type=Path, default=HEADER)
    options = parser.parse_args()
    found = list(entries(load(options.rows)))
    if not found:
        parser.error("no rows `tune.gemm.*` in these files: `make gpu` writes them")
    options.out.write_text(header(found))
    print(f"{len(found)} entries written to {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
