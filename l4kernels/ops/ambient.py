"""Torch's ambient state, of which no result may depend.

Autocast, grad mode and inference mode belong to a thread: an op's body and the model's entry points
run without them. The default dtype, the default device and deterministic algorithms belong to the
process, where changing them for a moment would reach into other threads: code of this package
names dtype and device wherever it makes a tensor (`tests/ops/test_ambient.py`).
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

import torch
from torch._C import _get_tracing_state as tracing
from torch._C import _len_torch_dispatch_stack as in_dispatch_mode
from torch._C import _len_torch_function_stack as in_function_mode
from torch._C._autograd import _profiler_enabled as profiling
from torch._C._functorch import get_dynamic_layer_stack_depth as transform_depth

P = ParamSpec("P")
R = TypeVar("R")


autocasting: Callable[[], bool] = torch._C._is_any_autocast_enabled
"""On any device, in 0.1 us: every op's body asks."""


def observed() -> bool:
    """Whether something of torch's takes part in every call of an op: a mode, a transform of
    functorch, a trace, a profiler, autocast. Seven questions in 0.4 us."""
    return (
        in_dispatch_mode() > 0
        or in_function_mode() > 0
        or profiling()
        or tracing() is not None
        or transform_depth() > 0
        or autocasting()
    )


@contextlib.contextmanager
def no_autocast() -> Iterator[None]:
    with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        yield


@contextlib.contextmanager
def outside_inference() -> Iterator[None]:
    """Tensors made here are ordinary ones, which autograd may use later; nothing is recorded."""
    with torch.inference_mode(False), torch.no_grad():
        yield


def isolated(function: Callable[P, R]) -> Callable[P, R]:
    """Runs a function in inference mode and without autocast, whatever its caller has set."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if autocasting():
            with no_autocast():
                return run(*args, **kwargs)
        with torch.inference_mode():
            return function(*args, **kwargs)

    return run


def ordinary(function: Callable[P, R]) -> Callable[P, R]:
    """Runs a function that makes what stays, such as weights: outside of inference mode, without
    autocast and gradients, and, for what other packages make in it, on no default device."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with no_autocast(), outside_inference(), torch.device("cpu"):
            return function(*args, **kwargs)

    return run
