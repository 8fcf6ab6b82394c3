"""Builds the emulator's test programs, runs them in a mode with a seed, reads the report."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from l4kernels.emulation.toolchain import PTX, READABLE, library, need_nvcc
from tools import build_folder

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "emulator-tests"
MODES = ("late", "early", "random")
PROGRAMS = BUILD / "bin"
REFUSED = 3  # exit status of a program whose runtime call failed


@dataclass(frozen=True)
class Mutant:
    """One mistake put into a kernel: the report it must cause, and the lines it may point at."""

    kernel: str
    number: int
    kinds: frozenset[str]
    what: str
    lines: frozenset[int]

    def __str__(self) -> str:
        return f"{self.kernel}-{self.number}"

    def explains(self, kind: str) -> bool:
        """Whether a kind of report names the cause; `mbarrier` stands for every `mbarrier-...`."""
        return any(kind == cause or kind.startswith(f"{cause}-") for cause in self.kinds)


@dataclass(frozen=True)
class Outcome:
    """How a program ended; `kind` is that of the report, "launch" for what the runtime refused."""

    status: int
    output: str
    kind: str | None
    places: frozenset[tuple[str, int]]  # every source line that the report names

    @property
    def passed(self) -> bool:
        return self.status == 0 and self.kind is None and "PASS" in self.output


def read_outcome(status: int, output: str) -> Outcome:
    report = re.search(r"^l4k emulator: ([a-z-]+): (.*\n(?:  .*\n?)*)", output, re.MULTILINE)
    if report is None:
        return Outcome(status, output, "launch" if status == REFUSED else None, frozenset())
    found = re.findall(r"([^\s:()]+\.\w+):(\d+)", report[2])
    places = frozenset((Path(file).name, int(line)) for file, line in found)
    return Outcome(status, output, report[1], places)


def kernels() -> list[str]:
    return sorted(path.stem for path in (HERE / "kernels").glob("*.cu"))


def cutlass_programs() -> list[str]:
    return sorted(path.stem for path in (HERE / "programs").glob("*.cu"))


@cache
def mutants_of(kernel: str) -> tuple[Mutant, ...]:
    """Reads the table at the top of a kernel and the `// @number` marks on its lines."""
    text = (HERE / "kernels" / f"{kernel}.cu").read_text()
    lines: dict[int, set[int]] = {}
    statement: list[int] = []  # a mark holds for every line of its statement
    marks: set[int] = set()
    for at, line in enumerate(text.splitlines(), 1):
        code, _, comment = line.partition("//")
        statement.append(at)
        marks |= {int(number) for number in re.findall(r"@(\d+)", comment)}
        if not code.strip() or code.rstrip()[-1] in ";{}":
            for number in marks:
                lines.setdefault(number, set()).update(statement)
            statement, marks = [], set()
    table = re.findall(r"^// (\d+) \| ([\w -]+) \| (.+)$", text, re.M)
    return tuple(
        Mutant(
            kernel,
            int(number),
            frozenset(kinds.split()),
            what,
            frozenset(lines.get(int(number), ())),
        )
        for number, kinds, what in table
    )


def all_mutants() -> list[Mutant]:
    return [mutant for kernel in kernels() for mutant in mutants_of(kernel)]


def cutlass_directory() -> Path | None:
    spec = find_spec("cutlass_library")
    if spec is None or spec.origin is None:
        return None
    source = Path(spec.origin).parent / "source"
    return source if (source / "include" / "cutlass").is_dir() else None


@cache
def control() -> ModuleType:
    """The emulator's control module, built beside its library."""
    path = next(library().parent.glob("l4k_emulator_control*.so"), None)
    if path is None:
        raise FileNotFoundError(f"no l4k_emulator_control beside {library()}: run `make build`")
    spec = spec_from_file_location("l4k_emulator_control", path)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def build(target: str) -> None:
    """Compiles what is out of date; `target` is a program, `kernels` or `cutlass`."""
    compiler = need_nvcc()
    options = {"NVCC": compiler, "L4K_EMULATOR_LIBRARY": library()}
    options["EMULATED_FLAGS"] = ";".join((PTX, *READABLE))
    options["CUTLASS_DIR"] = cutlass_directory() or ""
    with build_folder.locked(BUILD):  # test processes build one at a time
        facts = build_folder.made_with(compiler)
        build_folder.configure(HERE, BUILD, facts, *(f"-D{k}={v}" for k, v in options.items()))
        build_folder.run("cmake", "--build", BUILD, "--target", target)


def run(
    program: str, mutant: int = 0, mode: str = "late", seed: int = 0, timeout: float = 300
) -> Outcome:
    environment = dict(os.environ, L4K_EMU=f"mode={mode},seed={seed},sms=4,threads=1,stop=benign")
    done = subprocess.run(
        [str(PROGRAMS / program), str(mutant)],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
        timeout=timeout,
    )
    return read_outcome(done.returncode, done.stdout + done.stderr)


if __name__ == "__main__":  # kernels | cutlass | one program
    for name in sys.argv[1:]:
        build(name)
