"""`l4k bench`: hands its arguments to the bench."""

from collections.abc import Sequence

from l4kernels.cli.interrupts import postponed


def run(arguments: Sequence[str]) -> int:
    with postponed():
        from l4kernels.bench.command import main
    return main(list(arguments))
