"""One kernel case in the emulator: `python -m bench.emulate OP [--case TEXT] [--seed N] ...`.

Runs the case on the compiled kernel, compares it with the typed reference and prints the report, if
there is one, and the counters by kernel; `--lines` adds the source lines that cause traffic.
"""

import argparse

from bench.checks.inputs import Case
from bench.checks.kernel_checks import check, kernel_cases
from l4kernels import STATUS
from l4kernels.testing import emulated


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.emulate", description=__doc__)
    parser.add_argument("op", choices=sorted(STATUS.kernels), metavar="OP")
    parser.add_argument("--case", default="", help="the first case whose name holds this")
    parser.add_argument("--list", action="store_true", help="print the names of the cases")
    parser.add_argument("--mode", choices=["late", "early", "random"], default="late")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sms", type=int, default=4)
    parser.add_argument("--lines", action="store_true", help="counters by source line as well")
    return parser.parse_args()


def show_counters(counters: dict, by_line: bool) -> None:
    for kernel, facts in counters.items():
        lines = facts.pop("lines")
        print(kernel)
        print("    " + ", ".join(f"{name} {value}" for name, value in facts.items() if value))
        for where, line in sorted(lines.items()) if by_line else ():
            shown = ", ".join(f"{name} {value}" for name, value in line.items() if value)
            print(f"        {where}: {shown}")


def run(op: str, case: Case, options: argparse.Namespace) -> int:
    print(f"{op} [{case}], mode {options.mode}, seed {options.seed}, {options.sms} SMs")
    with emulated(mode=options.mode, seed=options.seed, sms=options.sms) as control:
        control.reset()
        try:
            check(op, case)
            verdict = "equals its reference"
        except AssertionError as error:
            verdict = f"differs from its reference: {error}"
        except RuntimeError as error:
            verdict = f"stopped: {error}" if control.last_report() is None else "stopped"
        report = control.last_report()
        print(verdict if report is None else report["text"])
        show_counters(control.counters(), options.lines)
        control.reset()
    return 0 if verdict == "equals its reference" else 1


def main() -> int:
    options = parse()
    cases = kernel_cases(options.op)
    if options.list:
        print("\n".join(str(case) for case in cases))
        return 0
    case = next((case for case in cases if options.case in str(case)), None)
    if case is None:
        names = "; ".join(str(case) for case in cases)
        raise SystemExit(f"bench.emulate: no case of {options.op} holds {options.case!r}: {names}")
    return run(options.op, case, options)


if __name__ == "__main__":
    raise SystemExit(main())
