"""Int4 codes in other orders than that of `ops.pack_int4`: into it, eight codes at a time.

Nothing is unpacked: whole words are exchanged under masks.
"""

import torch
from torch import Tensor

from l4kernels.ops.quant import INT4_ORDER

_STAGES = ((16, 0x0000FFFF), (8, 0x00FF00FF), (4, 0x0F0F0F0F))
_PIECE = 1 << 16
"""Words at a time: memory that is new costs more than arithmetic."""


def reorder(words: Tensor) -> Tensor:
    """Words of eight elements, the first in the lowest bits, with their nibbles in our order.

    Args:
        words: int32, any shape.

    >>> hex(reorder(torch.tensor([0x76543210], dtype=torch.int32)).item())
    '0x75316420'
    """
    # Nibbles 1 and 2, 5 and 6 change places; then bytes 1 and 2.
    return _exchanged(words, ((4, 0x00F000F0), (8, 0x0000FF00)))


def in_order(words: Tensor) -> Tensor:
    """Undoes `reorder`.

    >>> hex(in_order(torch.tensor([0x75316420], dtype=torch.int32)).item())
    '0x76543210'
    """
    return _exchanged(words, ((8, 0x0000FF00), (4, 0x00F000F0)))


def _exchanged(words: Tensor, stages: tuple[tuple[int, int], ...]) -> Tensor:
    """Bits under a mask change places with those a shift above them, stage by stage."""
    out = torch.empty_like(words, memory_format=torch.contiguous_format)
    pieces = zip(words.reshape(-1).split(_PIECE), out.view(-1).split(_PIECE), strict=True)
    for piece, own in pieces:
        for shift, mask in stages:
            moved = ((piece >> shift) ^ piece) & mask
            piece = piece ^ moved ^ (moved << shift)
        own.copy_(piece)
    return out


def along_k(words: Tensor) -> Tensor:
    """Words of eight outputs in the order of INT4_ORDER -> words of eight inputs in the same order.

    Args:
        words: int32 `[K, n / 8]`.

    Returns:
        int32 `[n, K / 8]`.

    >>> words = torch.tensor([[0x75316420]] * 8, dtype=torch.int32)  # output i has the code i
    >>> [f"{word:x}" for word in along_k(words).flatten().tolist()][:3]
    ['0', '11111111', '22222222']
    """
    k, columns = words.shape
    out = torch.empty(columns, 8, k // 8, dtype=torch.int32, device=words.device)
    step = max(128, _PIECE // max(1, k))
    for first in range(0, columns, step):
        piece = words[:, first : first + step].contiguous()
        # Eight rows are eight matrices of one nibble by eight: transposed by halves, as bits are.
        rows = [piece[element::8] for element in INT4_ORDER]
        for shift, mask in _STAGES:
            for i in (i for i in range(8) if not i & (shift // 4)):
                j = i + shift // 4
                moved = ((rows[i] >> shift) ^ rows[j]) & mask
                rows[i], rows[j] = rows[i] ^ (moved << shift), rows[j] ^ moved
        for element, row in zip(INT4_ORDER, rows, strict=True):
            out[first : first + step, element] = row.t()
    return out.view(8 * columns, k // 8)


def unpacked(words: Tensor, bits: int = 4, order: tuple[int, ...] = ()) -> Tensor:
    """The codes of words, uint8 `[..., 32 / bits * words]`.

    Args:
        words: int32 `[..., words]`.
        order: the element that each place of a word holds, from the lowest bits on.

    >>> unpacked(torch.tensor([0x75316420], dtype=torch.int32), order=INT4_ORDER)
    tensor([0, 1, 2, 3, 4, 5, 6, 7], dtype=torch.uint8)
    """
    order = order or tuple(range(32 // bits))
    shifts = [bits * order.index(element) for element in range(len(order))]
    codes = words.unsqueeze(-1) >> torch.tensor(shifts, dtype=torch.int32, device=words.device)
    return (codes & ((1 << bits) - 1)).to(torch.uint8).flatten(-2)
