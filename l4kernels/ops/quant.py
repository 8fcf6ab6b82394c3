"""Quantisation: float8 e4m3 with four scale layouts, and int4 in groups along K."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from l4kernels.ops.bound import Bound
from l4kernels.ops.check import FLOATS, FP8, Checker, describe
from l4kernels.ops.contract import Contract
from l4kernels.ops.registry import Work, op, tensor_bytes

BLOCK = 128
"""Elements along K that share a scale: a group of `quantize_int4`, a 1x128 or 128x128 block."""

INT4_GROUPS = (128, 64, 32)
"""Elements along K that may share an int4 scale. Which do is read off the shape of the scales."""

FP8_MAX = 448.0
FP8_SCALINGS = ("tensor", "row", "1x128", "128x128")

INT4_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Nibble i (bits 4i to 4i+3) of word j holds element 8j + INT4_ORDER[i] of its row."""

_INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)
_E4M3_VALUES = torch.arange(256, dtype=torch.uint8).view(FP8).float()
_NIBBLE_OF_ELEMENT = sorted(range(8), key=INT4_ORDER.__getitem__)
_CLIP_RATIOS = (1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.76, 0.7)
_PIECE = 1 << 19
"""Weights that a core quantises at a time: its share of the cache, and few calls a weight."""
_HUGE, _TINY, _FACTOR = 2.0**60, 2.0**-40, 2.0**96
"""Beyond these magnitudes errors are squared in other units: float32 would not hold the squares."""
_MAX_SCALE = torch.finfo(torch.bfloat16).max / 8
"""Of an int4 group: the code -8 must not overflow."""


class Quantized(NamedTuple):
    """An e4m3 tensor and its float32 scales: value = q * scale."""

    q: Tensor
    scale: Tensor


class Int4(NamedTuple):
    """Packed int4 weights and the scales of their groups along K."""

    packed: Tensor
    scales: Tensor


def _check_quantize_fp8(args: Bound) -> None:
    contract = Contract(args)
    contract.dtype("x", args.x, FLOATS)
    _check_scaling(contract, "x", args.x, args.scaling)


def _check_scaling(check: Checker, name: str, x: Tensor, scaling: str) -> None:
    check.choice("scaling", scaling, FP8_SCALINGS)
    check.require(x.dim() >= 1, f"expected {name} to have at least one dimension, got a scalar")
    if scaling in ("1x128", "128x128"):
        check.multiple(f"the last dimension of {name}", x.shape[-1], BLOCK)
    if scaling == "128x128":
        check.require(x.dim() >= 2, f"expected {name} to be [..., N, K], got {list(x.shape)}")


