"""What makes a program for the emulator: its compiler, its library, and their flags."""

import os
import shutil
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PTX = "-gencode=arch=compute_90a,code=compute_90a"
READABLE = ("--no-compress", "-lineinfo", "--cudart=none")
"""The emulator finds the PTX and its source lines, and takes the CUDA runtime's place."""


def nvcc() -> str | None:
    """CUDACXX, CUDA_HOME, PATH, then the PyPI wheels: the order of setup.py."""
    home = os.environ.get("CUDA_HOME")
    for candidate in (os.environ.get("CUDACXX"), home and f"{home}/bin/nvcc", "nvcc"):
        if candidate and (found := shutil.which(candidate)):
            return found
    wheel = Path(sysconfig.get_path("purelib"), "nvidia", "cu13", "bin", "nvcc")
    return str(wheel) if wheel.exists() else None


def need_nvcc() -> str:
    if found := nvcc():
        return found
    raise FileNotFoundError(
        "no nvcc in CUDACXX, CUDA_HOME/bin, PATH or this environment's wheel nvidia-cuda-nvcc: "
        "install the CUDA toolkit 13 (no GPU or driver is needed); in a clone `make venv` brings it"
    )


def library() -> Path:
    """The emulator: `L4K_EMULATOR_LIBRARY`, or the newest that this clone has built."""
    if given := os.environ.get("L4K_EMULATOR_LIBRARY"):
        if not Path(given).is_file():
            raise FileNotFoundError(f"L4K_EMULATOR_LIBRARY: expected a library, got {given!r}")
        return Path(given).absolute()
    places = [ROOT / "build" / folder / "libl4k_emulator.so" for folder in ("cmake", "emulator")]
    if built := [path for path in places if path.exists()]:
        return max(built, key=lambda path: path.stat().st_mtime)
    raise FileNotFoundError(
        f"no emulator: expected {places[0]} or L4K_EMULATOR_LIBRARY; an installed package does not "
        "carry it, a clone builds it (`make build`, or only that: `make emulate F=FILE.cu`)"
    )


def linked_with(emulator: Path) -> list[str]:
    """The linker's arguments that put the emulator in place of the CUDA runtime."""
    return [str(emulator), "-Xlinker", "-rpath", "-Xlinker", str(emulator.parent)]
