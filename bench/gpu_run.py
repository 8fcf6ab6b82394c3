"""The steps of a GPU run, one after another, each in one row.

Those without a row come first, and none is started that the rest of the budget does not cover. A
step that fails writes a row with `ok: false` and its traceback, and the run goes on. The steps run
in a process of their own. One that hangs, dies or breaks its CUDA context costs itself and the
start of another process, but not the steps after it.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from l4kernels.bench.rows import Rows
from l4kernels.bench.timing import Timing
from l4kernels.planning.gpus import GPUS

Result = tuple[Timing | None, dict[str, Any]]
Steps = Callable[[], Iterator[tuple[str, Callable[[], Result | Iterator[Result]]]]]
"""Key and function of every step. It returns what its row holds, or yields it as it grows."""

ROOT = Path(__file__).parent.parent
START_S, LIMIT_S, FIRST_S = 120, 60, 20
"""What importing torch and opening the GPU may take; a step beyond twice its cost; and a step of an
op none of whose steps has passed yet."""
LATE = "no result in time"


def serve(pipe: Connection, steps: Steps) -> None:
    """The process of the steps: receives keys, sends results, at last one with the error's text."""
    os.setpgid(0, 0)  # a group of its own with its children: compilers, sanitizers
    known = dict(steps())
    pipe.send(None)
    while True:
        step, result, error = known[pipe.recv()], None, ""
        torch.manual_seed(0)
        try:
            returned = step()
            for result in [returned] if isinstance(returned, tuple) else returned:
                pipe.send((*result, None))
        except BaseException:
            error = without_paths(traceback.format_exc())[-3000:]
        pipe.send((*(result or (None, {})), error))
        recover()
        pipe.send(None)


def without_paths(text: str) -> str:
    """A row says what failed, not in which folder of a machine."""
    for folder in sorted({str(ROOT), *sys.path}, key=len, reverse=True):
        text = text.replace(f"{folder}/", "") if len(folder) > 1 else text
    return text


def recover() -> None:
    """Raises if the last step has left the process unfit: a broken context or an open capture."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.randn(1, device="cuda").item()


class Worker:
    """A process that runs one step after another, until one of them spoils it."""

    def __init__(self, steps: Steps, seconds: float):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, steps))
        self.process.start()
        theirs.close()
        if problem := self._receive(seconds):
            raise RuntimeError(f"the process of the steps did not start: {problem}")

    def run(self, key: str, seconds: float) -> tuple[Timing | None, dict[str, Any], str]:
        """Timing, facts and the text of an error; what a step had before it failed is kept."""
        end, timing, facts = time.monotonic() + seconds, None, {}
        error: str | None = None
        with contextlib.suppress(ConnectionError):  # it has died since: the next line says so
            self.pipe.send(key)
        while error is None:
            answer = self._receive(end - time.monotonic())
            if isinstance(answer, str):
                return timing, facts, answer
            timing, facts, error = answer
        self._receive(30)
        return timing, facts, error

    def _receive(self, seconds: float) -> Any:
        """An answer, or in words why there is none; then the process is gone."""
        try:
            if self.pipe.poll(max(seconds, 0)):
                return self.pipe.recv()
            why = LATE
        except (EOFError, ConnectionError):
            self.process.join()
            why = f"the process ended with exit code {self.process.exitcode}"
        self.close()
        return why

    def close(self) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            self.process.kill()
        self.process.join()


def run_steps(
    steps: Steps, cost: Callable[[str], float], rows: Rows, keys: list[str], end: float
) -> int:
    """Runs the steps until `end` of the monotonic clock; returns how many failed."""
    count: Counter[str] = Counter()
    worker: Worker | None = None
    passed, hung = set[str](), set[str]()
    try:
        for key in sorted(keys, key=rows.age):
            left, op = end - time.monotonic(), op_of(key)
            if left < cost(key) or op in hung:
                count["skipped"] += 1
                continue
            if worker is None or not worker.process.is_alive():
                worker = Worker(steps, min(START_S, left))
                left = end - time.monotonic()
            limit = LIMIT_S + 2 * cost(key) if op in passed else FIRST_S
            began = time.monotonic()
            timing, facts, error = worker.run(key, min(limit, left))
            if error == LATE and left < limit and timing is None:
                print(f"cut   {key}: the budget is spent", flush=True)
                count["skipped"] += 1
                continue
            # A measurement counts even if its peers went wrong afterwards.
            ok = not error or timing is not None
            facts |= {"seconds": time.monotonic() - began} | ({"error": error} if error else {})
            rows.add(key, ok, timing, began, **facts)
            count["passed" if ok else "failed"] += 1
            if ok:
                passed.add(op)
            if error == LATE:
                hung.add(op)
            print(line(key, ok, timing, facts, rows.gpu), flush=True)
    except RuntimeError as problem:
        rows.add("suite", False, error=str(problem))
        print(f"FAIL  {problem}", flush=True)
        count["failed"] += 1
    finally:
        if worker is not None:
            worker.close()
    print(f"{count['passed']} passed, {count['failed']} failed, {count['skipped']} skipped")
    return count["failed"]


OP_STEPS = {"smoke", "test", "bench", "peers", "compiled", "tune"}


def op_of(key: str) -> str:
    """`bench.gemm.scout.64` -> `gemm`; a step of no op stands for itself."""
    words = key.split(".")
    return words[1] if words[0] in OP_STEPS and len(words) > 1 else key


def line(key: str, ok: bool, timing: Timing | None, facts: dict[str, Any], gpu: str) -> str:
    text, rate = f"{'ok   ' if ok else 'FAIL '} {key}", facts.get("bytes_per_second")
    text += f"  {timing.median:.1f} us" if timing else ""
    text += f"  {rate / 1e12:.2f} TB/s, {rate / GPUS[gpu].bandwidth:.0%}" if rate else ""
    return text + (f"\n{facts['error']}" if "error" in facts else "")
