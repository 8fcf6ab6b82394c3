"""Mistakes put into a kernel, all in one program: each is reported with its cause, or gives other
results.

A mutant is a copy of the kernel's sources with replacements. All of them and the original are one
program, each in a namespace of its own (FOLDER/chain.cuh): the headers of CUDA are read once. It
and what it printed stay in build/ until a source changes.
"""

import fcntl
import hashlib
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from l4kernels.emulation import toolchain
from tests.emulator.emulator_programs import BUILD, HERE, ROOT

SEEDS = 2
ORIGINAL = "original"

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


@dataclass(frozen=True)
class Run:
    """One line of the program."""

    mutant: str
    how: str  # mode and seed
    kind: str  # of the report, or ""
    results: str  # their hash
    conflicts: int


@dataclass(frozen=True)
class MutantProgram:
    """The mutants of a kernel of csrc/kernels; a folder of tests/emulator launches it."""

    kernel: str
    folder: str
    mutants: list[Mutant]
    host: tuple[str, ...] = ("launch",)
    """Headers of csrc/host that the launches need."""
    source: str = ""
    """The kernel's file that the launches include; its header, if they launch by themselves."""
    always: tuple[Change, ...] = ()
    """Of the original as well: what makes a problem small enough."""

    def runs(self) -> list[Run]:
        """What the program prints: the original in all modes, a mutant until it differs."""
        library, drivers = toolchain.library(), HERE / self.folder
        files = [*sorted((HERE / "kernels").glob("*.h")), *sorted(drivers.iterdir())]
        text = f"{sorted(self._sources().items())}{self}{[path.read_text() for path in files]}"
        text += f"{library}{library.stat().st_mtime_ns}"
        folder = BUILD / self.folder / hashlib.sha256(text.encode()).hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # tests of other processes wait for the first
            printed = folder / "printed.txt"
            if not printed.exists():
                self._build(folder)
                done = subprocess.run(
                    [f"{folder}/main"], check=False, capture_output=True, text=True, timeout=600
                )
                assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
                printed.write_text(done.stdout)
        lines = (line.split("|") for line in printed.read_text().splitlines())
        return [Run(*line[:4], int(line[4])) for line in lines]

    def _sources(self) -> dict[str, str]:
        return {
            str(path.relative_to(ROOT / "csrc")): path.read_text()
            for folder in ("ptx", "tile", "host", f"kernels/{self.kernel}")
            for path in sorted((ROOT / "csrc" / folder).iterdir())
            if path.suffix in (".h", ".cuh")
            or path.name == self.source
            or (folder == "host" and path.suffix == ".cpp")
        }

    def _applied(self, mutant: Mutant | None) -> dict[str, str]:
        changed = self._sources()
        for file, old, new in (*self.always, *(mutant.changes if mutant else ())):
            path = file if "/" in file else f"kernels/{self.kernel}/{file}"
            assert changed[path].count(old) == 1, f"{mutant}: not once in {path}: {old}"
            changed[path] = changed[path].replace(old, new)
        return changed

    def _write(self, folder: Path) -> None:
        """The sources of each mutant in a folder of its own, and a main file that includes all."""
        lines = ['#include "data.h"']
        entries = []
        for number, mutant in enumerate([None, *self.mutants]):
            space = f"mutant_{number}"
            for path, text in self._applied(mutant).items():
                place = folder / space / path
                place.parent.mkdir(parents=True, exist_ok=True)
                own = re.sub(r'(?m)^#include "', f'#include "{space}/', text)
                place.write_text(f"{own}// {space}\n")  # else one file to a compiler's pragma once
            lines += [
                f"#define l4k {space}",
                f'#include "{space}/kernels/{self.kernel}/{self.source or self.kernel + ".cuh"}"',
                *(f'#include "{space}/host/{header}.h"' for header in self.host),
                *(f'#include "{space}/{path}"' for path in self._sources() if path.endswith("cpp")),
                '#include "chain.cuh"',
                "#undef l4k",
            ]
            entries.append(f'{{"{mutant or ORIGINAL}", {space}::run_chain}}')
        lines.append(f"int main() {{ return run_all({{{', '.join(entries)}}}, {SEEDS}); }}")
        (folder / "main.cu").write_text("\n".join(lines))

    def _build(self, folder: Path) -> None:
        self._write(folder)
        flags = ("-std=c++20", "-O2", "-DL4K_EMULATED", toolchain.PTX, *toolchain.READABLE)
        included = [folder, HERE / self.folder, ROOT / "csrc", ROOT / "emulator" / "include"]
        for command in (
            [toolchain.need_nvcc(), *flags, *(f"-I{path}" for path in included),
             "-c", f"{folder}/main.cu", "-o", f"{folder}/main.o"],
            ["c++", f"{folder}/main.o", "-o", f"{folder}/main",
             *toolchain.linked_with(toolchain.library())],
        ):  # fmt: skip
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[-4000:]


def check_original(runs: list[Run]) -> None:
    """Right, and the same in every mode."""
    own = [run for run in runs if run.mutant == ORIGINAL]
    assert len(own) == 3 * SEEDS and len({run.results for run in own}) == 1, own
    assert all(run.kind == "" and run.conflicts == 0 for run in own), own


def check_mutant(mutant: Mutant, runs: list[Run]) -> None:
    """Reported with its cause, or with other results."""
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
