"""The arguments of an op: bound by name with the defaults filled in, each of its declared type."""

import inspect
import sys
import types
import typing
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from l4kernels.inputs.files import shown
from l4kernels.ops.check import NAMESPACE, describe

_ACCEPTED: dict[Any, tuple[str, tuple[type, ...]]] = {
    Tensor: ("a Tensor", (Tensor,)),
    int: ("an int", (int, np.integer, torch.SymInt)),
    float: ("a float", (float, int, np.floating, np.integer, torch.SymFloat, torch.SymInt)),
    bool: ("a bool", (bool, np.bool_, torch.SymBool)),
    str: ("a str", (str,)),
    torch.dtype: ("a torch.dtype", (torch.dtype,)),
    types.NoneType: ("None", (types.NoneType,)),
}
"""What the types of a schema are called, and which Python types stand for them."""

_LARGEST = sys.float_info.max


class Bound:
    """The arguments of one call by name: `a.x`, `a.eps`; `a.op` is the op's name."""

    op: str

    def __init__(self, op: str, values: dict[str, Any]):
        self.op = op
        for name, value in values.items():
            setattr(self, name, value)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


class Binder:
    """How an op is called: binds arguments, and says what is wrong with those that do not fit."""

    def __init__(self, name: str, body: Callable[..., Any]):
        self.name = name
        self.signature = inspect.signature(body, eval_str=True)
        parameters = self.signature.parameters.values()
        self._positional = tuple(p.name for p in parameters if p.kind is not p.KEYWORD_ONLY)
        self._defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        self._types = {p.name: _alternatives(p.annotation) for p in parameters}

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Bound:
        """Raises `TypeError` for a missing, repeated, unknown or misplaced argument."""
        given = dict(zip(self._positional, args, strict=False))
        values = {**self._defaults, **given, **kwargs}
        fits = len(args) <= len(self._positional) and len(values) == len(self._types)
        if not fits or any(name in given or name not in self._types for name in kwargs):
            self._refuse(args, kwargs)
        return Bound(self.name, values)

    def public(self, returns: Any, out: bool) -> inspect.Signature:
        """What a caller may write and gets: with `out`, and the NamedTuple for the bare tuple."""
        if returns is not None:
            return self.signature.replace(return_annotation=returns)
        if not out:
            return self.signature
        keyword = inspect.Parameter(
            "out", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Tensor | None
        )
        return self.signature.replace(parameters=[*self.signature.parameters.values(), keyword])

    def _refuse(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> NoReturn:
        shown_form = f"{self.name}({', '.join(self._shown_parameters())})"
        try:
            self.signature.bind(*args, **kwargs)
        except TypeError as error:
            message = f"{NAMESPACE}.{self.name}: {error}; the arguments are {shown_form}"
            raise TypeError(message) from None
        raise AssertionError

    def _shown_parameters(self) -> list[str]:
        named = [n if n not in self._defaults else f"{n}={self._defaults[n]}" for n in self._types]
        star = len(self._positional)
        return named if star == len(named) else [*named[:star], "*", *named[star:]]

    def tensors(self, bound: Bound) -> dict[str, Tensor]:
        """Those of the arguments, and of the entries of lists, that are tensors."""
        found: dict[str, Tensor] = {}
        for name in self._types:
            value = getattr(bound, name)
            if isinstance(value, (list, tuple)):
                found |= {f"{name}[{i}]": t for i, t in enumerate(value) if isinstance(t, Tensor)}
            elif isinstance(value, Tensor):
                found[name] = value
        return found

    def require_types(self, bound: Bound) -> None:
        """Raises `TypeError` for a value that the schema has no type for."""
        for name, allowed in self._types.items():
            value = getattr(bound, name)
            if allowed and not any(stands_for(value, kind) for kind in allowed):
                nouns = " or ".join(_ACCEPTED[kind][0] for kind in allowed)
                got = f"a Tensor {describe(value)}" if isinstance(value, Tensor) else shown(value)
                raise TypeError(
                    f"{NAMESPACE}.{self.name}: expected {name} to be {nouns}, got {got}"
                )


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    """`Tensor | None` -> `(Tensor, NoneType)`; nothing for a type that only torch checks: a list,
    a device."""
    is_union = typing.get_origin(annotation) in (types.UnionType, typing.Union)
    kinds = typing.get_args(annotation) if is_union else (annotation,)
    return kinds if all(kind in _ACCEPTED for kind in kinds) else ()


def stands_for(value: Any, kind: Any) -> bool:
    """Whether a value is taken where a schema has this type."""
    if not isinstance(value, Tensor) and hasattr(type(value), "__torch_function__"):
        return True  # a proxy, as torch.fx traces with: what it stands for is its own affair
    if not isinstance(value, _ACCEPTED[kind][1]):
        return False
    if isinstance(value, int) and kind is not bool:
        # True is an int to Python, and not a count to anyone else; a huge one fits no register.
        low, high = (-_LARGEST, _LARGEST) if kind is float else (-(1 << 63), (1 << 63) - 1)
        return not isinstance(value, bool) and low <= value <= high
    return True
