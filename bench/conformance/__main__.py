"""`python -m bench.conformance build` and `python -m bench.conformance run [FAMILY...]`."""

import argparse
import json
import time

from . import FAMILIES, FOLDER, build, check
from .compare import summary


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.conformance", description=__doc__)
    parser.add_argument("verb", choices=["build", "run"])
    parser.add_argument("names", nargs="*", metavar="FAMILY", help="all of them if none is named")
    options = parser.parse_args()
    if unknown := set(options.names) - set(FAMILIES):
        known = ", ".join(FAMILIES)
        parser.error(f"no family {', '.join(sorted(unknown))}; there are {known}")
    if options.verb == "build":
        build()
        print(f"{len(FAMILIES)} families in {FOLDER}")
        return 0
    failed = 0
    for name in options.names or FAMILIES:
        began = time.monotonic()
        facts = check(name)
        print(json.dumps({"family": name} | facts))
        if problem := summary(facts):
            failed += 1
            print(f"FAIL {name}: {problem}")
        print(f"# {name}: {time.monotonic() - began:.1f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
