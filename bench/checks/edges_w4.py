"""int4 products at their edges, in every configuration, for the emulator and for a GPU."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from bench.checks.gemm_configs import EDGES
from bench.checks.inputs import Maker
from bench.checks.machine import Machine, edge
from l4kernels import ops

F32 = torch.float32
HOSTILE = {
    "descending": [0, 12, 5, 20, 24],
    "beyond M": [0, 9, 2**31 - 1, 20, 24],
    "negative": [0, -5, 3, 7, 99],
    "not from 0": [3, 9, 9, 20, 24],
    "the smallest number": [-(2**31), -(2**31), 24, -(2**31), 2**31 - 1],
    "all beyond": [2**31 - 1] * 5,
}
"""Offsets of four experts that have 24 rows, each wrong."""


def exact_tiles(make: Maker, *shape: int, group: int = 128, zeros: bool = False) -> Tensor:
    """Tiles `[(E,) N, K]` of every code, with powers of two of both signs as scales: products with
    `exact_rows` are the same numbers in whatever order float32 adds them."""
    *rows, k = shape
    codes = make.integers(*shape, low=-8, high=8)
    powers = 2.0 ** make.integers(*rows, k // group, low=-3, high=1)
    signs = make.integers(*powers.shape, high=2) * 2 - 1
    points = make.integers(*powers.shape, high=16, dtype=torch.uint8) if zeros else None
    return ops.tile_int4(ops.pack_int4(codes), (powers * signs).bfloat16(), points)


def exact_rows(make: Maker, m: int, k: int) -> Tensor:
    return make.integers(m, k, low=-4, high=5).bfloat16()


def int4_configs(run: Callable[[int], Any]) -> Iterator[int]:
    """Those that take the rows of `run(config)`: 0 streams the weights, the others are tiles of
    csrc/kernels/w4_gemm."""
    for config in itertools.count():
        try:
            run(config)
        except RuntimeError as error:
            if "expected config to be" in str(error):
                return  # there are no more
            if "expected config" not in str(error):
                raise
            continue  # not for so many rows
        yield config


def exact_products(m: Machine, a: Tensor, b: Tensor, **options: Any) -> None:
    options["out_dtype"] = F32
    expected = ops.w4_gemm.reference(a, b, **options)
    results = []
    m.error()  # what earlier calls left
    with m.dispatch(sms=3):
        for _ in int4_configs(
            lambda config: results.append(ops.w4_gemm(a, b, config=config, **options))
        ):
            assert torch.equal(results[-1], expected), f"the configuration before {len(results)}"
    assert (results or len(a) > 56) and m.error() == ""  # all may stream so many


@edge
def int4_products_of_every_configuration_are_exact(m: Machine) -> None:
    for group, zeros in ((128, False), (64, True), (32, False)):
        for rows in (1, 16, 130):
            b = exact_tiles(m.make, 144, 640, group=group, zeros=zeros)
            exact_products(m, exact_rows(m.make, rows, 640), b)


@edge
def int4_experts_of_every_awkward_size_are_exact(m: Machine) -> None:
    for counts in (EDGES, [i % 3 for i in range(40)], [0] * 16 + [20], [0, 0]):
        b = exact_tiles(m.make, len(counts), 48, 384)
        a = exact_rows(m.make, sum(counts) + 3, 384)
        exact_products(m, a, b, expert_offsets=m.make.offsets(counts))


@edge
def int4_offsets_are_clamped_and_reported(m: Machine) -> None:
    """Each row comes out as the product of some expert, or as zeros."""
    rows, n, k = 24, 32, 384
    a, b = exact_rows(m.make, rows, k), exact_tiles(m.make, 4, n, k)
    each = [ops.w4_gemm.reference(a, expert, out_dtype=F32) for expert in b]
    each.append(torch.zeros_like(each[0]))
    for name, bad in HOSTILE.items():
        # The running maximum within [0, M].
        ends = torch.tensor(bad[1:]).clamp(0, rows).cummax(0).values
        owners = torch.searchsorted(ends, torch.arange(rows), right=True).tolist()
        expected = torch.stack([each[owner][row] for row, owner in enumerate(owners)])
        options = {"expert_offsets": m.make.tensor(bad), "out_dtype": F32}
        with m.dispatch(sms=3):
            found = [ops.w4_gemm(a, b, **options), ops.w4_gemm(a, b, config=0, **options)]
        assert m.error() == "w4_gemm: expert_offsets", name
        assert all(torch.equal(got, expected) for got in found), name


@edge
def int4_rows_have_the_same_bits_at_any_place_of_few(m: Machine) -> None:
    for rows in (8, 16):
        a, b = m.make.randn(rows, 2560), m.make.tiles(48, 2560)
        order = m.make.permutation(rows).long()
        with m.dispatch(sms=5):
            whole, moved = (ops.w4_gemm(x, b, out_dtype=F32) for x in (a, a[order].contiguous()))
        assert torch.equal(whole[order], moved), f"{rows} rows"
