"""int4 weights as kernels read them: tiles of 16 rows by 128 of K, laid out by csrc/tile/int4.h.

A word of the logical layout is four pairs of neighbours along K; so is one of a tile. Four words of
the one hold what four of the other do: pair j of word i is pair i of word j.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from l4kernels.ops.check import Checker, describe
from l4kernels.ops.quant import BLOCK, check_int4

TILE_ROWS = 16
_HALF = TILE_ROWS // 2
_CODE_WORDS = TILE_ROWS * BLOCK // 8


def tile_words(groups: int = 1, zeros: bool = False) -> int:
    """Of a tile with that many groups along its 128 of K, with or without zero points."""
    return _CODE_WORDS + groups * (12 if zeros else 8)


TILE_FORMATS = {tile_words(g, zeros): (g, zeros) for g in (1, 2, 4) for zeros in (False, True)}
"""Groups along K of a tile, and whether it holds zero points, by its words."""


class Int4WithZeros(NamedTuple):
    """Packed int4 weights, the scales of their groups, and the zero points if not all are 8."""

    packed: Tensor
    scales: Tensor
    zeros: Tensor | None


def tile_int4(packed: Tensor, scales: Tensor, zeros: Tensor | None = None) -> Tensor:
    """Lays int4 weights out in the tiles that the kernels of `w4_gemm` read. Exact; done at load.

    Args:
        packed: int32 `[..., N, K / 8]`, see `pack_int4`; N is a multiple of 16, K of 128.
        scales: bfloat16 `[..., N, K / group]`; the group is 128, 64 or 32.
        zeros: uint8 zero points 0..15, the shape of `scales`; without them all are 8.

    Returns:
        int32 `[..., N / 16, K / 128, W]`. W says what a tile holds: 256 words of codes, and for
        each of its groups 8 of scales, or 12 with zero points.

    Raises:
        TypeError, ValueError: tensors of other dtypes or shapes; zero points above 15, of which it
            reads the data.

    >>> from l4kernels.ops import quantize_int4
    >>> tile_int4(*quantize_int4(torch.ones(32, 256))).shape
    torch.Size([2, 2, 264])
    """
    check = Checker("tile_int4")
    group = check_int4(check, packed, scales, zeros, (torch.bfloat16,))
    check.require(
        packed.dim() >= 2, f"expected packed to be [..., N, K / 8], got {describe(packed)}"
    )
    *experts, n, words = packed.shape
    check.require(
        n % TILE_ROWS == 0,
        f"expected packed to be [..., N, K / 8] with N a multiple of {TILE_ROWS} (add rows of "
        f"zeros), got {describe(packed)}",
    )
    if zeros is not None and zeros.numel() and zeros.max() > 15:
        check.fail(f"expected zeros from 0 to 15, got {int(zeros.max())}")
    blocks, size = words * 8 // BLOCK, tile_words(BLOCK // group, zeros is not None)
    tiles = packed.new_empty((*experts, n // TILE_ROWS, blocks, size))
    _exchange(_words_of_rows(packed), _words_of_tiles(tiles))
    for values, place in zip((scales, zeros), _per_group(tiles), strict=True):
        if values is not None and place is not None:
            place.copy_(_in_tiles(values, blocks))
    return tiles


def untile_int4(tiles: Tensor) -> Int4WithZeros:
    """Undoes `tile_int4`, bit by bit.

    Args:
        tiles: int32 `[..., N / 16, K / 128, W]`.

    Returns:
        `Int4WithZeros(packed, scales, zeros)` as `tile_int4` takes them; `zeros` is None if the
        tiles hold none.

    Raises:
        TypeError, ValueError: a tensor that is none of tiles.

    >>> tiles = torch.zeros(1, 2, 264, dtype=torch.int32)
    >>> packed, scales, zeros = untile_int4(tiles)
    >>> packed.shape, scales.shape, zeros
    (torch.Size([16, 32]), torch.Size([16, 2]), None)
    """
    check = Checker("untile_int4")
    check.dtype("tiles", tiles, (torch.int32,))
    check.require(
        tiles.dim() >= 3 and tiles.shape[-1] in TILE_FORMATS,
        f"expected tiles to be {tiles_shape()}, got {describe(tiles)}",
    )
    check.last_dim_contiguous("tiles", tiles)
    *experts, tile_rows, blocks, _ = tiles.shape
    rows = *experts, tile_rows * TILE_ROWS
    packed = tiles.new_empty((*rows, blocks * BLOCK // 8))
    _exchange(_words_of_tiles(tiles), _words_of_rows(packed))
    scales, zeros = (None if t is None else _in_rows(t) for t in _per_group(tiles))
    assert scales is not None
    return Int4WithZeros(packed, scales, zeros)


def tiles_shape(n: str = "N / 16", blocks: int | str = "K / 128") -> str:
    """For messages."""
    return (
        f"[{n}, {blocks}, W] or [E, {n}, {blocks}, W] of tile_int4, "
        f"W one of {', '.join(map(str, TILE_FORMATS))}"
    )


def _exchange(source: Sequence[Tensor], target: Sequence[Tensor]) -> None:
    """Four words each: pair i of `target[j]` becomes pair j of `source[i]`, a transposition."""
    words = torch.stack(tuple(source))
    for distance, kept in ((2, 0x00FF00FF), (1, 0x0F0F0F0F)):
        low, high = words.unflatten(0, (2 // distance, 2, distance)).unbind(1)
        swapped = ((low >> 4 * distance) ^ high) & kept
        high ^= swapped
        low ^= swapped << 4 * distance
    for word, place in zip(words, target, strict=True):
        place.copy_(word)


# The words [..., N / 16, K / 128, half of K, row, step] of both layouts. In a half lie four steps
# of 16, a product of a tensor core each.


def _words_of_rows(packed: Tensor) -> list[Tensor]:
    """In the order of the pairs of a tile's word: row and row + 8, then both 8 further along K."""
    rows = packed.unflatten(-1, (-1, 2, 4, 2)).unflatten(-5, (-1, 2, _HALF))
    words = rows.movedim(-5, -3)  # the row behind the half of K
    return [words[..., rows8, :, :, :, :, k8] for k8 in (0, 1) for rows8 in (0, 1)]


