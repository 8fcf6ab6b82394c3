"""An op is its typed reference.

`@op` turns a typed PyTorch function into a custom operator `torch.ops.l4kernels.<name>`: the
schema is inferred from the annotations, the body is the CPU implementation and the shape function,
and the compiled library adds a CUDA implementation under the same name. The body is also the
oracle: `op.reference(...)` runs it on whatever device its arguments are on.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from l4kernels.ops.ambient import autocasting, no_autocast
from l4kernels.ops.check import describe
from l4kernels.ops.route import route_of

NAMESPACE = "l4kernels"
EMULATED_NAMESPACE = "l4kernels_emulated"

OPS: dict[str, "Op"] = {}

_library = torch.library.Library(NAMESPACE, "FRAGMENT")


@dataclass(frozen=True)
class Work:
    """What an op must do at the least: arithmetic and traffic to global memory."""

    flops: float
    bytes: float

    def __add__(self, other: "Work") -> "Work":
        return Work(self.flops + other.flops, self.bytes + other.bytes)


class Op:
    """A callable operator. Call it, or use its parts: `reference`, `work`, `schema`."""

    def __init__(
        self,
        body: Callable[..., Any],
        *,
        work: Callable[..., Work],
        check: Callable[..., None] | None,
        fake: Callable[..., Any] | None,
        mutates: tuple[str, ...],
        returns: Callable[..., Any] | None,
        out: bool,
    ):
        functools.update_wrapper(self, body)
        self.name = body.__name__
        self.body, self.work = body, work
        self._check = check or (lambda *args, **kwargs: None)
        self._returns = returns
        self.has_out = out
        self.schema = self.name + torch.library.infer_schema(body, mutates_args=mutates)
        self.signature = inspect.signature(body)
        _library.define(self.schema)
        _library.impl(self.name, self._checked, "CPU")
        torch.library.register_fake(
            f"{NAMESPACE}::{self.name}", self._fake_of(fake or body), lib=_library
        )
        self.overload = getattr(getattr(torch.ops, NAMESPACE), self.name).default
        if out:
            self.out_schema = _out_schema(self.name, self.schema)
            _library.define(self.out_schema)
            _library.impl(f"{self.name}.out", self._checked_out, "CPU")
            torch.library.register_fake(
                f"{NAMESPACE}::{self.name}.out", lambda *args, out, **kwargs: out, lib=_library
            )
        OPS[self.name] = self

    def __call__(self, *args: Any, out: Tensor | None = None, **kwargs: Any) -> Any:
        route = route_of(self.name)
        if route == "reference":
            return self.reference(*args, out=out, **kwargs)
        namespace = EMULATED_NAMESPACE if route == "emulated" else NAMESPACE
        packet = getattr(getattr(torch.ops, namespace), self.name)
        if out is not None and not self.has_out:
            raise TypeError(f"{NAMESPACE}.{self.name} has no out= form")
        try:
            if out is not None:
                return packet.out(*args, out=out, **kwargs)
            result = packet.default(*args, **kwargs)
        except RuntimeError:  # of a binding: bad input is the same error as on a CPU
            self._check(*args, **kwargs)
            raise
        return result if self._returns is None else self._returns(*result)

    def reference(self, *args: Any, out: Tensor | None = None, **kwargs: Any) -> Any:
        """Runs the typed body on the arguments' own device: the oracle on a GPU."""
        if out is not None:
            return self._checked_out(*args, out=out, **kwargs)
        result = self._checked(*args, **kwargs)
        return result if self._returns is None else self._returns(*result)

    def _checked(self, *args: Any, **kwargs: Any) -> Any:
        self._check(*args, **kwargs)
        if autocasting():
            with no_autocast():
                return self.body(*args, **kwargs)
        return self.body(*args, **kwargs)

    def _checked_out(self, *args: Any, out: Tensor, **kwargs: Any) -> Tensor:
        result = self._checked(*args, **kwargs)
        if out.shape != result.shape or out.dtype != result.dtype:
            raise ValueError(
                f"{NAMESPACE}.{self.name}: expected out to be {describe(result)}, "
                f"got {describe(out)}"
            )
        return out.copy_(result)

    def _fake_of(self, shape_function: Callable[..., Any]) -> Callable[..., Any]:
        def fake(*args: Any, **kwargs: Any) -> Any:
            self._check(*args, **kwargs)
            return shape_function(*args, **kwargs)

        return fake


def op(
    *,
    work: Callable[..., Work],
    check: Callable[..., None] | None = None,
    fake: Callable[..., Any] | None = None,
    mutates: tuple[str, ...] = (),
    returns: Callable[..., Any] | None = None,
    out: bool = False,
) -> Callable[[Callable[..., Any]], Op]:
    """Registers a typed reference as an operator.

    Args:
        work: the op's arguments -> `Work` (FLOP, least bytes).
        check: the op's arguments -> None; raises `ValueError` / `TypeError` on bad input.
        fake: shape function, where running the body on fake tensors is impossible
            (data-dependent loops).
        mutates: names of the tensors that are written in place.
        returns: a NamedTuple that names the results of an op with several.
        out: also define an overload with a keyword-only `out` tensor (single result only).
    """
    return lambda body: Op(
        body, work=work, check=check, fake=fake, mutates=mutates, returns=returns, out=out
    )


def tensor_bytes(*tensors: Tensor | None) -> int:
    """Bytes of all tensors, counted once each; the usual least traffic of an op."""
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def _out_schema(name: str, schema: str) -> str:
    arguments, result = schema[len(name) :].rsplit(" -> ", 1)
    if result != "Tensor":
        raise TypeError(f"{name}: an out form needs a single result, got {result}")
    separator = ", " if "*" in arguments else ", *, "
    return f"{name}.out{arguments[:-1]}{separator}Tensor(a!) out) -> Tensor(a!)"
