"""Compiles and links a program for the emulator, unless the cache has it."""

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from l4kernels.emulation import toolchain

KEPT = 50  # programs in the cache
PROGRAM, INPUTS = "program", "inputs.json"


@dataclass(frozen=True)
class Sources:
    """A program's sources, and what its compiler and linker are told besides."""

    files: tuple[str, ...]
    flags: tuple[str, ...]
    libraries: tuple[str, ...]


def cache_folder() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home, "l4kernels", "emulate")


def program_of(sources: Sources) -> Path:
    """The program, from the cache if all it was made from is as it was; nvcc says what is wrong
    with a source."""
    for file in sources.files:
        if not Path(file).is_file():
            raise FileNotFoundError(f"{file}: expected a CUDA or C++ source, and there is no file")
        if file.endswith(".ptx"):
            raise ValueError(
                f"{file}: PTX has no host program to run; launch its kernels from Python with "
                "l4k_emulator_control.PtxKernel (docs/emulator.md)"
            )
    nvcc, library = toolchain.need_nvcc(), toolchain.library()
    facts = (nvcc, os.stat(nvcc).st_mtime, os.getcwd(), str(library), vars(sources))
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
    place = cache_folder() / key
    if _is_current(place):
        os.utime(place)
        return place / PROGRAM
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix="new-") as made:
        folder = Path(made, key)
        folder.mkdir()
        inputs = [_compile(nvcc, sources, i, folder) for i in range(len(sources.files))]
        _link(sources, library, folder)
        (folder / INPUTS).write_text(json.dumps({k: v for part in inputs for k, v in part.items()}))
        if place.exists():  # of other contents; whoever runs it keeps it
            place.rename(Path(made, "old"))
        folder.rename(place)
    _trim(place.parent)
    return place / PROGRAM


def _is_current(place: Path) -> bool:
    try:
        inputs = json.loads((place / INPUTS).read_text())
        return all(_hash(Path(path)) == content for path, content in inputs.items())
    except FileNotFoundError:
        return False


def _compile(nvcc: str, sources: Sources, index: int, folder: Path) -> dict[str, str]:
    """Makes an object of a source; returns the files that it depends on, with their hashes."""
    file, made = sources.files[index], folder / f"{index}.o"
    depends = made.with_suffix(".d")
    flags = ["-O2", toolchain.PTX, *toolchain.READABLE, *sources.flags]
    output = ["-c", file, "-o", str(made), "-MMD", "-MF", str(depends)]
    # Standard output is the program's.
    done = subprocess.run([nvcc, *flags, *output], check=False, capture_output=True, text=True)
    sys.stderr.write(done.stdout + done.stderr)
    if done.returncode:
        raise ValueError(f"{file}: nvcc does not compile it, and says why above")
    _, _, names = depends.read_text().replace("\\\n", " ").partition(": ")
    depends.unlink()
    files = {re.sub(r"\\(.)", r"\1", name) for name in re.findall(r"(?:\\.|[^\s\\])+", names)}
    return {os.path.abspath(name): _hash(Path(name)) for name in (files | {file})}


def _link(sources: Sources, library: Path, folder: Path) -> None:
    linker = shlex.split(os.environ.get("CXX", "")) or ["c++"]
    if shutil.which(linker[0]) is None:
        raise FileNotFoundError(f"no C++ compiler to link the program with: {linker[0]} (or CXX)")
    objects = sorted(folder.glob("*.o"), key=lambda path: int(path.stem))
    command = [*linker, *map(str, objects), "-o", str(folder / PROGRAM), *sources.libraries]
    command += toolchain.linked_with(library)
    environment = os.environ | {"LC_ALL": "C"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    for made in objects:
        made.unlink()
    if done.returncode:
        undefined = set(re.findall(r"undefined reference to [`'](.+)'", done.stderr))
        if not undefined:
            sys.stderr.write(done.stderr)
        raise ValueError(f"{', '.join(sources.files)}: {_complaint(undefined)}")


def _complaint(undefined: set[str]) -> str:
    """What a program lacks that does not link."""
    if not undefined:
        return "the linker refuses it, and says why above"
    if any(name.startswith("__cudaRegisterLinkedBinary") for name in undefined):
        return "relocatable device code (-rdc, -dc) is not supported: compile without it"
    runtime = {name for name in undefined if re.match(r"(__)?cuda[A-Z]|cu[A-Z]", name)}
    parts = []
    if runtime:
        parts.append(f"the emulator has no {', '.join(sorted(runtime))}")
    if others := undefined - runtime:
        parts.append(
            f"nothing defines {', '.join(sorted(others))}: name its source file as well, or its "
            "library with -l (libraries of machine code, such as cuBLAS, need a GPU)"
        )
    return "; ".join(parts)


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _trim(cache: Path) -> None:
    made = [path for path in cache.iterdir() if (path / PROGRAM).exists()]
    for path in sorted(made, key=lambda path: path.stat().st_mtime)[:-KEPT]:
        shutil.rmtree(path, ignore_errors=True)
