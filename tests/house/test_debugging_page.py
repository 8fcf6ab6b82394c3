"""The emulator's transcripts in docs/debugging.md: the page's commands give the page's output."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from l4kernels.emulation.toolchain import nvcc
from tools.nvcc import ROOT

PAGE = (ROOT / "docs" / "debugging.md").read_text()
PROGRAM = re.search(r"^```cuda\n(.*?)^```$", PAGE, re.M | re.S)[1]
TRANSCRIPTS = re.findall(r"^```\n(\$ nvcc .*?)^```$", PAGE, re.M | re.S)


def commands_and_output(transcript: str) -> tuple[str, str]:
    """The lines after a `$ `, with those that a backslash continues, and the rest."""
    lines = transcript.replace("\\\n", " ").splitlines()
    commands = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    return "\n".join(commands), "\n".join(line for line in lines if not line.startswith("$ "))


@pytest.mark.skipif(nvcc() is None, reason="no nvcc")
@pytest.mark.parametrize("transcript", TRANSCRIPTS, ids=["report", "hang"])
def test_commands_of_the_page_give_its_output(transcript, tmp_path):
    (tmp_path / "handoff.cu").write_text(PROGRAM)
    (tmp_path / "build").symlink_to(ROOT / "build")
    commands, expected = commands_and_output(transcript)
    path = f"{Path(nvcc()).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-ec", commands],
        cwd=tmp_path,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.replace(f"{tmp_path}/", "").strip() == expected, done.stderr
