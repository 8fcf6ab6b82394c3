"""`l4k bench OP...`: floors of every case, and times where there is a GPU. `l4k bench e2e`: a whole
model. `l4k bench ledger`: what one decode step calls and costs at the least."""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from l4kernels import STATUS
from l4kernels.bench.measure import line, measure
from l4kernels.bench.rows import Rows, current_gpu
from l4kernels.bench.shapes import PHASES, benchmarked_ops, calls
from l4kernels.bench.timing import Timing
from l4kernels.inputs.parser import Parser
from l4kernels.planning.gpus import with_peaks


def require_shapes(
    parser: argparse.ArgumentParser, ops: Iterable[str], known: Sequence[str]
) -> None:
    """Ends with the parser's error where one of the ops is not among the known."""
    if unknown := sorted(set(ops) - set(known)):
        parser.error(f"no shapes for {', '.join(unknown)}; there are shapes for {', '.join(known)}")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="l4k bench", description=__doc__)
    parser.add_argument(
        "ops", nargs="*", metavar="OP", help="all that have shapes if none is named"
    )
    parser.add_argument("--model", action="append", choices=["scout", "maverick"])
    parser.add_argument("--phase", action="append", choices=list(PHASES))
    parser.add_argument(
        "--gpu", choices=with_peaks(), default="h200", help="whose floor, without one"
    )
    parser.add_argument("--counters", action="store_true", help="run reduced cases in the emulator")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="folder for rows")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    require_shapes(parser, options.ops, benchmarked_ops())
    if options.counters and options.json:
        parser.error("--counters prints no JSON; leave out one of --counters and --json")
    return options


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["e2e"]:
        from l4kernels.bench.e2e import main as whole_model

        return whole_model(arguments[1:])
    if arguments[:1] == ["ledger"]:
        from l4kernels.bench.ledger_command import main as one_step

        return one_step(arguments[1:])
    options = parse(arguments)
    on_gpu = torch.cuda.is_available() and STATUS.loaded
    gpu = current_gpu() if on_gpu else options.gpu
    rows = Rows(options.out, gpu) if on_gpu else None
    models = tuple(options.model or ("scout", "maverick"))
    for op in options.ops or benchmarked_ops():
        for case in calls(op, models, tuple(options.phase or PHASES)):
            work = case.work()
            timing: Timing | None = None
            facts: dict[str, Any] = {"peers": {}}
            if rows is not None:
                *_, (timing, facts) = measure(case, gpu)
                rows.add(case.key, True, timing, **facts)
            if options.json:
                record = {"key": case.key, "flops": work.flops, "bytes": work.bytes}
                measured = timing.median if timing else None
                print(json.dumps(record | {"measured_us": measured, "gpu": gpu}))
            else:
                print(line(case, work, gpu, timing, facts), flush=True)
        if options.counters:
            print_counters(op)
    if rows is None and not options.json:
        why = STATUS.reason if not STATUS.loaded else "torch sees no CUDA device"
        print(f"not measured: {why}. Floors are for {gpu}'s datasheet.")
    return 0


def print_counters(op: str) -> None:
    """Bytes touched over needed, bank conflicts and launches of small cases, emulated."""
    from l4kernels.bench.counters import counters_of

    for text in counters_of(op):
        print(f"    {text}", flush=True)
