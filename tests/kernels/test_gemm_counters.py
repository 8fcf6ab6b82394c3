"""What the emulator counts of the GEMM: the wave model's traffic, no conflicts, full tiles."""

import pytest
import torch

from bench.checks.gemm_configs import CONFIGS, Config, operands
from bench.checks.inputs import Maker
from l4kernels import STATUS
from l4kernels.bench.counters import Counters, count

pytestmark = pytest.mark.skipif("gemm" not in STATUS.kernels, reason=STATUS.reason or "no kernel")

M, K_BYTES = 256, 1024


def columns(config: Config) -> int:
    """About 512, in whole tiles of pairs."""
    return 512 // (2 * config.block_n) * 2 * config.block_n


def counted(config: Config, op: str = "gemm", **options) -> Counters:
    make = Maker("cpu", torch.bfloat16, 0)
    args, chosen = operands(make, config, M, columns(config), K_BYTES // config.dtype.itemsize)
    return count(op, args, chosen | options, sms=4)


def loaded_bytes(config: Config) -> int:
    """Of the wave model: every tile loads its rows of A and of B, shared ones once per cluster."""
    tiles = (M // config.block_m) * (columns(config) // config.block_n)
    return (
        tiles * (config.block_m // config.cluster_n + config.block_n // config.cluster_m) * K_BYTES
    )


def check(counters: Counters, modelled: int, config: Config) -> None:
    assert counters.touched_bytes <= 1.05 * counters.needed_bytes, f"{config}: {counters}"
    assert counters.requested_bytes <= 1.1 * modelled, f"{config}: {counters}"
    assert counters.bank_conflicts == 0 and counters.launches == 1, f"{config}: {counters}"
    assert counters.tensor_flop <= 1.02 * counters.needed_flop, f"{config}: {counters}"


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_full_tiles_move_what_the_wave_model_says(config):
    activation = "gelu" if config.gelu else "none"
    stored = 2 * M * columns(config)
    check(counted(config, activation=activation), loaded_bytes(config) + stored, config)


@pytest.mark.parametrize("config", [c for c in CONFIGS if c.swiglu and not c.gelu], ids=str)
def test_swiglu_writes_half(config):
    stored = M * columns(config)
    check(counted(config, activation="swiglu"), loaded_bytes(config) + stored, config)


@pytest.mark.parametrize("config", [config for config in CONFIGS if config.fp8_result], ids=str)
def test_fp8_results_leave_in_whole_sectors(config):
    results = M * columns(config) // 2
    check(
        counted(config, "gemm_swiglu_fp8"), loaded_bytes(config) + results + results // 32, config
    )


@pytest.mark.parametrize("config", [c for c in CONFIGS if c.swap or c.split_k], ids=str)
def test_splits_of_k_read_nothing_twice(config):
    make = Maker("cpu", torch.bfloat16, 0)
    m, n = config.block_m, config.block_n
    args, options = operands(make, config, m, n, 4096 // config.dtype.itemsize)
    if config.split_k:
        options["config"] += 200
    counters = count("gemm", args, options, sms=4)
    check(counters, (m + n) * 4096 + 2 * m * n, config)


@pytest.mark.parametrize(
    "config", [c for c in CONFIGS if c.cluster_m > 1 or c.block_m > 128], ids=str
)
def test_half_empty_tiles_multiply_nothing_in_vain(config):
    """Of 256 rows that two thread blocks, or the two sub-tiles of a tall tile, share."""
    args, options = operands(Maker("cpu", torch.bfloat16, 0), config, 384, columns(config), 512)
    counters = count("gemm", args, options, sms=4)
    assert counters.tensor_flop <= 1.02 * counters.needed_flop, f"{config}: {counters}"
