"""docs/emulating.md: every command of the page gives the page's output."""

import pytest

from l4kernels.emulation.toolchain import nvcc
from tests.support import transcripts
from tools.nvcc import ROOT

PAGE = ROOT / "docs" / "emulating.md"
TRANSCRIPTS = transcripts.transcripts(PAGE, "")
PROGRAMS = {path.name for path in (ROOT / "examples" / "emulator").glob("*.cu")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("page")
    (path / "examples").symlink_to(ROOT / "examples")
    return path


@pytest.mark.skipif(nvcc() is None, reason="no nvcc")
@pytest.mark.parametrize("transcript", TRANSCRIPTS, ids=range(len(TRANSCRIPTS)))
def test_commands_of_the_page_give_its_output(transcript, folder):
    commands, expected = transcripts.commands_and_output(transcript)
    transcripts.assert_prints(transcripts.run(commands, folder), expected)


def test_every_program_is_shown():
    commands = "".join(transcripts.commands_and_output(text)[0] for text in TRANSCRIPTS)
    assert not {name for name in PROGRAMS if name not in commands}
