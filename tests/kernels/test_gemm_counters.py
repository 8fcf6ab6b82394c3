"""What the emulator counts of the GEMM: the wave model's traffic, no conflicts, full tiles."""

import pytest
import torch

from bench.checks.gemm_rows import ROWS, Row, operands
from bench.checks.inputs import Maker
from l4kernels import STATUS
from l4kernels.bench.counters import Counters, count

pytestmark = pytest.mark.skipif("gemm" not in STATUS.kernels, reason=STATUS.reason or "no kernel")

M, N, K_BYTES = 256, 512, 1024


def counted(row: Row, op: str = "gemm", **options) -> Counters:
    make = Maker("cpu", torch.bfloat16, 0)
    args, chosen = operands(make, row, M, N, K_BYTES // row.dtype.itemsize)
    return count(op, args, chosen | options, sms=4)


def loaded_bytes(row: Row) -> int:
    """Of the wave model: every tile loads its rows of A and of B, shared ones once per cluster."""
    tiles = (M // row.block_m) * (N // row.block_n)
    return tiles * (row.block_m // row.cluster_n + row.block_n // row.cluster_m) * K_BYTES


def check(counters: Counters, modelled: int, row: Row) -> None:
    assert counters.touched_bytes <= 1.05 * counters.needed_bytes, f"{row}: {counters}"
    assert counters.requested_bytes <= 1.1 * modelled, f"{row}: {counters}"
    assert counters.bank_conflicts == 0 and counters.launches == 1, f"{row}: {counters}"
    assert counters.tensor_flop <= 1.02 * counters.needed_flop, f"{row}: {counters}"


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_full_tiles_move_what_the_wave_model_says(row):
    activation = "gelu" if row.gelu else "none"
    check(counted(row, activation=activation), loaded_bytes(row) + 2 * M * N, row)


@pytest.mark.parametrize("row", [row for row in ROWS if not row.gelu], ids=str)
def test_swiglu_writes_half(row):
    check(counted(row, activation="swiglu"), loaded_bytes(row) + M * N, row)


@pytest.mark.parametrize("row", [row for row in ROWS if row.fp8_result], ids=str)
def test_fp8_results_leave_in_whole_sectors(row):
    check(counted(row, "gemm_swiglu_fp8"), loaded_bytes(row) + M * N // 2 + M * N // 64, row)


@pytest.mark.parametrize("row", [row for row in ROWS if row.swap], ids=str)
def test_splits_of_k_read_nothing_twice(row):
    make = Maker("cpu", torch.bfloat16, 0)
    args, options = operands(make, row, row.block_m, 128, 4096 // row.dtype.itemsize)
    counters = count("gemm", args, options, sms=4)
    check(counters, (row.block_m + 128) * 4096 + 2 * row.block_m * 128, row)


@pytest.mark.parametrize("row", [r for r in ROWS if r.cluster_m > 1 or r.block_m > 128], ids=str)
def test_half_empty_tiles_multiply_nothing_in_vain(row):
    """Of 256 rows that two thread blocks, or the two sub-tiles of a tall tile, share."""
    args, options = operands(Maker("cpu", torch.bfloat16, 0), row, 384, N, 512)
    counters = count("gemm", args, options, sms=4)
    assert counters.tensor_flop <= 1.02 * counters.needed_flop, f"{row}: {counters}"
