"""Running the kernels in the emulator, launch by launch."""

import contextlib
import ctypes
import importlib
import mmap
import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from l4kernels.ops.dispatch import dispatch
from l4kernels.ops.library import STATUS, emulated_takers, error_taker
from l4kernels.ops.registry import EMULATED_NAMESPACE, OPS, OpWithOut

BUILD = Path(__file__).resolve().parents[2] / "build" / "cmake"
_MAP_NORESERVE = 0x4000  # Linux; Python 3.10 has no name for it
_emulated_library: torch.library.Library | None = None
_owning = threading.Lock()
_owner: int | None = None  # the thread whose blocks are open
_blocks: list[dict[str, Any]] = []  # their settings, outermost first


@contextlib.contextmanager
def emulated(
    *,
    mode: str = "late",
    seed: int = 0,
    sms: int = 4,
    stop: str = "benign",
    reference: tuple[str, ...] = (),
    **settings: Any,
) -> Iterator[ModuleType]:
    """Runs every op in the block through its compiled kernel on the emulator, on CPU tensors.

    Args:
        mode: when asynchronous work lands: "late", "early" or "random".
        seed: of the scheduler and of the random mode.
        sms: streaming multiprocessors of the emulated GPU.
        stop: the least severity of a report that ends a launch; "benign" is the strictest.
        reference: names of ops that may run on their typed reference instead; `flash_decode_plan`
            together with the ops that take its plan, since a kernel takes a kernel's alone.
        settings: further settings of the emulator (see docs/emulator.md); threads is 1 unless
            given, since tests run in several processes.

    Yields:
        The emulator's control module: counters, last report.

    Blocks of one thread may lie in each other: the outer one's settings come back. Errors that
    kernels report are `l4kernels.take_device_error`'s to raise, as on a GPU.

    Raises:
        NotImplementedError: outside a clone in which `make build` has run.
        RuntimeError: another thread is in such a block: there is one emulated GPU.
    """
    control = _load_emulator()
    unknown = set(reference) - set(OPS)
    if unknown:
        raise ValueError(f"emulated(reference=...): no such op: {', '.join(sorted(unknown))}")
    takers = {"flash_decode", "flash_decode_append"}
    if "flash_decode_plan" in reference and not takers <= set(reference):
        raise ValueError(
            "emulated(reference=...): the kernels of flash_decode and flash_decode_append take no "
            "plan of a reference: name these two as well, or leave flash_decode_plan out"
        )
    settings = {"threads": 1, "mode": mode, "seed": seed, "sms": sms, "stop": stop} | settings
    with _own_block(control, settings), dispatch("emulated", frozenset(reference)):
        yield control


@contextlib.contextmanager
def _own_block(control: ModuleType, settings: dict[str, Any]) -> Iterator[None]:
    """The GPU is this thread's, with these settings. Blocks may end in any order, as generators do:
    what remains has the settings of the last one that is open."""
    global _owner, _blocks
    me = threading.get_ident()
    with _owning:
        if _owner not in (None, me):
            raise RuntimeError(
                "emulated(): another thread is in such a block, and there is one emulated GPU: "
                "wait for that block to end"
            )
        _owner = me
        _blocks = [*_blocks, settings]
    try:
        if control.last_report() is not None:  # of an earlier block: this one begins afresh
            control.reset()
        control.configure(**settings)
        yield
    finally:
        with _owning:
            _blocks = [other for other in _blocks if other is not settings]
            if _blocks:
                control.configure(**_blocks[-1])
            else:
                _owner = None


@contextlib.contextmanager
def chained() -> Iterator[None]:
    """Inside `emulated()`: ops return at once, and their launches overlap as in a stream.

    Keep every tensor of the chain alive to its end; results may be read after it.
    """
    chain = ctypes.CDLL(str(BUILD / "libl4kernels_emulated.so")).l4k_emulated_chain
    chain.restype = ctypes.c_char_p
    chain(1)
    try:
        yield
    finally:
        report = chain(0).decode()
    if report:
        raise RuntimeError(f"l4kernels: emulator report: {report}")


