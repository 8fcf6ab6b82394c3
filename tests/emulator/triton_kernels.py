"""Triton kernels that the emulator runs: known-good sm_90a code written by another compiler."""

from dataclasses import dataclass

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def softmax(out, x, columns, stride, block: tl.constexpr):
    row = tl.program_id(0)
    offsets = tl.arange(0, block)
    mask = offsets < columns
    values = tl.load(x + row * stride + offsets, mask=mask, other=-float("inf"))
    values = tl.exp(values - tl.max(values, axis=0))
    tl.store(out + row * stride + offsets, values / tl.sum(values, axis=0), mask=mask)


@triton.jit
def layer_norm(out, x, weight, bias, columns, eps, block: tl.constexpr):
    row = tl.program_id(0)
    offsets = tl.arange(0, block)
    mask = offsets < columns
    values = tl.load(x + row * columns + offsets, mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(values, axis=0) / columns
    centred = tl.where(mask, values - mean, 0.0)
    variance = tl.sum(centred * centred, axis=0) / columns
    scale = tl.load(weight + offsets, mask=mask, other=0.0).to(tl.float32)
    shift = tl.load(bias + offsets, mask=mask, other=0.0).to(tl.float32)
    result = centred * tl.rsqrt(variance + eps) * scale + shift
    tl.store(out + row * columns + offsets, result.to(tl.bfloat16), mask=mask)


@triton.jit
def matmul(
    c,
    a,
    b,
    m,
    n,
    k,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    block_k: tl.constexpr,
):
    rows = tl.program_id(0) * block_m + tl.arange(0, block_m)
    columns = tl.program_id(1) * block_n + tl.arange(0, block_n)
    inner = tl.arange(0, block_k)
    total = tl.zeros((block_m, block_n), dtype=tl.float32)
    for start in range(0, k, block_k):
        left = tl.load(
            a + rows[:, None] * k + (start + inner)[None, :],
            mask=(rows[:, None] < m) & ((start + inner)[None, :] < k),
            other=0.0,
        )
        right = tl.load(
            b + (start + inner)[:, None] * n + columns[None, :],
            mask=((start + inner)[:, None] < k) & (columns[None, :] < n),
            other=0.0,
        )
        total = tl.dot(left, right, total)
    mask = (rows[:, None] < m) & (columns[None, :] < n)
    tl.store(c + rows[:, None] * n + columns[None, :], total.to(tl.bfloat16), mask=mask)


@triton.jit
def attention(
    out,
    q,
    k,
    v,
    length,
    scale,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    head: tl.constexpr,
):
    first = tl.program_id(0) * block_m
    base = tl.program_id(1) * length * head
    rows = first + tl.arange(0, block_m)
    columns = tl.arange(0, block_n)
    lanes = tl.arange(0, head)
    at_rows = base + rows[:, None] * head + lanes[None, :]
    query = tl.load(q + at_rows, mask=rows[:, None] < length, other=0.0)
    top = tl.full((block_m,), -float("inf"), dtype=tl.float32)
    norm = tl.zeros((block_m,), dtype=tl.float32)
    total = tl.zeros((block_m, head), dtype=tl.float32)
    for start in range(0, min(first + block_m, length), block_n):
        keys = start + columns
        at_keys = base + keys[:, None] * head + lanes[None, :]
        key = tl.load(k + at_keys, mask=keys[:, None] < length, other=0.0)
        value = tl.load(v + at_keys, mask=keys[:, None] < length, other=0.0)
        score = tl.dot(query, tl.trans(key)) * scale
        causal = (rows[:, None] >= keys[None, :]) & (keys[None, :] < length)
        score = tl.where(causal, score, -1.0e30)
        new_top = tl.maximum(top, tl.max(score, axis=1))
        weight = tl.exp2(score - new_top[:, None])
        decay = tl.exp2(top - new_top)
        norm = norm * decay + tl.sum(weight, axis=1)
        total = tl.dot(weight.to(tl.bfloat16), value, total * decay[:, None])
        top = new_top
    total = total / norm[:, None]
    tl.store(out + at_rows, total.to(tl.bfloat16), mask=rows[:, None] < length)


@dataclass(frozen=True)
class Compiled:
    """PTX for sm_90a with what a launch needs to know."""

    ptx: str
    entry: str
    threads: int
    shared_bytes: int


def compile_kernel(
    kernel, arguments: str, warps: int = 4, stages: int = 3, **constants
) -> Compiled:
    """Compiles without a GPU; `arguments` is the types of the non-constant parameters, in order.

    Pointers and integers are promised to be multiples of 16: vector copies and `cp.async`.
    """
    types = arguments.split() + ["constexpr"] * len(constants)
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, kind in enumerate(types)
        if kind.startswith("*") or kind == "i32"
    }
    signature = dict(zip(kernel.arg_names, types, strict=True))
    source = ASTSource(kernel, signature, constants, aligned)
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    metadata = compiled.metadata
    return Compiled(compiled.asm["ptx"], metadata.name, 32 * metadata.num_warps, metadata.shared)
