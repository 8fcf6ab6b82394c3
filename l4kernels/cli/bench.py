"""`l4k bench`: hands its arguments to the bench, which lives beside the package."""

import importlib
from collections.abc import Sequence

from l4kernels.cli.interrupts import postponed


def run(arguments: Sequence[str]) -> int:
    """Runs `bench` of an installed wheel (`l4kernels.bench`) or of a clone (`bench`)."""
    for name in ("l4kernels.bench.__main__", "bench.__main__"):
        try:
            with postponed():
                module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name not in (name, name.rpartition(".")[0], "bench"):
                raise
            continue
        status: int = module.main(list(arguments))
        return status
    raise NotImplementedError(
        "the bench is not part of this installation: install the wheel, or run it in a clone"
    )
