"""Optional dependencies: one line that says which extra to install."""

import importlib


class MissingExtra(ImportError):
    """A module of an optional dependency group is not installed."""


def require(module: str, extra: str) -> None:
    """Raises `MissingExtra` with the command that installs `module`, if it is missing."""
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(
            f"this needs {module}, which is not installed: pip install 'l4kernels[{extra}]'"
        ) from error
