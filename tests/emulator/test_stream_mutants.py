"""The emulator on the streaming kernel: each mistake put into it is reported with its cause, or
gives other results.

A mutant is a copy of the kernel's sources with replacements. All of them and the original are one
program, each in a namespace of its own (stream/chain.cuh): the headers of CUDA are read once. It
and what it printed stay in build/ until a source changes.
"""

import fcntl
import hashlib
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from l4kernels.emulation import toolchain
from tests.emulator.emulator_programs import BUILD, HERE, ROOT

SEEDS = 2
FOLDERS = ("ptx", "tile", "host", "kernels/stream_gemm")


Change = tuple[str, str, str]  # a file of csrc, what stands there once, what is put in its place


@dataclass(frozen=True)
class Mutant:
    """`kinds` are those of the report, "result" if the results may be others instead, "conflicts"
    for bank conflicts; none if nothing changes at all."""

    name: str
    kinds: str
    changes: tuple[Change, ...]

    def __str__(self) -> str:
        return self.name.replace(" ", "-")

    def applied(self, sources: dict[str, str]) -> dict[str, str]:
        changed = dict(sources)
        for file, old, new in self.changes:
            path = file if "/" in file else f"kernels/stream_gemm/{file}"
            assert changed[path].count(old) == 1, f"{self}: not once in {path}: {old}"
            changed[path] = changed[path].replace(old, new)
        return changed


@dataclass(frozen=True)
class Run:
    """One line of the program."""

    mutant: str
    how: str  # mode and seed
    kind: str  # of the report, or ""
    results: str  # their hash
    conflicts: int


MAIN, LOAD, FINISH, SMEM = "stream_gemm.cuh", "load.cuh", "finish.cuh", "smem.cuh"
ROWS, SCHEDULE, ARRIVE = "row_major.cuh", "schedule.h", "tile/arrive.cuh"
FULL = "smem.stages.wait_full(stage);"
RELEASE = "if (lane == 0) smem.stages.release(stage.index);"
NEXT_ROWS = "ptx::mbarrier_wait(&smem.rows_full, phase ^= 1);"
DEPENDENT = "ptx::grid_dependency_wait();"
STORE = "for (int j = 0; j < kTiles; ++j) __stcg(workspace.at(own, j), sums[j]);"
COUNT = "for_warp(threadIdx.x % 32 == 0 && arrive_last(counter(), nonce, runs));"
LOADED = "slot == own ? own_sums[j] : __ldcg(workspace.at(slot, j))"
# Nobody finds out that it is the last before it has left its sums.
BLIND: Change = (
    ARRIVE,
    "return ptx::compare_and_swap_acquire(counter, others, 0) == others;",
    "return others == 0;",
)
# Loads past L1 are never old, ordinary ones may be.
THROUGH_L1: Change = (FINISH, "__ldcg(workspace.at(slot, j))", "*workspace.at(slot, j)")
IN_FLIGHT = "shared-in-flight shared-race uninitialised-shared-read mbarrier"
OLD = "result stale-global-read global-race same-value-race"


