"""int4 weights in tiles: the map of csrc/tile/int4.h bit by bit, and what `w4_gemm` makes of it."""

import shutil
from itertools import product

import pytest
import torch
from torch import Tensor

from bench.checks.cases import cases
from bench.checks.inputs import I32, Maker
from l4kernels import ops
from l4kernels.ops import epilogue, w4
from l4kernels.ops.int4_tiles import TILE_FORMATS
from tests.support import naive
from tools.model import headers

KINDS = [*product((128, 64, 32), (False, True))]
each_kind = pytest.mark.parametrize(("group", "zeros"), KINDS)


def words_of(group: int, zeros: bool) -> int:
    return next(words for words, kind in TILE_FORMATS.items() if kind == (128 // group, zeros))


def make() -> Maker:
    return Maker("cpu", torch.float32, seed=3)


def any_weights(n: int, k: int, group: int, zeros: bool) -> ops.Int4WithZeros:
    """Scales of any bits, NaN among them."""
    weights = make().int4(n, k, group=group, zeros=zeros)
    bits = make().integers(n, k // group, low=-(2**15), high=2**15, dtype=torch.int16)
    return weights._replace(scales=bits.view(torch.bfloat16))


def each(change, weights: ops.Int4WithZeros) -> ops.Int4WithZeros:
    return ops.Int4WithZeros(*(None if t is None else change(t) for t in weights))


def same(got: ops.Int4WithZeros, wanted: ops.Int4WithZeros) -> bool:
    pairs = [pair for pair in zip(got, wanted, strict=True) if pair != (None, None)]
    return all(
        a.shape == b.shape and torch.equal(a.contiguous().view(torch.uint8), b.view(torch.uint8))
        for a, b in pairs
    )


def field(data: bytes, first_bit: int, bits: int) -> int:
    value = int.from_bytes(data[first_bit // 8 : first_bit // 8 + 2], "little")
    return value >> first_bit % 8 & (1 << bits) - 1


@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
@each_kind
def test_every_code_at_every_place_is_where_the_header_says(group, zeros):
    facts = headers.ask(f"int4 {128 // group} {zeros:d}\n")
    place = torch.arange(16 * 128).view(16, 128)
    for first in range(16):
        codes = (place * place + place // 16 + first) % 16
        weights = any_weights(16, 128, group, zeros)._replace(packed=ops.pack_int4(codes - 8))
        tiles = ops.tile_int4(*weights)
        data = tiles.numpy().tobytes()
        assert len(data) == facts["bytes"]
        assert [field(data, bit, 4) for bit in facts["codes"]] == codes.flatten().tolist()
        scales = weights.scales.view(torch.int16).int().T.flatten() & 0xFFFF
        assert [field(data, bit, 16) for bit in facts["scales"]] == scales.tolist()
        points = [] if weights.zeros is None else weights.zeros.T.flatten().tolist()
        assert [field(data, bit, 8) for bit in facts["zeros"]] == points
        assert same(ops.untile_int4(tiles), weights)


@each_kind
def test_tiles_and_rows_are_the_same_bits(group, zeros):
    weights = any_weights(48, 384, group, zeros)
    tiles = ops.tile_int4(*weights)
    assert tiles.shape == (3, 3, words_of(group, zeros)) and tiles.is_contiguous()
    assert same(ops.untile_int4(tiles), weights)
    stacked = each(lambda t: torch.stack([t, t.flip(0)]), weights)
    experts = ops.tile_int4(*stacked)
    assert torch.equal(
        experts, torch.stack([tiles, ops.tile_int4(*each(lambda t: t.flip(0), weights))])
    )
    assert same(ops.untile_int4(experts[:, 1:]), each(lambda t: t[:, 16:].contiguous(), stacked))


@each_kind
def test_any_bits_of_tiles_come_back(group, zeros):
    words = words_of(group, zeros)
    tiles = make().integers(2, 3, words, low=-(2**31), high=2**31)
    if zeros:
        tiles[..., words - 4 * 128 // group :] &= 0x0F0F0F0F
    assert torch.equal(ops.tile_int4(*ops.untile_int4(tiles)), tiles)


@each_kind
def test_nothing_of_something_is_empty(group, zeros):
    weights = make().int4(0, 256, group=group, zeros=zeros)
    tiles = ops.tile_int4(*weights)
    assert tiles.shape == (0, 2, words_of(group, zeros)) and same(ops.untile_int4(tiles), weights)


@each_kind
def test_dequantised_values(group, zeros):
    weights = make().int4(3, 7, 256, group=group, zeros=zeros)
    wanted = torch.from_numpy(naive.int4_rows(*weights))
    assert torch.equal(ops.dequantize_int4(*weights).double(), wanted)
    half = ops.dequantize_int4(*weights, dtype=torch.bfloat16)
    assert torch.equal(half, wanted.float().bfloat16())


@each_kind
@pytest.mark.parametrize("blocks", [1, 1 << 20])
def test_tiles_and_rows_give_the_same_product(group, zeros, blocks, monkeypatch):
    """Whole, and expanded in blocks of rows."""
    monkeypatch.setattr(epilogue, "_BLOCK_ELEMENTS", blocks)
    a, weights = make().randn(9, 256), make().int4(3, 304, 256, group=group, zeros=zeros)
    options = {
        "zeros": weights.zeros,
        "expert_offsets": torch.tensor([0, 4, 4, 8], dtype=I32),
        "row_scale": make().uniform(9),
        "activation": "swiglu",
    }
    by_rows = ops.w4_gemm(a, weights.packed, weights.scales, **options)
    tiles = ops.tile_int4(*weights)
    assert torch.equal(ops.w4_gemm(a, tiles, **options | {"zeros": None}), by_rows)
    dense = ops.gemm(
        a, ops.dequantize_int4(*weights), **{k: v for k, v in options.items() if k != "zeros"}
    )
    torch.testing.assert_close(by_rows, dense)


@each_kind
@pytest.mark.parametrize("scales", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("n", [1, 40, 200])
def test_rows_of_any_number_equal_naive_loops(group, zeros, scales, n):
    """What no kernel takes: scales beside the codes, float32 ones, N that fills no tile."""
    a, weights = make().randn(3, 256), make().int4(n, 256, group=group, zeros=zeros)
    given = weights.scales.to(scales)
    if scales == torch.float32:
        given = given * 1.2345678
    got = ops.w4_gemm(a, weights.packed, given, zeros=weights.zeros, residual=make().randn(3, n))
    (wanted,) = naive.w4_gemm(
        a, weights.packed, given, zeros=weights.zeros, residual=make().randn(3, n)
    )
    torch.testing.assert_close(got.double(), torch.from_numpy(wanted), rtol=2e-5, atol=2e-5)


def test_scales_far_from_one_only_scale_the_result():
    a, weights = make().randn(5, 256), make().int4(32, 256)
    plain = ops.w4_gemm(a, ops.tile_int4(*weights))
    for power in (-100, -60, 60, 120):
        tiles = ops.tile_int4(weights.packed, weights.scales * 2.0**power)
        assert torch.equal(ops.w4_gemm(a, tiles).double(), plain.double() * 2.0**power)


@pytest.mark.parametrize("tiled", [True, False])
def test_a_weight_is_never_expanded_whole(tiled, monkeypatch):
    largest = 0

    def dequantize(*weights: Tensor) -> Tensor:
        nonlocal largest
        values = ops.dequantize_int4(*weights)
        largest = max(largest, values.numel())
        return values

    monkeypatch.setattr(w4, "dequantize_int4", dequantize)
    a, weights = make().randn(2, 1024), make().int4(2, 4096, 1024)
    given = (ops.tile_int4(*weights),) if tiled else weights[:2]
    ops.w4_gemm(a, *given, expert_offsets=torch.tensor([0, 1, 2], dtype=I32))
    assert 0 < largest <= 1 << 20


def test_what_the_helpers_return_unpacks_into_the_others():
    a, w = make().randn(2, 128), make().randn(16, 128)
    weight = ops.quantize_int4(w)
    tiles = ops.tile_int4(*weight)
    wanted = ops.w4_gemm(a, *weight)
    assert torch.equal(ops.w4_gemm(a, tiles), wanted)
    assert torch.equal(ops.tile_int4(*ops.untile_int4(tiles)), tiles)
    assert torch.equal(ops.dequantize_int4(*ops.untile_int4(tiles)), ops.dequantize_int4(*weight))


def test_the_cases_of_kernels_are_tiles():
    given = {"scales", "zeros"}
    assert all(len(case.args) == 2 and not given & {*case.kwargs} for case in cases("w4_gemm"))
    assert {case.args[1].shape[-1] for case in cases("w4_gemm")} == {*TILE_FORMATS}


A = torch.zeros(2, 256)
PACKED = torch.zeros(16, 32, dtype=I32)
SCALES, ZEROS = torch.ones(16, 2).bfloat16(), torch.zeros(16, 2, dtype=torch.uint8)
TILES = torch.zeros(1, 2, 264, dtype=I32)
OFFSETS = torch.tensor([0, 2], dtype=I32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.tile_int4(PACKED.float(), SCALES), "tile_int4: expected packed to be int32"),
        (
            lambda: ops.tile_int4(PACKED[0], SCALES[0]),
            r"packed to be \[..., N, K / 8\], got \[32\]",
        ),
        (
            lambda: ops.tile_int4(PACKED[:8], SCALES[:8]),
            r"multiple of 16 .add rows .* got \[8, 32\]",
        ),
        (lambda: ops.tile_int4(PACKED[:, :8], SCALES), "K a multiple of 128"),
        (lambda: ops.tile_int4(PACKED, SCALES.float()), "scales to be bfloat16, got .* float32"),
        (
            lambda: ops.tile_int4(PACKED, SCALES[:, :1]),
            r"scales to be \[16, 2\] .groups of 128., \[16, 4\] .groups of 64., \[16, 8\]",
        ),
        (lambda: ops.tile_int4(PACKED, SCALES, ZEROS.int()), "zeros to be uint8"),
        (lambda: ops.tile_int4(PACKED, SCALES, ZEROS[:, :1]), r"zeros to be \[16, 2\]"),
        (lambda: ops.tile_int4(PACKED, SCALES, ZEROS + 16), "zeros from 0 to 15, got 16"),
        (lambda: ops.untile_int4(TILES.float()), "untile_int4: expected tiles to be int32"),
        (
            lambda: ops.untile_int4(TILES[0]),
            r"tiles to be \[N / 16, K / 128, W\] or .*got \[2, 264",
        ),
        (lambda: ops.untile_int4(TILES[..., :256]), "W one of 264, 268, .* got"),
        (lambda: ops.untile_int4(TILES.mT.contiguous().mT), "dimension of tiles to be contiguous"),
        (lambda: ops.dequantize_int4(PACKED, SCALES, torch.float32), "zeros to be a tensor, got"),
        (lambda: ops.dequantize_int4(PACKED, SCALES, ZEROS.int()), "zeros to be uint8"),
        (
            lambda: ops.w4_gemm(A, PACKED),
            r"packed without scales to be \[N / 16, 2, W\] .* got \[16,",
        ),
        (
            lambda: ops.w4_gemm(A, TILES[:, :1].clone()),
            r"to be \[N / 16, 2, W\] or .* got \[1, 1, 264",
        ),
        (lambda: ops.w4_gemm(A, TILES[:0]), "packed without scales to be .*, got"),
        (lambda: ops.w4_gemm(A, TILES[..., :256].clone()), "W one of 264, .*, got"),
        (lambda: ops.w4_gemm(A, TILES.mT.contiguous().mT), "packed to be contiguous"),
        (lambda: ops.w4_gemm(A, TILES, zeros=ZEROS), "no zeros with packed in tiles"),
        (lambda: ops.w4_gemm(A, TILES, expert_offsets=OFFSETS), "expert_offsets without it"),
        (lambda: ops.w4_gemm(A, TILES[None]), r"a weight \[E, ...\] alone"),
        (lambda: ops.w4_gemm(A, TILES, bias=torch.ones(8)), r"bias to be \[16\], got \[8\]"),
        (lambda: ops.w4_gemm(A, TILES, SCALES), r"packed to be \[N, 32\] or .* got \[1, 2, 264\]"),
        (lambda: ops.w4_gemm(A, PACKED, SCALES.half()), "scales to be bfloat16 or float32"),
        (lambda: ops.w4_gemm(A, PACKED, SCALES.mT.contiguous().mT), "scales to be contiguous"),
        (lambda: ops.w4_gemm(A, PACKED, SCALES, zeros=ZEROS[:8]), r"zeros to be \[16, 2\]"),
    ],
)
def test_arguments(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
