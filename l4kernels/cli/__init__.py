"""The command line `l4k`. Every verb prints for people, or one JSON object with `--json`."""

import json
import sys
from collections.abc import Sequence

from l4kernels.model.extras import MissingExtra, require

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `l4k`; returns the exit code: 0, 1 for interruptions, 2 for bad input."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in arguments
    try:
        for module in ("typer", "rich"):
            require(module, "cli")
        from l4kernels.cli.app import app

        result = app(args=arguments or ["--help"], prog_name="l4k", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except KeyboardInterrupt:
        return _fail("interrupted", as_json, code=1)
    except BrokenPipeError:
        sys.stderr.close()  # keeps the interpreter from reporting the closed pipe once more
        return 1
    except (ValueError, OSError, MissingExtra, NotImplementedError, MemoryError) as error:
        return _fail(str(error) or type(error).__name__, as_json)
    except Exception as error:
        message = _known(error)
        if message is None:
            raise
        return _fail(message, as_json)


def _known(error: Exception) -> str | None:
    """The message of a usage error or of full memory; None for what can only be a bug."""
    if hasattr(error, "format_message"):  # typer carries its own copy of click's classes
        return error.format_message()
    import torch

    full = isinstance(error, torch.OutOfMemoryError)
    if full or "not enough memory" in str(error) or "can't allocate memory" in str(error):
        return f"out of memory; `l4k plan` says what fits ({str(error).splitlines()[0]})"
    return "aborted" if type(error).__name__ == "Abort" else None


def _fail(message: str, as_json: bool, code: int = 2) -> int:
    message = " ".join(message.split())
    if as_json:
        print(json.dumps({"error": message}))
    else:
        print(f"l4k: {message}", file=sys.stderr)
    return code
