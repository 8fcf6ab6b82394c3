"""int4 codes as compressed-tensors packs them, in the order of our kernels.

Both hold code + 8 in a nibble, eight to a word. Theirs are in order along K; ours are those of
`ops.pack_int4`: first the four with an even place, then the four with an odd one.
"""

import torch
from torch import Tensor

_PIECE = 1 << 16
"""Words at a time, which stay in a core's cache."""


def reordered(packed: Tensor) -> Tensor:
    """Words int32 `[n, K / 8]` whose nibbles are in order, as `ops.pack_int4` would have them.

    >>> hex(reordered(torch.tensor([[0x76543210]])).item())
    '0x75316420'
    """
    result = packed.clone(memory_format=torch.contiguous_format)
    for words in result.view(-1).split(_PIECE):
        # Two exchanges sort the nibbles: 01 23 45 67 -> 02 13 46 57 -> 02 46 13 57.
        for shift, mask in ((4, 0x00F000F0), (8, 0x0000FF00)):
            other = (words >> shift).bitwise_xor_(words).bitwise_and_(mask)
            words.bitwise_xor_(other).bitwise_xor_(other.bitwise_left_shift_(shift))
    return result


def unpacked(packed: Tensor, bits: int) -> Tensor:
    """uint8 `[n, K]` of words `[n, K * bits / 32]`, the first in the lowest bits; 4 or 8 bits.

    >>> unpacked(torch.tensor([[0x76543210]]), 4).tolist()
    [[0, 1, 2, 3, 4, 5, 6, 7]]
    >>> unpacked(torch.tensor([[0x04030201]]), 8).tolist()
    [[1, 2, 3, 4]]
    """
    shifts = torch.arange(0, 32, bits, dtype=torch.int32, device=packed.device)
    fields = (packed.unsqueeze(-1) >> shifts) & ((1 << bits) - 1)
    return fields.flatten(-2).to(torch.uint8)


def unpacked_rows(packed: Tensor, bits: int, rows: int) -> Tensor:
    """uint8 `[rows, groups]` of zero points, which are packed along the first dimension."""
    return unpacked(packed.t(), bits)[:, :rows].t().contiguous()
