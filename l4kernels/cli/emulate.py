"""`l4k emulate`: hands its arguments to the room that runs programs on the emulator."""

from collections.abc import Sequence

from l4kernels.emulation.command import main


def run(arguments: Sequence[str]) -> int:
    return main(arguments)
