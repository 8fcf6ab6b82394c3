"""`l4k convert`."""

import sys
import time
from pathlib import Path

from l4kernels.checkpoint.convert import convert
from l4kernels.cli.output import facts, print_json
from l4kernels.cli.progress import loading_bar


def run(source: Path, out: Path, *, as_json: bool) -> None:
    started = time.monotonic()
    with loading_bar("Writing") as progress:
        found = convert(source, out, progress)
    seconds = time.monotonic() - started
    files = sorted(file for file in out.iterdir() if file.is_file())
    shards = [file for file in files if file.suffix == ".safetensors"]
    size = sum(file.stat().st_size for file in shards)
    if as_json:
        print_json(
            {
                "source": str(source),
                "kind": found.kind,
                "out": str(out),
                "files": {file.name: file.stat().st_size for file in files},
                "weight_bytes": size,
                "seconds": round(seconds, 3),
                "notes": found.notes,
            }
        )
        return
    amount = f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.2f} MB"
    count = f"{len(shards)} file{'s'[: len(shards) > 1]}"
    others = ", ".join(file.name for file in files if file not in shards)
    facts(
        [
            ("read", f"{source} ({found.kind})"),
            ("written", str(out)),
            ("weights", f"{amount} of bf16 in {count}, {seconds:.1f} s"),
            ("beside", others),
            ("try", f'l4k generate --model {out} --prompt "..."'),
        ]
    )
    for note in found.notes:
        print(f"l4k: {note}", file=sys.stderr)
