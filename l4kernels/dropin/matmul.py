"""`torch._scaled_mm`, `torch._grouped_mm` and DeepGEMM's contiguous grouped product."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from l4kernels import ops
from l4kernels.ops.check import FLOATS, FP8, Checker, describe
from l4kernels.ops.quant import BLOCK


def fp8_matmul(
    input: Tensor,
    mat2: Tensor,
    scale_a: Tensor,
    scale_b: Tensor,
    bias: Tensor | None = None,
    scale_result: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    use_fast_accum: bool = False,
) -> Tensor:
    """`torch._scaled_mm`: `(input * scale_a) @ (mat2 * scale_b) + bias` of e4m3 operands.

    Args:
        input: e4m3 `[M, K]`, row-major.
        mat2: e4m3 `[K, N]`, column-major: the `.t()` of a weight `[N, K]`.
        scale_a, scale_b: float32, by who shares a scale:
            tensor, tensor: one element each;
            row, column: `[M, 1]` and `[1, N]`;
            1x128, 128x128: `[M, K / 128]` and `[K / 128, N / 128]`;
            1x128, column (not in torch): `[M, K / 128]` and `[1, N]`.
            Block scales in torch's outer-dimension-major layout are copied: 4 bytes for every 128
            of K of a row.
        bias: `[N]`; bfloat16 on CUDA.
        scale_result: not supported; it scales float8 results.
        out_dtype: bfloat16, float32, or on the CPU float16. torch's default, a float8 result, is
            not supported.
        use_fast_accum: allow the tensor core's reduced precision along K.

    Returns:
        `[M, N]` of `out_dtype`.

    Raises:
        ValueError, TypeError: what is not supported, and shapes or layouts that do not fit.

    >>> a, b = torch.ones(2, 16), torch.ones(8, 16)
    >>> q, scale = ops.quantize_fp8(a, "tensor")
    >>> w, w_scale = ops.quantize_fp8(b, "tensor")
    >>> fp8_matmul(q, w.t(), scale, w_scale, out_dtype=torch.float32)[0, 0].round()
    tensor(16.)
    """
    check = Checker("fp8_matmul")
    check.dtype("input", input, (FP8,))
    check.dtype("mat2", mat2, (FP8,))
    check.shape("input", input, ["M", "K"])
    check.shape("mat2", mat2, [input.shape[1], "N"])
    _column_major(check, mat2)
    if scale_result is not None:
        check.fail("expected no scale_result: results are not float8; use ops.quantize_fp8 on them")
    if out_dtype not in FLOATS:
        check.fail(
            f"expected out_dtype bfloat16, float16 or float32, got {out_dtype}; for a float8 "
            "result take bfloat16 and ops.quantize_fp8 after it"
        )
    (m, k), n = input.shape, mat2.shape[1]
    sfa, sfb = _scales(check, scale_a, scale_b, m, k, n)
    return ops.gemm(
        input,
        mat2.t(),
        sfa=sfa,
        sfb=sfb,
        bias=bias,
        out_dtype=out_dtype,
        fast_accum=use_fast_accum,
    )


def _scales(
    check: Checker, scale_a: Tensor, scale_b: Tensor, m: int, k: int, n: int
) -> tuple[Tensor, Tensor]:
    """torch's layouts of scales as `ops.gemm` takes them."""
    blocks, column_blocks = -(-k // BLOCK), -(-n // BLOCK)
    sizes = list(scale_a.shape), list(scale_b.shape)
    if scale_a.numel() == 1 and scale_b.numel() == 1:
        return scale_a.reshape(1), scale_b.reshape(1)
    if sizes == ([m, 1], [1, n]):
        return scale_a.reshape(m), scale_b.reshape(n)
    if sizes == ([m, blocks], [1, n]):
        return scale_a.contiguous(), scale_b.reshape(n)
    if sizes != ([m, blocks], [blocks, column_blocks]):
        check.fail(
            f"expected scale_a and scale_b with one element each, [{m}, 1] and [1, {n}], "
            f"[{m}, {blocks}] and [{blocks}, {column_blocks}], or [{m}, {blocks}] and [1, {n}], "
            f"got {sizes[0]} and {sizes[1]}"
        )
    return scale_a.contiguous(), scale_b.t().contiguous()


def grouped_gemm(
    input: Tensor,
    mat2: Tensor,
    offs: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    *,
    m_indices: Tensor | None = None,
    scale_a: Tensor | None = None,
    scale_b: Tensor | None = None,
    use_fast_accum: bool = False,
) -> Tensor:
    """`torch._grouped_mm` of rows with one matrix per group; no host synchronisation.

    Groups may be empty and of any size; nothing has to be padded. With scales it is
    `torch._scaled_grouped_mm`. With `m_indices` for `offs`, and `mat2` the transpose of its
    `[G, N, K]`, it is DeepGEMM's contiguous form. torch's forms with groups along N or K, which
    gradients need, are not supported.

    Args:
        input: `[M, K]` bfloat16 (float32 and float16 on the CPU), or e4m3 with scales; or
            `[G, M, K]`, groups of one size, without `offs`.
        mat2: `[G, K, N]`, each matrix column-major: the `.transpose(-2, -1)` of `[G, N, K]`.
            Row-major weights are refused: store them the other way once.
        offs: int32 `[G]`, the end of each group; rows after the last end give zeros.
        bias: not supported, as in torch.
        out_dtype: default the dtype of `input`, bfloat16 for e4m3.
        m_indices: int32 `[M]`, each row's group, ascending; -1 marks padding, whose results
            mean nothing. Costs a few small launches (running maximum, search) more than `offs`.
        scale_a, scale_b: float32 `[M]` and `[G, N]`; or `[M, K / 128]` with
            `[G, N / 128, K / 128]` or `[G, N]`. That of `[G, M, K]` begins with G as well.
        use_fast_accum: allow the tensor core's reduced precision along K for e4m3.

    Returns:
        `[M, N]`, or `[G, M, N]`.

    Raises:
        ValueError, TypeError: shapes or layouts that do not fit.
        IndexError: offsets or indices that do not ascend or are out of range; on CUDA it is
            raised by `l4kernels.take_device_error` after a synchronisation.

    >>> x, w = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([10.0, 100.0]).view(2, 1, 1)
    >>> grouped_gemm(x, w, torch.tensor([1, 3], dtype=torch.int32)).flatten()
    tensor([ 10., 200., 300.])
    """
    check = Checker("grouped_gemm")
    if mat2.dim() != 3:
        check.fail(
            f"expected mat2 to be [G, K, N], got {describe(mat2)}; groups along N or K are not "
            "supported"
        )
    groups, k, n = mat2.shape
    batched = input.dim() == 3
    check.shape("input", input, [*[groups] * batched, "M", k])
    _column_major(check, mat2)
    if bias is not None:
        check.fail("expected no bias, got one")
    if (offs is None) + (m_indices is None) != 1 + batched:
        check.fail("expected one of offs and m_indices, and neither with input [G, M, K]")
    rows = input.shape[-2]
    if batched:
        offsets = torch.arange(groups + 1, dtype=torch.int32, device=input.device) * rows
        input = input.flatten(0, 1)
        if scale_a is not None:
            expected: list[int | str] = [groups, rows, *["K / 128"] * (scale_a.dim() > 2)]
            check.shape("scale_a", scale_a, expected)
            scale_a = scale_a.flatten(0, 1)
    elif offs is not None:
        check.dtype("offs", offs, (torch.int32,))
        check.shape("offs", offs, [groups])
        offsets = pad(offs, (1, 0))
    else:
        assert m_indices is not None  # one of the two was given
        check.dtype("m_indices", m_indices, (torch.int32,))
        check.shape("m_indices", m_indices, [rows])
        offsets = _offsets(m_indices, groups)
    try:
        out = ops.gemm(
            input,
            mat2.transpose(-2, -1),
            expert_offsets=offsets,
            sfa=scale_a if scale_a is None else scale_a.contiguous(),
            sfb=scale_b if scale_b is None else scale_b.contiguous(),
            out_dtype=out_dtype,
            fast_accum=use_fast_accum,
        )
    except IndexError as error:
        given, what = m_indices, f"m_indices to ascend within [0, {groups}), -1 for padding"
        if offs is not None:
            given, what = offs, f"offs to ascend from at least 0 to at most {rows} (rows of input)"
        got = None if given is None else given.tolist()
        raise IndexError(f"{check.op}: expected {what}, got {got}") from error
    return out.view(groups, rows, n) if batched else out


def _offsets(m_indices: Tensor, groups: int) -> Tensor:
    """Where each group begins, and the end; padding belongs to the group in front of it.

    Indices out of order or range make an invalid offset, which the op reports without a host
    synchronisation here.
    """
    first = torch.arange(groups + 1, dtype=torch.int32, device=m_indices.device)
    if not m_indices.shape[0]:
        return torch.zeros_like(first)
    owner = m_indices.clamp(min=0).cummax(0).values
    wrong = ((m_indices >= 0) & (m_indices != owner)) | (m_indices < -1) | (m_indices >= groups)
    offsets = torch.searchsorted(owner, first, out_int32=True)
    return torch.where(wrong.any(), -1, offsets)


def _column_major(check: Checker, mat2: Tensor) -> None:
    if not mat2.transpose(-2, -1).is_contiguous():
        check.fail(
            f"expected mat2 to be column-major, the .transpose(-2, -1) of a contiguous [..., N, K] "
            f"weight, got {describe(mat2)} with strides {list(mat2.stride())}"
        )
