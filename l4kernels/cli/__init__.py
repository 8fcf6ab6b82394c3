"""The command line `l4k`. Every verb prints for people, or one JSON object with `--json`."""

import contextlib
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from itertools import takewhile

from l4kernels.cli.interrupts import exit_code, interruptible
from l4kernels.cli.streams import OutputError, guarded, json_line
from l4kernels.inputs.extras import MissingExtra, require

__all__ = ["main"]

BAD_INPUT = 2
CLOSED_PIPE = 128 + 13  # as if SIGPIPE had ended it
MAX_MESSAGE = 2000  # characters: some of them are a stranger's


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `l4k`; returns the exit code: 0, 2 for any error, 128 + the number of the signal that
    ended it (130: Ctrl-C, 141: nobody reads the output any more)."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in takewhile("--".__ne__, arguments)
    closed = sys.stdout is None
    with guarded(), _notes(), interruptible():
        try:
            if closed:
                raise OutputError("standard output is closed")
            code = _run(arguments)
            sys.stdout.flush()
            return code
        except BrokenPipeError:
            return CLOSED_PIPE
        except OutputError as error:
            return _fail(str(error), as_json=False)
        except KeyboardInterrupt as error:
            if sys.stdout.isatty():
                print()  # the line that was being written ends here
            return _fail("interrupted", as_json, exit_code(error))
        except Exception as error:
            message = _message(error)
            if message is None:
                raise
            return _fail(message, as_json)


@contextlib.contextmanager
def _notes() -> Iterator[None]:
    """Warnings in the block are one line each, without the place in the code they come from."""

    def show(message: Warning | str, *place: object, **more: object) -> None:
        print(f"l4k: {_one_line(str(message))}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _run(arguments: list[str]) -> int:
    if "torch" not in sys.modules:
        # Threads that wait for work by spinning take the cores from the others that have some.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for module in ("typer", "rich"):
        require(module, "cli")
    import typer

    from l4kernels.cli.app import app

    # Not app(): typer has an end of its own for Ctrl-C, closed pipes and usage errors.
    command = typer.main.get_command(app)
    try:
        with command.make_context("l4k", arguments or ["--help"]) as context:
            result = command.invoke(context)
    except typer.Exit as end:
        result = end.exit_code
    except SystemExit as end:  # of argparse, which reads what follows `l4k bench`
        result = end.code
    return result if isinstance(result, int) else 0


def _message(error: Exception) -> str | None:
    """What to say of an error; None if it can only be a bug, which keeps its traceback."""
    if hasattr(error, "format_message"):  # typer carries its own copy of click's classes
        return str(error.format_message())
    text = str(error)
    torch = sys.modules.get("torch")
    full = torch is not None and isinstance(error, torch.OutOfMemoryError)
    if full or "not enough memory" in text or "can't allocate memory" in text:
        return f"out of memory; `l4k plan` says what fits ({text.splitlines()[0]})"
    if isinstance(error, (ValueError, OSError, MissingExtra, NotImplementedError, MemoryError)):
        return text or type(error).__name__
    return None


def _fail(message: str, as_json: bool, code: int = BAD_INPUT) -> int:
    message = _one_line(message)
    if as_json:
        try:
            print(json_line({"error": message}), flush=True)
            return code
        except OSError:  # then it goes where it can be read
            pass
    print(f"l4k: {message}", file=sys.stderr, flush=True)
    return code


def _one_line(message: str) -> str:
    message = re.sub(r"[ \t]*\r?\n[ \t]*", " ", message.strip())
    return message if len(message) <= MAX_MESSAGE else message[:MAX_MESSAGE] + " ..."
