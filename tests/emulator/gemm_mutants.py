"""Mistakes put into a product's kernel, each compiled with a small host program and run.

A mutant is a copy of the kernel's sources with one replacement. Programs stay in build/ until a
source changes.
"""

import hashlib
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from l4kernels.emulation import toolchain
from tests.emulator.emulator_programs import BUILD, HERE, MODES, ROOT, Outcome, read_outcome
from tools.gemm_configs import names_of_instances

SEEDS = 2


@dataclass(frozen=True)
class Mutant:
    """`old` becomes `new` in a file of the kernel's folder; the report must be one of
    `kinds`."""

    name: str
    config: str
    file: str
    old: str | tuple[str, ...]
    new: str | tuple[str, ...]
    kinds: str
    arguments: str = ""  # of the host program
    sms: int = 4

    def __str__(self) -> str:
        return f"{self.config}-{self.name}".replace(" ", "-")

    def changes(self) -> list[tuple[str, str]]:
        olds, news = ((x,) if isinstance(x, str) else x for x in (self.old, self.new))
        return list(zip(olds, news, strict=True))


def program(kernel: str, config: str, mutant: Mutant | None = None) -> Path:
    """Compiles a copy of the sources with KERNEL/chain.cu, unless the same one has been before."""
    sources = {
        path.relative_to(ROOT / "csrc"): path.read_text()
        for folder in ("ptx", "tile", "host", "kernels/stream_gemm", f"kernels/{kernel}")
        for path in sorted((ROOT / "csrc" / folder).iterdir())
        if path.suffix in (".h", ".cuh") or (folder == "host" and path.suffix == ".cpp")
    }
    if mutant is not None:
        at = Path(os.path.normpath(Path("kernels", kernel, mutant.file)))
        for old, new in mutant.changes():
            assert sources[at].count(old) == 1, f"{mutant}: not once in {at}: {old}"
            sources[at] = sources[at].replace(old, new)
    driver = HERE / kernel / "chain.cu"
    host = driver.read_text() + (HERE / "kernels" / "host.h").read_text()
    text = f"{config}{sorted(sources.items())}{host}{toolchain.library()}"
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    binary = BUILD / kernel / name
    if binary.exists():
        return binary
    copy = BUILD / kernel / f"{name}.{os.getpid()}"
    for path, content in sources.items():
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        (copy / path).write_text(content)
    flags = ("-std=c++20", "-O2", toolchain.PTX, *toolchain.READABLE)
    number = names_of_instances()[f"{kernel}_kernel"].index(config)
    made = f"{copy}/chain.o"
    hosts = [f"-include={path}" for path in sources if path.suffix == ".cpp"]
    for command in (
        [toolchain.need_nvcc(), *flags, f"-DCONFIG={number}", *hosts,
         "-I", str(copy), "-c", str(driver), "-o", made],
        ["c++", made, "-o", f"{copy}/chain", *toolchain.linked_with(toolchain.library())],
    ):  # fmt: skip
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
    os.replace(copy / "chain", binary)
    shutil.rmtree(copy)
    return binary


def run(binary: Path, mode: str, seed: int, arguments: str, sms: int) -> Outcome:
    settings = f"mode={mode},seed={seed},sms={sms},threads=1,stop=benign"
    environment = dict(os.environ, L4K_EMU=settings)
    done = subprocess.run(
        [str(binary), *arguments.split()],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    return read_outcome(done.returncode, done.stdout + done.stderr)


def check_original(binary: Path, arguments: str = "", sms: int = 4) -> None:
    for seed in range(SEEDS):
        for mode in MODES:
            outcome = run(binary, mode, seed, arguments, sms)
            assert outcome.passed, f"{mode} {seed}: {outcome.output}"


def check_reported(binary: Path, mutant: Mutant) -> None:
    """Some run reports it with its cause; where its kinds have "result" wrong numbers will do."""
    attempts = []
    for seed in range(SEEDS):
        for mode in MODES:
            outcome = run(binary, mode, seed, mutant.arguments, mutant.sms)
            kind = outcome.kind or ("result" if outcome.status == 1 else None)
            if kind is not None:
                assert any(kind.startswith(cause) for cause in mutant.kinds.split()), outcome.output
                return
            attempts.append(f"{mode} {seed}: status {outcome.status}")
    raise AssertionError(f"{mutant}: no report; " + "; ".join(attempts))
