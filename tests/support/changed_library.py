"""The emulated library with some of its sources changed: how a test sees what a fault would do."""

import hashlib
import json
import os
import shlex
import subprocess
from pathlib import Path

import torch

from l4kernels.testing import emulator

ROOT, BUILD = Path(__file__).resolve().parents[2], emulator.BUILD
CSRC = ROOT / "csrc"


def entries() -> list[dict[str, str]]:
    """How each source of the emulated library is compiled."""
    all_entries = json.loads((BUILD / "compile_commands.json").read_text())
    return [entry for entry in all_entries if "-DL4K_EMULATED" in shlex.split(entry["command"])]


def compiler(source: str) -> list[str]:
    """The command that compiles a source for the emulator, less its files."""
    (command,) = [shlex.split(e["command"]) for e in entries() if e["file"].endswith(f"/{source}")]
    files = [command.index("-o") + 1, command.index("-c") + 1]
    return [a for i, a in enumerate(command) if i not in files and a not in ("-o", "-c")]


def compiled(source: str, text: str, *how: str) -> subprocess.CompletedProcess[str]:
    """C++ in place of a source, compiled as that is, but for speed."""
    command = [*compiler(source), "-O0", "-x", "c++", "-", *how]
    return subprocess.run(command, input=text, capture_output=True, text=True)


def linked(changed: dict[str, str], name: str) -> Path:
    """A folder with the emulated library in which these sources (by their path in csrc) have these
    texts. Stays in build/`name` until a source changes."""
    objects = [Path(entry["output"]) for entry in entries()]
    stamps = [(str(path), path.stat().st_mtime_ns) for path in objects]
    key = hashlib.sha256(f"{changed}{stamps}".encode()).hexdigest()[:16]
    folder = BUILD.parent / name / key
    if folder.exists():
        return folder
    made = folder.with_name(f"{key}.{os.getpid()}")
    made.mkdir(parents=True)
    ours = [made / f"{Path(source).name}.o" for source in changed]
    for object_file, (source, text) in zip(ours, changed.items(), strict=True):
        done = compile_changed(source, text, object_file)
        assert done.returncode == 0, done.stderr[-2000:]
    for library in ("libl4k_emulator.so", next(BUILD.glob("l4k_emulator_control*.so")).name):
        (made / library).symlink_to(BUILD / library)
    replaced = {path.name for path in ours}
    rest = [path for path in objects if path.name not in replaced]
    link = ["c++", "-shared", "-o", str(made / "libl4kernels_emulated.so"), *map(str, ours + rest)]
    link += [f"-L{Path(torch.__file__).parent / 'lib'}", "-Wl,--no-as-needed"]
    link += ["-ltorch", "-ltorch_cpu", "-lc10"]
    link += [f"-L{made}", "-ll4k_emulator", f"-Wl,-rpath,{BUILD}"]
    done = subprocess.run(link, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    os.replace(made, folder)
    return folder


def compile_changed(source: str, text: str, output: Path) -> subprocess.CompletedProcess[str]:
    if not source.endswith(".cu"):
        return compiled(source, text, "-c", "-o", str(output))
    file = output.with_suffix("")
    file.write_text(text)
    command = [*compiler(source), "-c", str(file), "-o", str(output)]
    return subprocess.run(command, capture_output=True, text=True)
