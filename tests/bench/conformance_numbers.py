"""Floating-point as rational numbers: every format, every rounding, NaN as the PTX ISA has them."""

import functools
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Form:
    bits: int
    exponent: int  # bits of it
    fraction: int
    nan: int
    shift: int = 0  # unused low bits
    infinite: bool = True

    @property
    def bias(self) -> int:
        return (1 << self.exponent - 1) - 1

    @property
    def sign(self) -> int:
        return 1 << self.bits - 1

    @property
    def infinity(self) -> int:
        return ((1 << self.exponent) - 1) << self.fraction + self.shift

    @property
    def largest(self) -> int:
        if not self.infinite:
            return 0x7E
        return self.infinity - (1 << self.shift)


F64 = Form(64, 11, 52, 0x7FF8 << 48)
F32 = Form(32, 8, 23, 0x7FFFFFFF)
TF32 = Form(32, 8, 10, 0x7FFFFFFF, shift=13)
F16 = Form(16, 5, 10, 0x7FFF)
BF16 = Form(16, 8, 7, 0x7FFF)
E5M2 = Form(8, 5, 2, 0x7F)
E4M3 = Form(8, 4, 3, 0x7F, infinite=False)
FORMS = {"f64": F64, "f32": F32, "tf32": TF32, "f16": F16, "bf16": BF16, "e5m2": E5M2, "e4m3": E4M3}

Value = Fraction | float
"""A Fraction, or a float for what is none: infinities, NaN and zeros, which have signs."""


@functools.lru_cache(1 << 16)
def value(bits: int, form: Form) -> Value:
    magnitude = (bits & form.sign - 1) >> form.shift
    sign = -1 if bits & form.sign else 1
    if form.infinite and magnitude >> form.fraction == (1 << form.exponent) - 1:
        return math.nan if magnitude << form.shift != form.infinity else sign * math.inf
    if not form.infinite and magnitude == 0x7F:
        return math.nan
    if magnitude == 0:
        return sign * 0.0
    exponent = max(magnitude >> form.fraction, 1) - form.bias - form.fraction
    mantissa = magnitude & (1 << form.fraction) - 1
    if magnitude >> form.fraction:
        mantissa |= 1 << form.fraction
    return sign * mantissa * Fraction(2) ** exponent


def rounded(x: Value, form: Form, rounding: str, finite: bool = False) -> int:
    """The bits of x. `finite`: clamped to the largest, where others become infinite."""
    if isinstance(x, float):
        if math.isnan(x):
            return form.nan
        negative = math.copysign(1, x) < 0
        special = 0 if x == 0 else form.largest if finite or not form.infinite else form.infinity
        return special | negative * form.sign
    if x == 0:
        return 0
    negative, size = x < 0, abs(x)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    if size < Fraction(2) ** exponent:
        exponent -= 1
    exponent = max(exponent, 1 - form.bias)
    whole, rest = divmod(size / Fraction(2) ** (exponent - form.fraction), 1)
    if _goes_up(whole, rest, rounding, negative):
        whole += 1
    magnitude = (whole + ((exponent + form.bias - 1) << form.fraction)) << form.shift
    if magnitude > form.largest:
        to_largest = finite or not form.infinite or rounding == "rz"
        to_largest |= rounding == ("rp" if negative else "rm")
        magnitude = form.largest if to_largest else form.infinity
    return magnitude | negative * form.sign


def _goes_up(whole: int, rest: Fraction, rounding: str, negative: bool) -> bool:
    half = Fraction(1, 2)
    if rounding == "rn":
        return rest > half or (rest == half and whole & 1 == 1)
    if rounding == "rna":
        return rest >= half
    return rest > 0 and rounding == ("rm" if negative else "rp")


def flushed(bits: int, form: Form) -> int:
    """Subnormals to zeros of their sign."""
    smallest = 1 << form.fraction + form.shift
    return bits & form.sign if bits & form.sign - 1 < smallest else bits


def is_nan(x: Value) -> bool:
    return isinstance(x, float) and math.isnan(x)


def _is_special(*values: Value) -> bool:
    return any(isinstance(x, float) and x != 0 for x in values)


def _plus(x: Value, y: Value, rounding: str) -> Value:
    if _is_special(x, y):
        return _as_float(x) + _as_float(y)
    total = Fraction(x) + Fraction(y)
    if total != 0:
        return total
    if x == 0 and y == 0 and math.copysign(1, x) == math.copysign(1, y):
        return math.copysign(0.0, x)
    return -0.0 if rounding == "rm" else 0.0


