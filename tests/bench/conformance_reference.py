"""What the cases of conformance should give, by means that share nothing with the emulator:
rational numbers, Python's integers, numpy. A case that has no reference here is not compared.
"""

import re
import zlib
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np

from bench.conformance import Table, products
from tests.bench import conformance_numbers as numbers
from tests.bench.conformance_numbers import Form

Row = tuple[int, int, int]
Scalar = Callable[[int, int, int], int | None]
"""Operands a, b and c, 64 bits each -> the result's bits, None if no document says."""


def differences(family: str, table: Table) -> tuple[int, list[str]]:
    """How many cases were compared, and the values that differ."""
    compared, problems = 0, []
    for case, name in enumerate(table.cases):
        expected = _OF_FAMILY[family](name, table.inputs_of(case))
        if expected is None:
            continue
        compared += 1
        got = table.outputs[case]
        wrong = np.ma.filled(got != expected, False).any(-1)
        for row in np.flatnonzero(wrong)[:3].tolist():
            words = [
                " ".join(f"{w:08x}" for w in t[row]) for t in (table.inputs_of(case), expected, got)
            ]
            problems.append(f"{name} row {row} of {words[0]}: expected {words[1]}, got {words[2]}")
    return compared, problems


THIRDS = 3
"""Rational numbers are slow: a case is compared in every third row, its neighbours in others."""


def _scalar(find: Callable[[str], Scalar | None]) -> Callable[[str, Any], Any]:
    def of_case(name: str, inputs: Any) -> Any:
        function = find(name)
        if function is None:
            return None
        rows = np.ascontiguousarray(inputs).view(np.uint64).tolist()
        turn = zlib.crc32(name.encode()) % THIRDS
        results = [function(*row) if i % THIRDS == turn else None for i, row in enumerate(rows)]
        unsaid = np.repeat([[result is None] for result in results], 2, axis=1)
        bits = np.array([result or 0 for result in results], np.uint64).view(np.uint32)
        return np.ma.masked_array(bits.reshape(-1, 2), unsaid)

    return of_case


FORMS = {"f32": numbers.F32, "f64": numbers.F64, "f16": numbers.F16, "bf16": numbers.BF16}
ROUNDINGS = ("rn", "rz", "rm", "rp")


def _arithmetic(name: str) -> Scalar | None:
    """add.rz.ftz.f32, fma.rn.relu.bf16x2, ..."""
    op, *modifiers, kind = name.split(".")
    if op not in numbers.OPERATIONS or "xorsign" in modifiers:
        return None
    form = FORMS[kind.removesuffix("x2")]
    rounding = next((m for m in modifiers if m in ROUNDINGS), "rn")

    def one(a: int, b: int, c: int) -> int:
        return numbers.arithmetic(
            op, form, (a, b, c), rounding, "ftz" in modifiers, "sat" in modifiers,
            "relu" in modifiers, "NaN" in modifiers,
        )  # fmt: skip

    def double(a: int, b: int, c: int) -> int | None:
        """Nobody says which NaN of f64 comes out."""
        found = one(b, b, b) if op == "sqrt" else one(a, b, c)
        return None if found == form.nan else found

    if form == numbers.F64:
        return double
    if not kind.endswith("x2"):
        mask = (1 << form.bits) - 1
        return lambda a, b, c: one(a & mask, b & mask, c & mask)
    low = 0xFFFF
    return lambda a, b, c: (
        one(a & low, b & low, c & low) | one(a >> 16 & low, b >> 16 & low, c >> 16 & low) << 16
    )


def _integer(name: str) -> Scalar | None:
    found = re.fullmatch(r"(mul|mad)\.(lo|hi|wide)\.([su])(16|32|64)", name)
    if not found:
        return _simple_integer(name)
    op, part, sign, width = found[1], found[2], found[3] == "s", int(found[4])

    def product(a: int, b: int, c: int) -> int:
        a, b = (numbers.integer(x, width, sign) for x in (a, b))
        c = numbers.integer(c, 2 * width if part == "wide" else width, sign)
        whole = a * b >> (width if part == "hi" else 0)
        return whole + (c if op == "mad" else 0) & (1 << width * (2 if part == "wide" else 1)) - 1

    return product


