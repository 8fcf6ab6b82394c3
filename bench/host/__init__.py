"""What a call of an op costs the host, from its boxed C++ binding to the driver, without a GPU.

`python -m bench.host` links the library's objects, as they are, with a stub in place of the CUDA
runtime (`stub.cpp`): launches return at once, and what a call asks of the runtime is counted.
Tensors are addresses that nothing touches. Not in the figures: Python and torch's dispatcher before
the binding, the runtime and the driver behind it.
"""

import ctypes
import functools
import hashlib
import json
import os
import shlex
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from l4kernels.bench.shapes import Call, benchmarked_ops, calls
from l4kernels.ops import OPS
from l4kernels.ops.registry import OpWithOut
from l4kernels.testing.emulator import BUILD, untouched

NAMESPACE = "l4kernels_stubbed"
STUB = Path(__file__).with_name("stub.cpp")
WRAPPED = (
    *("aoti_torch_get_device_type", "aoti_torch_get_device_index", "aoti_torch_empty_strided"),
    *("aoti_torch_library_init_impl", "torch_library_impl", "_Znwm", "malloc"),
)
COUNTED = ("launches", "maps", "attributes", "occupancy", "devices", "other", "allocations")
EXPENSIVE = ("maps", "attributes", "occupancy", "other", "questions")
"""What a warm call has no need of: to encode a tensor map, to get or set a function's attribute,
how many clusters fit, anything else of the runtime but a launch and which device is current; and a
question whose answer is not kept (csrc/host/recent.h), such as which configuration to take."""


