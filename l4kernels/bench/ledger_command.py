"""`l4k bench ledger`: every launch of one decode step with its bytes, floor and shared memory.

The step runs on tensors without data: no GPU, no weights, seconds. Layers that cost the same stand
there once. Launches and shared memory are those that the kernels' bindings ask for, which the
emulator of `make build` lists.
"""

import argparse
import json
import re
from dataclasses import asdict
from typing import Any

from l4kernels.bench.ledger import SHARED_BYTES, Group, Ledger, Row, ledger
from l4kernels.inputs.parser import Parser
from l4kernels.layers.weights import FORMATS
from l4kernels.model.config import Llama4Config
from l4kernels.planning.gpus import with_peaks
from l4kernels.planning.plan import parse_tokens

HEADER = ("op", "kernel", "CTAs", "KB", "pair KB", "MB", "MFLOP", "floor us")


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(prog="l4k bench ledger", description=__doc__)
    parser.add_argument("--model", choices=["scout", "maverick", "demo"], default="scout")
    parser.add_argument("--format", choices=list(FORMATS), default="int4")
    parser.add_argument("--gpu", choices=with_peaks(), default="h200", help="whose floor")
    parser.add_argument("--batch", type=int, default=1, help="sequences at once, a token of each")
    parser.add_argument("--context", help="keys of each: 8192, 128k, 1M; the new token's included")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    config = Llama4Config.preset(options.model)
    context = min(8192, config.max_position_embeddings)
    if options.context is not None:
        context = parse_tokens(options.context)
    step = ledger(config, options.format, options.gpu, options.batch, context)
    print(json.dumps(as_dict(step)) if options.json else text(step))
    return 0


def as_dict(step: Ledger) -> dict[str, Any]:
    """Plain values; of equal layers one."""
    groups = [
        {
            "place": group.place or "layers",
            "layers": group.layers,
            "launches": group.launches,
            "floor_us": group.floor_us,
            "rows": [
                asdict(row) | {"shared_bytes": row.shared_bytes, "overlaps": row.overlaps}
                for row in group.rows
            ],
        }
        for group in step.groups()
    ]
    facts = ("model", "format", "gpu", "batch", "context", "unknown")
    return {name: getattr(step, name) for name in facts} | {
        "kv_dtype": step.plan.kv_dtype,
        "calls": len(step.rows),
        "launches": step.launches,
        "bytes": step.bytes,
        "floor_us": step.floor_us,
        "planned_bytes": step.plan.bytes_per_step,
        "planned_floor_us": step.plan.step_floor_ms * 1e3,
        "groups": groups,
    }


def text(step: Ledger) -> str:
    """A table for people."""
    groups = step.groups()
    cells = [[_cells(row) for row in group.rows] for group in groups]
    columns = zip(HEADER, *(line for rows in cells for line in rows), strict=True)
    widths = [max(map(len, column)) for column in columns]
    lines = [
        f"{step.model} {step.format} on {step.gpu}: one decode step, batch {step.batch}, "
        f"{step.context:,} keys each in {step.plan.kv_dtype}",
        "",
        _line(HEADER, widths),
    ]
    for group, rows in zip(groups, cells, strict=True):
        lines += [_title(group), *(_line(row, widths) for row in rows)]
    return "\n".join([*lines, "", *_summary(step)])


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    """Names to the left, numbers to the right."""
    placed = [
        f"{cell:<{width}}" if index < 2 else f"{cell:>{width}}"
        for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  " + "  ".join(placed).rstrip()


def _cells(row: Row) -> tuple[str, ...]:
    mark = "!" if row.overlaps is False else ""
    launches = row.launches or ()
    return (
        row.name,
        " + ".join(short(launch.kernel) for launch in launches) or "-",
        " + ".join(str(launch.grid[0]) for launch in launches) or "-",
        "-" if row.shared_bytes is None else f"{row.shared_bytes / 1024:.1f}",
        "-" if row.pair_bytes is None else f"{mark}{row.pair_bytes / 1024:.1f}",
        f"{row.bytes / 1e6:.3f}",
        f"{row.flops / 1e6:.2f}",
        f"{row.floor_us:.3f}",
    )


def short(kernel: str) -> str:
    """
    >>> short("void l4k::stream_gemm_kernel<l4k::Int4Weights<true>, 1>(l4k::StreamGemmParams)")
    'stream_gemm<Int4Weights<true>, 1>'
    """
    return re.sub(r"^void |\(.*|l4k::|_kernel\b", "", kernel)


def _title(group: Group) -> str:
    launches = f", launches: {group.launches}" if group.launches else ""
    if group.place:
        return f"{group.place}{launches}, {group.floor_us:.1f} us"
    few = 6
    numbers = ", ".join(map(str, group.layers[:few]))
    if len(group.layers) > few:
        numbers += f", ..., {group.layers[-1]}"
    return f"each of {len(group.layers)} layers ({numbers}){launches}, {group.floor_us:.1f} us"


def _summary(step: Ledger) -> list[str]:
    planned = step.plan.step_floor_ms * 1e3
    moved = step.bytes / step.plan.bytes_per_step * planned
    bound = max(0.0, step.floor_us - moved)
    counted = f"{step.launches} launches, " if step.launches else ""
    floors = f"{step.floor_us / 1e3:.3f} ms at the least, by `l4k plan` {planned / 1e3:.3f} ms"
    lines = [
        f"{len(step.rows)} calls, {counted}{step.bytes / 1e9:.3f} GB: {floors} "
        f"({step.floor_us / planned - 1:+.1%}).",
        "The plan counts weights, and keys and values that are read. A step also moves the rows "
        "between its calls, norms, logits,",
        f"and what goes into the cache: {moved - planned:.1f} us more; {bound:.1f} "
        "us more where FLOP and not bytes are the floor.",
    ]
    return [
        *lines,
        *(f"Launches that are not counted: {why}." for why in step.unknown),
        f"pair KB: shared memory of a CTA and of one of the launch before it. Above "
        f"{SHARED_BYTES >> 10} (!) it starts after that one's end.",
    ]
