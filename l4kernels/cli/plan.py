"""`l4k plan`."""

from l4kernels import plan as planner
from l4kernels.cli.output import console, gigabytes, print_json, table, tokens


def run(
    model: str,
    gpus: list[str] | None,
    formats: list[str] | None,
    context: str,
    batch: int,
    kv_dtype: str | None,
    *,
    every: bool,
    as_json: bool,
) -> None:
    config = planner.find_config(model)
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
    console.print(
        f"[bold]{config.name}[/bold]{label}: {total / 1e9:,.2f} B parameters, "
        f"{active / 1e9:,.2f} B active per token"
    )
    sequences = f"{batch} sequences of " if batch > 1 else ""
    table(
        f"{sequences}{tokens(length)} tokens; sizes in GB (10^9 bytes)",
        ["format", "GPU", "weights", "KV", "reserve", "fits", "spare", "max context",
         "GB/step", "floor ms", "tok/s at most"],
        [_row(p) for p in plans],
    )  # fmt: skip
    console.print(
        "reserve: CUDA context, workspaces, activations and graphs (estimate) · floor: bytes read "
        "by one decode step / datasheet bandwidth"
    )


def _row(p: planner.Plan) -> list[str]:
    gpu = p.gpu if p.num_gpus == 1 else f"{p.num_gpus}x{p.gpu}"
    return [
        f"{p.format} ({p.kv_dtype} KV)",
        gpu,
        gigabytes(p.weights),
        gigabytes(p.kv),
        gigabytes(p.reserve),
        "[green]yes[/green]" if p.fits else "[red]no[/red]",
        gigabytes(p.spare),
        tokens(p.max_context) if p.max_context else "-",
        gigabytes(p.bytes_per_step),
        f"{p.step_floor_ms:.2f}",
        f"{p.tokens_per_second_ceiling:,.0f}",
    ]