def _simple_integer(name: str) -> Scalar | None:
    word = 0xFFFFFFFF
    table: dict[str, Scalar] = {
        "add.u32": lambda a, b, c: a + b & word,
        "sub.u64": lambda a, b, c: a - b & 2**64 - 1,
        "popc.b32": lambda a, b, c: (a & word).bit_count(),
        "popc.b64": lambda a, b, c: b.bit_count(),
        "clz.b32": lambda a, b, c: 32 - (a & word).bit_length(),
        "clz.b64": lambda a, b, c: 64 - b.bit_length(),
        "brev.b32": lambda a, b, c: int(f"{a & word:032b}"[::-1], 2),
        "not.b32": lambda a, b, c: ~a & word,
        "shl.b32": lambda a, b, c: (a & word) << min(b & word, 32) & word,
        "shr.u32": lambda a, b, c: (a & word) >> min(b & word, 32),
        "shr.s32": lambda a, b, c: numbers.integer(a, 32, True) >> min(b & word, 31) & word,
        "shl.b64": lambda a, b, c: a << min(c & word, 64) & 2**64 - 1,
        "shr.u64": lambda a, b, c: a >> min(c & word, 64),
        "shr.s64": lambda a, b, c: numbers.integer(a, 64, True) >> min(c & word, 63) & 2**64 - 1,
        "shf.l.wrap.b32": lambda a, b, c: _funnel(a, b) << (c & 31) >> 32 & word,
        "shf.l.clamp.b32": lambda a, b, c: _funnel(a, b) << min(c & word, 32) >> 32 & word,
        "shf.r.wrap.b32": lambda a, b, c: _funnel(a, b) >> (c & 31) & word,
        "shf.r.clamp.b32": lambda a, b, c: _funnel(a, b) >> min(c & word, 32) & word,
        "bfe.u32": lambda a, b, c: (a & word) >> (b & 255) & (1 << (c & 255)) - 1,
        "bfi.b32": lambda a, b, c: _inserted(a & word, b & word, c & 255, c >> 32 & 255, 32),
        "prmt.b32": lambda a, b, c: _permuted(_funnel(a, b), c),
        "lop3.b32, 0x96": lambda a, b, c: (a ^ b ^ c) & word,
        "lop3.b32, 0xe8": lambda a, b, c: (a & b | a & c | b & c) & word,
        "add.sat.s32": lambda a, b, c: _saturated(_signed(a) + _signed(b)),
        "sub.sat.s32": lambda a, b, c: _saturated(_signed(a) - _signed(b)),
        "mad.hi.sat.s32": lambda a, b, c: _saturated((_signed(a) * _signed(b) >> 32) + _signed(c)),
        "mul24.lo.u32": lambda a, b, c: (a & 2**24 - 1) * (b & 2**24 - 1) & word,
        "mul24.hi.u32": lambda a, b, c: (a & 2**24 - 1) * (b & 2**24 - 1) >> 16 & word,
        "mul24.lo.s32": lambda a, b, c: _signed(a, 24) * _signed(b, 24) & word,
        "mul24.hi.s32": lambda a, b, c: _signed(a, 24) * _signed(b, 24) >> 16 & word,
        "mad24.lo.s32": lambda a, b, c: _signed(a, 24) * _signed(b, 24) + c & word,
        "bmsk.wrap.b32": lambda a, b, c: (1 << (b & 31)) - 1 << (a & 31) & word,
        "min.s16x2": lambda a, b, c: _halves(min, a, b),
        "add.s16x2": lambda a, b, c: _halves(int.__add__, a, b),
        "dp2a.lo.s32.s32": lambda a, b, c: sum(
            _signed(a >> 16 * i, 16) * _signed(b >> 8 * i, 8) for i in (0, 1)) + c & word,
        "bfind.u32": lambda a, b, c: (a & word).bit_length() - 1 & word,
    }  # fmt: skip
    return table.get(name) or _dot(name)


def _signed(a: int, width: int = 32) -> int:
    return numbers.integer(a, width, True)


def _saturated(x: int) -> int:
    return max(-(2**31), min(x, 2**31 - 1)) & 0xFFFFFFFF


def _halves(op: Callable[[int, int], int], a: int, b: int) -> int:
    low, high = (op(_signed(a >> s, 16), _signed(b >> s, 16)) & 0xFFFF for s in (0, 16))
    return high << 16 | low


def _funnel(a: int, b: int) -> int:
    return (b & 0xFFFFFFFF) << 32 | a & 0xFFFFFFFF


def _inserted(a: int, b: int, at: int, count: int, width: int) -> int:
    mask = ((1 << count) - 1) << at & (1 << width) - 1
    return b & ~mask | a << at & mask


