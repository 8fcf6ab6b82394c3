"""The process in which chat templates run: started at first use, killed when it breaks its budget.

A template is a program of a stranger. In a process of its own it cannot take this one's memory,
hang it in C code or overflow its stack; what it can spend is counted by the operating system.
"""

import atexit
import json
import marshal
import os
import select
import signal
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from l4kernels.model.rendering import LENGTH_BYTES

SECONDS, SECONDS_PER_BYTE = 1.0, 1e-7  # of processor time for a job, and for each byte of it
MEMORY = 1 << 30  # bytes of address space
PATIENCE = 60.0  # seconds of wall time, for a machine that gives the process no time
MAX_REPLY = 512 << 20


class RenderError(ValueError):
    """A template that failed, in one line without control characters."""


class BudgetError(RenderError):
    """A template that takes too much time or memory, or that took its process down."""


class Renderer:
    """One process for all templates of this one; jobs of several threads wait for each other."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None

    def run(self, job: dict[str, Any]) -> dict[str, Any]:
        """The reply of `rendering.worker` to a job.

        Raises:
            RenderError: the template failed, broke its budget, or took its process down.
        """
        content = marshal.dumps(job)
        with self._lock:
            try:
                reply = json.loads(self._exchange(content).decode("utf-8", "surrogatepass"))
            except BaseException:
                self.stop()  # a reply may still come: not to the next job
                raise
            if reply.get("error") == "MemoryError":
                self.stop()
                raise BudgetError(f"needs more than {MEMORY >> 20} MiB of memory")
        if "error" in reply:
            raise RenderError(one_line(reply["message"] or reply["error"]))
        return reply

    def stop(self) -> None:
        """Ends the process; the next job starts another."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()

    def forget(self) -> None:
        """After a fork: the process is the parent's, and so is whoever holds the lock."""
        process = self._process
        if process is not None:
            process.stdin.close()
            process.stdout.close()
            process.returncode = 0  # its end is for the parent to wait for
        self.__init__()

    def _exchange(self, content: bytes) -> bytes:
        if self._process is None or self._process.poll() is not None:
            self.stop()
            self._process = _start()
        try:
            os.set_blocking(self._process.stdin.fileno(), False)
            deadline = time.monotonic() + PATIENCE
            self._send(len(content).to_bytes(LENGTH_BYTES, "little") + content, deadline)
            length = int.from_bytes(self._receive(LENGTH_BYTES, deadline), "little")
            if length > MAX_REPLY:
                raise BudgetError(f"the prompt exceeds {MAX_REPLY:,} bytes")
            return self._receive(length, deadline)
        except (BrokenPipeError, EOFError):
            raise BudgetError(_cause(self._process.wait(), len(content))) from None

    def _send(self, content: bytes, deadline: float) -> None:
        view, pipe = memoryview(content), self._process.stdin.fileno()
        while view:
            _wait(pipe, select.POLLOUT, deadline)
            view = view[os.write(pipe, view[: 1 << 20]) :]

    def _receive(self, size: int, deadline: float) -> bytes:
        content, pipe = bytearray(), self._process.stdout.fileno()
        while len(content) < size:
            _wait(pipe, select.POLLIN, deadline)
            part = os.read(pipe, min(size - len(content), 1 << 20))
            if not part:
                raise EOFError
            content += part
        return bytes(content)


def one_line(text: str, longest: int = 500) -> str:
    """`text` as one bounded line, white space as spaces; what cannot be printed is escaped."""
    words = " ".join(text[: 2 * longest].split())
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in words)
    return shown if len(shown) <= longest else shown[: longest - 3] + "..."


def _start() -> subprocess.Popen:
    if not sys.executable:
        raise RenderError("needs a Python interpreter, but sys.executable names none")
    # Only what renders is found: this folder's `rendering`, and jinja2 where this process has it.
    # Without `site` no installed package can slow the start or put itself into the process.
    folders = [str(Path(find_spec(m).origin).parent.parent) for m in ("jinja2", "markupsafe")]
    folders.append(str(Path(__file__).parent))
    budget = SECONDS, SECONDS_PER_BYTE, MEMORY
    program = f"import sys; sys.path += {folders!r}; from rendering import worker; worker.main()"
    try:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", program, *map(str, budget)],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    except OSError as error:
        raise RenderError(f"its process cannot be started ({error})") from None


def _wait(pipe: int, event: int, deadline: float) -> None:
    poll = select.poll()
    poll.register(pipe, event)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise BudgetError(f"has not answered within {PATIENCE:g} s")


def _cause(status: int, size: int) -> str:
    if status == -signal.SIGPROF:
        return f"takes more than {SECONDS + size * SECONDS_PER_BYTE:.1f} s of processor time"
    if status < 0:
        return f"ended its process by {signal.Signals(-status).name}"
    return f"ended its process with status {status}"


RENDERER = Renderer()
atexit.register(RENDERER.stop)
os.register_at_fork(after_in_child=RENDERER.forget)
