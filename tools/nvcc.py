"""The CUDA programs that the tools and tests run: compiler and disassembler."""

import shutil
import subprocess
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FLAGS = ["-std=c++20", "-O3", "-gencode=arch=compute_90a,code=sm_90a", "-lineinfo", "-I", "csrc"]


def cuobjdump() -> str | None:
    """From the toolkit, else from the triton wheel."""
    if found := shutil.which("cuobjdump"):
        return found
    wheel = Path(sysconfig.get_path("purelib"), "triton", "backends", "nvidia", "bin", "cuobjdump")
    return str(wheel) if wheel.exists() else None


def output_of(*command: str) -> str:
    """Standard output and error of a command run in the root; raises with both if it fails."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr
