"""The matrices behind the registers and the shared memory of a product's case.

Written from the PTX ISA's figures of fragments and from CUTLASS's canonical layouts of descriptors,
not from the emulator: so it is a second opinion about where every element is.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .table import Words

Matrix = NDArray[np.float64]
Places = NDArray[np.int64]

HALF = 8 << 10
"""Bytes of shared memory that hold A, and after them B."""
BITS = {"f16": 16, "bf16": 16, "tf32": 32, "e4m3": 8, "e5m2": 8, "s8": 8, "u8": 8}


@dataclass(frozen=True)
class Product:
    """D = A B + C, of several problems."""

    operand: str  # the format of A
    result: str  # of D
    saturates: bool
    a: Matrix  # [problems, rows, k]
    b: Matrix  # [problems, k, columns]
    c: Matrix  # [problems, rows, columns]
    of_result: Places  # where in a problem's output words, as elements of D's size, D's are

    def results(self, outputs: Words) -> NDArray[np.unsignedinteger]:
        """The bits of D, [problems, rows, columns]."""
        kind = np.uint16 if self.result == "f16" else np.uint32
        flat = np.ascontiguousarray(outputs).view(kind).reshape(len(self.a), -1)
        return flat[:, self.of_result]

    def words_of(self, right: NDArray[np.bool_], rows: int, words: int) -> NDArray[np.bool_]:
        """[problems, rows, columns] -> whether all of D in a row of outputs is right."""
        size = 2 if self.result == "f16" else 1
        flat = np.ones((len(right), rows // len(right) * words * size), np.bool_)
        flat[:, self.of_result] = right
        return flat.reshape(rows, -1).all(-1)


def values(words: Words, form: str) -> Matrix:
    """Each word as the numbers that lie in it, lowest first."""
    if form in ("f32", "s32", "tf32"):
        kept = words & np.uint32(0xFFFFE000) if form == "tf32" else words
        return (
            np.ascontiguousarray(kept).view(np.int32 if form == "s32" else np.float32).astype(float)
        )
    narrow = np.ascontiguousarray(words).view(np.uint16 if "16" in form else np.uint8)
    if form == "bf16":
        return (narrow.astype(np.uint32) << 16).view(np.float32).astype(float)
    if form == "f16":
        return narrow.view(np.float16).astype(float)
    if form == "e5m2":
        return (narrow.astype(np.uint16) << 8).view(np.float16).astype(float)
    if form == "e4m3":
        exponent, fraction = narrow >> 3 & 15, (narrow & 7) / 8
        scale = np.where(exponent, 2.0 ** (exponent - 7.0), 2.0**-6)
        found = np.where(narrow & 127 == 127, np.nan, scale * (fraction + (exponent > 0)))
        return np.where(narrow & 128, -found, found)
    return (narrow.view(np.int8) if form == "s8" else narrow).astype(float)


def _lanes(registers: int, parts: int) -> tuple[Places, Places, Places]:
    return np.meshgrid(np.arange(32), np.arange(registers), np.arange(parts), indexing="ij")


def _placed(found: Matrix, at: tuple[Places, Places], shape: tuple[int, int]) -> Matrix:
    matrix = np.zeros((len(found), *shape))
    matrix[:, at[0].ravel(), at[1].ravel()] = found.reshape(len(found), -1)
    return matrix


def _result_places(rows: int, columns: int, narrow: bool) -> Places:
    """Element of a thread's registers, all threads after one another, of each of D's."""
    row, col = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    thread = row // 16 * 32 + row % 8 * 4 + col % 8 // 2
    register = col // 8 * 4 + row % 16 // 8 * 2 + col % 2
    # mma.sync writes four words a thread whatever D takes, wgmma 32.
    return thread * ((4 if columns == 8 else 32) * (1 + narrow)) + register


def mma(case: str, inputs: Words) -> Product:
    """`mma.sync.m16n8k16.row.col.f32.f16.f16.f32`; inputs are lanes of A[4], B[2], C[4]."""
    tokens = case.split(".")
    k = int(tokens[2].split("k")[1])
    result, form_a, form_b, _ = tokens[-4:]
    size = BITS[form_a] // 8
    lanes = inputs.reshape(-1, 32, 10)
    lane, r, part = _lanes(k * size // 8, 4 // size)
    row, col = lane // 4 + 8 * (r % 2), (lane % 4 * 4 + 16 * (r // 2)) // size + part
    a = _placed(values(lanes[:, :, : k * size // 8], form_a), (row, col), (16, k))
    lane, r, part = _lanes(k * size // 16, 4 // size)
    row, col = (lane % 4 * 4 + 16 * r) // size + part, lane // 4
    b = _placed(values(lanes[:, :, 4 : 4 + k * size // 16], form_b), (row, col), (k, 8))
    narrow = result == "f16"
    flat = values(lanes[:, :, 6:10], result).reshape(len(lanes), -1)
    places = _result_places(16, 8, narrow)
    return Product(form_a, result, "satfinite" in tokens, a, b, flat[:, places], places)


@dataclass(frozen=True)
class Layout:
    offset: int
    leading: int
    stride: int
    swizzle: int  # a descriptor's: 0 none, 1 128 bytes, 2 64, 3 32

    def addresses(self, rows: int, k: int, size: int, transposed: bool) -> Places:
        """Byte of each element [rows, k] from the start of the half."""
        row, col = np.meshgrid(np.arange(rows), np.arange(k), indexing="ij")
        span = {0: 16, 1: 128, 2: 64, 3: 32}[self.swizzle]
        if not transposed:
            outer, byte = row // 8 * self.stride + row % 8 * span, col * size
            inner = byte if self.swizzle else byte // 16 * self.leading + byte % 16
            return self._swizzled(self.offset + outer + inner)
        of_row, of_k = (self.leading, self.stride) if self.swizzle else (self.stride, self.leading)
        per = span // size
        block = row // per * of_row + row % per * size
        return self._swizzled(self.offset + block + col // 8 * of_k + col % 8 * span)

    def _swizzled(self, address: Places) -> Places:
        mask = {0: 0, 1: 0x70, 2: 0x30, 3: 0x10}[self.swizzle]
        return address ^ (address >> 3 & mask)


def wgmma(case: str, inputs: Words) -> Product:
    """`wgmma.m64n64k16.f32.bf16.bf16 a=0/16/1024/1 b=... p, 1, 1, 0, 0`; inputs are threads of 32
    words of shared memory and 32 of C."""
    instruction, in_a, in_b, tail = case.split(" ", 3)
    tokens, operands = instruction.split("."), tail.split(", ")
    k = int(tokens[1].split("k")[1])
    result, form_a, form_b = tokens[2:5]
    size = BITS[form_a] // 8
    signs = [int(sign) for sign in operands[1:3]] or [1, 1]
    majors = [sign == "1" for sign in operands[3:]]
    threads = inputs.reshape(-1, 128, 64)
    smem = np.ascontiguousarray(threads[:, :, :32]).reshape(len(threads), -1)

    def in_shared(text: str, half: int, form: str, transposed: bool) -> Matrix:
        layout = Layout(*map(int, text.split("=")[1].split("/")))
        found = values(smem[:, half * HALF // 4 : (half + 1) * HALF // 4], form)
        return found[:, layout.addresses(64, k, size, transposed) // size]

    if in_a == "a=registers":
        t, r, part = np.meshgrid(np.arange(128), np.arange(4), np.arange(4 // size), indexing="ij")
        lane = t % 32
        row = t // 32 * 16 + lane // 4 + 8 * (r % 2)
        col = (lane % 4 * 4 + 16 * (r // 2)) // size + part
        a = _placed(values(threads[:, :, :4], form_a), (row, col), (64, k))
    else:
        a = in_shared(in_a, 0, form_a, len(majors) == 2 and majors[0])
    b = in_shared(in_b, 1, form_b, bool(majors) and majors[-1])
    narrow = result == "f16"
    places = _result_places(64, 64, narrow)
    c = values(threads[:, :, 32:], result).reshape(len(threads), -1)[:, places]
    scaled = c if operands[0] == "p" else np.zeros_like(c)
    factor = signs[0] * signs[1]
    return Product(
        form_a, result, "satfinite" in tokens, factor * a, b.swapaxes(1, 2), scaled, places
    )


Decode = Callable[[str, Words], Product]
