"""Drives CMake. Holds no source list: CMakeLists.txt is the one build.

L4K_BUILD_CUDA=0 leaves the kernels out, =1 insists on them (nvcc then comes from PyPI if the
machine has none), unset builds them where an nvcc is found.
"""

import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from setuptools import Distribution, Extension, find_namespace_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
NVCC_WHEELS = [
    f"nvidia-{part}==13.0.*"
    for part in ("cuda-nvcc", "cuda-crt", "nvvm", "cuda-runtime", "cuda-cccl")
]
CLONE_ONLY = ("gpu_steps", "gpu_suite", "test_ops")  # modules of the bench that import tests
NO_NVCC = "no nvcc was found (CUDACXX, CUDA_HOME, PATH, PyPI's nvidia-cuda-nvcc)"
# What CMake, nvcc and g++ read from the environment, some of it when a folder is first configured.
FLAGS = (
    r"CXX|CXXFLAGS|CUDAFLAGS|CUDAHOSTCXX|LDFLAGS|NVCC_\w+|CPATH|CPLUS_INCLUDE_PATH|LIBRARY_PATH"
    r"|CMAKE_(?!BUILD_PARALLEL_LEVEL$)\w+"
)


def nvcc_of_wheels() -> Path | None:
    """nvcc of the PyPI packages, which install side by side under nvidia/cu13."""
    spec = find_spec("nvidia")
    for folder in spec.submodule_search_locations or () if spec else ():
        nvcc = Path(folder) / "cu13" / "bin" / "nvcc"
        if nvcc.exists():
            return nvcc
    return None


def find_nvcc() -> Path | None:
    asked, home = os.environ.get("CUDACXX"), os.environ.get("CUDA_HOME")
    if asked and not shutil.which(asked):
        raise SystemExit(f"CUDACXX: expected an nvcc, got {asked!r}, which is no program")
    for candidate in (asked, home and f"{home}/bin/nvcc", "nvcc"):
        if candidate and (found := shutil.which(candidate)):
            return Path(found)
    return nvcc_of_wheels()


def wants_cuda() -> bool:
    choice = os.environ.get("L4K_BUILD_CUDA", "")
    if choice not in ("", "0", "1"):
        raise SystemExit(f"L4K_BUILD_CUDA: expected 0 or 1, got {choice!r}")
    return choice == "1" or (choice == "" and find_nvcc() is not None)


class PackageBuild(build_py):
    """Copies the package; where the kernels are left out, writes down why."""

    def run(self) -> None:
        super().run()
        if wants_cuda() or self.editable_mode:
            return
        asked = os.environ.get("L4K_BUILD_CUDA") == "0"
        reason = "L4K_BUILD_CUDA=0 was set" if asked else NO_NVCC
        say(f"CUDA kernels left out, the CPU package is complete: {reason}")
        left_out = f"this installation was built without CUDA kernels: {reason}"
        write_facts(Path(self.build_lib) / "l4kernels" / "lib", {"left_out": left_out})

    def find_package_modules(self, package: str, folder: str) -> list[tuple[str, str, str]]:
        found = super().find_package_modules(package, folder)
        return [module for module in found if module[1] not in CLONE_ONLY]


class OwnFolder(build):
    """A wheel is built in a folder of its own: files of earlier builds would get into it."""

    def initialize_options(self) -> None:
        super().initialize_options()
        self.build_base = scratch().name


@functools.cache
def scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="l4kernels-build-")


class LibraryBuild(build_ext):
    """Builds libl4kernels.so into the package; the folder of CMake is build_temp.

    `make build` names that folder and keeps it. All others have one of their own: pip's build
    environment, with its torch, its CMake and its ninja, is gone after the build.
    """

    user_options: ClassVar = [
        *build_ext.user_options,
        ("emulator", None, "build the emulator, the emulated kernels and the host tests as well"),
    ]
    boolean_options: ClassVar = [*build_ext.boolean_options, "emulator"]

    def initialize_options(self) -> None:
        super().initialize_options()
        self.emulator = False

    def run(self) -> None:
        folder = Path(self.build_temp).absolute()
        package = ROOT if self.inplace else Path(self.build_lib).absolute()
        output = package / "l4kernels" / "lib"
        with locked(folder):
            write_facts(output, self.build(folder, output))

    def build(self, folder: Path, output: Path) -> dict[str, str]:
        nvcc, torch_dir = find_nvcc(), find_torch()
        if nvcc is None:
            raise SystemExit(
                f"l4kernels: expected an nvcc to build the kernels with, but {NO_NVCC}"
            )
        release = re.search(r"V([\d.]+)", capture(nvcc, "--version"))
        facts = {
            "nvcc": release.group(1) if release else "unknown",
            "arch": "sm_90a",
            "torch_headers": metadata.version("torch"),
            "torch_target": "2.10",
            "commit": capture("git", "-C", ROOT, "rev-parse", "--short", "HEAD") or "unknown",
            "built": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        }
        say(f"building the CUDA kernels with nvcc {facts['nvcc']} ({nvcc})")
        configure(
            *(ROOT, folder, made_with(nvcc, torch_dir)),
            *(f"-DCMAKE_CUDA_COMPILER={nvcc}", f"-DL4K_TORCH_DIR={torch_dir}"),
            *(f"-DL4K_OUTPUT_DIR={output}", f"-DPython_EXECUTABLE={sys.executable}"),
            *(f"-D{part}={int(self.emulator)}" for part in ("L4K_EMULATOR", "L4K_HOST_TESTS")),
        )
        run("cmake", "--build", folder, "--target", "all" if self.emulator else "l4kernels")
        return facts


