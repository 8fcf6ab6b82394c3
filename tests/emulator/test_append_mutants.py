"""The emulator on flash_decode_append: each mistake put into it is reported with its cause, or
gives other results.

A mutant is a copy of the kernel's sources with one replacement. All of them and the original are
one library, each in a namespace of its own (flash_decode/launch.cuh), which stays in build/ until a
source changes. Two steps of decoding are launched, dependent, each with its plan, its embedding and
a layer: the second reads what the first has stored, some of it before it waits.
"""

import ctypes
import fcntl
import hashlib
import itertools
import re
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from bench.checks.inputs import I32, Maker
from bench.checks.kernel_checks import same_bits
from l4kernels import STATUS, ops
from l4kernels.emulation import toolchain
from l4kernels.ops.decode_plan import PLAN_WORDS
from l4kernels.testing import emulated
from l4kernels.testing.emulator import BUILD as LIBRARIES
from tests.emulator.emulator_programs import BUILD, HERE, MODES, ROOT

pytestmark = pytest.mark.skipif(not STATUS.loaded, reason="no compiled kernels: run `make build`")

SEEDS = 2
FOLDERS = ("ptx", "tile", "host", "kernels/flash_decode", "kernels/embed")
TOKENS, GROUP, PAGE, COLUMNS, SMS = 16, 10, 16, 18, 7  # three blocks of rows: 64, 64 and 32
START = (247, 4, 0)  # keys before the first step: its new ones lie in two tiles
OLD = "result stale-global-read global-race same-value-race"
EARLY = "shared-race uninitialised-shared-read"


class Mutant(NamedTuple):
    """`kinds` are those of the report, "result" if the results may be others instead, "conflicts"
    for bank conflicts. `old` stands once in `file`. The step may attend again, by flash_decode."""

    name: str
    kinds: str
    file: str
    old: str
    new: str
    again: bool = False

    def __str__(self) -> str:
        return self.name.replace(" ", "-")