def build(folder: Path = BUILD.parent / "host") -> Path:
    """Links the library's objects with the stub, unless that has been done.

    Raises:
        FileNotFoundError: outside a clone in which `make build` has run.
        RuntimeError: the linker's message.
    """
    if not (commands := BUILD / "compile_commands.json").exists():
        raise FileNotFoundError(f"expected the objects of `make build` in {BUILD}, found none")
    entries = json.loads(commands.read_text())
    ours = [e for e in entries if "CMakeFiles/l4kernels.dir/" in e["output"]]
    objects = [Path(e["output"]) for e in ours]
    stamps = [(str(path), path.stat().st_mtime_ns) for path in objects]
    name = hashlib.sha256(f"{stamps}{STUB.read_text()}".encode()).hexdigest()[:16]
    library = folder / f"libl4kernels_stubbed.{name}.so"
    if library.exists():
        return library
    folder.mkdir(parents=True, exist_ok=True)
    command = shlex.split(next(e["command"] for e in ours if e["file"].endswith("library.cpp")))
    made = library.with_suffix(f".{os.getpid()}")
    link = command[: command.index("-o")]
    link += ["-shared", "-o", str(made), str(STUB), *map(str, objects)]
    link += [f"-Wl,--wrap={name}" for name in WRAPPED]
    link += [f"-L{Path(torch.__file__).parent / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]
    done = subprocess.run([*link, "-Wl,-z,defs"], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"linking with the stub failed: {done.stderr[-2000:]}")
    made.replace(library)
    return library


@dataclass
class Cost:
    """Of the calls of one case, all with the same tensors, but for the first."""

    case: Call
    to_driver_us: list[float] = field(default_factory=list)
    """From the binding's entry to its last launch, without torch's allocation of results: on a GPU
    that is another allocator's."""
    call_us: list[float] = field(default_factory=list)  # all of it, to the binding's return
    asked: dict[str, int] = field(default_factory=dict)  # at the least
    instructions: int = 0  # to the driver, of a warm call

    @property
    def launches(self) -> int:
        return self.asked["launches"]

    @property
    def needless(self) -> dict[str, int]:
        return {name: self.asked[name] for name in EXPENSIVE if self.asked[name]}


class Stubbed:
    """The library with a stub for a runtime. Take `stubbed()`: torch registers it once."""

    def __init__(self, library: Path):
        self.definitions = torch.library.Library(NAMESPACE, "DEF")
        for op in OPS.values():
            self.definitions.define(op.schema)
            if isinstance(op, OpWithOut):
                self.definitions.define(op.out_schema)
        torch.ops.load_library(str(library))
        entries = ctypes.CDLL(str(library))
        self._take, self._questions = entries.l4k_stub_take, entries.l4k_new_questions
        self._count = entries.l4k_stub_count_instructions
        self._questions.restype = self._count.restype = ctypes.c_uint64

    def call(self, case: Call) -> Callable[[], Any]:
        args, kwargs = tree_map_only(torch.Tensor, untouched, case.make("meta"))
        overload = getattr(getattr(torch.ops, NAMESPACE), case.op).default
        return lambda: overload(*args, **kwargs)

    def take(self) -> tuple[dict[str, int], float, float]:
        """Counts since the last time; microseconds of the last call to the driver, and in all."""
        counts, ns = (ctypes.c_uint64 * len(COUNTED))(), (ctypes.c_double * 3)()
        self._take(counts, ns)
        to_launch, in_torch, to_return = ns
        return (
            dict(zip(COUNTED, counts, strict=True)),
            (to_launch - in_torch) / 1e3,
            to_return / 1e3,
        )

    def measure(self, cases: Iterable[Call], rounds: int = 200) -> list[Cost]:
        """Goes round all cases, ops by turns as in a model's layers: none finds its code in the
        caches of the CPU because of the call before."""
        costs = [Cost(case) for case in cases]
        made = [(cost, self.call(cost.case)) for cost in costs]
        made.sort(key=lambda c: hashlib.sha256(c[0].case.key.encode()).digest())
        for turn in range(1 + rounds):
            for cost, call in made:
                self.take()
                questions = self._questions()
                call()
                asked, to_driver, whole = self.take()
                asked["questions"] = self._questions() - questions
                if turn:
                    # At the least: a result at a new address is a new question.
                    cost.asked = {n: min(v, cost.asked.get(n, v)) for n, v in asked.items()}
                    cost.to_driver_us.append(to_driver)
                    cost.call_us.append(whole)
        return costs

    def count_instructions(self, costs: Iterable[Cost]) -> None:
        """Of one more call of each: the same on every machine and under any load."""
        for cost in costs:
            call = self.call(cost.case)
            call()
            self._count(1)
            call()
            cost.instructions = self._count(0)


@functools.cache
def stubbed() -> Stubbed:
    return Stubbed(build())


def cases(model: str = "scout") -> Iterator[Call]:
    """Every op at 1 and 64 tokens; products and prefill at 1,024, too."""
    for op in benchmarked_ops():
        sizes = {"decode": (1, 64)}
        if op in ("gemm", "gemm_swiglu_fp8", "w4_gemm"):
            sizes["prefill"] = (1024,)
        if op.startswith("flash"):
            sizes = {"prefill": (1024,)} if op == "flash_prefill" else {"decode": (1024, 8192)}
        yield from calls(op, (model,), tuple(sizes), sizes)


HEADER = (
    "launches",
    "us to the driver",
    "us in all",
    "instructions to the driver",
    "allocations",
    "asked anew",
)


def table(costs: Iterable[Cost], by_case: bool) -> str:
    """In Markdown, a line for each case or for each op, with the range over its cases.

    Times are 10th percentiles: what is slower than that, other work on the machine slowed.
    """
    groups: dict[str, list[Cost]] = {}
    for c in costs:
        groups.setdefault(f"{c.case.op} {c.case.label}" if by_case else c.case.op, []).append(c)
    rows = [("op", *HEADER), ("---",) * (1 + len(HEADER))]
    for name, group in groups.items():
        figures = (
            [c.launches for c in group],
            [f"{_tenth(c.to_driver_us):.1f}" for c in group],
            [f"{_tenth(c.call_us):.1f}" for c in group],
            [f"{c.instructions:,}" for c in group],
            [c.asked["allocations"] for c in group],
            [sum(c.needless.values()) for c in group],
        )
        rows.append((name, *map(_range, figures)))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _tenth(times: list[float]) -> float:
    return sorted(times)[len(times) // 10]


def _range(values: Iterable[Any]) -> str:
    ordered = sorted({str(v) for v in values}, key=lambda v: float(v.replace(",", "")))
    return ordered[0] if len(ordered) == 1 else f"{ordered[0]} to {ordered[-1]}"
