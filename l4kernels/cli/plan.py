"""`l4k plan`."""

import textwrap

from l4kernels.cli.output import Cell, line, print_json, styled, table, tokens
from l4kernels.layers.weights import FORMATS
from l4kernels.planning.footprint import active_params, blocks, kv_bytes, weight_bytes
from l4kernels.planning.formats import KV_BYTES, all_formats
from l4kernels.planning.plan import Plan, find_config, find_format, parse_tokens, plan


def run(
    model: str,
    gpus: list[str] | None,
    formats: list[str] | None,
    context: str | None,
    batch: int,
    kv_dtype: str | None,
    *,
    every: bool,
    as_json: bool,
) -> None:
    config = find_config(model)
    length = min(8192, config.max_position_embeddings)
    if context is not None:
        length = parse_tokens(context)
    formats = formats or list(all_formats() if every else FORMATS)
    gpus = gpus or ["h100", "h200", "8xh100"]
    plans = [plan(config, form, gpu, length, batch, kv_dtype) for form in formats for gpu in gpus]
    counts = {name: block.params for name, block in blocks(config).items()}
    total, active = sum(counts.values()), active_params(config)
    if as_json:
        print_json(
            {
                "model": config.name,
                "estimate": config.estimate,
                "params": counts | {"total": total, "active": active},
                "source_bytes": weight_bytes(config, find_format("bf16")),
                "kv_bytes_per_sequence": {
                    name: kv_bytes(config, length, size) for name, size in KV_BYTES.items()
                },
                "plans": [p.as_dict() for p in plans],
            }
        )
        return
    label = " (an estimate: this shape was never published)" if config.estimate else ""
    _say(f"{config.name}{label}: {_count(total)} parameters, {_count(active)} active per token")
    power = 9 if total > 1e9 else 6
    largest = max(size for p in plans for size in (p.weights, p.kv, abs(p.spare)))
    while largest >= 10.0 ** (power + 6):  # beyond six digits a row has no place for it
        power += 3
    scale, unit = 10.0**power, {6: "MB", 9: "GB", 12: "TB", 15: "PB"}[power]
    sequences = f"{batch} sequences of " if batch > 1 else ""
    table(
        f"{sequences}{tokens(length)} tokens; sizes in {unit} (10^{power} bytes)",
        ["format", "GPU", "weight", "KV", "fits", "spare", "ctx", "ms", "tok/s"],
        [_row(p, scale) for p in plans],
    )
    _notes(plans, weight_bytes(config, find_format("bf16")) / scale, unit)


def _notes(plans: list[Plan], source: float, unit: str) -> None:
    """What the figures mean, and what of it cannot be had today."""
    kv = {p.kv_dtype: None for p in plans}
    if len(kv) == 1:
        _say(f"KV: keys and values in {next(iter(kv))}.")
    else:
        small = ", ".join(dict.fromkeys(p.format for p in plans if p.kv_dtype == "fp8"))
        _say(f"KV: keys and values in bf16; in fp8 with {small}.")
    reserves = sorted({(p.gpu, p.reserve / p.num_gpus) for p in plans})
    kept = ", ".join(f"{size / 1e9:.1f} GB per {gpu}" for gpu, size in reserves)
    _say(f"Kept free for CUDA, workspaces, activations and graphs (estimate): {kept}.")
    _say(
        "ms, tok/s: the floor of one decode step, its bytes at datasheet bandwidth. No kernel is "
        "faster."
    )
    _say(
        f"Loading reads the source files, {_size(source)} {unit} in bf16, whatever the format: "
        f"weights are quantised on the way."
    )
    found = dict.fromkeys(sentence for p in plans for sentence in p.obstacles)
    if found:
        _say("Not yet: " + " ".join(found))


def _say(text: str) -> None:
    """A paragraph for 80 columns."""
    line(textwrap.fill(text, 80))


def _count(params: int) -> str:
    return f"{params / 1e9:,.2f} B" if params >= 1e9 else f"{params / 1e6:.2f} M"


def _size(value: float) -> str:
    """Four digits at least, six characters at most below a million."""
    digits = 2 if abs(value) < 100 else 1 if abs(value) < 1000 else 0
    return f"{value:,.{digits}f}"


def _row(p: Plan, scale: float) -> list[Cell]:
    rate = p.tokens_per_second_ceiling
    return [
        p.format,
        p.gpu if p.num_gpus == 1 else f"{p.num_gpus}x{p.gpu}",
        _size(p.weights / scale),
        _size(p.kv / scale),
        styled("yes", "green") if p.fits else styled("no", "red"),
        _size(p.spare / scale),
        tokens(p.max_context) if p.max_context else "-",
        _size(p.step_floor_ms) if p.step_floor_ms >= 0.01 else f"{p.step_floor_ms:.4f}",
        f"{rate:,.0f}" if rate < 1e6 else f"{_size(rate / 1e6)} M",
    ]