def _times(x: Value, y: Value) -> Value:
    if _is_special(x, y):
        return _as_float(x) * _as_float(y)
    if x == 0 or y == 0:
        return math.copysign(0.0, x) * math.copysign(1.0, y)
    return x * y


def _over(x: Value, y: Value) -> Value:
    if not _is_special(x, y) and y != 0 and x != 0:
        return Fraction(x) / Fraction(y)
    top, bottom = _as_float(x), _as_float(y)
    if math.isnan(top) or math.isnan(bottom) or (top == 0 and bottom == 0):
        return math.nan
    if math.isinf(top) and math.isinf(bottom):
        return math.nan
    sign = math.copysign(1, top) * math.copysign(1, bottom)
    return sign * (0.0 if math.isinf(bottom) or top == 0 else math.inf)


def _as_float(x: Value) -> float:
    """Of what stands beside an infinity or NaN only the sign counts."""
    return x if isinstance(x, float) else math.copysign(1.0, x)


def _root(x: Value, form: Form) -> Value:
    """With a sticky bit far below any format's last."""
    if isinstance(x, float):
        return math.nan if x < 0 else x
    if x < 0:
        return math.nan
    scale = 2 * (form.fraction + 8 + form.bias)
    scaled = x * (1 << 2 * scale)
    whole = math.isqrt(scaled.numerator // scaled.denominator)
    exact = Fraction(whole) ** 2 == scaled
    return Fraction(whole, 1 << scale) + (0 if exact else Fraction(1, 1 << scale + 1))


def _extreme(op: str, x: Value, y: Value, nan: bool) -> Value:
    lost = [is_nan(v) for v in (x, y)]
    if any(lost):
        return math.nan if nan or all(lost) else y if lost[0] else x
    key_x, key_y = ((v, math.copysign(1, v)) for v in (x, y))
    return x if (key_x < key_y) == (op == "min") else y


OPERATIONS = ("add", "sub", "mul", "fma", "div", "rcp", "sqrt", "min", "max")


def arithmetic(
    op: str,
    form: Form,
    bits: Sequence[int],
    rounding: str,
    ftz: bool,
    sat: bool,
    relu: bool,
    nan: bool,
) -> int:
    a, b, c = (value(flushed(x, form) if ftz else x, form) for x in bits)
    if op == "sub":
        b = -b
    if op in ("min", "max"):
        exact = _extreme(op, a, b, nan)
    elif op in ("add", "sub"):
        exact = _plus(a, b, rounding)
    elif op == "mul":
        exact = _times(a, b)
    elif op == "fma":
        exact = _plus(_times(a, b), c, rounding)
    elif op == "sqrt":
        exact = _root(a, form)
    else:
        exact = _over(a, b) if op == "div" else _over(Fraction(1), a)
    return _finished(rounded(exact, form, rounding), form, ftz, sat, relu)


def _finished(result: int, form: Form, ftz: bool, sat: bool, relu: bool) -> int:
    if ftz:
        result = flushed(result, form)
    lost = is_nan(value(result, form))
    if sat:
        one = form.bias << form.fraction
        return 0 if lost or result & form.sign else min(result, one)
    return 0 if relu and result & form.sign and not lost else result


def convert(
    bits: int,
    source: Form,
    to: Form,
    rounding: str,
    *,
    ftz: bool,
    sat: bool,
    relu: bool,
    satfinite: bool,
) -> int:
    x = value(flushed(bits, source) if ftz and source == F32 else bits, source)
    result = rounded(x, to, rounding, satfinite)
    return _finished(result, to, ftz and to == F32, sat, relu)


def to_integer(bits: int, form: Form, width: int, signed: bool, rounding: str, ftz: bool) -> int:
    x = value(flushed(bits, form) if ftz else bits, form)
    low, high = (-(1 << width - 1), (1 << width - 1) - 1) if signed else (0, (1 << width) - 1)
    if isinstance(x, float):
        if math.isnan(x):
            return integer(1 << width - 1 if form == F64 or width == 64 else 0, width, signed)
        return 0 if x == 0 else high if x > 0 else low
    whole = {"rn": round, "rz": math.trunc, "rm": math.floor, "rp": math.ceil}[rounding](x)
    return min(max(whole, low), high)


def integer(bits: int, width: int, signed: bool) -> int:
    bits &= (1 << width) - 1
    return bits - (1 << width) if signed and bits >> width - 1 else bits


def reduced(op: str, values: Sequence[int]) -> int:
    if op in ("min", "max", "add"):
        return {"min": min, "max": max, "add": sum}[op](values)
    return functools.reduce(
        {"and": operator.and_, "or": operator.or_, "xor": operator.xor}[op], values
    )