def _words_of_tiles(tiles: Tensor) -> list[Tensor]:
    """In the order of the pairs of a logical word, of which each lane of a warp has one."""
    words = tiles[..., :_CODE_WORDS].unflatten(-1, (2, _HALF, 4, 4))
    return [words[..., lane, :] for lane in range(4)]


class _PerGroup(NamedTuple):
    """Views of tiles, `[..., N / 16, K / 128, group, row, rows and rows + 8]`."""

    scales: Tensor
    zeros: Tensor | None


def _per_group(tiles: Tensor) -> _PerGroup:
    groups, has_zeros = TILE_FORMATS[tiles.shape[-1]]
    end = _CODE_WORDS + groups * TILE_ROWS // 2
    shape = (groups, _HALF, 2)
    scales = tiles[..., _CODE_WORDS:end].view(torch.bfloat16).unflatten(-1, shape)
    zeros = tiles[..., end:].view(torch.uint8).unflatten(-1, shape) if has_zeros else None
    return _PerGroup(scales, zeros)


def _in_tiles(values: Tensor, blocks: int) -> Tensor:
    """Values `[..., N, K / group]` in the order of `_PerGroup`."""
    rows = values.unflatten(-1, (blocks, -1)).unflatten(-3, (-1, 2, _HALF))
    return rows.movedim((-4, -3, -2, -1), (-1, -2, -4, -3))


def _in_rows(values: Tensor) -> Tensor:
    rows = values.movedim((-1, -2, -4, -3), (-4, -3, -2, -1))
    return rows.flatten(-2).flatten(-4, -2)
