"""Matrix products `D = A @ B^T`, dense and ragged by expert, in float32, bfloat16 and float8."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from l4kernels.ops.bound import Bound
from l4kernels.ops.check import FLOATS, FP8, describe
from l4kernels.ops.contract import Contract
from l4kernels.ops.epilogue import (
    INTERLEAVE,
    RowsOfB,
    check_epilogue,
    check_experts,
    check_gather,
    gathered,
    gemm_work,
    matmul,
    output_columns,
)
from l4kernels.ops.quant import BLOCK, Quantized, dequantize_fp8, fp8_with_scale
from l4kernels.ops.registry import Work, op
from l4kernels.ops.views import as_float, part

LEGAL_SCALES = (("tensor", "tensor"), ("row", "row"), ("1x128", "128x128"), ("1x128", "row"))
"""Scalings of (A, B) that go together; "row" of B is one scale per output channel."""


def _check_gemm(args: Bound) -> None:
    contract = Contract(args)
    _check_operands(contract, (*FLOATS, FP8))
    check_gather(contract)
    check_epilogue(contract)


def _check_operands(contract: Contract, dtypes: Sequence[torch.dtype]) -> None:
    """Names the sizes M, K, N and, of a weight `[E, N, K]`, E."""
    args = contract.args
    contract.tensor("a", dtypes, ["M", "K"], "rows")
    k = contract.sizes["K"]
    contract.require(
        k > 0, f"expected K (columns of a and b) to be positive, got a {describe(args.a)}"
    )
    contract.require(
        args.b.dim() in (2, 3) and args.b.shape[-1] == k,
        f"expected b to be [N, {k}] or [E, N, {k}], got {describe(args.b)}",
    )
    contract.tensor("b", args.a.dtype, ["E", "N", "K"][-args.b.dim() :], "contiguous")
    if args.a.is_cuda:
        contract.multiple("N (rows of b) on CUDA", contract.sizes["N"], 8)
        contract.multiple("the bytes of a row of a on CUDA", k * args.a.element_size(), 16)
    if args.a.dtype != FP8:
        contract.require(
            args.sfa is None and args.sfb is None,
            f"expected no sfa or sfb with {args.a.dtype}, got one",
        )
        return
    if args.sfa is None or args.sfb is None:
        contract.fail("expected sfa and sfb with float8 operands, got none; see quantize_fp8")
    for name, t in (("sfa", args.sfa), ("sfb", args.sfb)):
        contract.dtype(name, t, (torch.float32,))
        contract.contiguous(name, t)
    scales_of_a, scales_of_b = scale_shapes(args.a, args.b)
    shapes = list(args.sfa.shape), list(args.sfb.shape)
    legal = [(scales_of_a[x], scales_of_b[y]) for x, y in LEGAL_SCALES]
    if shapes not in legal:
        pairs = ", ".join(f"{x} with {y}" for x, y in legal)
        contract.fail(
            f"expected sfa and sfb to be one of {pairs}, got {shapes[0]} with {shapes[1]}"
        )
    if "128" in scalings_of(args.a, args.b, args.sfa, args.sfb)[0]:
        contract.multiple("K with 1x128 scales", k, BLOCK)


def scale_shapes(a: Tensor, b: Tensor) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    """The shapes of A's and B's scales for each scaling."""
    (m, k), n, experts = a.shape, b.shape[-2], list(b.shape[:-2])
    blocks = (k + BLOCK - 1) // BLOCK
    of_a = {"tensor": [1], "row": [m], "1x128": [m, blocks]}
    of_b = {
        "tensor": [*experts, 1],
        "row": [*experts, n],
        "128x128": [*experts, (n + BLOCK - 1) // BLOCK, blocks],
    }
    return of_a, of_b


def scalings_of(a: Tensor, b: Tensor, sfa: Tensor, sfb: Tensor) -> tuple[str, str]:
    """Reads the scalings of A and B off the shapes of their scales."""
    of_a, of_b = scale_shapes(a, b)
    shapes = list(sfa.shape), list(sfb.shape)
    return next(pair for pair in LEGAL_SCALES if (of_a[pair[0]], of_b[pair[1]]) == shapes)


def _work_gemm(args: Bound) -> Work:
    return gemm_work(
        args,
        args.b.shape[-2],
        (args.b, args.sfb),
        out_dtype=args.out_dtype or _default_dtype(args.a),
        activation=args.activation,
        others=(args.sfa, args.bias, args.residual, args.row_scale, args.permutation),
        top_k=args.top_k,
    )


def _default_dtype(a: Tensor) -> torch.dtype:
    return torch.bfloat16 if a.dtype == FP8 else a.dtype


def _fake_gemm(args: Bound) -> Tensor:
    columns = output_columns(args.b.shape[-2], args.activation)
    dtype = args.out_dtype or _default_dtype(args.a)
    empty: Tensor = args.a.new_empty((args.a.shape[0] * args.top_k, columns), dtype=dtype)
    return empty


@op(check=_check_gemm, work=_work_gemm, fake=_fake_gemm, out=True)
def gemm(
    a: Tensor,
    b: Tensor,
    *,
    expert_offsets: Tensor | None = None,
    permutation: Tensor | None = None,
    top_k: int = 1,
    sfa: Tensor | None = None,
    sfb: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    row_scale: Tensor | None = None,
    activation: str = "none",
    out_dtype: torch.dtype | None = None,
    fast_accum: bool = False,
    config: int = -1,
) -> Tensor:
    """`D = act(row_scale * (A @ B^T) + bias) + residual`, accumulated in float32, rounded once.

    With `expert_offsets` row i of A meets `b[e]` of the expert e that owns it:
    `expert_offsets[e] <= i < expert_offsets[e + 1]`. Rows past the last offset give zeros.

    Args:
        a: `[M, K]` float32, bfloat16, float16 or e4m3.
        b: `[N, K]`, or `[E, N, K]` with `expert_offsets`; the dtype of `a`. On CUDA, N is a
            multiple of 8 and a row of K a multiple of 16 bytes.
        expert_offsets: int32 `[E + 1]`, ascending from 0.
        permutation: int32 `[M]` of `moe_route`, only with `expert_offsets`: `a` is then `[T, K]` in
            the order of tokens, and row i of the product is `a[permutation[i] // top_k]`, as
            `moe_permute` would lay them out. Of few rows, M <= 32, and not of e4m3.
        top_k: rows per token of `permutation`, 1 to 9: M = T * top_k.
        sfa: float32 scales of e4m3 `a`: `[1]`, `[M]` (per row) or `[M, K / 128]`.
        sfb: float32 scales of e4m3 `b`: `[1]`, `[N]` (per channel) or `[ceil(N / 128), K / 128]`,
            with a leading E for `[E, N, K]`. Legal pairs: tensor and tensor, row and channel,
            1x128 and 128x128, 1x128 and channel.
        bias: `[N]` float, dense weights only.
        residual: `[M, N']` float, added after the activation.
        row_scale: float32 `[M]`, multiplied into the accumulator before bias and activation: the
            router's score, which in Llama 4 scales the expert's input.
        activation: "none", "gelu" (the erf form) or "swiglu": `silu(gate) * up`, N' = N / 2, with
            the rows of `b` interleaved in blocks of 8 (`interleave_gate_up`).
        out_dtype: of D; default the dtype of `a`, bfloat16 for e4m3.
        fast_accum: allow e4m3 products to accumulate in the tensor core's reduced precision; the
            meaning is the same.
        config: number of the kernel's configuration; -1 chooses by shape, -2 does so without
            measured rows, -3 is the streaming kernel for few rows. 100 * n added to a number
            splits K into n parts. The meaning is the same.
        out: where the result goes; contiguous on CUDA. It shares no memory with an input, but may
            be `residual` itself.

    Returns:
        `[M, N']`, N' = N, or N / 2 for "swiglu".

    Raises:
        IndexError: `expert_offsets` that do not ascend from 0 to at most M, or a `permutation` with
            values outside `[0, M)`.

    >>> a, b = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [5.0, 6.0]])
    >>> gemm(a, b, row_scale=torch.tensor([0.5]))
    tensor([[5.5000, 8.5000]])
    """
    return matmul(
        "gemm",
        *_operands(gathered("gemm", a, permutation, top_k), b, sfa, sfb),
        b.shape[-2],
        expert_offsets,
        row_scale,
        activation,
        out_dtype or _default_dtype(a),
        bias,
        residual,
    )


def _operands(
    a: Tensor, b: Tensor, sfa: Tensor | None, sfb: Tensor | None
) -> tuple[Tensor, Tensor | RowsOfB]:
    """A and B as `matmul` takes them."""
    if sfa is None or sfb is None:
        return as_float(a), b if b.dtype == torch.float32 else partial(_expanded, b, None, "none")
    of_a, of_b = scalings_of(a, b, sfa, sfb)
    return dequantize_fp8(a, sfa, of_a), partial(_expanded, b, sfb, of_b)


def _expanded(
    b: Tensor, sfb: Tensor | None, of_b: str, expert: int | None, first: int, end: int
) -> Tensor:
    """Float32 rows of a weight that is none."""
    rows = part(b if expert is None else b[expert], first, end)
    if sfb is None:
        return rows.float()
    scale = sfb if expert is None else sfb[expert]
    if of_b == "row":
        scale = scale[first:end]
    elif of_b == "128x128":
        scale = scale[first // BLOCK : (end + BLOCK - 1) // BLOCK]
    return dequantize_fp8(rows, scale, of_b)


def _check_gemm_swiglu_fp8(args: Bound) -> None:
    contract = Contract(args)
    _check_operands(contract, (FP8,))
    n = contract.sizes["N"]
    contract.multiple("N / 2, the columns of the result,", n // 2, BLOCK)
    contract.multiple("N with swiglu (blocks of 8 gate and 8 up rows)", n, 2 * INTERLEAVE)
    check_experts(contract)


def _work_gemm_swiglu_fp8(args: Bound) -> Work:
    n = args.b.shape[-2]
    scales = Work(flops=0, bytes=4 * args.a.shape[0] * (n // 2 // BLOCK))
    return scales + gemm_work(
        args,
        n,
        (args.b, args.sfb),
        out_dtype=FP8,
        activation="swiglu",
        others=(args.sfa, args.row_scale),
    )


def _fake_gemm_swiglu_fp8(args: Bound) -> tuple[Tensor, Tensor]:
    a, m, columns = args.a, args.a.shape[0], args.b.shape[-2] // 2
    return (
        a.new_empty((m, columns), dtype=FP8),
        a.new_empty((m, columns // BLOCK), dtype=torch.float32),
    )


@op(
    check=_check_gemm_swiglu_fp8,
    work=_work_gemm_swiglu_fp8,
    fake=_fake_gemm_swiglu_fp8,
    returns=Quantized,
)
def gemm_swiglu_fp8(
    a: Tensor,
    b: Tensor,
    *,
    sfa: Tensor,
    sfb: Tensor,
    expert_offsets: Tensor | None = None,
    row_scale: Tensor | None = None,
    config: int = -1,
) -> tuple[Tensor, Tensor]:
    """`gemm` with SwiGLU whose result is quantised in the epilogue, ready for the next GEMM.

    A row's largest value spans many thread blocks, a block of 128 columns does not: hence 1x128
    scales, whatever the layout of the operands' own scales.

    Args:
        a: e4m3 `[M, K]`.
        b: e4m3 `[N, K]`, or `[E, N, K]` with `expert_offsets`; rows interleaved as for `gemm`.
            N is a multiple of 256.
        sfa, sfb: float32 scales, as for `gemm`.
        expert_offsets: int32 `[E + 1]`, ascending from 0.
        row_scale: float32 `[M]`, multiplied into the accumulator before SwiGLU.
        config: as for `gemm`.

    Returns:
        `Quantized(q, scale)`: e4m3 `[M, N / 2]` and float32 `[M, N / 256]`, the float32 SwiGLU
        values quantised as `quantize_fp8(..., "1x128")`. Rows past the last offset are zeros with
        scale 1.

    >>> a, b = torch.ones(1, 128).to(torch.float8_e4m3fn), torch.ones(256, 128)
    >>> one = torch.ones(1)
    >>> gemm_swiglu_fp8(a, b.to(a.dtype), sfa=one, sfb=one / 128).scale
    tensor([[0.0016]])
    """
    value = matmul(
        "gemm_swiglu_fp8",
        *_operands(a, b, sfa, sfb),
        b.shape[-2],
        expert_offsets,
        row_scale,
        "swiglu",
        torch.float32,
    )
    return fp8_with_scale(value, "1x128")