def find_torch() -> Path:
    torch = find_spec("torch")
    if torch is None or torch.origin is None:
        raise SystemExit(
            "l4kernels: building the CUDA kernels needs torch's headers; "
            "install torch >= 2.10 first, or set L4K_BUILD_CUDA=0"
        )
    return Path(torch.origin).parent


def made_with(nvcc: Path, torch_dir: Path) -> dict[str, str]:
    """All that a configured folder remembers and its objects come from, beside the sources."""
    compiler, *_ = shlex.split(os.environ.get("CXX", "")) or ["c++"]
    programs = {"nvcc": str(nvcc), "C++ compiler": compiler, "CMake": "cmake", "ninja": "ninja"}
    facts = {"source": str(ROOT), "python": f"{sys.executable} {sys.version}"}
    facts["torch"] = f"{torch_dir} {metadata.version('torch')}"
    facts["pybind11"] = metadata.version("pybind11") if find_spec("pybind11") else "none"
    for name, program in programs.items():
        if (found := find_program(program)) is None:
            raise SystemExit(
                f"l4kernels: building the CUDA kernels needs {name}, and there is no {program} "
                "on the PATH; install it, or set L4K_BUILD_CUDA=0"
            )
        facts[name] = f"{found} {capture(found, '--version')}"
    return facts | {name: os.environ[name] for name in os.environ if re.fullmatch(FLAGS, name)}


def configure(source: Path, folder: Path, facts: dict[str, str], *options: str) -> None:
    """Runs CMake in a folder; one that was made with something else is made anew.

    CMake keeps the paths and versions that it found first, and ninja compares commands and dates:
    neither sees another torch, compiler or Python at the same path.
    """
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
        say("a whole build takes minutes; L4K_BUILD_CUDA=0 installs without the kernels")
    run("cmake", "-S", source, "-B", folder, "-G", "Ninja", *options)
    complete = record.with_suffix(".new")
    complete.write_text(json.dumps(facts, indent=1) + "\n")
    complete.replace(record)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Two builds at once take turns."""
    import fcntl

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


def write_facts(output: Path, facts: dict[str, str]) -> None:
    output.mkdir(parents=True, exist_ok=True)
    (output / "build.json").write_text(json.dumps(facts, indent=1) + "\n")


def search_path() -> str:
    """The build tools of this Python's environment go before the machine's."""
    folders = [os.environ["PATH"]]
    for package, folder in (("ninja", "BIN_DIR"), ("cmake", "CMAKE_BIN_DIR")):
        if find_spec(package):
            folders.insert(0, str(getattr(import_module(package), folder)))
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
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    return done.stdout.strip()


class LibraryDistribution(Distribution):
    def has_ext_modules(self) -> bool:
        return wants_cuda()


class AnyPythonWheel(bdist_wheel):
    """The library holds no Python symbol: one wheel serves every Python 3."""

    def get_tag(self) -> tuple[str, str, str]:
        platform = super().get_tag()[2]
        return "py3", "none", platform


def requirements_for_building() -> list[str]:
    if not wants_cuda():
        return []
    # In an isolated build environment only torch's headers matter; the library that comes out
    # loads into any torch >= 2.10.
    wheels = NVCC_WHEELS if find_nvcc() is None else []
    return ["cmake>=3.25.2", "ninja", "torch==2.13.0", *wheels]


def version() -> str:
    text = (ROOT / "l4kernels" / "__init__.py").read_text()
    return re.search(r'__version__ = "(.+)"', text).group(1)


if __name__ == "__main__":
    setup(
        version=version(),
        packages=[
            *find_namespace_packages(include=["l4kernels*"], exclude=["l4kernels.lib"]),
            "l4kernels.bench",
        ],
        package_dir={"l4kernels.bench": "bench"},
        include_package_data=False,  # MANIFEST.in is for the source distribution alone
        package_data={
            "l4kernels": ["py.typed"],
            "l4kernels.demo": ["*.md", "*.json"],
            "l4kernels.demo.checkpoint": ["*"],
            "l4kernels.demo.data": ["*"],
        },
        ext_modules=[Extension("l4kernels.lib", [])],
        cmdclass={
            "build": OwnFolder,
            "build_py": PackageBuild,
            "build_ext": LibraryBuild,
            "bdist_wheel": AnyPythonWheel,
        },
        distclass=LibraryDistribution,
        setup_requires=requirements_for_building() if "egg_info" in " ".join(sys.argv) else [],
    )