@contextlib.contextmanager
def serial_launches() -> Iterator[None]:
    """In the block no kernel starts before its predecessor in the stream has ended.

    Kernels are launched dependent: each may start under the end of the one before. A wrong result
    that is right in this block is a race between the two. For a whole process: `L4K_CHECK=serial`.
    Inside `emulated()` it holds for the emulated kernels, too.
    """
    if not STATUS.loaded:
        raise RuntimeError(f"there are no compiled kernels to launch: {STATUS.reason}")
    paths = [STATUS.path]
    if _emulated_library is not None:
        paths.append(BUILD / "libl4kernels_emulated.so")
    switches = [ctypes.CDLL(str(path)).l4k_allow_dependent_launches for path in paths]
    before = [allow(0) for allow in switches]
    try:
        yield
    finally:
        for allow, allowed in zip(switches, before, strict=True):
            allow(allowed)


@dataclass(frozen=True)
class Launch:
    """What a binding asks of the runtime."""

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    cluster: tuple[int, int, int]
    shared_bytes: int  # of a CTA, static and dynamic
    dependent: bool  # may start under the end of the kernel before it


def launches_of(op: str, *args: Any, sms: int = 132, **kwargs: Any) -> tuple[Launch, ...]:
    """What a call of an op launches on a GPU of so many SMs, by its binding's own choices.

    Nothing runs, and tensors count by shape, strides and dtype alone: those on "meta" will do.

    Raises:
        ValueError: the op has no kernel of its own.
        NotImplementedError: the emulator has not been built.
    """
    if OPS[op].without_kernel:
        raise ValueError(f"{op} has no kernel of its own: {OPS[op].without_kernel}")
    args, kwargs = tree_map_only(torch.Tensor, untouched, (args, kwargs))
    with emulated(sms=sms) as control:
        control.list_launches(True)
        try:
            OPS[op](*args, **kwargs)
        finally:
            control.list_launches(False)
        return tuple(Launch(**facts) for facts in control.listed_launches())


def untouched(like: torch.Tensor) -> torch.Tensor:
    """A CPU tensor of the same form in address space that costs no memory until it is touched."""
    size = max(1, like.untyped_storage().nbytes())
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
    memory = torch.frombuffer(mmap.mmap(-1, size, flags=flags), dtype=torch.uint8)
    empty = torch.empty(0, dtype=like.dtype)
    storage, offset = memory.untyped_storage(), like.storage_offset()
    return empty.set_(storage, offset, like.shape, like.stride())


def _load_emulator() -> ModuleType:
    global _emulated_library
    library = BUILD / "libl4kernels_emulated.so"
    if not library.exists():
        raise NotImplementedError(
            f"the emulator is not part of an installed package: expected {library}; "
            "in a clone, run `make build`"
        )
    if _emulated_library is None:
        if str(BUILD) not in sys.path:
            sys.path.insert(0, str(BUILD))
        definitions = torch.library.Library(EMULATED_NAMESPACE, "DEF")
        for op in OPS.values():
            definitions.define(op.schema)
            if isinstance(op, OpWithOut):
                definitions.define(op.out_schema)
        # Global, so that the control module and the kernels share one emulator.
        ctypes.CDLL(str(BUILD / "libl4k_emulator.so"), mode=ctypes.RTLD_GLOBAL)
        # Before what is global already: a torch with CUDA has loaded the real runtime.
        ctypes.CDLL(str(library), mode=os.RTLD_DEEPBIND)
        torch.ops.load_library(str(library))
        for name, op in OPS.items():
            qualified = f"{EMULATED_NAMESPACE}::{name}"
            if not torch._C._dispatch_has_kernel_for_dispatch_key(qualified, "CPU"):
                run = op.overload if op.without_kernel else _no_kernel(name)
                definitions.impl(name, run, "CPU")
        _emulated_library = definitions
        emulated_takers.append(error_taker(library))
    return importlib.import_module("l4k_emulator_control")


def _no_kernel(name: str) -> Any:
    def missing(*args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(
            f"l4kernels.{name} has no compiled kernel to emulate; allow its typed reference with "
            f"emulated(reference=({name!r},))"
        )

    return missing
