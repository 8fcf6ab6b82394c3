"""The process in which chat templates run: started at first use, killed when it breaks its budget.

A template is a program of a stranger. In a process of its own it cannot take this one's memory,
hang it in C code or overflow its stack; what it can spend is counted by the operating system.
"""

import atexit
import json
import marshal
import os
import signal
import socket
import subprocess
import sys
import threading
from importlib.util import find_spec
from multiprocessing.spawn import get_executable
from pathlib import Path
from typing import Any

from l4kernels.prompt.rendering import LENGTH_BYTES

SECONDS, SECONDS_PER_BYTE = 1.0, 1e-7  # of processor time for a job, and for each byte of it
MEMORY = 1 << 30  # bytes of address space
PATIENCE = 60.0  # seconds of wall time, for a machine that gives the process no time
MAX_REPLY = 512 << 20
# Callers may have SIGPIPE end their program: a process that is gone sends them none.
NO_SIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)


class RenderError(ValueError):
    """A template that failed, in one line without control characters."""


class WorkerError(RenderError):
    """No answer: the template used too much time or memory, or its process died or never began."""


class Renderer:
    """One process for all templates of this one; jobs of several threads wait for each other."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._worker: Worker | None = None

    def run(self, job: dict[str, Any]) -> dict[str, Any]:
        """The reply of `rendering.worker` to a job.

        Raises:
            WorkerError: the template broke its budget or took its process down.
            RenderError: the template failed.
        """
        content = marshal.dumps(job)
        with self._lock:
            try:
                if self._worker is None or self._worker.has_ended():
                    self.stop()
                    self._worker = Worker()
                answer = self._worker.answer(content).decode("utf-8", "surrogatepass")
                reply: dict[str, Any] = json.loads(answer)
            except BaseException:
                self.stop()  # a reply may still come: not to the next job
                raise
            if reply.get("error") == "MemoryError":
                self.stop()
                raise WorkerError(f"needs more than {MEMORY >> 20} MiB of memory")
        if "error" in reply:
            raise RenderError(one_line(reply["message"] or reply["error"]))
        return reply

    def stop(self) -> None:
        """Ends the process; the next job starts another."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.end()

    def forget(self) -> None:
        """After a fork: the process is the parent's, and so is whoever holds the lock."""
        if self._worker is not None:
            self._worker.forget()
        self._lock, self._worker = threading.Lock(), None


class Worker:
    """A process that renders, and the socket that is its standard input and output.

    Raises:
        WorkerError: it does not start.
    """

    def __init__(self) -> None:
        command = _command()
        self._socket, theirs = socket.socketpair()
        self._socket.settimeout(PATIENCE)
        try:
            with theirs:
                self._process = subprocess.Popen(
                    command,
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    stderr=subprocess.DEVNULL,
                )
        except OSError as error:
            self._socket.close()
            raise WorkerError(f"its process cannot be started ({error})") from None
        try:
            started = self._read(LENGTH_BYTES) == bytes(LENGTH_BYTES)
        except (OSError, EOFError):
            started = False
        except BaseException:  # Ctrl-C
            self.end()
            raise
        if not started:
            self.end()
            raise WorkerError(f"its process does not start: {command[0]} is no working Python")

    def answer(self, content: bytes) -> bytes:
        """The reply to a job of this `content`."""
        try:
            size = len(content).to_bytes(LENGTH_BYTES, "little")
            self._socket.sendall(size + content, NO_SIGNAL)
            length = int.from_bytes(self._read(LENGTH_BYTES), "little")
            if length > MAX_REPLY:
                raise WorkerError(f"the prompt exceeds {MAX_REPLY:,} bytes")
            return self._read(length)
        except TimeoutError:
            raise WorkerError(f"has not answered within {self._socket.gettimeout():g} s") from None
        except (ConnectionError, EOFError):
            raise WorkerError(_cause(self._process.wait(), len(content))) from None

    def _read(self, size: int) -> bytes:
        # No buffered file: a fork while another thread reads would leave its lock closed for ever.
        content = bytearray()
        while len(content) < size:
            part = self._socket.recv(min(size - len(content), 1 << 20))
            if not part:
                raise EOFError
            content += part
        return bytes(content)

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._socket.close()

    def forget(self) -> None:
        self._socket.close()
        self._process.returncode = 0  # its end is for the parent to wait for


def one_line(text: str, longest: int = 500) -> str:
    """`text` as one bounded line, white space as spaces; what cannot be printed is escaped."""
    words = " ".join(text[: 2 * longest].split())
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in words)
    return shown if len(shown) <= longest else shown[: longest - 3] + "..."


def interpreter() -> str:
    """The Python of a process of its own; `WorkerError` if this program names none."""
    # As for multiprocessing: a program with Python inside it names an interpreter there.
    python = os.fsdecode(get_executable() or "")
    if not python or (getattr(sys, "frozen", False) and python == sys.executable):
        raise WorkerError(
            "needs a Python interpreter for a process of its own, but this program names none; "
            "call multiprocessing.set_executable(path)"
        )
    return python


def _command() -> list[str]:
    python = interpreter()
    # Only what renders is found: this folder's `rendering`, and jinja2 where this process has it.
    # Without `site` no installed package can slow the start or put itself into the process.
    found = map(find_spec, ("jinja2", "markupsafe"))
    folders = [str(Path(spec.origin).parent.parent) for spec in found if spec and spec.origin]
    folders.append(str(Path(__file__).parent))
    budget = SECONDS, SECONDS_PER_BYTE, MEMORY
    program = f"import sys; sys.path += {folders!r}; from rendering import worker; worker.main()"
    return [python, "-I", "-S", "-c", program, *map(str, budget)]


def _cause(status: int, size: int) -> str:
    if status == -signal.SIGPROF:
        return f"takes more than {SECONDS + size * SECONDS_PER_BYTE:.1f} s of processor time"
    if status < 0:
        return f"ended its process by {signal.Signals(-status).name}"
    return f"ended its process with status {status}"


RENDERER = Renderer()
atexit.register(RENDERER.stop)
os.register_at_fork(after_in_child=RENDERER.forget)
