"""Transcripts of the documentation: their commands give their output."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tools.nvcc import ROOT

TIMEOUT_S = 300


def transcripts(page: Path, start: str) -> list[str]:
    """The blocks of a page whose first line is a command that starts so."""
    return re.findall(rf"^```\n(\$ {start}.*?)^```$", page.read_text(), re.M | re.S)


def commands_and_output(transcript: str) -> tuple[str, str]:
    """The lines after a `$ `, with those that a backslash continues, and the rest."""
    lines = transcript.replace("\\\n", " ").splitlines()
    commands = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    return "\n".join(commands), "\n".join(line for line in lines if not line.startswith("$ "))


def run(commands: str, folder: Path) -> str:
    """What the commands print in a folder, whose own name is left out. `l4k` is this clone's."""
    tools = folder / "bin"
    if not tools.exists():
        tools.mkdir()
        (tools / "l4k").write_text(f'#!/bin/sh\nexec {sys.executable} -m l4kernels "$@"\n')
        (tools / "l4k").chmod(0o755)
    path = os.pathsep.join([str(tools), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-c", commands],
        cwd=folder,
        env=os.environ
        | {"PATH": path, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "cache")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S,
    )
    return done.stdout.replace(f"{folder}/", "").strip()


def assert_prints(output: str, expected: str) -> None:
    """Dots stand for whatever was left out of `expected`. Host addresses change with every run,
    lines of PTX and its registers with the compiler."""
    pattern = re.escape(expected)
    pattern = re.sub(r"^\\\.\\\.\\\.\\\n", r"(?:.*\\n)*?", pattern, flags=re.M)
    pattern = re.sub(r"0x5[0-9a-f]{11}", "0x[0-9a-f]+", pattern.replace(r"\.\.\.", ".*"))
    pattern = re.sub(r"(PTX(?:\\ )+line\\ |%f)\d+", r"\1\\d+", pattern)
    assert re.fullmatch(pattern, output), f"expected\n{expected}\n\ngot\n{output}"
