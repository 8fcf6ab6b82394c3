"""The emulator on this project's GEMM: each mistake put into it is reported with its cause.

A mutant is a copy of the kernel's sources with one replacement, compiled with a small host program
(gemm/chain.cu). Programs stay in build/ until a source changes.
"""

import hashlib
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from l4kernels.emulation import toolchain
from tests.emulator.emulator_programs import (
    BUILD,
    HERE,
    MODES,
    ROOT,
    Outcome,
    read_outcome,
)
from tools.gemm_configs import gemm_config

# Configurations of configs.h.
PLAIN, PAIR, SWAPPED = "bf16_128x128", "bf16_128x256_2x1", "bf16_swap_16x128"
PROMOTED_PAIR, TALL_PAIR = "fp8_128x128_1x2_promote", "fp8_256x128_1x2_promote"
SEEDS = 2


@dataclass(frozen=True)
class Mutant:
    """`old` becomes `new` in a file of kernels/gemm; the report must be one of `kinds`."""

    name: str
    config: str
    file: str
    old: str
    new: str
    kinds: str

    def __str__(self) -> str:
        return f"{self.config}-{self.name}".replace(" ", "-")


WAIT = "ptx::grid_dependency_wait();\n"
START = "  if (ctas > 1) {\n    ptx::cluster_arrive_relaxed();\n    ptx::cluster_wait();\n  }\n"
END = " else if (ctas > 1) {\n    ptx::cluster_sync();\n  }\n"
MUTANTS = [
    Mutant("A before the previous kernel ends", PLAIN, "gemm.cuh", f"{WAIT}  Stage", "Stage",
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
    Mutant("maxima are overwritten", PROMOTED_PAIR, "epilogue.cuh", " + parity * C.block_m", "",
           "shared-race"),
    Mutant("maxima are read too early", PROMOTED_PAIR, "epilogue.cuh",
           "smem.cluster_barrier.wait(parity);", "",
           "shared-race uninitialised-shared-read mbarrier"),
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
]  # fmt: skip


def program(config: str, mutant: Mutant | None = None) -> Path:
    """Compiles a copy of the sources, unless the same one has been compiled before."""
    sources = {
        path.relative_to(ROOT / "csrc"): path.read_text()
        for folder in ("ptx", "tile", "host", "kernels/gemm", "kernels/stream_gemm")
        for path in sorted((ROOT / "csrc" / folder).iterdir())
        if path.suffix in (".h", ".cuh")
    }
    if mutant is not None:
        at = Path(os.path.normpath(Path("kernels/gemm", mutant.file)))
        assert sources[at].count(mutant.old) == 1, f"{mutant}: not once in {at}: {mutant.old}"
        sources[at] = sources[at].replace(mutant.old, mutant.new)
    driver = HERE / "gemm" / "chain.cu"
    text = f"{config}{sorted(sources.items())}{driver.read_text()}{toolchain.library()}"
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    binary = BUILD / "gemm" / name
    if binary.exists():
        return binary
    copy = BUILD / "gemm" / f"{name}.{os.getpid()}"
    for path, content in sources.items():
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        (copy / path).write_text(content)
    flags = ("-std=c++20", "-O2", toolchain.PTX, *toolchain.READABLE)
    made = f"{copy}/chain.o"
    for command in (
        [toolchain.need_nvcc(), *flags, f"-DCONFIG={gemm_config(config).number}",
         "-I", str(copy), "-c", str(driver), "-o", made],
        ["c++", made, "-o", f"{copy}/chain", *toolchain.linked_with(toolchain.library())],
    ):  # fmt: skip
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
    os.replace(copy / "chain", binary)
    shutil.rmtree(copy)
    return binary


def run(binary: Path, mode: str, seed: int) -> Outcome:
    environment = dict(os.environ, L4K_EMU=f"mode={mode},seed={seed},sms=4,threads=1,stop=benign")
    done = subprocess.run(
        [str(binary)], check=False, capture_output=True, text=True, env=environment, timeout=300
    )
    return read_outcome(done.returncode, done.stdout + done.stderr)


@pytest.mark.parametrize("config", [PLAIN, PAIR, PROMOTED_PAIR, TALL_PAIR, SWAPPED])
def test_original_is_right(config: str) -> None:
    binary = program(config)
    for seed in range(SEEDS):
        for mode in MODES:
            outcome = run(binary, mode, seed)
            assert outcome.passed, f"{mode} {seed}: {outcome.output}"


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_mutant_is_reported(mutant: Mutant) -> None:
    binary = program(mutant.config, mutant)
    attempts = []
    for seed in range(SEEDS):
        for mode in MODES:
            outcome = run(binary, mode, seed)
            if outcome.kind is not None:
                explained = any(outcome.kind.startswith(kind) for kind in mutant.kinds.split())
                assert explained, outcome.output
                return
            attempts.append(f"{mode} {seed}: status {outcome.status}")
    pytest.fail(f"{mutant}: no report; " + "; ".join(attempts))
