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
from l4kernels.bench import inputs, shapes
from l4kernels.bench.rows import load
from l4kernels.bench.timing import time_calls, time_graph
from tools.gemm_configs import CSRC, STREAM, gemm_configs, max_splits, streamed_rows

TOKENS = (1, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
INT4_TOKENS = (1, 2, 4, 8, 16, 24, 32, 64, 128, 1024)
OPERANDS = ("bf16", "fp8_row", "fp8_fast")
SPLIT_UP_TO = 256  # rows of A: more of them fill the GPU without
COPIES = 3  # of the weights, which a chain goes round: together more than L2 holds
MODEL = "model"
"""The choice without measured rows, `config` -2. Others are `stream` and `name/splits`."""
NUMBERED = (
    "bf16_128x256",
    "bf16_128x128",
    "bf16_128x128_1x2_gelu",
    "bf16_128x256_2x1",
    "fp8_128x128_1x2_promote",
    "fp8_256x128_1x2_promote",
    "fp8_128x256",
    "fp8_128x256_2x1",
    "bf16_swap_16x128",
    "bf16_swap_64x128",
    "bf16_swap_128x128",
    "fp8_swap_16x128_promote",
    "fp8_swap_64x128_promote",
    "fp8_swap_128x128_promote",
    "fp8_swap_16x128",
    "fp8_swap_64x128",
    "fp8_swap_128x128",
)
"""What rows of 2026 count by, 100 * splits + number, with -1 and -2 for the model's choice."""
HOPELESS = 1.5
"""Times the best so far: such a candidate is not timed properly, and has no figure."""
HEADER = CSRC / "kernels" / "gemm" / "tuned.h"
CONFIGS = {config.name: config for config in gemm_configs()}
GENERATION = max(config.generation for config in CONFIGS.values())


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
    """Microseconds of every candidate: `{M: {choice: us}}`."""
    make, fp8 = inputs.Inputs("cuda"), form != "bf16"
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
            m *= inputs.CHOICES
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
        "generation": GENERATION,
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
    make = inputs.Inputs("cuda")
    shape = (experts, n, k) if experts else (n, k)
    tiles = [make.int4_tiles(*shape) for _ in range(copies(shape, 0.5))]
    found = {}
    for tokens in INT4_TOKENS:
        options: dict[str, Any] = {"static_weights": True}
        m = tokens
        if experts:
            m *= inputs.CHOICES
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
    modelled = options | {"config": -2}
    times = {MODEL: timed(a, weights, modelled)}
    for choice, number in choices(a.shape[0], "sfa" in options and not options["fast_accum"]):
        chosen = options | {"config": number}
        try:
            ops.gemm(a, weights[0], **chosen)
        except RuntimeError as error:
            if "expected config to be a row" not in str(error):
                raise
            continue  # this one does not compute it
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        ops.gemm(a, weights[-1], **chosen)
        end.record()
        torch.cuda.synchronize()
        once = begin.elapsed_time(end) * 1e3
        if once < HOPELESS * min(times.values()) + 40:  # a launch of its own costs that
            times[choice] = timed(a, weights, chosen)
    # Once more: under load the clock falls, and the first would be at an advantage.
    times[MODEL] = (times[MODEL] + timed(a, weights, modelled)) / 2
    return times


def choices(m: int, precise: bool) -> Iterator[tuple[str, int]]:
    """What may compute a product of M rows, and its `config`; some cannot."""
    yield "stream", STREAM
    for config in CONFIGS.values():
        if precise and not config.promote:
            continue
        for splits in range(1, max_splits() + 1 if m <= SPLIT_UP_TO else 2):
            yield f"{config}/{splits}", 100 * splits + config.number


def timed(
    a: Tensor, weights: list[Tensor], options: dict[str, Any], op: Callable[..., Any] = ops.gemm
) -> float:
    calls = [lambda w=w: op(a, w, **options) for w in weights]
    if a.shape[0] <= SPLIT_UP_TO and "expert_offsets" not in options:
        return time_graph(calls, chain=12, repeats=5).median
    return time_calls(calls[0], repeats=5, warmup=1).median


Entry = tuple[int, int, int, bool, bool, int, str, int]
"""n, k, experts, fp8, fast_accum, largest M, choice, generation of the configurations timed."""


def entries(rows: list[dict[str, Any]], gain: float = 0.05) -> Iterator[Entry]:
    """The best candidate of every M, where the model's own choice is slower by more than `gain`.

    A measured M stands for those up to the middle between it and the next, and down to the middle
    between it and the one before. Where nothing is gained the model goes on choosing, which beyond
    the last gain needs no entry. It does so, too, where rows are so few that they stream and
    streaming was not measured.
    """
    for row in rows:
        if not row["ok"] or not row["key"].startswith("tune.gemm."):
            continue
        product = row["n"], row["k"], row["experts"], row["fp8"], row["fast_accum"]
        measured = sorted((int(m), named(times)) for m, times in row["us"].items())
        ends = [int((a * b) ** 0.5) for (a, _), (b, _) in pairwise(measured)] + [2**31 - 1]
        found: list[tuple[int, str]] = []  # last M, choice
        for (m, times), end in zip(measured, ends, strict=True):
            best = min((c for c in times if allowed(c, row)), key=times.__getitem__)
            blind = m <= streamed_rows(row["experts"]) and "stream" not in times
            choice = best if not blind and times[best] * (1 + gain) < times[MODEL] else MODEL
            if found and found[-1][1] == choice:
                found.pop()
            found.append((end, choice))
        if found[-1][1] == MODEL:
            found.pop()
        generation = row.get("generation", 0)
        yield from ((*product, end, choice, generation) for end, choice in found)


def named(times: dict[str, float]) -> dict[str, float]:
    """With choices by name, which rows have not always had."""
    found = {}
    for choice, us in times.items():
        if choice.lstrip("-").isdigit():
            splits, number = divmod(int(choice), 100)
            choice = MODEL if int(choice) < 0 else f"{NUMBERED[number]}/{splits}"
        found[choice] = us
    return found


def allowed(choice: str, row: dict[str, Any]) -> bool:
    """Whether a choice still exists, and keeps its promise: a caller who did not ask for fast
    accumulation gets float32 sums of e4m3 products."""
    if choice in (MODEL, "stream"):
        return True
    config = CONFIGS.get(choice.split("/", maxsplit=1)[0])
    return config is not None and (not row["fp8"] or row["fast_accum"] or config.promote)


def header(found: list[Entry]) -> str:
    lines = [
        "// Written by `python -m bench.tune` from the rows of a GPU run; not by hand.",
        "// clang-format off: one entry a line, its choice below where the model's was slower",
    ]
    for n, k, experts, fp8, fast, max_m, choice, generation in found:
        flags = f".fp8 = {str(fp8).lower()}, .fast_accum = {str(fast).lower()}"
        product = f"{{.n = {n}, .k = {k}, .num_experts = {experts}, {flags}, .max_m = {max_m}"
        if generation:
            product += f", .generation = {generation}"
        if choice == "stream":
            product += ",\n .choice = {GemmChoice::kStream, 1}"
        elif choice != MODEL:
            name, splits = choice.split("/")
            product += f',\n .choice = {{gemm_config("{name}"), {splits}}}'
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
