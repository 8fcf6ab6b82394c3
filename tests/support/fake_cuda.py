"""A fake GPU: tensors that say they are on "cuda" and lie in the host's memory, kernels in
the emulator, times that are made up. For rehearsing a GPU run: what mixes tensors of host
and device fails here as it would there."""

import contextlib
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter, tree_map_only

from l4kernels.checkpoint import load
from l4kernels.engine import engine
from l4kernels.engine.graphs import as_it_is
from l4kernels.layers.weights.staging import ToDevice
from l4kernels.testing.emulator import BUILD, emulated

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
MIXING = {"copy_", "to", "__getitem__", "__setitem__", "set_", "fill_", "type_as"}
"""What torch allows with tensors of both: copies, and a host tensor as an index."""


class FakeCuda(TorchFunctionMode):
    """Keeps count of which tensors would be on the device."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[int, weakref.ref] = {}

    def on_device(self, t: Tensor) -> bool:
        found = self.held.get(id(t))
        return found is not None and found() is t

    def place(self, t: Tensor, device: bool) -> Tensor:
        if self.on_device(t) != device:
            t = t.view_as(t)  # the same memory on the other side
        if device:
            self.held[id(t)] = weakref.ref(t)
        return t

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(function, "__name__", "")
        given = [t for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)]
        owner = getattr(function, "__self__", None)
        if name == "__get__" and owner is Tensor.is_cuda:
            return self.on_device(args[0])
        if name == "__get__" and owner is Tensor.is_cpu:
            return not self.on_device(args[0])
        if name == "__get__" and owner is Tensor.device:
            return CUDA if self.on_device(args[0]) else CPU
        if name == "cuda":
            return self.place(args[0], True)
        if name == "cpu":
            return self.place(args[0], False)
        here = any(map(self.on_device, given))
        if name not in MIXING and here:
            strangers = [t for t in given if t.dim() and not self.on_device(t)]
            if strangers:
                raise RuntimeError(f"{name}: tensors on cuda and cpu, {strangers[0].shape} on cpu")
        asked = [d for d in (*args, *kwargs.values()) if is_device(d)]
        target = torch.device(asked[-1]).type == "cuda" if asked else here
        if not asked and name in ("to", "copy_", "type_as", "set_"):
            like = (
                args[1]
                if len(args) > 1 and isinstance(args[1], Tensor) and name != "copy_"
                else args[0]
            )
            target = self.on_device(like)
        args = tuple(CPU if is_device(a) else a for a in args)
        kwargs = {k: CPU if is_device(v) else v for k, v in kwargs.items()}
        kwargs.pop("non_blocking", None)
        result = function(*args, **kwargs)
        return tree_map_only(Tensor, lambda t: self.place(t, target), result)


def is_device(value: Any) -> bool:
    if isinstance(value, torch.device):
        return True
    return isinstance(value, str) and value.split(":")[0] in ("cuda", "cpu")


class FakeGraph:
    """Replays by running again, into the memory of the first results."""

    def __init__(self, call: Callable[[], Any]):
        self.call = call
        call()  # the warm-up of a capture
        call()

    def replay(self) -> None:
        lists = [c.cell_contents for c in self.call.__closure__ or ()]
        (results,) = [c for c in lists if isinstance(c, list) and c and holds_tensors(c)] or [None]
        self.call()
        if results:
            for old, new in zip(tree_iter(results[-2]), tree_iter(results.pop()), strict=True):
                old.copy_(new)


def holds_tensors(values: list[Any]) -> bool:
    return any(isinstance(t, Tensor) for t in tree_iter(values))


class Anything:
    """Streams and events: they take every call."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __getattr__(self, name: str) -> Callable[..., float]:
        return lambda *_, **__: 0.01

    def __enter__(self) -> "Anything":
        return self

    def __exit__(self, *_: Any) -> None: ...


@contextlib.contextmanager
def fake_cuda(**settings: Any) -> Iterator[None]:
    """In the block torch has a GPU, and its kernels run in the emulator."""
    properties = SimpleNamespace(
        name="NVIDIA H200", major=9, minor=0, multi_processor_count=132, total_memory=141 << 30
    )
    functions = {
        "is_available": True,
        "device_count": 1,
        "get_device_name": properties.name,
        "get_device_properties": properties,
        "mem_get_info": (140 << 30, 141 << 30),
        "synchronize": None,
        "empty_cache": None,
        "reset_peak_memory_stats": None,
        "max_memory_allocated": 0,
        "current_stream": Anything(),
        "stream": Anything(),
    }
    patches = [
        mock.patch.object(torch.cuda, name, lambda *_, value=value, **__: value)
        for name, value in functions.items()
    ]
    patches += [mock.patch.object(torch.cuda, name, Anything) for name in ("Stream", "Event")]
    patches += [mock.patch.object(torch.version, "cuda", "13.0")]
    autocast = torch.autocast
    patches += [mock.patch.object(torch, "autocast", lambda _, *a, **k: autocast("cpu", *a, **k))]
    patches += [
        mock.patch(f"{module}.capture", FakeGraph)
        for module in ("l4kernels.bench.timing", "bench.checks.gpu_checks")
    ]
    patches += [
        mock.patch(f"{module}.cuda_graphs", return_value=as_it_is)
        for module in ("l4kernels.engine.core", "bench.decode_step")
    ]
    # Pinned memory needs a driver: `tests/layers/test_staging.py` has a stand-in for that.
    patches += [mock.patch.object(load, "uploading", lambda d: contextlib.nullcontext(ToDevice(d)))]
    library = BUILD / "libl4kernels_emulated.so"
    patches += [
        mock.patch(f"{module}.LIBRARY_PATH", library)
        for module in ("bench.checks.kernel_checks", "bench.checks.machine")
    ]
    gpu, serve = FakeCuda(), engine._serve

    def serve_on_it(*arguments: Any) -> None:
        with gpu:  # a mode is of a thread, and an engine has its own
            serve(*arguments)

    patches += [mock.patch.object(engine, "_serve", serve_on_it)]
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        stack.enter_context(emulated(**settings))
        stack.enter_context(gpu)
        yield
