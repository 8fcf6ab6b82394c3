"""What tests of the command line share: the program, its environment and a terminal."""

import io
import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
L4K = [sys.executable, "-m", "l4kernels"]


class Terminal(io.StringIO):
    def isatty(self):
        return True
