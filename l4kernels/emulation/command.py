"""`l4k emulate FILE.cu`: compiles a CUDA program and runs it on the emulator, with no GPU."""

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from l4kernels.emulation import results
from l4kernels.emulation.build import Sources, program_of
from l4kernels.inputs.parser import Parser

MODES = ("late", "early", "random")
FAILED = 1  # the exit status of a program that ends well although there was an error

EPILOG = """What follows -- goes to the program. The exit status is the program's, or 1 if it is 0
although an error was reported, or 2 if there is no program to run."""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(prog="l4k emulate", description=__doc__, epilog=EPILOG, allow_abbrev=False)
    add = parser.add_argument
    add("files", nargs="+", metavar="FILE", help="CUDA or C++ source; several make one program")
    group = parser.add_argument_group("the run")
    add = group.add_argument
    add("--mode", choices=[*MODES, "all"], default="late", help="when asynchronous work lands")
    add("--seed", type=_count, action="append", metavar="N", help="repeatable; 1 if not given")
    add("--seeds", type=_count, metavar="N", help="seeds 1 to N, one after the other")
    add("--counters", action="store_true", help="traffic, conflicts, FLOP by kernel and line")
    add("--limit", type=_count, metavar="N", help="end after so many warp instructions")
    add("--sms", type=_count, metavar="N", help="multiprocessors of the GPU (4)")
    add("--threads", type=_count, metavar="N", help="threads of this machine")
    add("--strict", action="store_true", help="also demand proxy fences after cp.async")
    add("--leaks", action="store_true", help="list memory that was never freed")
    group = parser.add_argument_group("reports (docs/emulator.md lists their kinds)")
    add = group.add_argument
    add("--ignore", action="append", default=[], metavar="KIND", help="or severity; repeatable")
    add("--suppress", action="append", default=[], metavar="FILE", help="kinds and places to drop")
    add("--stop", choices=["error", "rule", "benign", "never"], help="what ends the run (error)")
    add("--continue", action="store_true", dest="never_stop", help="the same as --stop never")
    group = parser.add_argument_group("the compiler")
    add = group.add_argument
    add("-I", action="append", default=[], metavar="FOLDER", help="where headers are")
    add("-D", action="append", default=[], metavar="NAME[=VALUE]", help="a macro")
    add("-std", "--std", default="c++20", metavar="STANDARD", help="of C++ (c++20)")
    add("-L", action="append", default=[], metavar="FOLDER", help="where libraries are")
    add("-l", action="append", default=[], metavar="NAME", help="a library of the host's")
    add("--nvcc-args", action="append", default=[], metavar="'...'", help="more flags of nvcc: "
        "--nvcc-args='--extended-lambda -w'")  # fmt: skip
    add("-o", "--output", type=Path, metavar="PROGRAM", help="keep the program, for a debugger")
    return parser.parse_args(arguments)


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError
    return value


def main(arguments: Sequence[str]) -> int:
    arguments = list(arguments)
    at = arguments.index("--") if "--" in arguments else len(arguments)
    options, given = parse(arguments[:at]), arguments[at + 1 :]
    program = program_of(_sources(options))
    if options.output:
        shutil.copy2(program, options.output)
    modes = MODES if options.mode == "all" else (options.mode,)
    seeds = range(1, options.seeds + 1) if options.seeds else options.seed or [1]
    several = len(modes) * len(seeds) > 1
    stdin = sys.stdin.buffer.read() if several and sys.stdin and not sys.stdin.isatty() else None
    statuses = {}
    for mode, seed in product(modes, seeds):
        name = f"mode {mode}, seed {seed}"
        if several:
            _say(name)
        settings = [f"mode={mode}", f"seed={seed}", *_settings(options)]
        statuses[name] = _run(program, options, settings, given, stdin)
    bad = {name: status for name, status in statuses.items() if status}
    if several:
        which = f"{len(bad)} failed: {'; '.join(bad)}" if bad else "none failed"
        _say(f"{len(statuses)} runs, {which}")
    return next(iter(bad.values()), 0)


def _sources(options: argparse.Namespace) -> Sources:
    flags = [f"-std={options.std}", *(f"-D{name}" for name in options.D)]
    for folder in options.I:
        flags += ["-I", folder]
    for text in options.nvcc_args:
        flags += shlex.split(text)
    libraries = [f"-L{folder}" for folder in options.L] + [f"-l{name}" for name in options.l]
    return Sources(tuple(options.files), tuple(flags), tuple(libraries))


def _settings(options: argparse.Namespace) -> list[str]:
    """As L4K_EMU has them; the emulator itself says which kinds there are."""
    numbers = ((name, getattr(options, name)) for name in ("sms", "threads", "limit"))
    settings = [f"{name}={value}" for name, value in numbers if value is not None]
    settings += [name + "=1" for name in ("strict", "leaks") if getattr(options, name)]
    settings += [f"ignore={kind}" for text in options.ignore for kind in text.split(",")]
    settings += [f"suppress={file}" for file in options.suppress]
    if options.never_stop or options.stop:
        settings.append(f"stop={'never' if options.never_stop else options.stop}")
    if bad := [setting for setting in settings if "," in setting]:
        raise ValueError(f"expected a name without a comma, got {bad[0]!r}")
    return settings


def _run(
    program: Path,
    options: argparse.Namespace,
    settings: list[str],
    arguments: list[str],
    stdin: bytes | None,
) -> int:
    """The exit status."""
    with tempfile.NamedTemporaryFile(prefix="l4k-emulate-") as file:
        before = filter(None, [os.environ.get("L4K_EMU")])
        configuration = ",".join([*before, *settings, f"results={file.name}"])
        environment = os.environ | {"L4K_EMU": configuration}
        name = os.path.splitext(options.files[0])[0]  # as if it had been made beside its source
        done = subprocess.run(
            [name, *arguments], executable=program, env=environment, input=stdin, check=False
        )
        found = results.read(Path(file.name))
    status = done.returncode
    if status < 0:
        _say(f"the program was ended by {signal.Signals(-status).name}")
        status = 128 - status
    elif not status and found and found.failed:
        _say(f"the program says that all is well, but there were errors: exit status {FAILED}")
        status = FAILED
    if options.counters:
        _print_counters(found)
    return status


def _print_counters(found: results.Results | None) -> None:
    if found is None or not found.kernels:
        _say("no counters: the program launched no kernel, or did not come to its end")
        return
    for kernel in found.kernels:
        print(*results.table(kernel), sep="\n", file=sys.stderr)
    sys.stderr.flush()


def _say(text: str) -> None:
    print(f"emulate: {text}", file=sys.stderr, flush=True)
