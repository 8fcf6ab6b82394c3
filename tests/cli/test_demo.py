"""The shipped checkpoint through the command line: it reads, it writes, and survives quantising.

The bars are far above what trivial models reach on the same text: `xz` primed with the training
text takes 1.69 bits per byte, an order-5 byte n-gram 1.50.
"""

import json
import re
from pathlib import Path

import pytest

from l4kernels import demo
from l4kernels.cli import main
from l4kernels.cli.demo import PROMPT, pictures


@pytest.fixture(scope="module")
def run():
    """`l4k demo --json`, once for each format of the weights."""
    results = {}

    def once(weights: str, capsys) -> dict:
        if weights not in results:
            code = main(["demo", "--json", "--device", "cpu", "--weights", weights])
            out, err = capsys.readouterr()
            assert (code, err) == (0, ""), out
            results[weights] = json.loads(out)
        return results[weights]

    return once


def test_what_ships():
    size = sum(f.stat().st_size for f in demo.FOLDER.rglob("*") if f.suffix != ".py")
    assert size <= 8_500_000
    assert len(demo.held_out_chapters()) == 60
    digits = demo.held_out_digits()
    assert digits.images.shape == (360, 8, 8) and set(digits.labels) == set(range(10))


def test_unquantised(run, capsys):
    found = run("bf16", capsys)
    assert found["bits_per_byte"] <= 1.40
    assert found["digits"]["total"] == 360
    assert found["digits"]["correct"] >= 353  # 98 %
    assert found["text"].startswith(PROMPT) and len(found["text"]) > 100
    assert found["timings"]["total_s"] > 0


@pytest.mark.parametrize("weights, loss", [("fp8", 0.01), ("int4", 0.02)])
def test_quantised(run, capsys, weights, loss):
    plain, found = run("bf16", capsys), run(weights, capsys)
    assert found["bits_per_byte"] <= plain["bits_per_byte"] + loss
    assert found["bits_per_byte"] != plain["bits_per_byte"]  # it was quantised
    assert abs(found["digits"]["correct"] - plain["digits"]["correct"]) <= 2


def test_pictures_of_digits():
    assert pictures(demo.held_out_digits().images[:0]) == [""] * 4
    lines = pictures(demo.held_out_digits().images[:3])
    assert len(lines) == 4 and all(len(line) == 3 * 8 + 2 * 2 for line in lines)
    assert set("".join(lines)) <= set(" ▄▀█")


def test_python_of_the_readme_runs():
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    known = {}  # one goes on where the other ended
    for block in re.findall(r"```python\n(.*?)```", readme, re.S):
        exec(block, known)
