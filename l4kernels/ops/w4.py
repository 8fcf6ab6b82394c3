"""Matrix products with int4 weights, in groups along K."""

from typing import Any

import torch
from torch import Tensor

from l4kernels.ops.bound import Bound
from l4kernels.ops.check import FLOATS, describe
from l4kernels.ops.contract import Contract
from l4kernels.ops.epilogue import (
    check_epilogue,
    check_gather,
    gathered,
    gemm_work,
    matmul,
    output_columns,
)
from l4kernels.ops.int4_tiles import TILE_FORMATS, TILE_ROWS, tiles_shape, untile_int4
from l4kernels.ops.quant import BLOCK, check_int4, dequantize_int4
from l4kernels.ops.registry import Work, op
from l4kernels.ops.views import as_float


def _check_w4_gemm(args: Bound) -> None:
    contract = Contract(args)
    contract.dtype("packed", args.packed, (torch.int32,))
    contract.tensor("a", FLOATS, ["M", "K"], "rows")
    k = contract.sizes["K"]
    contract.multiple("K (columns of a)", k, BLOCK)
    contract.require(
        k > 0, f"expected a to have at least {BLOCK} columns (K), got {describe(args.a)}"
    )
    if args.scales is None:
        _check_tiles(contract, k // BLOCK)
    else:
        _check_rows(contract, k // 8)
    contract.sizes["N"] = _rows(args.packed, args.scales)
    check_gather(contract)
    check_epilogue(contract)


def _check_tiles(contract: Contract, blocks: int) -> None:
    packed = contract.args.packed
    # A tuple, because a symbolic size has no hash.
    contract.require(
        packed.dim() in (3, 4)
        and packed.shape[-3] > 0
        and packed.shape[-2] == blocks
        and packed.shape[-1] in tuple(TILE_FORMATS),
        f"expected packed without scales to be {tiles_shape(blocks=blocks)}, "
        f"got {describe(packed)}",
    )
    shape = ["E", *packed.shape[1:]] if packed.dim() == 4 else packed.shape
    contract.tensor("packed", torch.int32, shape, "contiguous")
    contract.require(
        contract.args.zeros is None,
        "expected no zeros with packed in tiles, which hold their own, got both",
    )


def _check_rows(contract: Contract, words: int) -> None:
    args, packed = contract.args, contract.args.packed
    contract.require(
        packed.dim() in (2, 3) and packed.shape[-1] == words and packed.shape[-2] > 0,
        f"expected packed to be [N, {words}] or [E, N, {words}] with N > 0, got {describe(packed)}",
    )
    shape = ["E", *packed.shape[1:]] if packed.dim() == 3 else packed.shape
    contract.tensor("packed", torch.int32, shape, "contiguous")
    floats = torch.bfloat16, torch.float32
    check_int4(contract, packed, args.scales, args.zeros, floats)
    for name in ("scales", "zeros"):
        if getattr(args, name) is not None:
            contract.contiguous(name, getattr(args, name))


def _rows(packed: Tensor, scales: Tensor | None) -> int:
    """N."""
    return packed.shape[-3] * TILE_ROWS if scales is None else packed.shape[-2]


def _work_w4_gemm(args: Bound) -> Work:
    return gemm_work(
        args,
        _rows(args.packed, args.scales),
        (args.packed, args.scales, args.zeros),
        out_dtype=args.out_dtype or args.a.dtype,
        activation=args.activation,
        others=(args.bias, args.residual, args.row_scale, args.permutation),
        top_k=args.top_k,
    )


def _fake_w4_gemm(args: Bound) -> Tensor:
    columns = output_columns(_rows(args.packed, args.scales), args.activation)
    dtype = args.out_dtype or args.a.dtype
    empty: Tensor = args.a.new_empty((args.a.shape[0] * args.top_k, columns), dtype=dtype)
    return empty


@op(check=_check_w4_gemm, work=_work_w4_gemm, fake=_fake_w4_gemm, out=True)
def w4_gemm(
    a: Tensor,
    packed: Tensor,
    scales: Tensor | None = None,
    *,
    zeros: Tensor | None = None,
    expert_offsets: Tensor | None = None,
    permutation: Tensor | None = None,
    top_k: int = 1,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    row_scale: Tensor | None = None,
    activation: str = "none",
    out_dtype: torch.dtype | None = None,
    static_weights: bool = False,
    config: int = -1,
) -> Tensor:
    """`gemm` with int4 weights `w = (nibble - zero) * scale`, a scale per group along K.

    Weights are tiles, all in `packed`, or rows with their `scales` beside them. Kernels take tiles
    only: lay weights out once, when they are loaded.

    Args:
        a: `[M, K]` float32, bfloat16 or float16; K is a multiple of 128.
        packed: tiles of `tile_int4`, int32 `[N / 16, K / 128, W]`; or with `scales` int32
            `[N, K / 8]`, nibbles in the order of `pack_int4`. A leading E with `expert_offsets`.
        scales: None for tiles; else bfloat16 or float32 `[(E,) N, K / group]`, of any sign, the
            group 128, 64 or 32.
        zeros: uint8 zero points 0..15, the shape of `scales`; without them all are 8.
        expert_offsets: int32 `[E + 1]`, ascending from 0; rows past the last one give zeros.
        static_weights: the caller's word that `packed` was written before the stream was last
            waited for, as weights are that were loaded. On a GPU it may then be read while kernels
            launched earlier still run, not only the last of them. Of experts the last one, where
            models have the shared expert, is asked for ahead.
        config: of the kernels: -1 chooses, 0 streams (few rows), 1 and on are the tiles of
            csrc/kernels/w4_gemm/configs.h.
        permutation, top_k, bias, residual, row_scale, activation, out_dtype, out: as for `gemm`.

    Returns:
        `[M, N']`, N' = N, or N / 2 for "swiglu". Accumulated in float32, rounded once.

    Raises:
        IndexError: `expert_offsets` that do not ascend from 0 to at most M, or a `permutation` with
            values outside `[0, M)`.

    >>> from l4kernels.ops import quantize_int4, tile_int4
    >>> a, weight = torch.ones(1, 128), quantize_int4(torch.ones(16, 128))
    >>> w4_gemm(a, tile_int4(*weight))[0, :2], w4_gemm(a, *weight)[0, :2]
    (tensor([128., 128.]), tensor([128., 128.]))
    """

    def rows_of_b(expert: int | None, first: int, end: int) -> Tensor:
        unit = TILE_ROWS if scales is None else 1  # blocks of rows are whole tiles
        rows = slice(first // unit, end // unit)
        part: Any = rows if expert is None else (expert, rows)
        if scales is None:
            return dequantize_int4(*untile_int4(packed[part]))
        return dequantize_int4(packed[part], scales[part], None if zeros is None else zeros[part])

    return matmul(
        "w4_gemm",
        as_float(gathered("w4_gemm", a, permutation, top_k)),
        rows_of_b,
        _rows(packed, scales),
        expert_offsets,
        row_scale,
        activation,
        out_dtype or a.dtype,
        bias,
        residual,
    )
