"""The emulator's transcripts in docs/debugging.md: the page's commands give the page's output."""

import re

import pytest

from l4kernels.emulation.toolchain import nvcc
from tests.support import transcripts
from tools.nvcc import ROOT

PAGE = ROOT / "docs" / "debugging.md"
PROGRAM = re.search(r"^```cuda\n(.*?)^```$", PAGE.read_text(), re.M | re.S)[1]
TRANSCRIPTS = transcripts.transcripts(PAGE, r"L4K_EMU=\S+ l4k emulate")


@pytest.mark.skipif(nvcc() is None, reason="no nvcc")
@pytest.mark.parametrize("transcript", TRANSCRIPTS, ids=["report", "hang"])
def test_commands_of_the_page_give_its_output(transcript, tmp_path):
    (tmp_path / "handoff.cu").write_text(PROGRAM)
    commands, expected = transcripts.commands_and_output(transcript)
    transcripts.assert_prints(transcripts.run(commands, tmp_path), expected)
