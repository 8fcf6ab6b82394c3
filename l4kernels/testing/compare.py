"""Comparing kernels with their references, for this package's tests and for its users' own."""

from typing import Any

import torch
from torch import Tensor

from l4kernels.ops.check import FP8

TILE = 128


def relative_error(actual: Tensor, expected: Tensor, spared: float = 0.0) -> float:
    """Frobenius norm of the difference over that of `expected`, in float64; NaN-aware.

    Two results that agree in where they are not finite are compared on the rest; a difference
    there counts as infinite. `spared` times the largest value is taken off the difference.
    """
    a, e = actual.double(), expected.double()
    odd = ~torch.isfinite(e)
    if not torch.equal(odd, ~torch.isfinite(a)) or not torch.equal(
        torch.nan_to_num(a[odd]), torch.nan_to_num(e[odd])
    ):
        return float("inf")
    difference, scale = (a - e)[~odd].norm().item(), e[~odd].norm().item()
    if spared and scale:
        most = spared * e[~odd].abs().max().item()
        difference = max(0.0, difference**2 - most**2) ** 0.5
    return difference / scale if scale else (0.0 if difference == 0 else float("inf"))


def worst_tile(
    actual: Tensor, expected: Tensor, spared: float = 0.0
) -> tuple[float, tuple[int, int]]:
    """The largest `relative_error` of any 128 x 128 tile of the last two dimensions, and where.

    A whole-tensor norm hides one wrong tile among a thousand. A tile's error is relative to the
    larger of its own norm and its share of the whole tensor's, so that tiles of near-zeros do not
    dominate.
    """
    a = actual.reshape(-1, actual.shape[-1]) if actual.dim() > 1 else actual.reshape(1, -1)
    e = expected.reshape(a.shape)
    share = torch.nan_to_num(e.double()).norm().item() / max(1.0, e.numel() ** 0.5)
    worst, where = 0.0, (0, 0)
    for row in range(0, a.shape[0], TILE):
        for col in range(0, a.shape[1], TILE):
            x, y = a[row : row + TILE, col : col + TILE], e[row : row + TILE, col : col + TILE]
            error = relative_error(x, y, spared)
            norm = torch.nan_to_num(y.double()).norm().item()
            if error != float("inf") and norm:
                error *= norm / max(norm, share * y.numel() ** 0.5)
            if error > worst:
                worst, where = error, (row, col)
    return worst, where


def assert_close(actual: Any, expected: Any, bound: float, what: str = "result") -> None:
    """Fails unless `actual` equals `expected`: exactly for integers, else tile by tile to `bound`.

    Of 128 x 128 values of 16 bits, one or two that round the other way are nothing, but of five
    they are more than any useful bound: what a step each of two values adds, the largest there,
    is taken off every tile. e4m3 codes are counted: see `_assert_codes`.

    Args:
        actual, expected: a tensor, or a tuple of tensors.
        bound: largest relative error of the whole and of any 128 x 128 tile; of e4m3 codes that of
            the values they were rounded from. 0 asks for equality.
        what: names the tensor in the message.
    """
    if isinstance(expected, tuple):
        for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
            name = getattr(expected, "_fields", range(len(expected)))[i]
            assert_close(a, e, bound, f"{what}.{name}")
        return
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, not {expected.shape}"
    assert actual.dtype == expected.dtype, f"{what}: dtype {actual.dtype}, not {expected.dtype}"
    if not expected.numel():
        return
    actual, expected = actual.cpu(), expected.cpu()
    if expected.dtype == FP8:
        _assert_codes(actual.float(), expected.float(), bound, what)
        return
    if not expected.dtype.is_floating_point:
        wrong = (actual != expected).nonzero()
        assert not len(wrong), (
            f"{what}: {len(wrong)} of {expected.numel()} values differ, first at "
            f"{wrong[0].tolist()}: {actual[tuple(wrong[0])]} instead of {expected[tuple(wrong[0])]}"
        )
        return
    spared = 2**0.5 * torch.finfo(expected.dtype).eps if bound else 0.0
    whole = relative_error(actual, expected, spared)
    tile, (row, col) = worst_tile(actual, expected, spared)
    if max(whole, tile) > bound:
        a = actual.reshape(-1, actual.shape[-1])[row : row + TILE, col : col + TILE].float()
        e = expected.reshape(-1, expected.shape[-1])[row : row + TILE, col : col + TILE].float()
        at = torch.nan_to_num((a - e).abs(), nan=torch.inf).argmax().item()
        i, j = divmod(int(at), e.shape[1])
        raise AssertionError(
            f"{what}: relative error {whole:.3g} (worst tile {tile:.3g} at row {row}, column "
            f"{col}), bound {bound:.3g}; worst value at [{row + i}, {col + j}]: "
            f"{a[i, j]:.6g} instead of {e[i, j]:.6g}; its row reads "
            f"{a[i, j : j + 6].tolist()} instead of {e[i, j : j + 6].tolist()}"
        )


def _assert_codes(actual: Tensor, expected: Tensor, bound: float, what: str) -> None:
    """e4m3 values are the neighbouring code at most, and that no more often than chance has it.

    A difference d before the rounding puts two values to both sides of a rounding boundary with
    probability d / step, and a step is at least 1/16 of a value: 16 * bound if d is `bound` times
    the value on average. The number of such codes is at most Poisson's and fails where that has a
    chance below 1e-6. Where more cancelled out than is left, d is not small against a step: six
    times the bound's share of the mean size may come on top of one.
    """
    size, both_nan = expected.nan_to_num(0).abs(), actual.isnan() & expected.isnan()
    # Of the smaller of two neighbours, below 2^-6 always 2^-9.
    step = (size.minimum(actual.abs()).clamp(min=2.0**-6).log2().floor() - 3).exp2()
    most = step + 6 * bound * torch.maximum(size, size.square().mean().sqrt())
    other = (actual != expected) & ~both_nan
    far, count = other & ~((actual - expected).abs() <= most), other.sum().double()
    chance = torch.special.gammainc(count, torch.full_like(count, 16 * bound * other.numel()))
    if count and (far.any() or chance < 1e-6):
        at = tuple((far if far.any() else other).nonzero()[0].tolist())
        raise AssertionError(
            f"{what}: {int(count)} of {other.numel()} codes differ (chance {chance:.1e}), "
            f"{int(far.sum())} by more than a step; first at {list(at)}: "
            f"{actual[at]:.6g} instead of {expected[at]:.6g}"
        )
