"""The process that compiles and renders chat templates, within a budget of memory and time.

It reads jobs from its standard input and writes replies to its standard output, each with its
length before it: jobs in Python's `marshal` (they come from the package), replies in JSON. An empty
reply says at the start that it is ready. What breaks the budget ends here: a time limit kills the
process, whatever C code it is in.
"""

import json
import marshal
import re
import resource
import signal
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from jinja2 import meta
from jinja2.environment import Template

from . import LENGTH_BYTES
from .environment import Sandbox
from .marked import FOREIGN, TRUSTED, trusted


@lru_cache(8)
def compiled(source: str) -> tuple[Template, list[str]]:
    """The template, and the names that it reads from outside."""
    environment = Sandbox()
    names = meta.find_undeclared_variables(environment.parse(source)) - environment.globals.keys()
    return environment.from_string(source), sorted(names)


def render(job: dict[str, Any]) -> dict[str, Any]:
    """The text, and the same text with `job["filler"]` in place of what came from outside."""
    template, names = compiled(job["source"])
    variables = job["variables"]
    if variables is None:
        return {"names": names}
    for message in variables["messages"]:
        if message.get("role") in job["roles"]:
            message["role"] = trusted(message["role"])
    special = {name: trusted(text) for name, text in job["special"].items()}
    context = template.new_context(special | variables)
    text: Any = template.environment.concat(template.root_render_func(context))
    if len(text) > job["longest"]:
        raise ValueError(f"the prompt exceeds {job['longest']:,} characters")
    view = [
        text[slice(*run.span())] if run[0][0] == TRUSTED else job["filler"] * len(run[0])
        for run in re.finditer(f"{TRUSTED}+|{FOREIGN}+", text._mask)
    ]
    return {"text": text, "view": "".join(view)}


def answer(job: bytes) -> bytes:
    try:
        reply = render(marshal.loads(job))
        return json.dumps(reply, ensure_ascii=False).encode("utf-8", "surrogatepass")
    except MemoryError:
        reply = {"error": "MemoryError"}
    except Exception as error:  # a template is a program of a stranger: any error is possible
        reply = {"error": type(error).__name__, "message": str(error)[:1000]}
    return json.dumps(reply).encode()


def read(stream: BinaryIO) -> bytes:
    length = stream.read(LENGTH_BYTES)
    return stream.read(int.from_bytes(length, "little")) if length else b""


def send(reply: bytes) -> None:
    sys.stdout.buffer.write(len(reply).to_bytes(LENGTH_BYTES, "little") + reply)
    sys.stdout.buffer.flush()


def used() -> int:
    """Bytes of address space that the process has; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return 0


def main() -> None:
    seconds, seconds_per_byte, memory = float(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    memory += used()  # sanitizers and preloaded libraries reserve much that they never touch
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (memory if hard < 0 else min(memory, hard), hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF])
    send(b"")  # ready
    while job := read(sys.stdin.buffer):
        signal.setitimer(signal.ITIMER_PROF, seconds + len(job) * seconds_per_byte)
        reply = answer(job)
        signal.setitimer(signal.ITIMER_PROF, 0)
        send(reply)