def _permuted(source: int, selector: int) -> int:
    result = 0
    for i in range(4):
        choice = selector >> 4 * i & 15
        byte = source >> 8 * (choice & 7) & 255
        result |= (255 * (byte >> 7) if choice & 8 else byte) << 8 * i
    return result


def _dot(name: str) -> Scalar | None:
    found = re.fullmatch(r"dp4a\.([su])32\.([su])32", name)
    if not found:
        return None
    signs = found[1] == "s", found[2] == "s"

    def dot(a: int, b: int, c: int) -> int:
        pairs = ((a >> s & 255, b >> s & 255) for s in (0, 8, 16, 24))
        total = sum(
            numbers.integer(x, 8, signs[0]) * numbers.integer(y, 8, signs[1]) for x, y in pairs
        )
        return total + c & 0xFFFFFFFF

    return dot


def _conversion(name: str) -> Scalar | None:
    _, *modifiers, to, source = name.split(".")
    rounding = next((m[:2] for m in modifiers if m[:2] in ROUNDINGS), "rn")
    if "rna" in modifiers:
        rounding = "rna"
    options = {m: m in modifiers for m in ("ftz", "sat", "relu", "satfinite")}
    form = numbers.FORMS.get(to.removesuffix("x2"))
    wide = numbers.FORMS.get(source.removesuffix("x2"))
    if form and wide and not any(m.endswith("i") for m in modifiers) and form != wide:
        return _float_conversion(to, source, form, wide, rounding, options)
    width = int(to[1:]) if not form and to[0] in "su" else 0
    if width and wide:
        signed = to[0] == "s"
        return lambda a, b, c: numbers.to_integer(
            (b if source == "f64" else a) & (1 << wide.bits) - 1, wide, width, signed, rounding,
            options["ftz"],
        ) & (1 << max(width, 32)) - 1  # fmt: skip
    if form and not wide:
        bits, signed = int(source[1:]), source[0] == "s"
        return lambda a, b, c: numbers.rounded(
            Fraction(numbers.integer(b if bits == 64 else a, bits, signed)), form, rounding
        )
    return None


def _float_conversion(
    to: str, source: str, form: Form, wide: Form, rounding: str, options: dict[str, bool]
) -> Scalar:
    def one(bits: int) -> int:
        return numbers.convert(bits & (1 << wide.bits) - 1, wide, form, rounding, **options)

    def scalar(a: int, b: int, c: int) -> int | None:
        """Nobody says what becomes of a NaN's payload in a wider format."""
        bits = (b if wide.bits == 64 else a) & (1 << wide.bits) - 1
        kept = form.bits > wide.bits and numbers.is_nan(numbers.value(bits, wide))
        return None if kept and not options["sat"] else one(bits)

    if not to.endswith("x2"):
        return scalar
    if source == "f32":  # the first operand goes to the upper half
        return lambda a, b, c: one(b) | one(a) << form.bits
    return lambda a, b, c: one(a) | one(a >> wide.bits) << form.bits


def _product(decode: Callable[[str, Any], products.Product]) -> Callable[[str, Any], Any]:
    """Sums that no order rounds: by float64 and numpy's products."""

    def of_case(name: str, inputs: Any) -> Any:
        product = decode(name, inputs)
        with np.errstate(all="ignore"):
            exact = (product.a[:, :, :, None] * product.b[:, None]).sum(2) + product.c
            if product.result == "s32":
                whole = exact.astype(np.int64)
                if product.saturates:
                    whole = whole.clip(-(2**31), 2**31 - 1)
                bits = whole.astype(np.uint64).astype(np.uint32)
            else:
                narrow = product.result == "f16"
                found = exact.astype(np.float16 if narrow else np.float32)
                bits = found.view(np.uint16 if narrow else np.uint32)
                bits = np.where(np.isnan(found), 0x7FFF if narrow else 0x7FFFFFFF, bits)
        return _as_words(product, bits, name, inputs)

    return of_case


def _as_words(product: products.Product, bits: Any, name: str, inputs: Any) -> Any:
    """Into the registers; where D leaves some alone they hold what they held."""
    narrow, is_mma = product.result == "f16", name.startswith("mma")
    threads = len(inputs) // len(bits)
    words = 4 if is_mma else 32
    old = np.zeros((len(bits), threads, words), np.uint32)
    if not is_mma:
        old[:] = inputs.reshape(len(bits), threads, 64)[:, :, 32:]
    flat = old.reshape(len(bits), -1).view(np.uint16 if narrow else np.uint32)
    flat[:, product.of_result] = bits
    return flat.view(np.uint32).reshape(-1, words)


