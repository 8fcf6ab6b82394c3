"""The house rules on size: files and functions for one sitting, and rooms that are not packed."""

from pathlib import PurePosixPath

from tools.size import room, rooms, sources
from tools.source import functions

FILE_LINES = 500  # every line: a reader reads them all
FUNCTION_LINES = 80  # without the docstring
TOKENS_PER_LINE = 11.0

# Rooms that may be denser, up to a density of their own, and why; "tests" also stands for the rooms
# in it that have no line. Nothing stays here without need.
DENSER = {
    "emulator/machine": (
        11.4,
        "decoding: an instruction's modifiers and operands are fields of it",
    ),
    "emulator/tensor": (11.6, "bit fields and index formulas of the hardware's layouts"),
    "emulator/tests": (13.2, "tables of inputs and expected bits, a case a line"),
    "bench/checks": (13.9, "tables of cases, a case a line"),
    "tests": (13.3, "tables of cases, a case a line"),
    "tests/host": (12.2, "tables of shapes, and loops over all values"),
    "tools/model": (11.4, "formulas"),
}

# Functions that wait for their split: room and name.
LONGER = {
    ("csrc/bindings", "gemm"),
    ("csrc/kernels", "attend_tiles"),
    ("csrc/kernels", "load_tiles"),
    ("emulator/machine", "Machine::place_cluster"),
    ("emulator/machine", "Machine::step"),
    ("emulator/machine", "atomic"),
    ("emulator/machine", "decode_float"),
    ("emulator/machine", "decode_integer"),
    ("emulator/machine", "decode_move"),
    ("emulator/machine", "decode_warp"),
    ("emulator/machine", "load"),
    ("emulator/runtime", "run"),
    ("emulator/tests", "one_box"),
}


def test_a_file_can_be_read_in_one_sitting():
    lengths = {path: len(text.splitlines()) for path, text in sources().items()}
    assert lengths
    assert not {path: n for path, n in lengths.items() if n > FILE_LINES}


def test_a_function_can_be_read_in_one_sitting():
    long = {
        f"{path}:{function.line} {function.name}, {function.lines} lines": (
            room(path),
            function.name,
        )
        for path, text in sources().items()
        for function in functions(PurePosixPath(path).suffix, text)
        if function.lines > FUNCTION_LINES
    }
    assert not [where for where, which in long.items() if which not in LONGER]
    assert not LONGER - {*long.values()}, "split by now: take them off the list"


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