MUTANTS = [Mutant(name, kinds, tuple(changes)) for name, kinds, *changes in (
    ("all leave their sums", "", BLIND),
    ("sums are read through L1", "", THROUGH_L1),
    # The ring.
    ("a stage is read before it is full", IN_FLIGHT, (MAIN, FULL, "")),
    ("a stage is never released", "deadlock", (MAIN, RELEASE, "")),
    ("a stage is released before it is read", IN_FLIGHT,
     (MAIN, RELEASE, ""), (MAIN, FULL, f"{FULL}\n__syncwarp(); {RELEASE}")),
    ("a stage is filled unasked", IN_FLIGHT, (LOAD, "smem.stages.wait_empty(stage);", "")),
    ("fewer bytes are expected than come", IN_FLIGHT,
     (LOAD, "(full, (stage_end - base) * bytes)", "(full, (stage_end - base - 1) * bytes)")),
    ("a copy runs past the end of its slice", "result",
     (LOAD, "Weights::kTiled && i.slices == 1 ?", "Weights::kTiled ?")),
    # Rows of A.
    ("rows are overwritten", IN_FLIGHT,
     (LOAD, "ptx::mbarrier_wait(&smem.rows_empty, phase ^ 1);", "")),
    ("rows of the item before are read", IN_FLIGHT, (MAIN, NEXT_ROWS, "")),
    ("rows wait for a phase that is over", IN_FLIGHT,
     (MAIN, NEXT_ROWS, NEXT_ROWS.replace("phase ^= 1", "phase"))),
    ("slices take rows from the start", "result",
     (LOAD, "first_k = i.first_block * Weights::kUnitK", "first_k = 0")),
    ("rows lie in the same banks", "conflicts",
     (SCHEDULE, "return blocks * block_bytes + 16;", "return blocks * block_bytes;")),
    ("rows of nobody are left as they were", "result",
     (MAIN, "clear_tail(p, smem", "if (false) clear_tail(p, smem")),
    # Sums of a CTA.
    ("sums are overwritten", "shared-race mbarrier",
     (MAIN, "ptx::mbarrier_wait(&smem.sums_empty[place], (index / smem.kFinishers & 1) ^ 1);", "")),
    ("seven warps' sums are enough", IN_FLIGHT,
     (SMEM, "(&sums_full[i], kStreamConsumers);", "(&sums_full[i], kStreamConsumers - 1);")),
    ("a finisher's phase never flips", f"deadlock {IN_FLIGHT}", (FINISH, "phase ^= 1;", "")),
    # Sums of several CTAs.
    ("the last does not acquire", "acquire-fence-missing stale-global-read", THROUGH_L1,
     ("ptx/memory.cuh", "atom.acquire.gpu.global.cas", "atom.relaxed.gpu.global.cas")),
    ("who arrives does not release", OLD,
     (ARRIVE, "__threadfence();  // partial results before the count", "")),
    ("who arrives last does not acquire", "acquire-fence-missing stale-global-read", BLIND,
     THROUGH_L1, (ARRIVE, "__threadfence();  // the count before the", "// the count before the")),
    ("a run is counted before its sums are there", OLD, (FINISH, STORE, ";"),
     (FINISH, f"return {COUNT}", f"const bool last = {COUNT}\n{STORE}\nreturn last;")),
    ("the count is kept for the replay", "result", BLIND, (ARRIVE, "*counter = 0;", "")),
    ("the count is valid for any launch", "result", (ARRIVE, "expected >> 16 == nonce", "true")),
    ("a run's own sums are added last", "result",
     (FINISH, LOADED, LOADED.replace("own_sums[j]", "float4{}")),
     (FINISH, "    });\n  }\n\n private:\n", "    });\n    for (int j = 0; j < kTiles; ++j) "
      "add(total[j], own_sums[j]);\n  }\n\n private:\n")),
    ("two runs share a slot", OLD, BLIND, (SCHEDULE, "(first ? 0 : 1)", "0")),
    ("row tiles of slices share slots", OLD, (SCHEDULE, "(sliced ? tile : 0)", "0")),
    # Weights that are no tiles.
    ("boxes lie over each other", IN_FLIGHT, (ROWS, "smem + i * kMaxUnitBytes", "smem")),
    ("boxes are all the row tile's first", "result",
     (ROWS, "full, (span.block + i) * kUnitK", "full, span.block * kUnitK")),
    ("boxes are read as if they had no swizzle", "conflicts",
     (ROWS, "swizzle_128(lane", "(lane")),
    ("nothing follows the end of K", "uninitialised-shared-read result",
     (LOAD, "? bytes : 0) + 16 * lane;", "? padded : 0) + 16 * lane;")),
    # Rows that are gathered.
    ("a choice is taken for its token", "global-out-of-bounds result",
     (LOAD, "return index / p.gather.top_k;", "return index;")),
    ("an index outside is followed", "global-out-of-bounds",
     (LOAD, "if (index >= 0 && index < p.m)", "if (true)")),
    ("a row that lies nowhere is left as it was", "uninitialised-shared-read result",
     (LOAD, "(loaded >> r & 1 ? bytes : 0)", "bytes")),
    ("bytes of a row that lies nowhere are expected", "deadlock",
     (LOAD, "__popc(loaded) * bytes", "i.rows * bytes")),
    ("every item takes the first one's rows", "result",
     (LOAD, "own_row, i.row + lane)", "own_row, lane)")),
    ("the order is read before it is there", "dependency-race",
     (MAIN, "  if (p.expert_offsets != nullptr) {\n    if constexpr",
      "  const int early = warp == kWarpRows ? gathered_row<Weights>(p) : -1;\n"
      "  if (p.expert_offsets != nullptr) {\n    if constexpr"),
     (MAIN, "own_row = gathered_row<Weights>(p);", "own_row = early;")),
    ("rows past the end of N are stored", "global-out-of-bounds",
     (FINISH, "both = Weights::kTiled || channel + 8 < p.n;", "both = true;")),
    # The launch before.
    ("rows before it ends", "dependency-race",
     (MAIN, f"{DEPENDENT}\n    if (warp == kWarpRows)",
      f"if (warp != kWarpRows) {DEPENDENT}\n    if (warp == kWarpRows)")),
    ("weights are taken for static", "dependency-race",
     (MAIN, "if (!p.static_weights) {", "if (false) {")),
    ("offsets before it ends", "dependency-race",
     (MAIN, f"prefetch_last_expert(smem, p, source);\n    {DEPENDENT}",
      "prefetch_last_expert(smem, p, source);")),
)]  # fmt: skip
ORIGINAL = "original"