APPEND, LOAD, SCHEDULE, COMBINE, DECODE, PLAN, PLANNER = (
    f"kernels/flash_decode/{name}"
    for name in (
        "append.cuh", "load.cuh", "schedule.h", "combine.cuh", "flash_decode.cuh", "plan.cuh",
        "planner.cuh",
    )
)  # fmt: skip
WAIT, TRIGGER = "  ptx::grid_dependency_wait();\n", "  ptx::grid_launch_dependents();\n"
TAKES = "  const bool is_ours = __syncthreads_and(take_place(p, launch, smem));\n"
LAST = "ptx::increment_wrapping(at, count - 1)"
OWNERS = "return {before(k), before(k + 1)};"
MUTANTS = [
    Mutant("the split before is overwritten", EARLY, APPEND,
           "decode_consumers_sync();  // nobody reads any more", "// nobody reads any more"),
    Mutant("queries are read before they are there", EARLY, APPEND,
           "decode_consumers_sync();  // queries, keys and values before", "// before"),
    Mutant("the first split owns the newest key", f"{EARLY} result", SCHEDULE, OWNERS,
           "return {0, k == 0 ? tokens : 0};"),
    Mutant("every split owns the new keys", OLD, SCHEDULE, OWNERS, "return {0, tokens};"),
    Mutant("every block of rows writes the new keys", OLD, APPEND,
           "if (item.block_row == 0) ptx::store", "ptx::store"),
    Mutant("new keys are read from the cache", OLD, LOAD,
           "end_key = kAppends ? work.sequence.first_position : ", "end_key = "),
    Mutant("new keys are looked for in the ring", "result", APPEND,
           "return is_new ? ptx::smem_address(smem.fresh[is_value][token]) : in_ring;",
           "return in_ring;"),
    Mutant("the last old key counts as new", f"{EARLY} result", APPEND,
           "first_key = item.work.sequence.first_position;",
           "first_key = item.work.sequence.first_position - 1;"),
    Mutant("a new row is permuted by its token", "result conflicts", APPEND,
           "((first_key + head.token) & 7)", "(head.token & 7)"),
    Mutant("rotation by a neighbour's position", "result", APPEND,
           "position = p.positions[t];", "position = p.positions[t ^ 1];"),
    Mutant("values are normalised", "result", "tile/rope.cuh",
           "if (!is_value) factor *=", "factor *="),
    Mutant("keys are not stored", "result", APPEND,
           "if (item.block_row == 0) ptx::store_streaming(cache, vector);", ";"),
    Mutant("a cached key is written", OLD, APPEND,
           "return {place, slot >= 0 && !bad};", "return {place, place >= 0 && !bad};"),
    Mutant("queries of the other block of rows", "result shared-out-of-bounds uninitialised",
           APPEND, "return smem.query(row - item.block_row);", "return smem.query(row % 64 ^ 1);"),
    Mutant("queries lie in the same banks", "conflicts", APPEND,
           "kDecodeHeadDim + (kFp8 ? 16 : 8);", "kDecodeHeadDim;"),
    # What may be read before the launches before have ended.
    Mutant("queries before the projection has ended", "dependency-race", DECODE,
           "ptx::grid_dependency_wait();  // for q", "// for q"),
    Mutant("new keys before the launch that writes them has ended", "dependency-race", LOAD,
           "if (!kAppends && next_key >", "if (false && next_key >", again=True),
    Mutant("only the last key block is waited for", "dependency-race", LOAD,
           "next_key > work.sequence.first_position", "next_key >= end_key", again=True),
    Mutant("the embedding lets the layers start early", "dependency-race",
           "kernels/embed/embed.cuh", WAIT + TRIGGER, TRIGGER + WAIT),
    Mutant("lengths before the step before has ended", "dependency-race", PLANNER,
           WAIT + TRIGGER, TRIGGER),
    # How partial results meet.
    Mutant("the count before all partial results", f"{EARLY} {OLD}", COMBINE,
           "decode_consumers_sync();  // all partial results", "// all partial results"),
    Mutant("the count releases nothing", "stale-global-read result", "ptx/memory.cuh",
           "atom.acq_rel.gpu.global.inc", "atom.acquire.gpu.global.inc"),
    Mutant("the count does not begin again", "result", COMBINE, LAST,
           "ptx::increment_wrapping(at, ~0u)", again=True),
    Mutant("the last but one combines", "stale-global-read result", COMBINE,
           f"{LAST} == static_cast<uint32_t>(count - 1)",
           f"{LAST} == static_cast<uint32_t>(count - 2)"),
    Mutant("counters begin anywhere", "result", PLANNER,
           "p.plan[kDecodeCounters + i] = 0;", "p.plan[kDecodeCounters + i] = i;"),
    Mutant("every CTA begins where the first does", OLD, PLAN,
           "plan[blockIdx.x * kDecodePlaceWords]", "plan[0]"),
]  # fmt: skip


def sources() -> dict[str, str]:
    return {
        str(path.relative_to(ROOT / "csrc")): path.read_text()
        for folder in FOLDERS
        for path in sorted((ROOT / "csrc" / folder).iterdir())
        if path.suffix in (".h", ".cuh") or path.match("host/*.cpp")
    }


def write_sources(folder: Path) -> None:
    original, lines, entries = sources(), ['#include "step.h"'], []
    for number, mutant in enumerate([None, *MUTANTS]):
        space, texts = f"mutant_{number}", dict(original)
        if mutant is not None:
            assert texts[mutant.file].count(mutant.old) == 1, f"{mutant}: not once: {mutant.old}"
            texts[mutant.file] = texts[mutant.file].replace(mutant.old, mutant.new)
        for path, text in texts.items():
            place = folder / space / path
            place.parent.mkdir(parents=True, exist_ok=True)
            own = re.sub(r'(?m)^#include "', f'#include "{space}/', text)
            place.write_text(f"{own}// {space}\n")  # else one file to a compiler's pragma once
        lines += [
            f"#define l4k {space}",
            f"#define L4K_AGAIN {int(mutant is None or mutant.again)}",
            f'#include "{space}/kernels/flash_decode/append.cuh"',
            f'#include "{space}/kernels/flash_decode/planner.cuh"',
            f'#include "{space}/kernels/embed/embed.cuh"',
            f'#include "{space}/host/launch.h"',
            *(f'#include "{space}/{path}"' for path in original if path.endswith(".cpp")),
            '#include "launch.cuh"',
            "#undef l4k",
            "#undef L4K_AGAIN",
        ]
        entries.append(f"{space}::launch_step")
    table = f"{{{', '.join(entries)}}}"
    lines.append(f"using Launch = int (*)(const Step&);\nconstexpr Launch kMutants[] = {table};")
    lines.append('extern "C" int run_step(int i, const Step& step) { return kMutants[i](step); }')
    (folder / "main.cu").write_text("\n".join(lines))


