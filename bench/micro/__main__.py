"""`python -m bench.micro build` and `python -m bench.micro run [NAME...]`."""

import argparse
import json
import time

from . import FOLDER, PROGRAMS, build, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.micro", description=__doc__)
    parser.add_argument("verb", choices=["build", "run"])
    parser.add_argument("names", nargs="*", metavar="NAME", help="all of them if none is named")
    options = parser.parse_args()
    if unknown := set(options.names) - set(PROGRAMS):
        known = ", ".join(PROGRAMS)
        parser.error(f"no program {', '.join(sorted(unknown))}; there are {known}")
    if options.verb == "build":
        build()
        print(f"{len(PROGRAMS)} programs in {FOLDER}")
        return 0
    failed = 0
    for name in options.names or PROGRAMS:
        began = time.monotonic()
        try:
            for row in run(name):
                print(json.dumps({"program": name} | row))
        except (OSError, RuntimeError) as problem:
            failed += 1
            print(f"FAIL {problem}")
        print(f"# {name}: {time.monotonic() - began:.1f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
