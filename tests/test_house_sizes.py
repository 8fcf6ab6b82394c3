"""The house rules on size: files and functions for one sitting, and rooms that are not packed."""

from pathlib import PurePosixPath

from tools.size import rooms, sources
from tools.source import functions

FILE_LINES = 500  # every line: a reader reads them all
FUNCTION_LINES = 80  # without the docstring
TOKENS_PER_LINE = 11.0

# Rooms that may be denser, up to a density of their own, and why. Nothing stays here without need.
DENSER = {
    "emulator/machine": (11.4, "decoding tables: an instruction's modifiers and operands a line"),
    "emulator/tensor": (11.6, "bit fields and index formulas of the hardware's layouts"),
    "emulator/tests": (13.2, "tables of inputs and expected bits, a case a line"),
    "tests": (11.8, "tables of cases, a case a line"),
    "tests/host": (12.2, "tables of shapes, and loops over all values"),
    "tools/model": (11.4, "formulas"),
}

# Functions that wait for their split.
LONGER = {
    "Machine::place_cluster",
    "Machine::step",
    "atomic",
    "attend_tiles",
    "decode_float",
    "decode_integer",
    "decode_move",
    "decode_warp",
    "flash_attn_with_kvcache",
    "gemm",
    "load",
    "load_tiles",
    "one_box",
    "run",
}


def test_a_file_can_be_read_in_one_sitting():
    lengths = {path: len(text.splitlines()) for path, text in sources().items()}
    assert lengths
    assert not {path: n for path, n in lengths.items() if n > FILE_LINES}


def test_a_function_can_be_read_in_one_sitting():
    long = {
        f"{path}:{function.line} {function.name}, {function.lines} lines": function.name
        for path, text in sources().items()
        for function in functions(PurePosixPath(path).suffix, text)
        if function.lines > FUNCTION_LINES
    }
    assert not [where for where, name in long.items() if name not in LONGER]
    assert {*long.values()} >= LONGER, "split by now: take them off the list"


def test_no_room_is_packed():
    found = rooms(sources())
    packed = [
        f"{name}: {size.density:.2f} tokens a line"
        for name, size in found.items()
        if size.density > DENSER.get(name, (TOKENS_PER_LINE,))[0]
    ]
    assert not packed, "\n".join(packed)
    needless = [room for room in DENSER if found[room].density <= TOKENS_PER_LINE]
    assert not needless, "loose enough by now: take them off the list"