def _scale_shape(x: Tensor, scaling: str) -> list[int]:
    *leading, columns = x.shape
    if scaling == "tensor":
        return [x.shape[0], 1] if x.dim() > 2 else [1]
    if scaling == "row":
        return leading
    if scaling == "128x128":
        leading[-1] = -(-leading[-1] // BLOCK)
    return [*leading, columns // BLOCK]


def _work_quantize_fp8(args: Bound) -> Work:
    x = args.x
    return Work(flops=3 * x.numel(), bytes=x.numel() * (x.element_size() + 1))


@op(check=_check_quantize_fp8, work=_work_quantize_fp8, returns=Quantized)
def quantize_fp8(x: Tensor, scaling: str) -> tuple[Tensor, Tensor]:
    """Quantises to float8 e4m3 with scale = amax / 448 (1 where the block is all zeros).

    Args:
        x: `[..., K]` float32, bfloat16 or float16. K is a multiple of 128 for block scales.
        scaling: what shares a scale, and the shape of `scale`:
            "tensor"  everything, `[1]`; for weights `[E, N, K]` each expert, `[E, 1]`
            "row"     a row of K (a token, or an output channel of a weight), `[...]`
            "1x128"   128 elements of a row, `[..., K / 128]`
            "128x128" a block of a weight, `[..., ceil(N / 128), K / 128]`

    Returns:
        `Quantized(q, scale)`: `q` e4m3 in the shape of `x`, `scale` float32, with
        `q = saturate(x * (1 / scale))`, the reciprocal rounded too, and `x ~ q * scale`.

    >>> quantize_fp8(torch.tensor([[0.5, -2.0], [0.0, 0.0]]), "row").scale
    tensor([0.0045, 1.0000])
    """
    return fp8_with_scale(x.float(), scaling)


def fp8_with_scale(x: Tensor, scaling: str) -> tuple[Tensor, Tensor]:
    """The body of every op that ends in e4m3; `x` is float32."""
    blocks = _blocks(x, scaling)
    dims = {"tensor": (-2, -1), "row": (-1,), "1x128": (-1,), "128x128": (-3, -1)}[scaling]
    if blocks.numel() == 0:
        amax = blocks.sum(dims, keepdim=True)
    else:
        amax = blocks.abs().amax(dims, keepdim=True)
    scale = _over(amax, FP8_MAX)
    scale = torch.where(scale == 0, 1.0, scale)
    # The reciprocal of a subnormal scale may overflow, and infinity times 0 is NaN.
    inverse = scale.reciprocal().clamp(max=torch.finfo(torch.float32).max)
    q = (blocks * inverse).clamp(-FP8_MAX, FP8_MAX).to(FP8)
    if scaling == "128x128":
        q = q.flatten(-4, -3).flatten(-2)[..., : x.shape[-2], :]
        return q.reshape(x.shape).contiguous(), scale.squeeze(-1).squeeze(-2)
    if scaling == "tensor":
        return q.reshape(x.shape), scale.flatten(-2) if x.dim() > 2 else scale.flatten()
    return q.reshape(x.shape), scale.squeeze(-1)


def _blocks(x: Tensor, scaling: str) -> Tensor:
    """`x` with the dimensions that share a scale at a fixed place."""
    if scaling == "tensor":
        return x.flatten(1).unsqueeze(-2) if x.dim() > 2 else x.reshape(1, -1)
    if scaling == "row":
        return x
    columns = x.shape[-1] // BLOCK
    if scaling == "1x128":
        return x.reshape(*x.shape[:-1], columns, BLOCK)
    padding = -x.shape[-2] % BLOCK
    if padding:
        x = torch.nn.functional.pad(x, (0, 0, 0, padding))
    return x.reshape(*x.shape[:-2], x.shape[-2] // BLOCK, BLOCK, columns, BLOCK)


def fp8_values(q: Tensor) -> Tensor:
    """`q.float()` of an e4m3 tensor by table: many times faster on a CPU."""
    codes = q.reshape(-1).view(torch.uint8).int()
    return _E4M3_VALUES.to(q.device).index_select(0, codes).view(q.shape)


def dequantize_fp8(q: Tensor, scale: Tensor, scaling: str) -> Tensor:
    """The float32 values of `quantize_fp8`'s result.

    Args:
        q: e4m3 `[..., K]`.
        scale: float32, the shape that `quantize_fp8` gives it.
        scaling: as for `quantize_fp8`.

    >>> x = torch.tensor([[0.5, -2.0]])
    >>> dequantize_fp8(*quantize_fp8(x, "tensor"), "tensor")
    tensor([[ 0.5000, -2.0000]])
    """
    check = Checker("dequantize_fp8")
    check.dtype("q", q, (FP8,))
    _check_scaling(check, "q", q, scaling)
    check.dtype("scale", scale, (torch.float32,))
    check.shape("scale", scale, _scale_shape(q, scaling))
    value = fp8_values(q)
    if scaling == "tensor":
        return value.mul_(scale.unsqueeze(-1) if scale.dim() > 1 else scale)
    if scaling == "row":
        return value.mul_(scale.unsqueeze(-1))
    if scaling == "1x128":
        return value.mul_(scale.repeat_interleave(BLOCK, -1))
    rows = scale.repeat_interleave(BLOCK, -2)[..., : q.shape[-2], :]
    return value.mul_(rows.repeat_interleave(BLOCK, -1))


def _check_quantize_int4(args: Bound) -> None:
    contract, w = Contract(args), args.w
    contract.dtype("w", w, FLOATS)
    contract.require(
        w.dim() >= 2 and w.shape[-1] > 0,
        f"expected w to be [..., N, K] with at least one group along K, got {list(w.shape)}",
    )
    contract.multiple("the last dimension of w", w.shape[-1], BLOCK)


def _work_quantize_int4(args: Bound) -> Work:
    w = args.w
    candidates = 2 * len(_CLIP_RATIOS) if args.search else 1
    written = w.numel() / 2 + w.numel() / BLOCK * 2
    return Work(flops=6 * candidates * w.numel(), bytes=tensor_bytes(w) + written)


def _fake_quantize_int4(args: Bound) -> tuple[Tensor, Tensor]:
    *rows, k = args.w.shape
    return (
        args.w.new_empty((*rows, k // 8), dtype=torch.int32),
        args.w.new_empty((*rows, k // BLOCK), dtype=torch.bfloat16),
    )


@op(
    check=_check_quantize_int4,
    work=_work_quantize_int4,
    fake=_fake_quantize_int4,
    returns=Int4,
    without_kernel="weights are quantised once, when they are loaded",
)
def quantize_int4(w: Tensor, search: bool = True) -> tuple[Tensor, Tensor]:
    """Quantises weights to int4, symmetric, in groups of 128 along K: w ~ q * scale, q in -8..7.

    Without `search`, scale = amax / 7.5. With it, each group takes the candidate of least squared
    error among clipped scales; half of the candidates are aligned so that the element of largest
    magnitude gets the code -8, which makes a scale negative where that element is positive.

    Args:
        w: `[..., N, K]` float32, bfloat16 or float16; K is a multiple of 128.
        search: look for the best scale of each group.

    Returns:
        `Int4(packed, scales)`: int32 `[..., N, K / 8]` (see `pack_int4`) and bfloat16
        `[..., N, K / 128]`. Codes are chosen for the rounded scale.

    >>> packed, scales = quantize_int4(torch.linspace(-1, 1, 128).view(1, 128))
    >>> packed.shape, scales.shape
    (torch.Size([1, 16]), torch.Size([1, 1]))
    """
    groups = w.reshape(-1, BLOCK)
    packed = torch.empty(groups.shape[0], BLOCK // 8, dtype=torch.int32, device=w.device)
    scales = torch.empty(groups.shape[0], dtype=torch.bfloat16, device=w.device)
    # A GPU has no such cache, and launches cost.
    cores = torch.get_num_threads() if w.device.type == "cpu" else 32
    step = max(1, min(groups.shape[0], cores * _PIECE // BLOCK))
    # Memory that is new costs more than arithmetic: all pieces go through the same two.
    values, spare = torch.empty(2, step, BLOCK, dtype=torch.float32, device=w.device)
    for i in range(0, groups.shape[0], step):
        piece = values[: groups.shape[0] - i].copy_(groups[i : i + step])
        other = spare[: groups.shape[0] - i]
        extreme = _extreme(piece)
        size = extreme.abs()
        unit = torch.ones_like(size).masked_fill_(size < _TINY, _FACTOR)
        unit.masked_fill_(size > _HUGE, 1 / _FACTOR)
        piece.mul_(unit[:, None])
        scale = _rounded(_over(size, 7.5))
        if search:
            scale = _best_scale(piece, extreme, unit, other)
        codes = _codes(piece, (scale * unit)[:, None], other)
        _pack(codes, piece.view(torch.int32), packed[i : i + step])
        # A weight that is not finite makes its whole group NaN.
        scales[i : i + step] = scale.masked_fill_(~extreme.isfinite(), torch.nan)
    k = w.shape[-1]
    return packed.view(*w.shape[:-1], k // 8), scales.view(*w.shape[:-1], k // BLOCK)


def _over(x: Tensor, divisor: float) -> Tensor:
    """A division on every device: by a number, CUDA's torch multiplies with its reciprocal."""
    return x / torch.full_like(x, divisor)


def _rounded(scale: Tensor) -> Tensor:
    """As a bfloat16 that can be a scale: 1 for a group of zeros."""
    rounded = scale.to(torch.bfloat16).float().clamp_(-_MAX_SCALE, _MAX_SCALE)
    return rounded.masked_fill_(rounded == 0, 1.0)


def _codes(groups: Tensor, scale: Tensor, out: Tensor) -> Tensor:
    return torch.div(groups, scale, out=out).round_().clamp_(-8, 7)


def _extreme(groups: Tensor) -> Tensor:
    """Of each group the element of largest magnitude, the first of several."""
    low, high = groups.amin(-1), groups.amax(-1)
    extreme = torch.where(high > -low, high, low)
    even = (high == -low).nonzero().squeeze(-1)
    if even.numel():
        first = groups[even].abs().argmax(-1, keepdim=True)
        extreme[even] = groups[even].gather(-1, first).squeeze(-1)
    return extreme


def _best_scale(groups: Tensor, extreme: Tensor, unit: Tensor, spare: Tensor) -> Tensor:
    """The first of the candidates with the least squared error, `[groups]` float32.

    `groups` are in units of `unit`, extremes and scales are not; `spare` is overwritten.
    """
    ratios = torch.tensor(_CLIP_RATIOS, dtype=torch.float32, device=groups.device)[:, None]
    scales = _rounded(torch.cat([_over(extreme.abs(), 7.5) * ratios, extreme / -8 * ratios]))
    errors = torch.empty_like(scales)
    for own, total in zip((scales * unit)[..., None], errors, strict=True):
        distance = _codes(groups, own, spare).mul_(own).sub_(groups)
        torch.sum(distance.square_(), -1, out=total)
    first = errors.min(0, keepdim=True).indices  # the first of equals; `argmin` is six times slower
    return scales.gather(0, first).squeeze(0)


def pack_int4(q: Tensor) -> Tensor:
    """Packs codes -8..7 `[..., K]` into int32 `[..., K / 8]`.

    A nibble holds code + 8. Nibble i (bits 4i to 4i+3) of word j holds element 8j + ORDER[i],
    ORDER = (0, 2, 4, 6, 1, 3, 5, 7): `(word >> 4 * s) & 0x000f000f` is then the pair of elements
    2s and 2s + 1, one in each half word.

    Args:
        q: integers, or floats that hold whole numbers; K is a multiple of 8.

    Raises:
        TypeError: other types.
        ValueError: a value that is no code: it would reach its neighbours' bits. Reads the data,
            which on a GPU waits for them.

    >>> pack_int4(torch.tensor([-8, -7, -6, -5, -4, -3, -2, -1])).item() == 0x75316420
    True
    """
    check = Checker("pack_int4")
    check.dtype("q", q, (*_INTEGERS, *FLOATS, torch.float64))
    check.require(
        q.dim() > 0 and q.shape[-1] % 8 == 0,
        f"expected rows of a multiple of 8 codes, got {describe(q)}",
    )
    signed = q.short() if q.dtype == torch.uint8 else q  # compared with -8, not with 248
    valid = (signed >= -8) & (signed <= 7) & (signed == signed.round())
    if not valid.all():
        check.fail(f"expected whole numbers from -8 to 7, got {q[~valid][0].item()}")
    packed = torch.empty((*q.shape[:-1], q.shape[-1] // 8), dtype=torch.int32, device=q.device)
    return _pack(q, torch.empty(q.shape, dtype=torch.int32, device=q.device), packed)


def _pack(codes: Tensor, nibbles: Tensor, out: Tensor) -> Tensor:
    """`nibbles` is overwritten."""
    shifts = _shifts(codes.device).repeat(codes.shape[-1] // 8)  # a whole row: eight are too few
    nibbles.copy_(codes).add_(8).bitwise_left_shift_(shifts)
    return torch.sum(nibbles.unflatten(-1, (-1, 8)), -1, dtype=torch.int32, out=out)


def _shifts(device: torch.device) -> Tensor:
    """Of the eight elements of a word, in their order."""
    return torch.tensor([4 * i for i in _NIBBLE_OF_ELEMENT], dtype=torch.int32, device=device)


def unpack_int4(packed: Tensor) -> Tensor:
    """The codes -8..7 of `pack_int4`'s int32 `[..., K / 8]`, int8 `[..., K]`.

    >>> unpack_int4(pack_int4(torch.tensor([-8, 7, 0, 1, 2, 3, -1, -2])))
    tensor([-8,  7,  0,  1,  2,  3, -1, -2], dtype=torch.int8)
    """
    check = Checker("unpack_int4")
    check.dtype("packed", packed, (torch.int32,))
    check.require(packed.dim() > 0, f"expected packed to be [..., K / 8], got {describe(packed)}")
    return _nibbles(packed).sub_(8).to(torch.int8)


def _nibbles(packed: Tensor) -> Tensor:
    return (packed.unsqueeze(-1) >> _shifts(packed.device)).bitwise_and_(15).flatten(-2)


def dequantize_int4(
    packed: Tensor,
    scales: Tensor,
    zeros: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The values `[..., K]` of int4 weights, `(nibble - zero) * scale` in float32.

    Args:
        packed: int32 `[..., K / 8]`, see `pack_int4`; K is a multiple of 128.
        scales: `[..., K / group]` float32, bfloat16 or float16; the group is 128, 64 or 32.
        zeros: uint8 zero points, the shape of `scales`; without them all are 8.
        dtype: of the result, rounded once.

    Raises:
        TypeError, ValueError: tensors of other dtypes or shapes.

    >>> packed = pack_int4(torch.arange(128) % 16 - 8)
    >>> dequantize_int4(packed, torch.tensor([0.5]))[:4]
    tensor([-4.0000, -3.5000, -3.0000, -2.5000])
    """
    check = Checker("dequantize_int4")
    group = check_int4(check, packed, scales, zeros, FLOATS)
    nibbles = _nibbles(packed).float().unflatten(-1, (-1, group))
    nibbles.sub_(8 if zeros is None else zeros.unsqueeze(-1))
    return nibbles.mul_(scales.float().unsqueeze(-1)).flatten(-2).to(dtype)


def check_int4(
    check: Checker,
    packed: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    dtypes: Sequence[torch.dtype],
) -> int:
    """The group of packed weights with scales of one of `dtypes`: elements that share one."""
    check.dtype("packed", packed, (torch.int32,))
    words = packed.shape[-1] if packed.dim() else 0
    check.require(
        words > 0 and words * 8 % BLOCK == 0,
        f"expected packed to be [..., K / 8] with K a multiple of {BLOCK}, got {describe(packed)}",
    )
    check.dtype("scales", scales, dtypes)
    shapes = {group: [*packed.shape[:-1], words * 8 // group] for group in INT4_GROUPS}
    group = next((g for g, shape in shapes.items() if shape == list(scales.shape)), None)
    if group is None:
        expected = ", ".join(f"{shape} (groups of {g})" for g, shape in shapes.items())
        check.fail(f"expected scales to be {expected}, got {describe(scales)}")
    if zeros is not None:
        check.dtype("zeros", zeros, (torch.uint8,))
        check.shape("zeros", zeros, list(scales.shape))
    return group
