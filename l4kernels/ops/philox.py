"""Philox4x32-10, the counter-based random generator of the sampler."""

import torch
from torch import Tensor

_MASK, _MASK64 = 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def philox4x32(counter: list[Tensor], key: list[Tensor]) -> list[Tensor]:
    """Four random 32-bit words from a counter of four words and a key of two; int64 tensors.

    >>> zero = [torch.zeros((), dtype=torch.int64)] * 4
    >>> [hex(word) for word in philox4x32(zero, zero[:2])]
    ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # int64 products wrap, but their 64 bits are those of the unsigned product.
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((product1 >> 32) & _MASK) ^ c1 ^ k0,
            product1 & _MASK,
            ((product0 >> 32) & _MASK) ^ c3 ^ k1,
            product0 & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return [c0, c1, c2, c3]


def stream_seed(seed: int, row: int) -> int:
    """The 64-bit signed seed of row `row` of a batch that is drawn with `seed`.

    SplitMix64's finaliser, twice: one to one in the row and, for each row, in the seed, so that no
    two rows of a batch share a stream; across batches two of n streams meet with a chance of
    n^2 / 2^65. A sum of seed and row would make row 1 of seed 7 the row 0 of seed 8.

    >>> stream_seed(0, 0) == stream_seed(0, 1)
    False
    """
    mixed = _mix64(_mix64(seed & _MASK64) + row & _MASK64)
    return mixed - (mixed >> 63 << 64)


def _mix64(value: int) -> int:
    value = value + 0x9E3779B97F4A7C15 & _MASK64
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _MASK64
    value = (value ^ value >> 27) * 0x94D049BB133111EB & _MASK64
    return value ^ value >> 31


def gumbel_noise(seeds: Tensor, counters: Tensor, num_tokens: int) -> Tensor:
    """Standard Gumbel noise, float32 `[B, num_tokens]`.

    Token i takes word `i % 4` of Philox with the seed's low and high half as key and the counter
    `(i // 4, 0, counter's low half, counter's high half)`. A word w becomes
    `u = min((float(w) + 0.5) * 2^-32, 1 - 2^-24)` and `-log(-log1p(-u))`: the likeliest winners
    come from the small u, where float32 is finest.
    """
    blocks = torch.arange((num_tokens + 3) // 4, dtype=torch.int64, device=seeds.device)
    low, high = (counters & _MASK)[:, None], ((counters >> 32) & _MASK)[:, None]
    key = [(seeds & _MASK)[:, None], ((seeds >> 32) & _MASK)[:, None]]
    words = philox4x32([blocks[None], torch.zeros_like(blocks)[None], low, high], key)
    word = torch.stack(words, -1).flatten(1)[:, :num_tokens].float()
    u = ((word + 0.5) * 2.0**-32).clamp_(max=1 - 2.0**-24)
    return u.neg_().log1p_().neg_().log_().neg_()
