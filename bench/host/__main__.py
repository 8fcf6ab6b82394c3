"""`python -m bench.host`: what a call of each op costs the host before the driver."""

import argparse

from bench.host import cases, stubbed, table
from l4kernels.bench.command import require_shapes


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.host", description=__doc__)
    parser.add_argument(
        "ops", nargs="*", metavar="OP", help="all that have shapes if none is named"
    )
    parser.add_argument("--rounds", type=int, default=200, help="calls of each case")
    parser.add_argument("--cases", action="store_true", help="a line for each case, not each op")
    options = parser.parse_args(arguments)
    require_shapes(parser, options.ops, sorted({case.op for case in cases()}))
    if options.rounds < 1:
        parser.error(f"expected --rounds of 1 or more, got {options.rounds}")
    chosen = [case for case in cases() if not options.ops or case.op in options.ops]
    costs = stubbed().measure(chosen, options.rounds)
    stubbed().count_instructions(costs)
    print(table(costs, options.cases))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
