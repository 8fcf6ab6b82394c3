"""How a product's sums are rounded: held to a tolerance, and told by which model it went.

No document says in which order, and with how many bits, a tensor core adds. A model here takes the
accumulator and `group` products at a time, aligns all of them to the largest exponent among them,
cuts each after `bits` bits, adds what is left exactly, and cuts or rounds the sum to the format of
the accumulator. What the emulator does is one of them, or the sum in order in f32.
"""

import itertools
from dataclasses import dataclass

import numpy as np

from .compare import Facts, Right
from .products import Decode, Matrix, Product, mma, wgmma
from .table import Expected, Table

ROWS = 16  # of each problem, for the models: enough to tell them apart
FP8 = ("e4m3", "e5m2")


@dataclass(frozen=True)
class Model:
    bits: int  # 0: as many as it takes, and one rounding to nearest
    group: int
    normalised: bool  # exponents are those of products, or the sums of their operands'

    def __str__(self) -> str:
        if not self.bits:
            return f"groups of {self.group}, rounded once"
        of = "products" if self.normalised else "operands"
        return f"groups of {self.group}, cut after {self.bits} bits below the largest of the {of}"

    def sums(self, a: Matrix, b: Matrix, c: Matrix) -> Matrix:
        total = c
        for start in range(0, a.shape[-1], self.group):
            part = slice(start, start + self.group)
            x, y = a[:, :, None, part], b[:, part].swapaxes(1, 2)[:, None]
            terms = np.concatenate([x * y, total[..., None]], -1)
            if not self.bits:
                total = terms.sum(-1).astype(np.float32).astype(float)
                continue
            exponents = np.frexp(terms)[1] - 1
            if not self.normalised:
                exponents[..., :-1] = np.frexp(x)[1] + np.frexp(y)[1] - 2
            exponents = np.where(terms == 0, -200, exponents)
            unit = np.ldexp(1.0, exponents.max(-1, keepdims=True) - self.bits)
            total = _toward_zero((np.trunc(terms / unit) * unit).sum(-1))
        return total


def _toward_zero(x: Matrix) -> Matrix:
    """To f32."""
    near = x.astype(np.float32)
    over = np.abs(near.astype(float)) > np.abs(x)
    return np.where(over, np.nextafter(near, np.float32(0)), near).astype(float)


def models(k: int) -> list[Model]:
    groups = [group for group in (4, 8, 16, 32) if group <= k]
    cut = itertools.product((13, 22, 23, 24, 25, 26), groups, (True, False))
    return [*(Model(0, group, True) for group in groups), *itertools.starmap(Model, cut)]


def likeliest(product: Product, got: Matrix, expected: Matrix) -> Facts:
    """The model that gives most of the results, and what part of them; `emulator` is its own."""
    a, c = product.a[:, :ROWS], product.c[:, :ROWS]
    b, got = product.b, got[:, :ROWS]
    found = {"emulator": float((got == expected[:, :ROWS]).mean())}
    for model in models(a.shape[-1]):
        found[str(model)] = float((_stored(model.sums(a, b, c), product.result) == got).mean())
    best = max(found, key=found.__getitem__)
    return {"model": best, "fits": round(found[best], 4), "emulator": round(found["emulator"], 4)}


def _stored(total: Matrix, form: str) -> Matrix:
    return total.astype(np.float16).astype(float) if form == "f16" else total


def tolerance(product: Product) -> Matrix:
    """An f32 sum may lose a unit of 2^-22 of the largest term for each, fp8's of 2^-13."""
    terms = np.abs(product.a[:, :, None, :] * product.b.swapaxes(1, 2)[:, None])
    largest = np.maximum(terms.max(-1), np.abs(product.c))
    bits = 13 if product.operand in FP8 else 22
    exact = np.abs(product.a @ product.b + product.c)
    stored = exact * 2.0**-10 + 2.0**-24 if product.result == "f16" else 0
    return (product.a.shape[-1] + 1) * 2.0**-bits * largest + stored


def _judge(decode: Decode, table: Table, expected: Expected) -> tuple[Right, Facts]:
    right, facts = [], {}
    for case, name in enumerate(table.cases):
        product = decode(name, table.inputs_of(case))
        got, wanted = (
            product.results(outputs[case]) for outputs in (table.outputs, expected.outputs)
        )
        if product.result == "s32":
            ok = got == wanted
        else:
            kind = np.float16 if product.result == "f16" else np.float32
            sums, emulated = (bits.view(kind).astype(float) for bits in (got, wanted))
            ok = np.abs(sums - (product.a @ product.b + product.c)) <= tolerance(product)
            facts[name] = likeliest(product, sums, emulated)
        right.append(product.words_of(ok, *table.outputs.shape[1:]))
    return np.stack(right), {"models": facts}


def judge_mma(table: Table, expected: Expected) -> tuple[Right, Facts]:
    return _judge(mma, table, expected)


def judge_wgmma(table: Table, expected: Expected) -> tuple[Right, Facts]:
    return _judge(wgmma, table, expected)
