"""Drives CMake. Holds no source list: CMakeLists.txt is the one build.

L4K_BUILD_CUDA=0 leaves the kernels out, =1 insists on them (nvcc then comes from PyPI if the
machine has none), unset builds them where an nvcc is found.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from datetime import datetime, timezone
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path

from setuptools import Distribution, Extension, find_namespace_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
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
        print(f"l4kernels: CUDA kernels left out, the CPU package is complete: {reason}")
        left_out = f"this installation was built without CUDA kernels: {reason}"
        write_facts(Path(self.build_lib) / "l4kernels" / "lib", {"left_out": left_out})


class LibraryBuild(build_ext):
    """Builds libl4kernels.so into the package."""

    def run(self) -> None:
        package = ROOT if self.inplace else Path(self.build_lib).absolute()
        output = package / "l4kernels" / "lib"
        write_facts(output, self.build(output))

    def build(self, output: Path) -> dict[str, str]:
        nvcc = find_nvcc()
        if nvcc is None:
            raise SystemExit(f"l4kernels: L4K_BUILD_CUDA=1, but {NO_NVCC}")
        torch = find_spec("torch")
        if torch is None or torch.origin is None:
            raise SystemExit(
                "l4kernels: building the CUDA kernels needs torch's headers; "
                "install torch >= 2.10 first, or set L4K_BUILD_CUDA=0"
            )
        torch_dir = Path(torch.origin).parent
        build_dir = ROOT / "build" / "cmake"
        run(
            *("cmake", "-S", ROOT, "-B", build_dir, "-G", "Ninja"),
            *(f"-DCMAKE_CUDA_COMPILER={nvcc}", f"-DL4K_TORCH_DIR={torch_dir}"),
            f"-DL4K_OUTPUT_DIR={output}",
        )
        run("cmake", "--build", build_dir, "--target", "l4kernels")
        release = re.search(r"V([\d.]+)", capture(nvcc, "--version"))
        return {
            "nvcc": release.group(1) if release else "unknown",
            "arch": "sm_90a",
            "torch_headers": metadata.version("torch"),
            "torch_target": "2.10",
            "commit": capture("git", "-C", ROOT, "rev-parse", "--short", "HEAD") or "unknown",
            "built": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        }


def write_facts(output: Path, facts: dict[str, str]) -> None:
    output.mkdir(parents=True, exist_ok=True)
    (output / "build.json").write_text(json.dumps(facts, indent=1) + "\n")


def run(*command: object) -> None:
    """Runs a build tool; those of this Python's environment go before the machine's."""
    folders = [os.environ["PATH"]]
    for package, folder in (("ninja", "BIN_DIR"), ("cmake", "CMAKE_BIN_DIR")):
        if find_spec(package):
            folders.insert(0, str(getattr(import_module(package), folder)))
    environment = os.environ | {"PATH": os.pathsep.join(folders)}
    subprocess.run([str(word) for word in command], check=True, env=environment)


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


version = re.search(r'__version__ = "(.+)"', (ROOT / "l4kernels" / "__init__.py").read_text())
setup(
    version=version.group(1) if version else "0",
    packages=[
        *find_namespace_packages(include=["l4kernels*"], exclude=["l4kernels.lib"]),
        "l4kernels.bench",
    ],
    package_dir={"l4kernels.bench": "bench"},
    package_data={
        "l4kernels": ["py.typed"],
        "l4kernels.demo": ["*.md", "*.json"],
        "l4kernels.demo.checkpoint": ["*"],
        "l4kernels.demo.data": ["*"],
    },
    ext_modules=[Extension("l4kernels.lib", [])],
    cmdclass={"build_py": PackageBuild, "build_ext": LibraryBuild, "bdist_wheel": AnyPythonWheel},
    distclass=LibraryDistribution,
    setup_requires=requirements_for_building() if "egg_info" in " ".join(sys.argv) else [],
)
