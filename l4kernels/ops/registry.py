"""An op is its typed reference.

`@op` turns a typed PyTorch function into a custom operator `torch.ops.l4kernels.<name>`: the
schema is inferred from the annotations, the body is the CPU implementation and the shape function,
and the compiled library adds a CUDA implementation under the same name. The body is also the
oracle: `op.reference(...)` runs it on whatever device its arguments are on.

What a call costs beside the kernel: types are checked once per form of a call (how many arguments,
their names and types), contracts once per layout of the arguments (shapes, strides, dtypes,
devices, numbers). On a CPU a call of a layout that passed goes straight to the body, unless torch
would do more with it: a mode, a transform, a trace, a profiler or autocast is active (`observed`).
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, ParamSpec, TypeVar, overload

import torch
from torch import Tensor, is_grad_enabled
from torch._C import _any_requires_grad as any_requires_grad
from torch.autograd import forward_ad
from torch.compiler import is_dynamo_compiling
from torch.nn import Parameter

from l4kernels.inputs.files import shown
from l4kernels.ops import dispatch
from l4kernels.ops.ambient import autocasting, no_autocast, observed
from l4kernels.ops.bound import Binder, Bound, stands_for
from l4kernels.ops.check import NAMESPACE, Checker, describe, share_memory, tensors_in
from l4kernels.ops.gradients import refuse_gradients

EMULATED_NAMESPACE = "l4kernels_emulated"

P = ParamSpec("P")
R = TypeVar("R")

OPS: dict[str, "Op[..., Any]"] = {}

_MAX_LAYOUTS = 4096
"""Of an op that are remembered at a time."""

_PLAIN = frozenset({int, float, bool, str, type(None), torch.dtype, torch.device})
"""Types of arguments that are what they are equal to."""

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

    has_out = False
    direct = True
    """Whether calls may go past torch's dispatcher. Who replaces CPU kernels in it sets False."""

    def __init__(
        self,
        body: Callable[..., Any],
        *,
        work: Callable[[Bound], Work],
        check: Callable[[Bound], None],
        fake: Callable[[Bound], Any] | None = None,
        mutates: tuple[str, ...] = (),
        returns: Any = None,
        without_kernel: str = "",
    ):
        functools.update_wrapper(self, body)
        self.name = body.__name__
        self.body, self.returns, self.without_kernel = body, returns, without_kernel
        self._work, self._check, self._fake = work, check, fake
        self.schema = self.name + torch.library.infer_schema(body, mutates_args=mutates)
        self._binder = Binder(self.name, body)
        self.signature = self._binder.signature
        self.__signature__ = self._binder.public(returns, self.has_out)
        self._forms: dict[tuple[Any, ...], Callable[..., Any]] = {}
        self._last_form: tuple[Any, Any] = (None, None)  # a call without arguments has form []
        self._layouts: set[tuple[Any, ...]] = set()
        self._define(self.schema, self._run, self._shape)
        self.overload = getattr(getattr(torch.ops, NAMESPACE), self.name).default
        OPS[self.name] = self

    def _define(self, schema: str, run: Callable[..., Any], on_fake: Callable[..., Any]) -> None:
        _library.define(schema)
        name = schema.partition("(")[0]
        for device in ("CPU", "CUDA") if self.without_kernel else ("CPU",):
            _library.impl(name, run, device)
        torch.library.register_fake(f"{NAMESPACE}::{name}", on_fake, lib=_library)

    def __get__(self, instance: object, owner: type | None = None) -> "Op[P, R]":
        """Like any routine, so that `help` shows the op and not this class; never bound."""
        return self

    def __reduce__(self) -> str:
        """Pickled and copied by name, like a function."""
        return self.name

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        # The good path is short: a model makes a hundred of these calls for a token.
        if dispatch.open_blocks or is_dynamo_compiling():
            return self._call_dispatched(args, kwargs)
        layout = None
        if self.direct and args and type(args[0]) is Tensor and args[0].is_cpu and not observed():
            layout = _layout(args, kwargs)
            if layout in self._layouts:
                return self._call_body(args, kwargs)
        form: list[Any] = [*map(type, args)]
        if kwargs:
            form += [*kwargs, *map(type, kwargs.values())]
        last, kernel = self._last_form
        if form != last:
            kernel = self._kernel_of(form, args, kwargs)
        if is_grad_enabled() and (
            any_requires_grad(*args, **kwargs) or forward_ad._current_level >= 0
        ):
            refuse_gradients(self.name, args, kwargs)
        try:
            result = kernel(*args, **kwargs)
        except (RuntimeError, OverflowError):  # bad input is the same error as on a CPU
            self._require_contract(args, kwargs)
            raise
        if layout is not None:
            self._remember(layout)
        return result if self.returns is None else tuple.__new__(self.returns, result)

    def _call_body(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if is_grad_enabled():
            refuse_gradients(self.name, args, kwargs)
        result = self.body(*args, **kwargs)
        return result if self.returns is None else tuple.__new__(self.returns, result)

    def reference(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Runs the typed body on the arguments' own device: the oracle on a GPU."""
        if is_grad_enabled():
            refuse_gradients(self.name, args, kwargs)
        self._require_contract(args, kwargs)
        result = self._run_body(args, kwargs)
        return result if self.returns is None else self.returns(*result)

    def work(self, /, *args: P.args, **kwargs: P.kwargs) -> Work:
        """What the op must do for these arguments at the least."""
        return self._work(self._binder.bind(args, kwargs))

    def _kernel_of(self, form: list[Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a call of the form runs. Most calls have the form of the last one."""
        key = tuple(form)
        if key not in self._forms:
            self._forms[key] = self._kernel_for(args, kwargs)
        self._last_form = form, self._forms[key]
        return self._forms[key]

    def _kernel_for(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[..., Any]:
        self._require_types(args, kwargs)
        kernel: Callable[..., Any] = self.overload._op  # without a Python function in between
        return kernel

    def _call_dispatched(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call under torch.compile, or while a block sends ops elsewhere."""
        target = dispatch.target_of(self.name)
        if target == "reference":
            return self.reference(*args, **kwargs)
        self._require_types(args, kwargs)
        if is_grad_enabled():
            refuse_gradients(self.name, args, kwargs)
        namespace = EMULATED_NAMESPACE if target == "emulated" else NAMESPACE
        packet = getattr(getattr(torch.ops, namespace), self.name)
        try:
            result = self._dispatch(packet, args, kwargs)
        except (RuntimeError, OverflowError):
            self._require_contract(args, kwargs)
            raise
        return result if self.returns is None else self.returns(*result)

    def _dispatch(self, packet: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return packet.default(*args, **kwargs)

    def _require_types(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._binder.require_types(self._bind(args, kwargs))

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Bound:
        if "out" in kwargs:
            raise TypeError(f"{NAMESPACE}.{self.name} has no out= form")
        return self._binder.bind(args, kwargs)

    def _require_contract(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Bound:
        bound = self._bind(args, kwargs)
        self._binder.require_types(bound)
        tensors = self._binder.tensors(bound)
        Checker(self.name).dense(**tensors)
        self._check(bound)
        Checker(self.name).same_device(**tensors)
        return bound

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        """The implementation for CPUs, and for a GPU where the op needs no kernel."""
        if is_grad_enabled():
            refuse_gradients(self.name, args, kwargs)
        layout = _layout(args, kwargs)
        if layout is None or layout not in self._layouts:
            self._require_contract(args, kwargs)
            self._remember(layout)
        return self._run_body(args, kwargs)

    def _remember(self, layout: tuple[Any, ...] | None) -> None:
        if layout is None:
            return
        if len(self._layouts) >= _MAX_LAYOUTS:
            self._layouts.clear()
        self._layouts.add(layout)

    def _run_body(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if autocasting():
            with no_autocast():
                return self.body(*args, **kwargs)
        return self.body(*args, **kwargs)

    def _shape(self, *args: Any, **kwargs: Any) -> Any:
        """The implementation for tensors without data."""
        if is_grad_enabled():
            refuse_gradients(self.name, args, kwargs)
        bound = self._require_contract(args, kwargs)
        return self.body(*args, **kwargs) if self._fake is None else self._fake(bound)


class OpWithOut(Op[P, Tensor]):
    """An op whose result may also go into a tensor of the caller's: `op(..., out=tensor)`."""

    has_out = True

    def __init__(self, body: Callable[..., Any], **parts: Any):
        super().__init__(body, **parts)
        self.out_schema = _out_schema(self.name, self.schema)
        self._define(self.out_schema, self._run_out, self._shape_out)

    if TYPE_CHECKING:  # the keyword that a ParamSpec cannot add

        @overload
        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Tensor: ...
        @overload
        def __call__(self, *args: Any, out: Tensor | None, **kwargs: Any) -> Tensor: ...
        def __call__(self, *args: Any, **kwargs: Any) -> Tensor: ...

    def reference(self, /, *args: P.args, **kwargs: P.kwargs) -> Tensor:
        out, inputs = _without_out(kwargs)
        self._require_out(out)
        result: Tensor = super().reference(*args, **inputs)
        return result if out is None else self._filled(out, result)

    def _call_body(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        out, inputs = _without_out(kwargs)
        if out is not None:
            self._require_apart(out, args, inputs)
        result: Tensor = super()._call_body(args, inputs)
        return result if out is None else self._filled(out, result)

    def _kernel_for(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[..., Any]:
        if "out" not in kwargs:
            return super()._kernel_for(args, kwargs)
        self._require_types(args, kwargs)
        packet = getattr(getattr(torch.ops, NAMESPACE), self.name)
        return lambda *args, **kwargs: self._dispatch(packet, args, kwargs)

    def _dispatch(self, packet: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        out, inputs = _without_out(kwargs)
        if out is None or torch.compiler.is_compiling():
            # No compiler takes the schema of the out form without torch.Tag.out; with it
            # inductor rewrites the other form to this one, and mixes up its arguments.
            result: Tensor = packet.default(*args, **inputs)
            return result if out is None else self._filled(out, result)
        packet.out(*args, out=out, **inputs)
        return out  # not the result: to a compiler that is another tensor

    def _require_types(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        out, inputs = _without_out(kwargs)
        super()._require_types(args, inputs)
        self._require_out(out)

    def _require_out(self, out: Any) -> None:
        if out is not None and not stands_for(out, Tensor):
            raise TypeError(
                f"{NAMESPACE}.{self.name}: expected out to be a Tensor or None, got {shown(out)}"
            )

    def _require_contract(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Bound:
        out, inputs = _without_out(kwargs)
        bound = super()._require_contract(args, inputs)
        if out is not None:
            Checker(self.name).dense(out=out)
            self._require_apart(out, args, inputs)
        return bound

    def _run_out(self, *args: Any, out: Tensor, **kwargs: Any) -> Tensor:
        self._require_apart(out, args, kwargs)
        return self._filled(out, self._run(*args, **kwargs))

    def _shape_out(self, *args: Any, out: Tensor, **kwargs: Any) -> Tensor:
        self._require_fit(out, self._shape(*args, **kwargs))
        return out

    def _filled(self, out: Tensor, result: Tensor) -> Tensor:
        self._require_fit(out, result)
        return out.copy_(result)

    def _require_apart(self, out: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # A kernel may read an input after it has begun to write, but of `residual` just what it is
        # about to replace. It takes no `out` with gaps, of which the extent would say too little.
        inputs = (*args, *kwargs.values()) if out.is_contiguous() else ()
        residual = kwargs.get("residual")
        for value in tensors_in(inputs):
            if residual is not None and value is residual and value.is_set_to(out):
                continue
            if share_memory(out, value):
                raise ValueError(
                    f"{NAMESPACE}.{self.name}: expected out to share no memory with an input, "
                    f"except to be residual itself, got an out in the memory of {describe(value)}"
                )

    def _require_fit(self, out: Tensor, result: Tensor) -> None:
        Checker(self.name).dense(out=out)
        if (out.shape, out.dtype, out.device) != (result.shape, result.dtype, result.device):
            raise ValueError(
                f"{NAMESPACE}.{self.name}: expected out to be {describe(result)}, "
                f"got {describe(out)}"
            )


@overload
def op(
    *,
    work: Callable[[Bound], Work],
    check: Callable[[Bound], None],
    fake: Callable[[Bound], Any] | None = None,
    mutates: tuple[str, ...] = (),
    returns: None = None,
    without_kernel: str = "",
    out: Literal[False] = False,
) -> Callable[[Callable[P, R]], Op[P, R]]: ...
@overload
def op(
    *,
    work: Callable[[Bound], Work],
    check: Callable[[Bound], None],
    fake: Callable[[Bound], Any] | None = None,
    mutates: tuple[str, ...] = (),
    returns: type[R],
    without_kernel: str = "",
    out: Literal[False] = False,
) -> Callable[[Callable[P, Any]], Op[P, R]]: ...
@overload
def op(
    *,
    work: Callable[[Bound], Work],
    check: Callable[[Bound], None],
    fake: Callable[[Bound], Any] | None = None,
    mutates: tuple[str, ...] = (),
    returns: None = None,
    without_kernel: str = "",
    out: Literal[True],
) -> Callable[[Callable[P, Tensor]], OpWithOut[P]]: ...
def op(*, out: bool = False, **parts: Any) -> Any:
    """Registers a typed reference, which alone states the signature, as an operator.

    Args:
        work: the bound arguments -> `Work` (FLOP, least bytes).
        check: the bound arguments -> None; raises `ValueError` / `TypeError` on bad input. That
            tensors are dense, and on one device, need not be said.
        fake: the bound arguments -> empty results, where running the body on fake tensors is
            impossible (data-dependent loops).
        mutates: names of the tensors that are written in place.
        returns: a NamedTuple that names the results of an op with several.
        without_kernel: why the op needs no CUDA kernel; its body serves a GPU, too.
        out: also define an overload with a keyword-only `out` tensor (single result only).
    """
    kind = OpWithOut if out else Op
    return lambda body: kind(body, **parts)


def tensor_bytes(*tensors: Tensor | None) -> int:
    """Bytes of all tensors, counted once each; the usual least traffic of an op."""
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def _layout(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...] | None:
    """All of a call that checks may read, types included; None if one of them is unusual."""
    layout: list[Any] = [*kwargs]
    try:
        for value in (*args, *kwargs.values()):
            kind = type(value)
            if kind is Tensor or kind is Parameter:
                layout += (value.shape, value.stride(), value.dtype, value.device)
            elif kind in _PLAIN:
                layout += (kind, value)
            elif kind is list or kind is tuple:
                layout += (len(value), _layout(tuple(value), {}))
            else:
                return None
    except RuntimeError:  # of a tensor that has no shape or strides
        return None
    return tuple(layout)


def _without_out(kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    if "out" not in kwargs:
        return None, kwargs
    return kwargs["out"], {name: value for name, value in kwargs.items() if name != "out"}


def _out_schema(name: str, schema: str) -> str:
    arguments, result = schema[len(name) :].rsplit(" -> ", 1)
    if result != "Tensor":
        raise TypeError(f"{name}: an out form needs a single result, got {result}")
    separator = ", " if "*" in arguments else ", *, "
    return f"{name}.out{arguments[:-1]}{separator}Tensor(a!) out) -> Tensor(a!)"
