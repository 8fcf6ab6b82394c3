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
from typing import TYPE_CHECKING, Any, Generic, Literal, ParamSpec, TypeVar, overload

import torch
from torch import Tensor
from torch.autograd import forward_ad

from l4kernels.ops.ambient import autocasting, no_autocast
from l4kernels.ops.check import describe, share_memory
from l4kernels.ops.route import route_of

NAMESPACE = "l4kernels"
EMULATED_NAMESPACE = "l4kernels_emulated"

P = ParamSpec("P")
R = TypeVar("R")

OPS: dict[str, "Op[..., Any]"] = {}

_library = torch.library.Library(NAMESPACE, "FRAGMENT")


@dataclass(frozen=True)
class Work:
    """What an op must do at the least: arithmetic and traffic to global memory."""

    flops: float
    bytes: float

    def __add__(self, other: "Work") -> "Work":
        return Work(self.flops + other.flops, self.bytes + other.bytes)


class Op(Generic[P, R]):
    """A callable operator. Call it, or use its parts: `reference`, `work`, `schema`.

    Inference only: with a tensor that requires a gradient it raises `RuntimeError`.
    """

    def __init__(
        self,
        body: Callable[..., Any],
        *,
        work: Callable[..., Work],
        check: Callable[..., None] | None = None,
        fake: Callable[..., Any] | None = None,
        mutates: tuple[str, ...] = (),
        returns: Callable[..., Any] | None = None,
        out: bool = False,
    ):
        functools.update_wrapper(self, body)
        self.name = body.__name__
        self.body, self.work = body, work
        self._check = check or (lambda *args, **kwargs: None)
        self._returns = returns
        self.has_out = out
        self.schema = self.name + torch.library.infer_schema(body, mutates_args=mutates)
        self.signature = inspect.signature(body)
        self.__signature__ = _public_signature(self.signature, returns, out)
        _library.define(self.schema)
        _library.impl(self.name, self._checked, "CPU")
        torch.library.register_fake(
            f"{NAMESPACE}::{self.name}", self._fake_of(fake or body), lib=_library
        )
        self.overload = getattr(getattr(torch.ops, NAMESPACE), self.name).default
        if out:
            self.out_schema = _out_schema(self.name, self.schema)
            _library.define(self.out_schema)
            _library.impl(f"{self.name}.out", self._cpu_out, "CPU")
            torch.library.register_fake(
                f"{NAMESPACE}::{self.name}.out", self._fake_out_of(fake or body), lib=_library
            )
        OPS[self.name] = self

    def __get__(self, instance: object, owner: type | None = None) -> "Op[P, R]":
        """Like any routine, so that `help` shows the op and not this class; never bound."""
        return self

    def __reduce__(self) -> str:
        """Pickled and copied by name, like a function."""
        return self.name

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        route = route_of(self.name)
        if route == "reference":
            return self.reference(*args, **kwargs)
        if torch.is_grad_enabled():
            _refuse_gradients(self.name, args, kwargs)
        out: Any = kwargs.pop("out", None)  # of an OpWithOut
        namespace = EMULATED_NAMESPACE if route == "emulated" else NAMESPACE
        packet = getattr(getattr(torch.ops, namespace), self.name)
        if out is not None:
            self._require_out_form()
        try:
            if out is not None and torch.compiler.is_compiling():
                # No compiler takes the schema of the out form without torch.Tag.out; with it
                # inductor rewrites the other form to this one, and mixes up its arguments.
                self._require_fit(out, result := packet.default(*args, **kwargs))
                return out.copy_(result)
            if out is not None:
                packet.out(*args, out=out, **kwargs)
                return out  # not the result: to a compiler that is another tensor
            result = packet.default(*args, **kwargs)
        except RuntimeError:  # of a binding: bad input is the same error as on a CPU
            self._check(*args, **kwargs)
            if out is not None:
                self._require_apart(out, args, kwargs)
            raise
        return result if self._returns is None else self._returns(*result)

    def reference(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Runs the typed body on the arguments' own device: the oracle on a GPU."""
        out: Any = kwargs.pop("out", None)
        if out is not None:
            self._require_out_form()
            return self._checked_out(*args, out=out, **kwargs)
        result = self._checked(*args, **kwargs)
        return result if self._returns is None else self._returns(*result)

    def _checked(self, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled():
            _refuse_gradients(self.name, args, kwargs)
        self._check(*args, **kwargs)
        if autocasting():
            with no_autocast():
                return self.body(*args, **kwargs)
        return self.body(*args, **kwargs)

    def _checked_out(self, *args: Any, out: Tensor, **kwargs: Any) -> Any:
        result = self._checked(*args, **kwargs)
        self._require_fit(out, result)
        return out.copy_(result)

    def _cpu_out(self, *args: Any, out: Tensor, **kwargs: Any) -> Any:
        self._require_apart(out, args, kwargs)
        return self._checked_out(*args, out=out, **kwargs)

    def _require_apart(self, out: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # A kernel may read an input after it has begun to write, but of `residual` just what it is
        # about to replace. It takes no `out` with gaps, of which the extent would say too little.
        inputs = (*args, *kwargs.values()) if out.is_contiguous() else ()
        residual = kwargs.get("residual")
        for value in inputs:
            if not isinstance(value, Tensor) or (value is residual and value.is_set_to(out)):
                continue
            if share_memory(out, value):
                raise ValueError(
                    f"{NAMESPACE}.{self.name}: expected out to share no memory with an input, "
                    f"except to be residual itself, got an out in the memory of {describe(value)}"
                )

    def _require_out_form(self) -> None:
        if not self.has_out:
            raise TypeError(f"{NAMESPACE}.{self.name} has no out= form")

    def _require_fit(self, out: Tensor, result: Tensor) -> None:
        if (out.shape, out.dtype, out.device) != (result.shape, result.dtype, result.device):
            raise ValueError(
                f"{NAMESPACE}.{self.name}: expected out to be {describe(result)}, "
                f"got {describe(out)}"
            )

    def _fake_of(self, shape_function: Callable[..., Any]) -> Callable[..., Any]:
        def fake(*args: Any, **kwargs: Any) -> Any:
            if torch.is_grad_enabled():
                _refuse_gradients(self.name, args, kwargs)
            self._check(*args, **kwargs)
            return shape_function(*args, **kwargs)

        return fake

    def _fake_out_of(self, shape_function: Callable[..., Any]) -> Callable[..., Any]:
        fake = self._fake_of(shape_function)

        def fake_out(*args: Any, out: Tensor, **kwargs: Any) -> Tensor:
            self._require_fit(out, fake(*args, **kwargs))
            return out

        return fake_out


class OpWithOut(Op[P, Tensor]):
    """An op whose result may also go into a tensor of the caller's: `op(..., out=tensor)`."""

    if TYPE_CHECKING:  # the keyword that a ParamSpec cannot add

        @overload
        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Tensor: ...
        @overload
        def __call__(self, *args: Any, out: Tensor | None, **kwargs: Any) -> Tensor: ...
        def __call__(self, *args: Any, **kwargs: Any) -> Tensor: ...


@overload
def op(
    *,
    work: Callable[..., Work],
    check: Callable[..., None] | None = None,
    fake: Callable[..., Any] | None = None,
    mutates: tuple[str, ...] = (),
    returns: None = None,
    out: Literal[False] = False,
) -> Callable[[Callable[P, R]], Op[P, R]]: ...
@overload
def op(
    *,
    work: Callable[..., Work],
    check: Callable[..., None] | None = None,
    fake: Callable[..., Any] | None = None,
    mutates: tuple[str, ...] = (),
    returns: type[R],
    out: Literal[False] = False,
) -> Callable[[Callable[P, Any]], Op[P, R]]: ...
@overload
def op(
    *,
    work: Callable[..., Work],
    check: Callable[..., None] | None = None,
    fake: Callable[..., Any] | None = None,
    mutates: tuple[str, ...] = (),
    returns: None = None,
    out: Literal[True],
) -> Callable[[Callable[P, Tensor]], OpWithOut[P]]: ...
def op(*, returns: Any = None, out: bool = False, **parts: Any) -> Any:
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
    kind = OpWithOut if out else Op
    return lambda body: kind(body, returns=returns, out=out, **parts)


def tensor_bytes(*tensors: Tensor | None) -> int:
    """Bytes of all tensors, counted once each; the usual least traffic of an op."""
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def _refuse_gradients(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Called where gradients are recorded: whatever differentiates would go on without the op."""
    dual = forward_ad._current_level >= 0
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor) and (
            value.requires_grad or (dual and forward_ad.unpack_dual(value).tangent is not None)
        ):
            raise RuntimeError(
                f"{NAMESPACE}.{name} is for inference only and has no gradient, but got "
                f"{describe(value)} that requires one: call it under torch.no_grad(), or detach() "
                "the tensor"
            )


def _public_signature(
    body: inspect.Signature, returns: Callable[..., Any] | None, out: bool
) -> inspect.Signature:
    """What a caller may write and gets: with `out`, and the NamedTuple for the bare tuple."""
    if returns is not None:
        return body.replace(return_annotation=returns)
    if not out:
        return body
    keyword = inspect.Parameter(
        "out", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Tensor | None
    )
    return body.replace(parameters=[*body.parameters.values(), keyword])


def _out_schema(name: str, schema: str) -> str:
    arguments, result = schema[len(name) :].rsplit(" -> ", 1)
    if result != "Tensor":
        raise TypeError(f"{name}: an out form needs a single result, got {result}")
    separator = ", " if "*" in arguments else ", *, "
    return f"{name}.out{arguments[:-1]}{separator}Tensor(a!) out) -> Tensor(a!)"
