"""What tests of the command line share: the program, its environment and a terminal."""

import fcntl
import io
import os
import pty
import select
import subprocess
import sys
import termios
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
L4K = [sys.executable, "-m", "l4kernels"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


class PseudoTerminal:
    """A program that has a terminal of its own, and somebody who types there.

    Use it in a `with`, which ends the program.
    """

    def __init__(self, command: list[str], **options):
        self._ours, theirs = pty.openpty()
        self.shown = ""
        self._seen = 0
        self.child = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=ENVIRONMENT | {"TERM": "dumb"},
            start_new_session=True,
            # Or Ctrl-C would be a character like others.
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509
            **options,
        )
        self.modes = termios.tcgetattr(theirs)
        self._theirs = theirs  # open: the modes can be read after the program's end

    def send(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def settle(self) -> None:
        """Waits until the program waits: a signal that comes between the prompt and Python's wait
        for a key is not seen before the key."""
        stat, asleep = Path(f"/proc/{self.child.pid}/stat"), 0
        while asleep < 3:
            state = stat.read_text().rpartition(")")[2].split()[0]
            asleep = asleep + 1 if state == "S" else 0
            time.sleep(0.01)

    def interrupt(self) -> None:
        """Ctrl-C."""
        self.settle()
        self.send("\x03")

    def expect(self, text: str, seconds: float = 60) -> str:
        """Waits until `text` has been shown since the last call; what was shown up to its end."""
        deadline = time.monotonic() + seconds
        while text not in self.shown[self._seen :]:
            left = deadline - time.monotonic()
            ready = left > 0 and select.select([self._ours], [], [], left)[0]
            assert ready, f"expected {text!r}, got {self.shown[self._seen :]!r}"
            self.shown += os.read(self._ours, 1 << 16).decode(errors="replace")
        start, self._seen = self._seen, self.shown.index(text, self._seen) + len(text)
        return self.shown[start : self._seen]

    def ended(self, seconds: float = 60) -> int:
        """Waits for the program's end; its exit code, after a look at the modes that it leaves."""
        code = self.child.wait(seconds)
        assert termios.tcgetattr(self._theirs) == self.modes, "the terminal is left as it was"
        return code

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.child.kill()
        self.child.wait()
        os.close(self._ours)
        os.close(self._theirs)