def _warp(name: str, inputs: Any) -> Any:
    """Lane by lane, in Python: value, high word, delta, index, segment, mask."""
    expected = np.zeros((len(inputs), 2), np.uint32)
    for start in range(0, len(inputs), 32):
        lanes = inputs[start : start + 32].tolist()
        for lane, mine in enumerate(lanes):
            members = [i for i in range(32) if mine[5] >> i & 1]
            if lane in members:
                expected[start + lane] = _lane(
                    name, lane, mine, [lanes[i] for i in members], members, lanes
                )
    return expected


def _lane(name: str, lane: int, mine: Any, others: Any, members: list[int], lanes: Any) -> Any:
    kind, *_, last = name.split(".")
    values = [other[0] for other in others]
    if kind == "shfl":
        return _shuffled(name.split(".")[2], lane, mine, lanes)
    if kind == "vote":
        votes = [value >> 4 & 1 for value in values]
        if "!" in name:
            votes = [1 - vote for vote in votes]
        if "ballot" in name:
            return sum(vote << i for vote, i in zip(votes, members, strict=True)), 0
        how = name.split(".")[2]
        return 0, {"all": all(votes), "any": any(votes), "uni": len(set(votes)) == 1}[how]
    if kind == "match":
        keys = [(v[0], v[1]) if last == "b64" else v[0] for v in others]
        own = (mine[0], mine[1]) if last == "b64" else mine[0]
        if "any" in name:
            return sum(1 << i for key, i in zip(keys, members, strict=True) if key == own), 0
        same = len(set(keys)) == 1
        return mine[5] if same else 0, same
    if kind == "elect":
        return members[0], lane == members[0]
    if last == "s32":
        values = [numbers.integer(value, 32, True) for value in values]
    return numbers.reduced(name.split(".")[2], values) & 0xFFFFFFFF, 0


def _shuffled(how: str, lane: int, mine: Any, lanes: Any) -> tuple[int, bool]:
    _, _, delta, index, packed, _ = mine
    segment = packed >> 8 & 31
    low, high = lane & segment, lane & segment | 31 & ~segment
    if how == "up":
        source, inside = lane - delta, lane - delta >= low
    elif how == "idx":
        source, inside = low | index & ~segment, True
    else:
        source = lane + delta if how == "down" else lane ^ delta
        inside = source <= high
    return lanes[source if inside else lane][0], inside


def _atomic(name: str, inputs: Any) -> Any:
    _, space, op, *rest = name.split(".")
    kind = rest[-1]
    width = int(re.sub(r"\D", "", kind.removesuffix("x2")))
    if kind[0] in "fb" and "add" in op and kind not in ("b32", "b64"):
        return None  # floats: `half` and `float32` have their sums
    mask = (1 << width) - 1
    rows = np.ascontiguousarray(inputs).view(np.uint64).tolist()
    results = []
    for a, b, c in rows:
        old, new, other = a & mask, b & mask, c & mask
        sign = [numbers.integer(x, width, kind[0] == "s") for x in (old, new)]
        result = {
            "add": old + new & mask,
            "min": min(sign) & mask,
            "max": max(sign) & mask,
            "inc": 0 if old >= new else old + 1,
            "dec": new if old == 0 or old > new else old - 1,
            "and": old & new,
            "or": old | new,
            "xor": old ^ new,
            "exch": new,
            "cas": new if old == other else old,
        }[op]
        results.append((old, a & ~mask | result))
    del space
    return np.array(results, np.uint64).view(np.uint32).reshape(-1, 4)


def _cases() -> Iterator[tuple[str, Callable[[str, Any], Any]]]:
    for name in ("float32", "half"):
        yield name, _scalar(_arithmetic)
    yield "integer", _scalar(_integer)
    yield "convert", _scalar(_conversion)
    yield "mma", _product(products.mma)
    yield "wgmma", _product(products.wgmma)
    yield "warp", _warp
    yield "warp_divided", _warp
    yield "atomic", _atomic


_OF_FAMILY = dict(_cases())
FAMILIES = {"float32": 80, "half": 30, "integer": 52, "convert": 90, "mma": 15, "wgmma": 23,
            "warp": 23, "warp_divided": 23, "atomic": 30}  # fmt: skip
"""Families that have a reference, and how many of their cases at least."""