def build(folder: Path) -> None:
    write_sources(folder)
    flags = ("-std=c++20", "-O2", toolchain.PTX, *toolchain.READABLE, "-Xcompiler=-fPIC")
    included = [folder, HERE / "flash_decode", ROOT / "csrc"]
    for command in (
        [toolchain.need_nvcc(), *flags, *(f"-I{path}" for path in included),
         "-c", f"{folder}/main.cu", "-o", f"{folder}/main.o"],
        ["c++", "-shared", f"{folder}/main.o", "-o", f"{folder}/mutants.so",
         *toolchain.linked_with(LIBRARIES / "libl4k_emulator.so")],
    ):  # fmt: skip
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="module")
def mutants() -> ctypes.CDLL:
    drivers = [path.read_text() for path in sorted((HERE / "flash_decode").iterdir())]
    text = f"{sorted(sources().items())}{MUTANTS}{drivers}{LIBRARIES}"
    folder = BUILD / "append" / hashlib.sha256(text.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests of other processes wait for the first
        if not (folder / "mutants.so").exists():
            build(folder)
    with emulated():  # which loads the emulator for all
        return ctypes.CDLL(str(folder / "mutants.so"))


NUMBERS = (
    "batch", "tokens", "kv_heads", "group", "chunk", "num_pages", "page_size", "max_pages", "grid",
)  # fmt: skip
TENSORS = (
    "projected", "counted", "positions", "slots", "table", "cos_sin", "ids", "weight", "qkv",
    "lengths", "plan", "embedded", "k_cache", "v_cache", "out", "lse", "again", "again_lse",
    "partials", "error",
)  # fmt: skip


class Step(ctypes.Structure):
    """Of flash_decode/step.h."""

    _fields_ = (
        [(name, ctypes.c_int) for name in NUMBERS]
        + [("table_rows", ctypes.c_int64)]
        + [(name, ctypes.c_void_p) for name in TENSORS]
    )


def steps() -> list[dict[str, Tensor]]:
    """Two of all sequences but the last, which is idle; one token of the first is cached."""
    make, batch = Maker("cpu", torch.bfloat16, seed=11), len(START)
    table = make.permutation(batch * COLUMNS).view(batch, COLUMNS)
    shared = {
        "table": table,
        "cos_sin": ops.rope_table(50, theta=5e5),
        "k_cache": make.randn(table.numel(), PAGE, 1, 128),
        "v_cache": make.randn(table.numel(), PAGE, 1, 128),
        "partials": torch.full((8 * SMS * 64 * 130,), -1, dtype=I32),
        "error": torch.zeros(1, dtype=I32),
        "ids": torch.zeros(1, dtype=torch.int64),
        "weight": make.randn(1, 256),
        "embedded": torch.empty(1, 256, dtype=torch.bfloat16),
        "qkv": torch.empty(batch * TOKENS, (GROUP + 2) * 128, dtype=torch.bfloat16),
        "lengths": torch.zeros(batch, dtype=I32),
        "plan": torch.full((PLAN_WORDS + batch,), -1, dtype=I32),
    }
    found = []
    for number in (0, 1):
        first = torch.tensor([n + number * TOKENS if n else -TOKENS for n in START])
        keys = first[:, None] + torch.arange(TOKENS)
        pages = table.gather(1, keys.clamp(min=0) // PAGE)
        slots = torch.where(keys >= 0, pages * PAGE + keys % PAGE, -1)
        slots[0, 0] = -1
        own = {
            "projected": make.randn(batch * TOKENS, (GROUP + 2) * 128),
            "positions": keys.clamp(min=0).flatten(),
            "slots": slots.flatten(),
            "counted": (first + TOKENS).to(I32),
        }
        for out, lse in (("out", "lse"), ("again", "again_lse")):
            own[out] = torch.empty(batch, TOKENS, GROUP, 128, dtype=torch.bfloat16)
            own[lse] = torch.empty(batch, GROUP, TOKENS)
        found.append(shared | own)
    return found


class Run(NamedTuple):
    kind: str  # of the report, or "conflicts", or ""
    results: list[Tensor]


RESULTS = "out", "lse", "again", "again_lse", "k_cache", "v_cache"


def run(library: ctypes.CDLL, mutant: int, mode: str, seed: int) -> Run:
    both = steps()
    tensors = {t.data_ptr(): t for step in both for t in step.values()}.values()
    with emulated(mode=mode, seed=seed, sms=SMS, print=0, perturb=False) as control:
        control.reset()
        for t in tensors:
            control.register_range(t.data_ptr(), t.nbytes)
        for step in both:
            numbers = (len(START), TOKENS, 1, GROUP, 0, len(START) * COLUMNS, PAGE, COLUMNS, SMS)
            addresses = {name: step[name].data_ptr() for name in TENSORS}
            given: dict[str, Any] = dict(zip(NUMBERS, numbers, strict=True)) | addresses
            library.run_step(mutant, ctypes.byref(Step(**given, table_rows=50)))
        control.synchronize()
        report = control.last_report()
        conflicts = sum(kernel["bank_conflicts"] for kernel in control.counters().values())
        for t in tensors:
            control.unregister_range(t.data_ptr(), t.nbytes)
        control.reset()
    results = [step[name] for step in both for name in RESULTS]
    return Run(report["kind"] if report else "conflicts" if conflicts else "", results)


def reference() -> list[Tensor]:
    results = []
    for step in steps():
        names = ("projected", "positions", "slots", "k_cache", "v_cache", "counted", "table")
        rule = {"attn_scale": 0.1, "floor_scale": 16, "qk_norm_eps": 1e-5, "tokens": TOKENS}
        scale = {"softmax_scale": 0.1 * 0.6931471805599453}
        results += ops.flash_decode_append(
            *(step[name] for name in names), num_heads=GROUP, cos_sin=step["cos_sin"], **scale,
            **rule,
        )  # fmt: skip
        keys = (step[name] for name in ("k_cache", "v_cache", "counted", "table"))
        results += ops.flash_decode(results[-2], *keys, **scale)
        results += [step["k_cache"], step["v_cache"]]
    return results


@pytest.fixture(scope="module")
def right(mutants: ctypes.CDLL) -> list[Tensor]:
    return run(mutants, 0, "late", 0).results


def test_the_original_is_right_and_the_same_in_every_mode(mutants, right):
    for got, wanted in zip(right, reference(), strict=True):
        torch.testing.assert_close(got.float(), wanted.float(), rtol=2e-2, atol=4e-3)
    for seed in range(SEEDS):
        for mode in MODES:
            again = run(mutants, 0, mode, seed)
            assert again.kind == "", again.kind
            assert all(map(same_bits, again.results, right))


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_a_mutant_is_reported_or_gives_other_results(mutant, mutants, right):
    found = ""
    for seed, mode in itertools.product(range(SEEDS), MODES):
        kind, results = run(mutants, 1 + MUTANTS.index(mutant), mode, seed)
        compared = [i for i in range(len(right)) if mutant.again or i % len(RESULTS) not in (2, 3)]
        same = all(same_bits(results[i], right[i]) for i in compared)
        found = found or kind or ("" if same else "result")
        if found:
            break
    assert any(found.startswith(cause) for cause in mutant.kinds.split()), found
