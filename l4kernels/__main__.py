"""`python -m l4kernels` is `l4k`."""

import sys

from l4kernels.cli import main

if __name__ == "__main__":
    sys.exit(main())
