"""What quantising the demo costs, on the first of the chapters of docs/numerics.md's table."""

import re
from pathlib import Path

from bench.quantisers import ROWS, bits_per_byte, quantising
from l4kernels import ops

CHAPTERS = 4


def test_the_search_for_scales_takes_a_third_off_the_loss():
    plain, fp8, nearest, searched, mixed = (bits_per_byte(row, CHAPTERS) for row in ROWS)
    assert plain < fp8 < searched < nearest < plain + 0.025
    assert plain < mixed < searched
    assert searched - plain < 0.75 * (nearest - plain)


def test_the_default_is_the_searched_one():
    quantiser = ops.quantize_int4
    assert quantiser.signature.parameters["search"].default is True
    with quantising(search=False):
        assert ops.quantize_int4 is not quantiser
    assert ops.quantize_int4 is quantiser


def test_the_table_has_the_rows_that_the_command_prints():
    page = (Path(__file__).parents[2] / "docs" / "numerics.md").read_text()
    found = re.findall(r"\| ([^|]+) \| 1\.\d{4} \| [+]0\.\d{4} \|", page)
    assert found == list(ROWS)
