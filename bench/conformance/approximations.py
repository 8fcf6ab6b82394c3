"""The approximations against exact values, within the errors that the PTX ISA documents.

The emulator moves its results about inside the same errors (`emulator/tensor/approx.cpp`), so its
bits say nothing about a GPU's; both are held to the bounds here.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .compare import Facts, Right
from .table import Expected, Table

Floats = NDArray[np.float64]
SMALLEST = 2.0**-126  # normal


def _relative(error: float) -> Callable[[Floats, Floats], Floats]:
    return lambda x, v: np.abs(v) * error


def _absolute(error: float) -> Callable[[Floats, Floats], Floats]:
    return lambda x, v: np.full_like(v, error)


def _ulps(count: float) -> Callable[[Floats, Floats], Floats]:
    return lambda x, v: count * ulp(v)


def _logarithm(x: Floats, v: Floats) -> Floats:
    return np.where((x > 0.5) & (x < 2), 2.0**-22, np.abs(v) * 2.0**-22)


def _circular(x: Floats, v: Floats) -> Floats:
    """Beyond 100 pi nothing is promised but a sine."""
    near, far = np.abs(x) <= 2 * np.pi, np.abs(x) <= 100 * np.pi
    return np.where(near, 2.0**-20.5, np.where(far, 2.0**-14.7, 2.0))


def ulp(v: Floats) -> Floats:
    """Spacing of f32 at v, once rounded; subnormals included."""
    _, exponent = np.frexp(v.astype(np.float32).astype(float))
    return np.ldexp(1.0, np.maximum(np.where(v == 0, -126, exponent - 1), -126) - 23)


BOUNDS: dict[str, tuple[Callable[..., Floats], Callable[[Floats, Floats], Floats]]] = {
    "ex2.approx": (np.exp2, _ulps(2)),
    "lg2.approx": (np.log2, _logarithm),
    "rcp.approx": (lambda x: 1 / x, _ulps(1)),
    "rsqrt.approx": (lambda x: 1 / np.sqrt(x), _relative(2.0**-22.9)),
    "sqrt.approx": (np.sqrt, _relative(2.0**-23)),
    "sin.approx": (np.sin, _circular),
    "cos.approx": (np.cos, _circular),
    "tanh.approx": (np.tanh, _relative(2.0**-11)),
    "div.full": (np.divide, _ulps(2)),
    "div.approx": (np.divide, _ulps(2)),
}
"""What is approximated, and the largest error of a result."""
ABSOLUTE = ("sin.approx", "cos.approx", "lg2.approx")
"""Whose bound is absolute near zero: there an ulp says nothing."""
HALVES: dict[str, Callable[[Floats, Floats], Floats]] = {
    "ex2.approx.f16x2": _relative(2.0**-9.9),
    "ex2.approx.ftz.bf16x2": _relative(2.0**-7),
    "tanh.approx.f16x2": _absolute(2.0**-10.987),
    "tanh.approx.bf16x2": _absolute(2.0**-8),
}


def judge(table: Table, expected: Expected) -> tuple[Right, Facts]:
    right, largest = [], {}
    with np.errstate(all="ignore"):
        for case, name in enumerate(table.cases):
            inputs = table.inputs_of(case)
            ok, deviation = _judge(name, inputs[:, 0], inputs[:, 2], table.outputs[case, :, 0])
            right.append(ok)
            largest[name] = deviation
    return np.stack(right), {"largest": largest}


def _judge(name: str, a: Any, b: Any, got: Any) -> tuple[Right, Facts]:
    """For each result whether it is right; the largest error in ulp and as a part of the bound."""
    if name in HALVES:
        parts = [_judge_half(name, a >> shift, got >> shift) for shift in (0, 16)]
        worst = max(part for _, part in parts)
        return parts[0][0] & parts[1][0], {"of_bound": round(float(worst), 4)}
    ftz = ".ftz" in name
    op = ".".join(name.split(".")[:2])
    x, y, result = (_flushed(word.view(np.float32), ftz) for word in (a, b, got))
    function, bound = BOUNDS[op]
    exact = function(x, y) if op.startswith("div") else function(x)
    if op == "div.approx":  # of the largest divisors
        none = (np.abs(y) > 2.0**126) & np.isfinite(y)
        exact = np.where(
            none, np.where(np.isfinite(x), np.copysign(0, x) * np.sign(y), np.nan), exact
        )
    ok, error = _within(result, exact, bound(x, exact), np.float32, SMALLEST if ftz else 0)
    normal = np.isfinite(result) & (np.abs(exact) >= SMALLEST) & (np.abs(exact) < 2.0**128)
    normal &= result != 0  # flushed
    if op in ABSOLUTE[:2]:
        normal &= np.abs(x) <= 100 * np.pi
    part = np.where(normal, error / bound(x, exact), 0)
    found = {"of_bound": round(float(part.max()), 4)}
    if op not in ABSOLUTE:
        units = np.where(normal, error / ulp(exact), 0)
        found["ulp"] = round(float(units.max()), 3)
    return ok, found


def _judge_half(name: str, a: Any, got: Any) -> tuple[Right, float]:
    x, result = (_half(word, "bf16" in name) for word in (a, got))
    ftz = ".ftz" in name
    x = _flushed(x, ftz)
    exact = np.exp2(x) if name.startswith("ex2") else np.tanh(x)
    error_bound = HALVES[name](x, exact)
    if "bf16" not in name:  # subnormal results have their own rounding
        error_bound = np.maximum(error_bound, np.where(np.abs(exact) < 2.0**-14, 2.0**-24, 0))
    rounded = _round_bf16 if "bf16" in name else np.float16
    ok, error = _within(result, exact, error_bound, rounded, SMALLEST if ftz else 0)
    normal = (
        np.isfinite(result) & np.isfinite(exact) & (np.abs(exact) >= 2.0**-14) & (exact < 65504)
    )
    return ok, np.where(normal, error / error_bound, 0).max()


def _within(
    got: Floats, exact: Floats, bound: Floats, rounded: Callable[..., Any], flushes_below: float
) -> tuple[Right, Floats]:
    """Inside the bound; where there is no distance, the rounded value itself, with its sign."""
    finite = np.where(np.isinf(got), np.sign(got) * 2.0**128, got)  # an overflow is a step away
    error = np.abs(finite - exact)
    nearest = np.asarray(rounded(exact), np.float64)
    same = (got == nearest) & (np.signbit(got) == np.signbit(nearest))
    same |= np.isnan(got) & np.isnan(nearest)
    flushed = (got == 0) & (np.abs(exact) - bound < flushes_below)
    return same | (error <= bound) | flushed, error


def _flushed(x: Any, ftz: bool) -> Floats:
    wide: Floats = np.asarray(x, np.float64)
    return np.where(np.abs(wide) < SMALLEST, np.copysign(0.0, wide), wide) if ftz else wide


def _half(word: Any, bf16: bool) -> Floats:
    low = (word & 0xFFFF).astype(np.uint32)
    found = (low << 16).view(np.float32) if bf16 else low.astype(np.uint16).view(np.float16)
    return np.asarray(found, np.float64)


def _round_bf16(x: Floats) -> Floats:
    bits = x.astype(np.float32).view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16).astype(np.uint32)
    return np.where(np.isnan(x), np.nan, rounded.view(np.float32))
