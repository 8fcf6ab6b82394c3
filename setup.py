"""Drives CMake. Holds no source list: CMakeLists.txt is the one build.

L4K_BUILD_CUDA=0 leaves the kernels out, =1 insists on them (nvcc then comes from PyPI if the
machine has none), unset builds them where an nvcc is found.
"""

import functools
import json
import os
import re
import shutil
import sys
import tempfile
from datetime import datetime, timezone
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from setuptools import Distribution, Extension, find_namespace_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))
from tools.build_folder import capture, configure, locked, made_with, run, say  # noqa: E402

NVCC_WHEELS = [
    f"nvidia-{part}==13.0.*"
    for part in ("cuda-nvcc", "cuda-crt", "nvvm", "cuda-runtime", "cuda-cccl")
]
NO_NVCC = "no nvcc was found (CUDACXX, CUDA_HOME, PATH, PyPI's nvidia-cuda-nvcc)"


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
        say("from the start this takes minutes; L4K_BUILD_CUDA=0 installs without them")
        packages = {
            name: metadata.version(name) for name in ("torch", "pybind11") if find_spec(name)
        }
        configure(
            *(ROOT, folder, made_with(nvcc, torch_dir=str(torch_dir), **packages)),
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


def write_facts(output: Path, facts: dict[str, str]) -> None:
    output.mkdir(parents=True, exist_ok=True)
    (output / "build.json").write_text(json.dumps(facts, indent=1) + "\n")


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
        packages=find_namespace_packages(include=["l4kernels*"], exclude=["l4kernels.lib"]),
        include_package_data=False,  # MANIFEST.in is for the source distribution alone
        package_data={
            "l4kernels": ["py.typed"],
            "l4kernels.demo": ["*.md", "*.json"],
            "l4kernels.demo.checkpoint": ["*"],
            "l4kernels.demo.data": ["*"],
            "l4kernels.server.page": ["*.html", "*.css", "*.js"],
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
