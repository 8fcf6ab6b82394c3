"""What the host keeps from call to call (csrc/host/recent.h) is never taken for the answer to
another question: of memory used again, another machine or configuration, more shared memory."""

import ctypes
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from l4kernels import STATUS, ops
from l4kernels.testing import assert_close, emulated
from l4kernels.testing.emulator import launches_of
from tests.support.changed_library import BUILD, CSRC, ROOT, linked

pytestmark = pytest.mark.skipif(not STATUS.loaded, reason="no compiled kernels: run `make build`")

MUTANTS = {  # what is wrong, one of them at a time -> source, its text, the text in its place
    "a map by its address alone": (
        "host/tensor_map.cpp",
        "static thread_local Recent<TensorMapSpec, CUtensorMap, kSets> kept;",
        """struct ByAddress {
    const void* base;
    uint64_t hash() const { return reinterpret_cast<uintptr_t>(base); }
    bool operator==(const ByAddress&) const = default;
  };
  static thread_local Recent<ByAddress, CUtensorMap, kSets> wrong;
  if (MUTANT) {
    const auto* any = wrong.of({spec.base}, [&](CUtensorMap& made) {
      return encode_tensor_map(spec, &made) == cudaSuccess;
    });
    return *map = *any, cudaSuccess;
  }
  static thread_local Recent<TensorMapSpec, CUtensorMap, kSets> kept;""",
    ),
    "a choice whatever was asked for": (
        "kernels/gemm/gemm.cu",
        "*kept.of({problem, params.choice, machine}",
        "*kept.of({problem, MUTANT ? GemmChoice{} : params.choice, machine}",
    ),
    "a machine that has changed": (
        "host/device.cpp",
        "{current_device(), l4k_emu_epoch()}",
        "{current_device(), MUTANT ? 0 : l4k_emu_epoch()}",
    ),
    "shared memory of any size": (
        "host/launch.cpp",
        "kept.of({kernel, bytes, Machine::current()}",
        "kept.of({kernel, MUTANT ? 0 : bytes, Machine::current()}",
    ),
    "shared memory that is taken back": (
        "host/launch.cpp",
        "now.maxDynamicSharedSizeBytes >= static_cast<int>(bytes)",
        "!MUTANT && now.maxDynamicSharedSizeBytes >= static_cast<int>(bytes)",
    ),
}


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape).bfloat16()


def memory_is_used_again(control: ModuleType, turn: int) -> None:
    """The same addresses under another shape."""
    memory, weights = normal(64 * 256), normal(64 * 256)
    for rows, k in ((64, 256), (128, 128), (64, 256)):
        a, b = memory[: rows * k].view(rows, k), weights[: 64 * k].view(64, k)
        assert_close(ops.gemm(a, b), ops.gemm.reference(a, b), 1e-2)


def another_configuration_is_asked_for(control: ModuleType, turn: int) -> None:
    a, b = normal(64, 128), normal(64, 128)
    control.list_launches(True)
    for config in (0, 1, 0):
        ops.gemm(a, b, config=config)
    control.list_launches(False)
    said = [launch["kernel"] for launch in control.listed_launches()]
    assert said[0] == said[2] != said[1], said


def the_machine_changes(control: ModuleType, turn: int) -> None:
    x = normal(99, 64)
    grids = [launches_of("rms_norm", x, x[0], sms=sms)[0].grid[0] for sms in (1, 5, 1)]
    assert grids[0] == grids[2] != grids[1], grids


def a_kernel_wants_more(control: ModuleType, turn: int) -> None:
    """Than before, then less, then as much; each turn more than those before it."""
    k = 2048 + 512 * turn
    b = normal(64, k)
    for rows in (1, 8, 2, 8):
        ops.gemm(normal(rows, k), b, config=-3)


SCENES = dict(
    zip(
        MUTANTS,
        (
            memory_is_used_again,
            another_configuration_is_asked_for,
            the_machine_changes,
            a_kernel_wants_more,
            a_kernel_wants_more,
        ),
        strict=True,
    )
)


def test_answers_fit_their_questions():
    for turn, scene in enumerate(SCENES.values()):
        with emulated() as control:
            scene(control, turn)


def test_a_warm_call_asks_nothing_anew():
    """Kept by the thread: no map is encoded and no configuration chosen a second time."""
    a, b = normal(64, 256), normal(64, 256)
    with emulated():
        asked = ctypes.CDLL(str(BUILD / "libl4kernels_emulated.so")).l4k_new_questions
        out = normal(64, 64)
        counts = [asked()]
        for _ in range(3):
            ops.gemm(a, b, out=out)
            counts.append(asked())
    assert counts[0] < counts[1] == counts[2] == counts[3], counts


@pytest.fixture(scope="module")
def mutants() -> Path:
    """A folder with the emulated library in which `l4k_mutant` says what is wrong."""
    changed: dict[str, str] = {}
    for number, (source, right, wrong) in enumerate(MUTANTS.values(), 1):
        text = changed.get(source) or f"extern int l4k_mutant;\n{(CSRC / source).read_text()}"
        assert text.count(right) == 1, right
        changed[source] = text.replace(right, wrong.replace("MUTANT", f"(l4k_mutant == {number})"))
    shown = '__attribute__((visibility("default"))) int l4k_mutant = 0;\n'
    changed["host/launch.cpp"] = shown + changed["host/launch.cpp"]
    return linked(changed, "kept-answers")


PROGRAM = """
import ctypes, sys
from pathlib import Path
from l4kernels import testing
testing.emulator.BUILD = Path(sys.argv[1])
from tests.kernels.test_kept_answers import MUTANTS, SCENES
library = Path(sys.argv[1]) / "libl4kernels_emulated.so"
for number in range(1 + len(MUTANTS)):
    for name in [list(MUTANTS)[number - 1]] if number else MUTANTS:
        with testing.emulated() as control:
            ctypes.c_int.in_dll(ctypes.CDLL(str(library)), "l4k_mutant").value = number
            control.reset()
            try:
                SCENES[name](control, number)
                print(number, name, "passed", sep=": ")
            except (AssertionError, RuntimeError) as error:
                print(number, name, str(error).replace(chr(10), " ")[:200] or "differs", sep=": ")
            control.reset()
"""


def test_every_mutant_is_found(mutants):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(mutants)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said = [line.split(": ", 2) for line in done.stdout.splitlines()]
    assert [what for number, _, what in said if number == "0"] == ["passed"] * len(SCENES)
    causes = {name: what for number, name, what in said if number != "0"}
    assert causes.keys() == MUTANTS.keys()
    assert "passed" not in causes.values(), causes
