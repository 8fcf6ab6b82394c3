"""`l4k plan`."""

from l4kernels import plan as planner
from l4kernels.cli.output import Cell, line, print_json, styled, table, tokens


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
    config = planner.find_config(model)
    length = min(8192, config.max_position_embeddings)
    if context is not None:
        length = planner.parse_tokens(context)
    formats = formats or list(planner.FORMATS if every else planner.OWN_FORMATS)
    gpus = gpus or ["h100", "h200", "8xh100"]
    plans = [
        planner.plan(config, form, gpu, length, batch, kv_dtype) for form in formats for gpu in gpus
    ]
    counts = {name: block.params for name, block in planner.blocks(config).items()}
    total, active = sum(counts.values()), planner.active_params(config)
    if as_json:
        print_json(
            {
                "model": config.name,
                "estimate": config.estimate,
                "params": counts | {"total": total, "active": active},
                "kv_bytes_per_sequence": {
                    name: planner.kv_bytes(config, length, size)
                    for name, size in planner.KV_BYTES.items()
                },
                "plans": [p.as_dict() for p in plans],
            }
        )
        return
    label = " (an estimate: this shape was never published)" if config.estimate else ""
    line(
        styled(config.name, "bold"),
        f"{label}: {_count(total)} parameters, {_count(active)} active per token",
    )
    unit = 1e9 if total > 1e9 else 1e6
    name = "GB" if unit == 1e9 else "MB"
    sequences = f"{batch} sequences of " if batch > 1 else ""
    table(
        f"{sequences}{tokens(length)} tokens; sizes in {name} (10^{9 if unit == 1e9 else 6} bytes)",
        ["format", "KV in", "GPU", "weights", "KV", "activ.", "fits", "spare", "max context",
         f"{name}/step", "floor ms", "tok/s"],
        [_row(p, unit) for p in plans],
    )  # fmt: skip
    reserves = sorted({(p.gpu, p.reserve / p.num_gpus) for p in plans})
    kept = ", ".join(f"{size / 1e9:.1f} GB of a {gpu}" for gpu, size in reserves)
    line(
        f"Kept free for CUDA, workspaces, activations and graphs (estimate): {kept}. floor, tok/s: "
        f"bytes of one decode step at datasheet bandwidth; no kernel is faster.",
        wrap=True,
    )


def _count(params: int) -> str:
    return f"{params / 1e9:,.2f} B" if params >= 1e9 else f"{params / 1e6:.2f} M"


def _row(p: planner.Plan, unit: float) -> list[Cell]:
    def size(value: float) -> str:
        return f"{value / unit:,.2f}" if abs(value / unit) < 1000 else f"{value / unit:,.0f}"

    return [
        p.format,
        p.kv_dtype,
        p.gpu if p.num_gpus == 1 else f"{p.num_gpus}x{p.gpu}",
        size(p.weights),
        size(p.kv),
        size(p.activations),
        styled("yes", "green") if p.fits else styled("no", "red"),
        size(p.spare),
        tokens(p.max_context) if p.max_context else "-",
        size(p.bytes_per_step),
        f"{p.step_floor_ms:.2f}" if p.step_floor_ms >= 0.01 else f"{p.step_floor_ms:.4f}",
        f"{p.tokens_per_second_ceiling:,.0f}",
    ]
