"""Finds and loads the compiled library, and says why not when it cannot."""

import ctypes
import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

from l4kernels.ops.check import NAMESPACE
from l4kernels.ops.registry import OPS, _library

LIBRARY_PATH = Path(__file__).parents[1] / "lib" / "libl4kernels.so"


@dataclass(frozen=True)
class LibraryStatus:
    """What became of the compiled library in this process."""

    path: Path
    loaded: bool
    reason: str  # why it is not loaded; empty when it is
    build: dict[str, Any]  # compiler, architecture, torch and commit it was built with

    @property
    def kernels(self) -> tuple[str, ...]:
        """Names of the ops that have a CUDA kernel."""
        without = {*_missing, *(name for name, op in OPS.items() if op.without_kernel)}
        return tuple(name for name in OPS if self.loaded and name not in without)


_missing: set[str] = set()


def _load() -> LibraryStatus:
    build_file = LIBRARY_PATH.with_name("build.json")
    build = json.loads(build_file.read_text()) if build_file.exists() else {}
    if not LIBRARY_PATH.exists():
        reason = build.get("left_out") or f"{LIBRARY_PATH} does not exist: run `make build`"
        return LibraryStatus(LIBRARY_PATH, False, reason, build)
    try:
        torch.ops.load_library(str(LIBRARY_PATH))
    except OSError as error:
        reason = (
            f"{LIBRARY_PATH} does not load into torch {torch.__version__}: {error}. "
            "It needs torch >= 2.10; rebuild it with `make build` if torch is newer than that"
        )
        return LibraryStatus(LIBRARY_PATH, False, reason, build)
    return LibraryStatus(LIBRARY_PATH, True, "", build)


def _explain_missing_kernels(status: LibraryStatus) -> None:
    """On a CUDA tensor an op without a kernel raises a sentence, not a dispatcher's dump."""

    def explain(name: str) -> Any:
        def missing(*args: Any, **kwargs: Any) -> NoReturn:
            why = status.reason or "this version has no CUDA kernel for it"
            raise NotImplementedError(
                f"{NAMESPACE}.{name} cannot run on CUDA tensors: {why}. "
                "Run on the CPU, or under l4kernels.reference() on the GPU."
            )

        return missing

    for name, op in OPS.items():
        for overload in (name, f"{name}.out") if op.has_out else (name,):
            qualified = f"{NAMESPACE}::{overload}"
            if not torch._C._dispatch_has_kernel_for_dispatch_key(qualified, "CUDA"):
                _library.impl(overload, explain(overload), "CUDA")
                _missing.add(name)


def take_device_error() -> None:
    """Raises `IndexError` if a kernel on any device has met an out-of-range id, or a router's NaN,
    since the last call.

    Kernels never stop for a bad id (its row comes out as zeros); the engine calls this where it
    synchronises anyway.
    """
    takers = [_taker(), *emulated_takers] if STATUS.loaded else emulated_takers
    for take in takers:
        if message := take().decode():
            raise IndexError(f"{NAMESPACE}.{message}: a kernel met a value out of range")


emulated_takers: list[Callable[[], bytes]] = []
"""Of the emulated twin of the library, once it is loaded (`l4kernels.testing.emulated`)."""


@functools.cache
def _taker() -> Callable[[], bytes]:
    """The library's function; looked up once, because an engine asks after every step."""
    return error_taker(LIBRARY_PATH)


def error_taker(library: Path) -> Callable[[], bytes]:
    """A library's function that gives what its kernels have reported, and clears that."""
    take = ctypes.CDLL(str(library)).l4k_take_device_error
    take.restype = ctypes.c_char_p
    return take


STATUS = _load()
_explain_missing_kernels(STATUS)
