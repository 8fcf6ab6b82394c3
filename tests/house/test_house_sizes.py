"""The house rules on size: files and functions for one sitting, and rooms that are not packed."""

from pathlib import PurePosixPath

from tools.size import rooms, sources
from tools.source import functions

FILE_LINES = 500  # every line: a reader reads them all
FUNCTION_LINES = 80  # without the docstring
TOKENS_PER_LINE = 11.0

# Rooms that may be denser, up to a density of their own, and why; "tests" also stands for the rooms
# in it that have no line. Nothing stays here without need.
DENSER = {
    "emulator/tensor": (11.6, "bit fields and index formulas of the hardware's layouts"),
    "emulator/tests": (13.2, "tables of inputs and expected bits, a case a line"),
    "bench/checks": (13.9, "tables of cases, a case a line"),
    "tests": (13.3, "tables of cases, a case a line"),
    "tests/host": (12.2, "tables of shapes, and loops over all values"),
}


def test_a_file_can_be_read_in_one_sitting():
    lengths = {path: len(text.splitlines()) for path, text in sources().items()}
    assert lengths
    assert not {path: n for path, n in lengths.items() if n > FILE_LINES}


def test_a_function_can_be_read_in_one_sitting():
    lengths = {
        f"{path}:{function.line} {function.name}": function.lines
        for path, text in sources().items()
        for function in functions(PurePosixPath(path).suffix, text)
    }
    assert len(lengths) > 1000
    assert not {where: lines for where, lines in lengths.items() if lines > FUNCTION_LINES}


def test_no_room_is_packed():
    dense = {
        name: size.density
        for name, size in rooms(sources()).items()
        if size.density > TOKENS_PER_LINE
    }
    lines = {name: name if name in DENSER else name.partition("/")[0] for name in dense}
    packed = {
        name: density
        for name, density in dense.items()
        if density > DENSER.get(lines[name], (TOKENS_PER_LINE,))[0]
    }
    assert not packed, "more tokens a line than a room may have"
    assert not DENSER.keys() - {*lines.values()}, "loose enough by now: take them off the list"
