"""Build folders of CMake that are kept: configured once, and rebuilt where they no longer fit."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

# What CMake, nvcc and g++ read from the environment, some of it when a folder is first configured.
FLAGS = (
    r"CXX|CXXFLAGS|CUDAFLAGS|CUDAHOSTCXX|LDFLAGS|NVCC_\w+|CPATH|CPLUS_INCLUDE_PATH|LIBRARY_PATH"
    r"|CMAKE_(?!BUILD_PARALLEL_LEVEL$)\w+"
)


def made_with(nvcc: str | Path, **more: str) -> dict[str, str]:
    """What a configured folder remembers and its objects come from, beside the sources."""
    compiler, *_ = shlex.split(os.environ.get("CXX", "")) or ["c++"]
    programs = {"nvcc": str(nvcc), "C++ compiler": compiler, "CMake": "cmake", "ninja": "ninja"}
    facts = {"python": f"{sys.prefix} {sys.version}", **more}
    for name, program in programs.items():
        if (found := find_program(program)) is None:
            raise SystemExit(
                f"l4kernels: building the CUDA kernels needs {name}, and there is no {program} "
                "on the PATH; install it, or set L4K_BUILD_CUDA=0"
            )
        facts[name] = f"{found} {capture(found, '--version')}"
    return facts | {name: os.environ[name] for name in os.environ if re.fullmatch(FLAGS, name)}


def configure(source: Path, folder: Path, facts: dict[str, str], *options: str) -> None:
    """Runs CMake in a folder; one that was made with something else is rebuilt.

    CMake keeps the paths and versions that it found first, and ninja compares commands and dates:
    neither sees another torch, compiler or Python at the same path.
    """
    facts = {"source": str(source), **facts}
    record = folder / "made_with.json"
    before = json.loads(record.read_text()) if record.exists() else {}
    if before != facts:
        if before:
            changed = (k for k in sorted({*before, *facts}) if before.get(k) != facts.get(k))
            say(f"{folder} was made with another {', another '.join(changed)} and is made anew")
        # Objects in folders below stay, but ninja takes none that is not in its log.
        for name in (record.name, "CMakeCache.txt", ".ninja_log", ".ninja_deps"):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / "CMakeFiles", ignore_errors=True)
    run("cmake", "-S", source, "-B", folder, "-G", "Ninja", *options)
    complete = record.with_suffix(".new")
    complete.write_text(json.dumps(facts, indent=1) + "\n")
    complete.replace(record)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Two builds at once take turns."""
    import fcntl  # not everywhere, and setup.py must run there as well

    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another build is at work in {folder}; waiting for it to end")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def say(text: str) -> None:
    """At once, for the tools that are called write at once, too."""
    print(f"l4kernels: {text}", flush=True)


def search_path() -> str:
    """The build tools of this Python's environment go before the machine's."""
    folders = [os.environ["PATH"]]
    for package, name in (("ninja", "BIN_DIR"), ("cmake", "CMAKE_BIN_DIR")):
        # The checkout's own folder `cmake` is found where the package is not installed.
        folder = getattr(import_module(package), name, None) if find_spec(package) else None
        folders[:0] = [str(folder)] if folder else []
    return os.pathsep.join(folders)


def find_program(name: str) -> str | None:
    return shutil.which(name, path=search_path())


def run(*command: object) -> None:
    """Runs a build tool; its failure ends the build without a traceback of ours."""
    environment = os.environ | {"PATH": search_path()}
    done = subprocess.run([str(word) for word in command], env=environment)
    if done.returncode:
        raise SystemExit(f"l4kernels: {command[0]} failed, see its messages above")


def capture(*command: object) -> str:
    """What it prints; nothing where there is no such program, such as git in an image."""
    if shutil.which(str(command[0])) is None:
        return ""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    return done.stdout.strip()
