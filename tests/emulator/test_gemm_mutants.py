"""The emulator on this project's GEMM: each mistake put into it is reported with its cause."""

import pytest

from tests.emulator.gemm_mutants import Mutant, check_original, check_reported, program

# Configurations of configs.h.
PLAIN, PAIR, SWAPPED = "bf16_128x128", "bf16_128x256_2x1", "bf16_swap_16x128"
HALVED = "bf16_128x80_2x1"  # whose pairs split K in the program
PROMOTED_PAIR, TALL_PAIR = "fp8_128x128_1x2_promote", "fp8_256x128_1x2_promote"

WAIT = "ptx::grid_dependency_wait();\n"
START = "  if (ctas > 1) {\n    ptx::cluster_arrive_relaxed();\n    ptx::cluster_wait();\n  }\n"
END = " else if (ctas > 1) {\n    ptx::cluster_sync();\n  }\n"
MUTANTS = [
    Mutant("A before the previous kernel ends", PLAIN, "gemm.cuh", f"{WAIT}  for (;", "for (;",
           "dependency-race"),
    Mutant("a stage is released while it is read", PLAIN, "gemm.cuh",
           "if (block > 0) release(smem, previous);",
           "release(smem, stage.index);", "shared-in-flight shared-race mbarrier"),
    Mutant("a stage is filled unasked", PLAIN, "gemm.cuh", "smem.ring.wait_empty(stage);", "",
           "shared-in-flight shared-race mbarrier"),
    Mutant("bytes of one box are expected", PLAIN, "gemm.cuh", "(full, C.stage_bytes())",
           "(full, C.block_n * 128)", "mbarrier shared-in-flight shared-race"),
    Mutant("no fence before wgmma", PLAIN, "gemm.cuh", "ptx::wgmma_fence();", "",
           "wgmma-fence-missing"),
    Mutant("no proxy fence before the store", PLAIN, "epilogue.cuh", "ptx::fence_proxy_async();",
           "", "proxy-fence-missing"),
    Mutant("the staged tile is overwritten", PLAIN, "epilogue.cuh",
           "if (at.warp == 0 && at.lane == 0) ptx::tma_store_wait_read<0>();", "",
           "shared-in-flight"),
    Mutant("too many registers", PLAIN, "configs.h", "== 2 ? 104 : 232", "== 2 ? 112 : 240",
           "setmaxnreg-pool"),
    Mutant("the other CTA's barriers are not ready", PAIR, "gemm.cuh", f"elsewhere.\n{START}",
           "elsewhere.\n", "cluster-not-started mbarrier shared-race"),
    Mutant("a CTA leaves early", PAIR, "gemm.cuh", END, "\n",
           "cluster-exited arrival-at-exit mbarrier shared-race"),
    Mutant("one CTA's release is enough", PAIR, "gemm.cuh", "init(2 * C.cluster())", "init(2)",
           "mbarrier shared-in-flight shared-race"),
    Mutant("half the slice is sent twice", PAIR, "gemm.cuh", "rank * kSlice * 128",
           "0 * kSlice * 128", "uninitialised-shared-read shared-race shared-in-flight"),
    Mutant("products are added before they are there", PROMOTED_PAIR, "gemm.cuh",
           "ptx::wgmma_wait<0>();\n      if (sub_tile", "if (sub_tile",
           "register-in-flight shared-in-flight"),
    Mutant("a stage is released after its first sub-tile", TALL_PAIR, "gemm.cuh",
           "sub_tile == sub_tiles - 1", "sub_tile == 0", "shared-in-flight shared-race mbarrier"),
    Mutant("a tile's second sub-tile is forgotten", TALL_PAIR, "gemm.cuh", ">= sub_tiles) break",
           "> 0) break", "deadlock"),
    Mutant("maxima are overwritten", PROMOTED_PAIR, "epilogue.cuh",
           " + exchange % 2 * C.block_m", "", "shared-race"),
    Mutant("maxima are read too early", PROMOTED_PAIR, "epilogue.cuh",
           "ptx::mbarrier_wait_cluster(full, exchange / 2 % 2);", "",
           "shared-in-flight uninitialised-shared-read"),
    Mutant("maxima of two tiles come to one barrier", PROMOTED_PAIR, "epilogue.cuh",
           ("smem.maxima_full[exchange % 2]", "(full, exchange / 2 % 2)"),
           ("smem.maxima_full[0]", "(full, exchange % 2)"),
           "shared-in-flight uninitialised-shared-read mbarrier", arguments="1"),
    Mutant("factors before the previous kernel ends", PROMOTED_PAIR, "lookahead.cuh",
           "ptx::grid_dependency_wait();", "", "dependency-race"),
    Mutant("a tile is taken before it is published", PLAIN, "lookahead.cuh",
           "smem.tile_ring.wait_full(slot);", "", "shared-race uninitialised-shared-read"),
    Mutant("a published tile is overwritten", PLAIN, "lookahead.cuh",
           "smem.tile_ring.wait_empty(slot);", "", "shared-race mbarrier", arguments="1"),
    Mutant("a residual is read before it is there", PLAIN, "residual.cuh",
           "smem.ring.wait_full(stage);\n    const", "const", "shared-in-flight shared-race"),
    Mutant("a residual's stage is free before all warps have read it", PLAIN, "epilogue.cuh",
           "ptx::named_barrier_sync(barrier, 128);\n  if (share", "if (share",
           "shared-in-flight shared-race"),
    Mutant("sums are read too early", SWAPPED, "swapped.cuh", "smem.cluster_barrier.wait(0);", "",
           "shared-race uninitialised-shared-read mbarrier"),
    Mutant("sums are overwritten", SWAPPED, "swapped.cuh", "smem.cluster_barrier.wait(1);", "",
           "shared-race mbarrier"),
    Mutant("a split leaves before its sums are read", SWAPPED, "gemm.cuh",
           "if (ctas > 1 && warpgroup > 0) smem.cluster_barrier.wait(1);", "",
           "cluster-exited arrival-at-exit mbarrier shared-race"),
    Mutant("a cluster barrier without the CTA's other threads", SWAPPED, "../../tile/cluster.cuh",
           "ptx::named_barrier_sync(named_barrier, threads);", "",
           "shared-race uninitialised-shared-read"),
    Mutant("the other half's sums are read too early", HALVED, "gemm.cuh",
           "  smem.cluster_barrier.wait(0);\n", "",
           "shared-race uninitialised-shared-read mbarrier"),
    Mutant("half sums are overwritten", HALVED, "gemm.cuh",
           "  smem.cluster_barrier.wait(1);\n  return", "  return", "shared-race mbarrier"),
    Mutant("half sums lie where results are staged", HALVED, "gemm.cuh",
           "(smem.staging + 2 * C.result_bytes())", "(smem.staging)", "shared-in-flight"),
    Mutant("both CTAs finish the same rows", HALVED, "gemm.cuh", "consumer == rank",
           "consumer == 0", "global-race"),
    Mutant("halves of K share a box of B", HALVED, "lookahead.cuh",
           "!(C.split_k && cluster.splits > 1);\n}", "true;\n}",
           "result shared-race shared-in-flight mbarrier"),
    Mutant("halves of K overlap", HALVED, "lookahead.cuh",
           "k_blocks * (cluster.rank + 1) / cluster.splits", "k_blocks / 2 + cluster.rank",
           "result deadlock mbarrier"),
]  # fmt: skip


@pytest.mark.parametrize("config", [PLAIN, PAIR, PROMOTED_PAIR, TALL_PAIR, SWAPPED, HALVED])
def test_original_is_right(config: str) -> None:
    check_original(program("gemm", config))


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_mutant_is_reported(mutant: Mutant) -> None:
    check_reported(program("gemm", mutant.config, mutant), mutant)
