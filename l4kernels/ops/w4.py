"""Matrix products with int4 weights, in groups of 128 along K."""

import torch
from torch import Tensor

from l4kernels.ops.bound import Bound
from l4kernels.ops.check import FLOATS, describe
from l4kernels.ops.contract import Contract
from l4kernels.ops.epilogue import (
    check_epilogue,
    gemm_work,
    matmul,
    output_columns,
)
from l4kernels.ops.quant import BLOCK, dequantize_int4
from l4kernels.ops.registry import Work, op
from l4kernels.ops.views import as_float


def _check_w4_gemm(args: Bound) -> None:
    contract, packed = Contract(args), args.packed
    contract.dtype("packed", packed, (torch.int32,))
    contract.tensor("a", FLOATS, ["M", "K"], "rows")
    k = contract.sizes["K"]
    contract.multiple("K (columns of a)", k, BLOCK)
    contract.require(
        k > 0, f"expected a to have at least {BLOCK} columns (K), got {describe(args.a)}"
    )
    contract.require(
        packed.dim() in (2, 3) and packed.shape[-1] == k // 8 and packed.shape[-2] > 0,
        f"expected packed to be [N, {k // 8}] or [E, N, {k // 8}] with N > 0, "
        f"got {describe(packed)}",
    )
    rows = ["E", "N"][-packed.dim() + 1 :]
    contract.tensor("packed", torch.int32, [*rows, k // 8], "contiguous")
    floats = torch.bfloat16, torch.float32
    contract.tensor("scales", floats, [*rows, k // BLOCK], "contiguous")
    if args.a.is_cuda:
        contract.multiple("N (rows of packed) on CUDA", contract.sizes["N"], 8)
    check_epilogue(contract)


def _work_w4_gemm(args: Bound) -> Work:
    return gemm_work(
        args,
        args.packed.shape[-2],
        (args.packed, args.scales),
        out_dtype=args.out_dtype or args.a.dtype,
        activation=args.activation,
        others=(args.bias, args.residual, args.row_scale),
    )


def _fake_w4_gemm(args: Bound) -> Tensor:
    columns = output_columns(args.packed.shape[-2], args.activation)
    dtype = args.out_dtype or args.a.dtype
    empty: Tensor = args.a.new_empty((args.a.shape[0], columns), dtype=dtype)
    return empty


@op(check=_check_w4_gemm, work=_work_w4_gemm, fake=_fake_w4_gemm, out=True)
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

    return matmul(
        "w4_gemm",
        as_float(a),
        rows_of_b,
        packed.shape[-2],
        expert_offsets,
        row_scale,
        activation,
        out_dtype or a.dtype,
        bias,
        residual,
    )
