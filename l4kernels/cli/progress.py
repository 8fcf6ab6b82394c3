"""A bar on standard error while a checkpoint is loaded, or written."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from l4kernels.checkpoint import progress as checkpoint


@contextlib.contextmanager
def loading_bar(what: str = "Loading") -> Iterator[checkpoint.Progress]:
    """A callback for `Llama4.from_pretrained`: a bar on a terminal, silent elsewhere.

    The bar is gone when the block ends, also by an error, whose message comes after it.
    """
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    # The command line's sys.stderr spells control characters out, and a bar is made of them.
    console = Console(file=getattr(sys.stderr, "drawable", sys.stderr))
    # Or rich prints what others do.
    plain: dict[str, Any] = {"redirect_stdout": False, "redirect_stderr": False}
    columns = (
        what,
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, **plain) as bar:
        task = bar.add_task("")
        yield lambda done, total: bar.update(task, completed=done, total=total)
