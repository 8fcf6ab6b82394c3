"""Whether two tables agree: bit by bit, or within what is documented."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .table import Expected, Table

Facts = dict[str, Any]
Right = NDArray[np.bool_]
Judge = Callable[[Table, Expected], tuple[Right, Facts]]
"""Which values, [cases, rows], are right, and what else a row of results says."""

NAMED = 8  # differences that are written out


def exact(table: Table, expected: Expected) -> tuple[Right, Facts]:
    return (table.outputs == expected.outputs).all(-1), {}


def compare(table: Table, expected: Expected, judge: Judge) -> Facts:
    """Counts, and of what differs the first values with inputs, expected and got bits."""
    expected.check_is_of(table)
    right, more = judge(table, expected)
    wrong = np.argwhere(~right)
    first = dict(wrong[::-1].tolist())  # of each case
    return {
        "cases": len(table.cases),
        "values": right.size,
        "equal": int((table.outputs == expected.outputs).all(-1).sum()),
        "different": {table.cases[case]: int((~right[case]).sum()) for case in sorted(first)},
        "first": [_named(table, expected, case, first[case]) for case in sorted(first)[:NAMED]],
    } | more


def _named(table: Table, expected: Expected, case: int, row: int) -> Facts:
    got, wanted = table.outputs[case, row], expected.outputs[case, row]
    return {
        "case": table.cases[case],
        "row": row,
        "inputs": _hex(table.inputs_of(case)[row]),
        "expected": _hex(wanted),
        "got": _hex(got),
    }


def _hex(words: NDArray[np.uint32]) -> str:
    return " ".join(f"{word:08x}" for word in words.tolist())


def summary(facts: Facts) -> str:
    """One sentence about what differs; empty if nothing does."""
    if not facts["different"]:
        return ""
    first = facts["first"][0]
    count = sum(facts["different"].values())
    return (
        f"{count} of {facts['values']} values in {len(facts['different'])} cases differ, first "
        f"{first['case']} of {first['inputs']}: expected {first['expected']}, got {first['got']}"
    )
