"""Matrix products with int4 weights, in groups of 128 along K."""

import torch
from torch import Tensor

from l4kernels.ops.check import FLOATS, Checker, describe
from l4kernels.ops.epilogue import check_epilogue, gemm_work, matmul, output_columns
from l4kernels.ops.quant import BLOCK, dequantize_int4
from l4kernels.ops.registry import Work, op


def _check_w4_gemm(
    a: Tensor,
    packed: Tensor,
    scales: Tensor,
    *,
    expert_offsets: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    row_scale: Tensor | None = None,
    activation: str = "none",
    out_dtype: torch.dtype | None = None,
    **_: object,
) -> None:
    check = Checker("w4_gemm")
    check.dtype("a", a, FLOATS)
    check.dtype("packed", packed, (torch.int32,))
    check.dtype("scales", scales, (torch.bfloat16, torch.float32))
    check.shape("a", a, ["M", "K"])
    k = a.shape[1]
    check.multiple("K (columns of a)", k, BLOCK)
    check.require(k > 0, f"expected a to have at least {BLOCK} columns (K), got {describe(a)}")
    check.require(
        packed.dim() in (2, 3) and packed.shape[-1] == k // 8 and packed.shape[-2] > 0,
        f"expected packed to be [N, {k // 8}] or [E, N, {k // 8}] with N > 0, "
        f"got {describe(packed)}",
    )
    check.shape("scales", scales, [*packed.shape[:-1], k // BLOCK])
    check.last_dim_contiguous("a", a)
    check.contiguous("packed", packed)
    check.contiguous("scales", scales)
    if a.is_cuda:
        check.multiple("N (rows of packed) on CUDA", packed.shape[-2], 8)
    if out_dtype is not None:
        check.require(out_dtype in FLOATS, f"expected a float out_dtype, got {out_dtype}")
    check_epilogue(
        check,
        a.shape[0],
        packed.shape[-2],
        num_experts=packed.shape[0] if packed.dim() == 3 else None,
        expert_offsets=expert_offsets,
        bias=bias,
        residual=residual,
        row_scale=row_scale,
        activation=activation,
    )
    check.same_device(
        a=a,
        packed=packed,
        scales=scales,
        expert_offsets=expert_offsets,
        bias=bias,
        residual=residual,
        row_scale=row_scale,
    )


def _work_w4_gemm(
    a: Tensor,
    packed: Tensor,
    scales: Tensor,
    *,
    expert_offsets: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    row_scale: Tensor | None = None,
    activation: str = "none",
    out_dtype: torch.dtype | None = None,
    **_: object,
) -> Work:
    return gemm_work(
        a,
        packed.shape[-2],
        (packed, scales),
        out_dtype=out_dtype or a.dtype,
        activation=activation,
        expert_offsets=expert_offsets,
        others=(bias, residual, row_scale),
    )


def _empty_w4_gemm(
    a: Tensor,
    packed: Tensor,
    scales: Tensor,
    *,
    activation: str = "none",
    out_dtype: torch.dtype | None = None,
    **_: object,
) -> Tensor:
    columns = output_columns(packed.shape[-2], activation)
    return a.new_empty((a.shape[0], columns), dtype=out_dtype or a.dtype)


@op(check=_check_w4_gemm, work=_work_w4_gemm, fake=_empty_w4_gemm, out=True)
def w4_gemm(
    a: Tensor,
    packed: Tensor,
    scales: Tensor,
    *,
    expert_offsets: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    row_scale: Tensor | None = None,
    activation: str = "none",
    out_dtype: torch.dtype | None = None,
    config: int = -1,
) -> Tensor:
    """`gemm` with int4 weights `w = (nibble - 8) * scale`, one scale per 128 elements of K.

    Args:
        a: `[M, K]` float32, bfloat16 or float16; K is a multiple of 128.
        packed: int32 `[N, K / 8]`, or `[E, N, K / 8]` with `expert_offsets`; nibble order of
            `pack_int4`.
        scales: `[N, K / 128]` or `[E, N, K / 128]`, bfloat16 or float32; any sign.
        expert_offsets: int32 `[E + 1]`, ascending from 0; rows past the last one give zeros.
        bias, residual, row_scale, activation, out_dtype, config, out: as for `gemm`.

    Returns:
        `[M, N']`, N' = N, or N / 2 for "swiglu". Accumulated in float32, rounded once.

    Raises:
        IndexError: `expert_offsets` that do not ascend from 0 to at most M.

    >>> from l4kernels.ops import quantize_int4
    >>> w4_gemm(torch.ones(1, 128), *quantize_int4(torch.ones(2, 128)))
    tensor([[128., 128.]])
    """

    def rows_of_b(expert: int | None, first: int, end: int) -> Tensor:
        if expert is None:
            return dequantize_int4(packed[first:end], scales[first:end])
        return dequantize_int4(packed[expert, first:end], scales[expert, first:end])

    n = packed.shape[-2]
    return matmul(
        "w4_gemm",
        lambda first, end: a[first:end].float(),
        rows_of_b,
        a.shape[0],
        n,
        a.shape[1],
        whole_weight=False,
        out=_empty_w4_gemm(a, packed, scales, activation=activation, out_dtype=out_dtype),
        expert_offsets=expert_offsets,
        bias=bias,
        residual=residual,
        row_scale=row_scale,
        activation=activation,
    )
