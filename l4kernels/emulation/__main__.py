"""`python -m l4kernels.emulation` is `l4k emulate` without the packages that `l4k` needs."""

import sys

from l4kernels.emulation.command import main

if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (OSError, ValueError) as error:
        sys.exit(f"emulate: {error}")
