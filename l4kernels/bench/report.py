"""Tables and a roofline from result rows: `python -m l4kernels.bench.report ROWS… --out DIR`.

A table shows the share of the datasheet floor and of the ceiling that was measured on the same GPU.
The newest row of a key counts. `--op gemm --call '1[.]o'` prints the table of a kernel's page: the
calls of one op whose label begins so.
"""

import argparse
import re
from pathlib import Path

from l4kernels.bench.rows import Row, load
from l4kernels.planning.gpus import GPUS


def ceiling(rows: list[Row], key: str) -> float | None:
    return next((row["bytes_per_second"] for row in rows if row["key"] == f"ceiling.{key}"), None)


def table(rows: list[Row]) -> str:
    """Markdown: one line per measured call."""
    measured = [row for row in rows if row["ok"] and row.get("op")]
    if not measured:
        return models(rows) or "not measured\n"
    copy = ceiling(rows, "copy")
    lines = [
        "| call | us (p10-p90) | floor us | of the floor | of the copy ceiling | peers us |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in measured:
        peers = "; ".join(
            f"{name} {value:.1f}" if isinstance(value, float) else f"{name}: {value}"
            for name, value in row["peers"].items()
        )
        of_copy = f"{row['bytes_per_second'] / copy:.0%}" if copy else "not measured"
        lines.append(
            f"| {row['key'].partition('.')[2]} | {row['median']:.2f} "
            f"({row['low']:.2f}-{row['high']:.2f}) | {row['floor_us']:.2f} "
            f"| {row['share_of_floor']:.0%} | {of_copy} | {peers} |"
        )
    first = measured[0]
    lines.append(
        f"\n{first['name']}, driver {first['driver_version']}, commit {first['commit']}, "
        f"torch {first['torch']}, {first['time'][:10]}."
    )
    return "\n".join(lines) + "\n" + models(rows)


READERS = (
    "gemm", "gemm_swiglu_fp8", "flash_decode", "flash_decode_append", "merge_attention_states",
    "word_sum",
)  # fmt: skip
"""Ops that write little: the read ceiling is theirs, the copy ceiling everybody else's."""


def page(rows: list[Row], op: str, call: str = "") -> str:
    """Markdown for "Measured" of an op's page. A call that bytes do not bound has no ceiling."""
    chosen = [r for r in rows if r["ok"] and r.get("op") == op]
    chosen = [r for r in chosen if re.match(call, r["key"].split(".", 3)[3])]
    if not chosen:
        return "not measured\n"
    top = ceiling(rows, "read" if op in READERS else "copy")
    lines = [
        "| call | us | floor us | of the floor | of the ceiling | peers us |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in sorted(chosen, key=lambda r: [int(r["key"].split(".")[3]), r["key"]]):
        timed = [f"{name} {us:.1f}" for name, us in row["peers"].items() if isinstance(us, float)]
        bytes_us = 1e6 * row["bytes"] / GPUS[row["gpu"]].bandwidth
        bound = top and bytes_us > 0.99 * row["floor_us"]
        share = f"{row['bytes_per_second'] / top:.0%}" if top and bound else "-"
        lines.append(
            f"| {row['key'].split('.', 3)[3]} | {row['median']:.2f} | {row['floor_us']:.2f} "
            f"| {row['share_of_floor']:.0%} | {share} | {'; '.join(timed) or '-'} |"
        )
    return "\n".join(lines) + f"\n\n{chosen[0]['name']}, commit {chosen[0]['commit']}.\n"


def models(rows: list[Row]) -> str:
    """One line per whole model; empty without any."""
    lines = [
        "| model | layers | first token ms | between tokens ms | of the floor | peak GB |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        if row["ok"] and "inter_token_ms" in row:
            lines.append(
                f"| {row['key'].removeprefix('e2e.')} | {row['layers']} of "
                f"{row['layers_of_the_model']} | {row['time_to_first_token_ms']:.1f} "
                f"| {row['inter_token_ms']:.2f} | {row['share_of_step_floor']:.0%} "
                f"| {row['peak_memory_bytes'] / 1e9:.1f} |"
            )
    return "\n" + "\n".join(lines) + "\n" if len(lines) > 2 else ""


def roofline(rows: list[Row], path: Path) -> None:
    """FLOP per second over FLOP per byte, under the roof of the datasheet."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    measured = [row for row in rows if row["ok"] and row.get("op") and row.get("flops")]
    gpu = GPUS[measured[0]["gpu"] if measured else "h200"]
    figure, axes = plt.subplots(figsize=(8, 5))
    intensity = [2.0**i for i in range(-6, 13)]
    for name, peak in (("bf16", gpu.peak(fp8=False)), ("fp8", gpu.peak(fp8=True))):
        axes.plot(
            intensity, [min(peak, i * gpu.bandwidth) for i in intensity], label=f"{gpu.name} {name}"
        )
    for row in measured:
        rate = row["flops"] / (row["median"] * 1e-6)
        axes.plot(row["flops"] / row["bytes"], rate, "o", markersize=4)
        axes.annotate(row["key"].split(".", 1)[1], (row["flops"] / row["bytes"], rate), fontsize=5)
    axes.set(xscale="log", yscale="log", xlabel="FLOP per byte", ylabel="FLOP per second")
    axes.set_title(f"{len(measured)} measured calls" if measured else "not measured")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=160)
    plt.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(prog="l4kernels.bench.report", description=__doc__)
    parser.add_argument("rows", nargs="+", type=Path, help="files of rows, or folders of them")
    parser.add_argument("--out", type=Path, help="folder of the table and the roofline")
    parser.add_argument("--op", help="print the table of this op's page instead")
    parser.add_argument("--call", default="", help="a pattern that its calls' labels begin with")
    options = parser.parse_args()
    if not (options.out or options.op):
        parser.error("one of --out and --op is needed")
    missing = [str(p) for p in options.rows if not p.exists()]
    if missing:
        parser.error(f"no such file or folder: {', '.join(missing)}")
    rows = load(options.rows)
    if options.op:
        print(page(rows, options.op, options.call), end="")
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "report.md").write_text(table(rows))
    roofline(rows, options.out / "roofline.png")
    print(table(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
