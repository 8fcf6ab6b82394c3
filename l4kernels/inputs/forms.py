"""Checkpoints in forms that are converted before they are loaded: told by their files' names."""

import os
from pathlib import Path


def convert_hint(path: str | Path) -> str:
    """What to add to a message about a path that is no checkpoint folder; mostly nothing.

    >>> convert_hint("Llama-4-Scout.gguf")
    ''
    """
    path = Path(path)
    if os.path.isdir(path):  # of any name, unlike is_dir
        native, gguf = (any(path.glob(names)) for names in ("consolidated*.pth", "*.gguf"))
    else:
        native, gguf = False, path.suffix == ".gguf" and os.path.isfile(path)
    kind = "Meta's native form" if native else "GGUF" if gguf else ""
    return f". This is {kind}: run `l4k convert {path} OUT`, then load OUT" if kind else ""
