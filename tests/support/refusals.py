"""Sources that `l4k convert` must refuse."""

from pathlib import Path

import pytest

from l4kernels.checkpoint.convert import convert
from l4kernels.checkpoint.files.reader import CheckpointError
from tests.support.hostile import time_limit

SECONDS, MEGABYTES = 2.0, 200


def memory(name: str) -> float:
    """Of this process in megabytes: VmRSS now, VmHWM at the most."""
    line = next(s for s in Path("/proc/self/status").read_text().splitlines() if name in s)
    return int(line.split()[1]) / 1024


def refusal(source: Path, folder: Path) -> str:
    """The one line that refuses a source; nothing is left beside it."""
    there = {*folder.iterdir()}
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = memory("VmRSS")
    with time_limit(SECONDS), pytest.raises(CheckpointError) as caught:
        convert(source, folder / "out")
    assert memory("VmHWM") - before < MEGABYTES
    assert {*folder.iterdir()} == there
    message = str(caught.value)
    assert message.isprintable() and len(message) < 1000
    return message
