"""Scales and codes again, in loops: blocks that share a scale, e4m3, int4 in rows and in tiles."""

import numpy as np
import torch
from torch import Tensor

NIBBLE_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def f64(t: Tensor) -> np.ndarray:
    return t.detach().double().numpy().copy()


def blocks(shape, scaling):
    """`(index of the scale, slices of the block)` of every block of a tensor."""
    *lead, k = shape
    if scaling == "tensor":
        if len(shape) == 3:
            yield from (((e, 0), (e,)) for e in range(shape[0]))
        else:
            yield (0,), ()
    elif scaling == "row":
        yield from ((i, i) for i in np.ndindex(*lead))
    elif scaling == "1x128":
        for i in np.ndindex(*lead):
            yield from (((*i, j), (*i, slice(128 * j, 128 * j + 128))) for j in range(k // 128))
    else:
        *outer, n = lead
        for i in np.ndindex(*outer, -(-n // 128), k // 128):
            *o, r, c = i
            yield i, (*o, slice(128 * r, 128 * r + 128), slice(128 * c, 128 * c + 128))


def scale_shape(shape, scaling):
    *lead, k = shape
    if scaling == "tensor":
        return (shape[0], 1) if len(shape) == 3 else (1,)
    if scaling == "row":
        return tuple(lead)
    if scaling == "1x128":
        return (*lead, k // 128)
    return (*lead[:-1], -(-lead[-1] // 128), k // 128)


def quantized(x, scaling):
    q, scale = np.zeros(x.shape), np.ones(scale_shape(x.shape, scaling))
    for index, block in blocks(x.shape, scaling):
        amax = np.abs(x[block]).max(initial=0)
        scale[index] = amax / 448 or 1.0
        q[block] = x[block] / scale[index]
    return q, scale


def quantize_fp8(x, scaling):
    return quantized(f64(x), scaling)


def dequantized(q, scale, scaling):
    value, scale = f64(q), f64(scale)
    for index, block in blocks(value.shape, scaling):
        value[block] *= scale[index]
    return value


def quantize_int4(w, search=True):
    assert not search
    x = w.float().numpy().reshape(-1, 128)
    packed, scales = np.zeros((len(x), 16), dtype=np.int64), np.zeros(len(x))
    for i, group in enumerate(x):
        scale = torch.tensor(np.abs(group).max() / np.float32(7.5)).bfloat16().float().item() or 1.0
        q = np.clip(np.rint(group / np.float32(scale)), -8, 7).astype(np.int64)
        for element, code in enumerate(q):
            nibble = NIBBLE_ORDER.index(element % 8)
            packed[i, element // 8] |= (code + 8) << (4 * nibble)
        scales[i] = scale
    words = packed.astype(np.uint32).view(np.int32)
    rows = tuple(w.shape[:-1])
    return words.reshape(*rows, w.shape[-1] // 8), scales.reshape(*rows, w.shape[-1] // 128)


def int4_rows(packed, scales, zeros):
    """The weights [..., N, K] in nibbles of rows, with scales and zero points beside them."""
    words, scale = packed.numpy().view(np.uint32), f64(scales)
    zero = np.full(scale.shape, 8.0) if zeros is None else f64(zeros)
    weights = np.zeros((*packed.shape[:-1], 8 * packed.shape[-1]))
    for nibble, element in enumerate(NIBBLE_ORDER):
        weights[..., element::8] = words >> (4 * nibble) & 15
    group = weights.shape[-1] // scale.shape[-1]
    for i in range(scale.shape[-1]):
        own = weights[..., group * i : group * i + group]
        own -= zero[..., i : i + 1]
        own *= scale[..., i : i + 1]
    return weights


def int4_tiles(tiles):
    """The weights [..., N, K] in tiles of 16 rows by 128 of K, word by word."""
    groups, zeros = {264: (1, 0), 268: (1, 1), 272: (2, 0), 280: (2, 1), 288: (4, 0), 304: (4, 1)}[
        tiles.shape[-1]
    ]
    words = tiles.contiguous().numpy().view(np.uint32)
    halves = words[..., 256 : 256 + 8 * groups].copy().view(np.uint16).astype(np.uint32) << 16
    scale, zero = halves.view(np.float32).astype(float), np.full(halves.shape, 8.0)
    if zeros:
        zero = words[..., 256 + 8 * groups :].copy().view(np.uint8).astype(float)
    tile = np.zeros((*tiles.shape[:-1], 16, 128))
    for word, field in np.ndindex(256, 8):
        half, lane, step = word // 128, word // 4 % 32, word % 4
        row, k = lane // 4, 64 * half + 16 * step + 2 * (lane % 4)
        # Four bits after four: the row, eight rows below, then both eight columns on; the upper
        # half of the word is one column on.
        row, k = row + 8 * (field % 2), k + 8 * (field // 2 % 2) + field // 4
        at = 16 * (k * groups // 128) + 2 * (row % 8) + row // 8
        code = words[..., word] >> (4 * field) & 15
        tile[..., row, k] = (code - zero[..., at]) * scale[..., at]
    *lead, rows, blocks, _, _ = tile.shape
    return np.moveaxis(tile, -2, -3).reshape(*lead, 16 * rows, 128 * blocks)