def sources() -> dict[str, str]:
    return {
        str(path.relative_to(ROOT / "csrc")): path.read_text()
        for folder in FOLDERS
        for path in sorted((ROOT / "csrc" / folder).iterdir())
        if path.suffix in (".h", ".cuh")
    }


def write_program(folder: Path) -> None:
    """The sources of each mutant in a folder of its own, and a main file that includes them all."""
    original = sources()
    lines = ['#include "data.h"']
    entries = []
    for number, mutant in enumerate([None, *MUTANTS]):
        space = f"mutant_{number}"
        for path, text in (mutant.applied(original) if mutant else original).items():
            place = folder / space / path
            place.parent.mkdir(parents=True, exist_ok=True)
            own = re.sub(r'(?m)^#include "', f'#include "{space}/', text)
            place.write_text(f"{own}// {space}\n")  # else one file to a compiler's pragma once
        lines += [
            f"#define l4k {space}",
            f'#include "{space}/kernels/stream_gemm/stream_gemm.cuh"',
            f'#include "{space}/host/launch.h"',
            f'#include "{space}/host/tensor_map.h"',
            '#include "chain.cuh"',
            "#undef l4k",
        ]
        entries.append(f'{{"{mutant or ORIGINAL}", {space}::run_chain}}')
    lines.append(f"int main() {{ return run_all({{{', '.join(entries)}}}, {SEEDS}); }}")
    (folder / "main.cu").write_text("\n".join(lines))


def build(folder: Path) -> None:
    write_program(folder)
    flags = ("-std=c++20", "-O2", "-DL4K_EMULATED", toolchain.PTX, *toolchain.READABLE)
    included = [folder, HERE / "stream", ROOT / "csrc", ROOT / "emulator" / "include"]
    for command in (
        [toolchain.need_nvcc(), *flags, *(f"-I{path}" for path in included),
         "-c", f"{folder}/main.cu", "-o", f"{folder}/main.o"],
        ["c++", f"{folder}/main.o", "-o", f"{folder}/main",
         *toolchain.linked_with(toolchain.library())],
    ):  # fmt: skip
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="module")
def runs() -> list[Run]:
    library = toolchain.library()
    files = [HERE / "kernels" / "host.h", *sorted((HERE / "stream").iterdir())]
    drivers = [path.read_text() for path in files]
    text = f"{sorted(sources().items())}{MUTANTS}{drivers}{library}{library.stat().st_mtime_ns}"
    folder = BUILD / "stream" / hashlib.sha256(text.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests of other processes wait for the first
        printed = folder / "printed.txt"
        if not printed.exists():
            build(folder)
            done = subprocess.run(
                [f"{folder}/main"], check=False, capture_output=True, text=True, timeout=600
            )
            assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
            printed.write_text(done.stdout)
    lines = (line.split("|") for line in printed.read_text().splitlines())
    return [Run(*line[:4], int(line[4])) for line in lines]


def test_the_original_is_right_and_the_same_in_every_mode(runs: list[Run]) -> None:
    own = [run for run in runs if run.mutant == ORIGINAL]
    assert len(own) == 3 * SEEDS and len({run.results for run in own}) == 1, own
    assert all(run.kind == "" and run.conflicts == 0 for run in own), own


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_a_mutant_is_reported_or_gives_other_results(mutant: Mutant, runs: list[Run]) -> None:
    right = runs[0].results
    last = [run for run in runs if run.mutant == str(mutant)][-1]
    if last.kind:
        found = last.kind
    elif last.conflicts:
        found = "conflicts"
    else:
        found = "" if last.results == right else "result"
    expected = mutant.kinds.split() or [""]
    assert any(found == kind or (kind and found.startswith(f"{kind}-")) for kind in expected), last
