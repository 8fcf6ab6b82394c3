"""Mistakes put into a kernel, all in one program.

A mutant is a copy of the kernel's sources with replacements. All of them and the original are one
program, each in a namespace of its own around DRIVER/chain.cuh: the headers of CUDA are read once.
It and what it printed stay in build/ until a source changes.
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

    def applied(self, sources: dict[str, str], kernel: str) -> dict[str, str]:
        changed = dict(sources)
        for file, old, new in self.changes:
            path = file if "/" in file else f"kernels/{kernel}/{file}"
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


@dataclass(frozen=True)
class Program:
    """`driver` is a folder here, with data.h and chain.cuh; `headers` are what a chain needs of
    csrc."""

    kernel: str
    driver: str
    headers: tuple[str, ...]
    mutants: tuple[Mutant, ...]

    def sources(self) -> dict[str, str]:
        return {
            str(path.relative_to(ROOT / "csrc")): path.read_text()
            for folder in ("ptx", "tile", "host", f"kernels/{self.kernel}")
            for path in sorted((ROOT / "csrc" / folder).iterdir())
            if path.suffix in (".h", ".cuh")
        }

    def write(self, folder: Path) -> None:
        """The sources of each mutant in a folder of its own, and a main file that includes them
        all."""
        original, entries = self.sources(), []
        lines = ['#include "data.h"']
        for number, mutant in enumerate([None, *self.mutants]):
            space = f"mutant_{number}"
            own = mutant.applied(original, self.kernel) if mutant else original
            for path, text in own.items():
                place = folder / space / path
                place.parent.mkdir(parents=True, exist_ok=True)
                inside = re.sub(r'(?m)^#include "', f'#include "{space}/', text)
                place.write_text(f"{inside}// {space}\n")  # else one file to a pragma once
            lines += [
                f"#define l4k {space}",
                *(f'#include "{space}/{header}"' for header in self.headers),
                '#include "chain.cuh"',
                "#undef l4k",
            ]
            entries.append(f'{{"{mutant or ORIGINAL}", {space}::run_chain}}')
        lines.append(f"int main() {{ return run_all({{{', '.join(entries)}}}, {SEEDS}); }}")
        (folder / "main.cu").write_text("\n".join(lines))

    def build(self, folder: Path) -> None:
        self.write(folder)
        flags = ("-std=c++20", "-O2", "-DL4K_EMULATED", toolchain.PTX, *toolchain.READABLE)
        included = [folder, HERE / self.driver, ROOT / "csrc", ROOT / "emulator" / "include"]
        for command in (
            [toolchain.need_nvcc(), *flags, *(f"-I{path}" for path in included),
             "-c", f"{folder}/main.cu", "-o", f"{folder}/main.o"],
            ["c++", f"{folder}/main.o", "-o", f"{folder}/main",
             *toolchain.linked_with(toolchain.library())],
        ):  # fmt: skip
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[-4000:]

    def runs(self) -> list[Run]:
        library = toolchain.library()
        files = [*sorted((HERE / "kernels").glob("*.h")), *sorted((HERE / self.driver).iterdir())]
        drivers = [path.read_text() for path in files]
        text = f"{sorted(self.sources().items())}{self}{drivers}"
        text += f"{library}{library.stat().st_mtime_ns}"
        folder = BUILD / self.driver / hashlib.sha256(text.encode()).hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # tests of other processes wait for the first
            printed = folder / "printed.txt"
            if not printed.exists():
                self.build(folder)
                done = subprocess.run(
                    [f"{folder}/main"], check=False, capture_output=True, text=True, timeout=600
                )
                assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
                printed.write_text(done.stdout)
        lines = (line.split("|") for line in printed.read_text().splitlines())
        return [Run(*line[:4], int(line[4])) for line in lines]


def check_original(runs: list[Run]) -> None:
    """It is right, and the same in every mode."""
    own = [run for run in runs if run.mutant == ORIGINAL]
    assert len(own) == 3 * SEEDS and len({run.results for run in own}) == 1, own
    assert all(run.kind == "" and run.conflicts == 0 for run in own), own


def check_found(mutant: Mutant, runs: list[Run]) -> None:
    """It is reported with its cause, or gives other results."""
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
