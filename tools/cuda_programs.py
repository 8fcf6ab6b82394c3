"""Small CUDA programs of one source each: compiled for a GPU or for the emulator, and run."""

import hashlib
import os
import subprocess
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from l4kernels.emulation import toolchain
from tools.nvcc import FLAGS, ROOT, output_of

HOST = sorted((ROOT / "csrc" / "host").glob("*.cpp"))
"""What programs that launch by `host/launch.h` need besides; it is compiled as a part of them."""

JOBS = 2
TIMEOUT_S = 20


def build(sources: Path, names: Iterable[str], output: Path) -> list[Path]:
    """Compiles `sources`/NAME.cu for sm_90a, with the CUDA runtime inside."""
    return _build_all(sources, names, output, [*FLAGS, "--cudart=static"], None)


def build_emulated(sources: Path, names: Iterable[str], output: Path) -> list[Path]:
    """The same for the emulator, whose library takes the runtime's place. The machine code is
    beside the PTX: ptxas has its say, and loops can be looked at."""
    flags = [flag for flag in FLAGS if not flag.startswith("-gencode")]
    flags += ["-gencode=arch=compute_90a,code=[compute_90a,sm_90a]", *toolchain.READABLE]
    flags += ["-DL4K_EMULATED", f"-I{ROOT / 'emulator' / 'include'}"]
    return _build_all(sources, names, output, flags, toolchain.library())


def _build_all(
    sources: Path, names: Iterable[str], output: Path, flags: list[str], library: Path | None
) -> list[Path]:
    output.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(JOBS) as pool:
        return list(
            pool.map(lambda name: _build(sources / f"{name}.cu", output, flags, library), names)
        )


def _build(source: Path, output: Path, flags: list[str], library: Path | None) -> Path:
    """Compiles a program unless it is up to date; ptxas may not serialise its products."""
    compiler = toolchain.need_nvcc()
    headers = [*(ROOT / "csrc").rglob("*.*h"), *(ROOT / "bench").glob("*/*.*h")]
    inputs = b"".join(path.read_bytes() for path in sorted([source, *headers, *HOST]))
    key = hashlib.sha256(inputs + str((flags, library, compiler)).encode()).hexdigest()
    flags = [*flags, *(f"-include={path}" for path in HOST)]
    program, stamp = output / source.stem, output / f"{source.stem}.key"
    if program.exists() and stamp.exists() and stamp.read_text() == key:
        return program
    if library is None:
        log = output_of(compiler, *flags, str(source), "-o", str(program))
    else:
        log = output_of(compiler, *flags, "-c", str(source), "-o", f"{program}.o")
        link = toolchain.linked_with(library)
        output_of("c++", f"{program}.o", "-o", str(program), *link)
        Path(f"{program}.o").unlink()
    if "(C75" in log:
        raise RuntimeError(f"{source.stem}: ptxas says\n{log}")
    stamp.write_text(key)
    return program


def run(program: Path, *arguments: str, **environment: str) -> bytes:
    """Standard output of a program; raises if it fails or does not end."""
    if not os.access(program, os.X_OK):
        program.chmod(0o755)
    try:
        done = subprocess.run(
            [str(program), *arguments],
            capture_output=True,
            timeout=TIMEOUT_S,
            env=os.environ | environment,
        )
    except subprocess.TimeoutExpired as late:
        raise RuntimeError(
            f"{program.name}: no end after {TIMEOUT_S} s: {(late.stdout or b'')[-500:]!r}"
        ) from None
    if done.returncode:
        said = (done.stdout[-1500:] + done.stderr[-1000:]).decode(errors="replace")
        raise RuntimeError(f"{program.name}: exit {done.returncode}\n{said}")
    return done.stdout
