"""Makes the checkout's virtual environment, and rebuilds it where it no longer fits.

`python -m tools.environment .venv --requirements demo dev` installs requirements/demo.txt and
dev.txt, each once. Any Python >= 3.6 can run this, so that an old one is told what is missing.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LEAST = {"demo": (3, 10), "dev": (3, 11)}  # dev: transformers


def main() -> None:
    parser = argparse.ArgumentParser(prog="tools.environment", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--requirements", nargs="+", required=True, metavar="NAME")
    parser.add_argument("--exact", action="store_true", help="only this version of Python will do")
    options = parser.parse_args()
    environment = Environment(options.folder)
    with turns(ROOT / "build"):
        environment.make(options.exact)
        for name in options.requirements:
            environment.install(name)


class Environment:
    """A virtual environment, with a record of where it was made and what was installed into it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / "bin" / "python"
        self.record = folder / ".ready"

    def make(self, exact: bool) -> None:
        """Creates the environment unless one is there that fits; deletes only what it made."""
        state = self.read()
        reason = self.misfit(state, exact) if state else "is new"
        if not reason:
            return
        check(sys.version_info[:2])
        if state:
            say(f"{self.folder} {reason}; it is made anew")
            self.folder.unlink() if self.folder.is_symlink() else shutil.rmtree(str(self.folder))
        # The base, for an activated environment may be the very one that is gone.
        base = getattr(sys, "_base_executable", sys.executable)
        failure = f"no virtual environment could be made; if there is a {self.folder}, remove it"
        run([base, "-m", "venv", str(self.folder)], failure)
        home = str(self.folder.resolve())
        self.write({"folder": home, "python": self.version(), "installed": {}})

    def misfit(self, state: dict, exact: bool) -> str:
        """Why a recorded environment must be rebuilt; empty if it fits."""
        if state["folder"] != str(self.folder.resolve()):
            return f"was moved from {state['folder']}"
        if self.version() != state["python"]:
            return f"has lost its Python {state['python']}"
        asked = dotted(sys.version_info[:2])
        if exact and asked != state["python"]:
            return f"holds Python {state['python']}, and PYTHON asks for {asked}"
        return ""

    def install(self, name: str) -> None:
        """Installs requirements/NAME.txt, and with demo.txt the checkout itself, once."""
        state = self.read()
        sources = [ROOT / "requirements" / f"{name}.txt"]
        if name == "demo":
            sources += [ROOT / "pyproject.toml", ROOT / "setup.py"]
        content = b"".join(source.read_bytes() for source in sources)
        digest = hashlib.sha256(str(ROOT).encode() + content).hexdigest()
        if state["installed"].get(name) == digest:
            return
        least = dotted(LEAST.get(name, LEAST["demo"]))
        if tuple(map(int, state["python"].split("."))) < LEAST.get(name, LEAST["demo"]):
            raise SystemExit(
                f"make: expected Python {least} or newer for requirements/{name}.txt, and "
                f"{self.folder} holds {state['python']}; choose another with make PYTHON=python3.N"
            )
        say(f"installing requirements/{name}.txt into {self.folder}; downloads can take minutes")
        pip = [str(self.python), "-m", "pip", "install", "-q"]
        failure = "pip failed, see its messages above; it needs the network, or PIP_FIND_LINKS"
        # The oracles' folder: see the file.
        apart = ["--no-deps", "--upgrade", "--target", str(self.folder / "oracles")]
        run([*pip, *(apart if name == "oracles" else []), "-r", str(sources[0])], failure)
        if name == "demo":
            os.environ.update(PYTHONWARNINGS="ignore", L4K_BUILD_CUDA="0")
            run([*pip, "--no-build-isolation", "--no-deps", "-e", str(ROOT)], "pip failed")
        state["installed"][name] = digest
        self.write(state)

    def version(self) -> str:
        """Of the environment's Python, as 3.11; empty where it does not run."""
        command = [str(self.python), "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        try:
            return subprocess.check_output(command).decode().strip()
        except (OSError, subprocess.CalledProcessError):
            return ""

    def read(self) -> dict:
        try:
            return json.loads(self.record.read_text())
        except (OSError, ValueError):
            return {}

    def write(self, state: dict) -> None:
        self.record.write_text(json.dumps(state, indent=1) + "\n")


def check(version: tuple) -> None:
    """Says what the machine's Python lacks for an environment."""
    if version < LEAST["demo"]:
        raise SystemExit(
            f"make: expected Python 3.10 or newer, got {dotted(version)} ({sys.executable}); "
            "choose another with make PYTHON=python3.N"
        )
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError as error:
        raise SystemExit(
            f"make: {sys.executable} has no module {error.name}; install it (on Debian and Ubuntu "
            "it is in python3-venv)"
        ) from None


def dotted(version: tuple) -> str:
    return ".".join(map(str, version))


@contextmanager
def turns(folder: Path) -> "Iterator[None]":
    """Two makes at once take turns."""
    import fcntl

    folder.mkdir(exist_ok=True)
    with open(str(folder / ".environment.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def run(command: list, failure: str) -> None:
    if subprocess.run(command).returncode:
        raise SystemExit(f"make: {failure}")


def say(text: str) -> None:
    print(f"make: {text}", flush=True)


if __name__ == "__main__":
    main()
