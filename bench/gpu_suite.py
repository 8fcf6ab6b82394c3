"""A visit to a GPU in one command, with a library that was built elsewhere.

`python -m bench.gpu_suite --out DIR --budget SECONDS` runs the steps of `bench.gpu_steps`, those
without a row first, and starts none that the rest of the budget does not cover. Each step appends
one row; a step that fails writes a row with `ok: false` and the suite goes on. Nothing is compiled
or installed.
"""

import argparse
import time
import traceback
from pathlib import Path

import torch

from l4kernels import STATUS

from .peaks import PEAKS, gpu_key
from .rows import Rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.gpu_suite", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for rows.jsonl")
    parser.add_argument("--budget", type=float, default=540, help="seconds")
    parser.add_argument("--only", default="", help="steps whose key starts with this")
    options = parser.parse_args()
    begin = time.monotonic()
    if not torch.cuda.is_available():
        raise SystemExit("gpu_suite: torch sees no CUDA device; run `make test` without one")
    if not STATUS.loaded:
        raise SystemExit(f"gpu_suite: {STATUS.reason}")
    from .gpu_steps import cost, steps

    gpu = gpu_key(torch.cuda.get_device_name())
    rows = Rows(options.out, gpu)
    todo = {key: step for key, step in steps() if key.startswith(options.only)}
    failed = skipped = 0
    for key in sorted(todo, key=rows.age):
        if time.monotonic() - begin + cost(key) > options.budget:
            skipped += 1
            continue
        torch.manual_seed(0)
        try:
            timing, facts = todo[key]()
            rows.add(key, True, timing, **facts)
            rate = facts.get("bytes_per_second")
            share = f"  {rate / 1e12:.2f} TB/s, {rate / PEAKS[gpu].memory:.0%}" if rate else ""
            took = f"  {timing.median:.1f} us{share}" if timing else ""
            if "inter_token_ms" in facts:
                took = f"  {facts['time_to_first_token_ms']:.1f} ms to the first token, then "
                took += f"{facts['inter_token_ms']:.2f} ms each{share}"
            print(f"ok    {key}{took}")
        except Exception as error:
            failed += 1
            rows.add(key, False, error=f"{type(error).__name__}: {error}"[:2000])
            print(f"FAIL  {key}\n{traceback.format_exc()}")
        torch.cuda.empty_cache()
    print(f"{len(todo) - failed - skipped} passed, {failed} failed, {skipped} skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
