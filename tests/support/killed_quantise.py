"""`python killed_quantise.py SOURCE OUT FORMAT SHARD_BYTES LIMIT ...`: quantises again and again,
each time until SIGKILL when so many bytes are written; -1 lets it end.

Prints a line of JSON per run: the signal, the bytes it began with, whether OUT is there, and the
files of OUT.partial. Each run is a fork of a process that has imported everything and run nothing.
"""

import json
import os
import signal
import sys
from pathlib import Path

from l4kernels.checkpoint.formats import open_checkpoint
from l4kernels.checkpoint.quantize.run import Job, quantize
from l4kernels.checkpoint.quantize.scheme import Scheme
from l4kernels.model.config import Llama4Config


def run(source: str, out: Path, form: str, shard_bytes: int, limit: int, began: int) -> None:
    """In the child: tells the parent through the pipe `began` where it went on."""
    seen: list[int] = []

    def progress(done: int, total: int) -> None:
        if not seen:
            seen.append(done)
            os.write(began, str(done).encode())
        if 0 <= limit <= done:
            os.kill(os.getpid(), signal.SIGKILL)

    opened = open_checkpoint(source, Llama4Config.from_pretrained(source))
    quantize(Job(opened, Scheme.of(form)), out, shard_bytes=shard_bytes, progress=progress)


def main() -> None:
    source, out, form, shard_bytes, *limits = sys.argv[1:]
    for limit in map(int, limits):
        read, write = os.pipe()
        child = os.fork()
        if not child:
            run(source, Path(out), form, int(shard_bytes), limit, write)
            os._exit(0)
        os.close(write)
        _, status = os.waitpid(child, 0)
        began = int(os.read(read, 32) or 0)
        os.close(read)
        partial = Path(f"{out}.partial")
        files = sorted(f.name for f in partial.iterdir()) if partial.is_dir() else []
        state = {"signal": os.WTERMSIG(status), "began": began, "files": files}
        print(json.dumps(state | {"out": os.path.lexists(out)}), flush=True)


if __name__ == "__main__":
    main()
