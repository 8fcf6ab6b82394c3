"""The microbenchmarks: values in the emulator, timed loops in machine code, bounds."""

import re
from pathlib import Path

import pytest
from filelock import FileLock

from bench import micro
from bench.micro import PROGRAMS, sass
from bench.micro.programs import Code
from l4kernels.emulation.toolchain import nvcc
from tools.nvcc import ROOT, cuobjdump, output_of

pytestmark = pytest.mark.skipif(
    nvcc() is None or cuobjdump() is None, reason="needs nvcc and cuobjdump"
)
MODES = ("late", "random")


@pytest.fixture(scope="session")
def programs() -> Path:
    """Compiled once for both: PTX for the emulator, machine code to look at."""
    folder = ROOT / "build" / "micro"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):  # the other processes of this test run
        micro.build_emulated(folder)
    return folder


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", PROGRAMS)
def test_values_are_right_and_every_metric_has_bounds(programs, name, mode):
    rows = micro.run(name, programs, small=True, L4K_EMU=f"mode={mode},seed=5,sms=4")
    assert [row["name"] for row in rows if row["name"] not in PROGRAMS[name].metrics] == []
    assert {row["name"] for row in rows} == set(PROGRAMS[name].metrics)
    assert len(rows) == len(PROGRAMS[name].metrics)
    assert all(row["unit"] for row in rows)


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_timed_loop_is_what_the_program_says(programs, name):
    found = sass.kernels(programs / name)
    assert not (problems := sass.problems(found, PROGRAMS[name].code)), "\n".join(problems)


def test_setmaxnreg_finds_the_registers_it_deals_out(programs):
    """24 + 240 + 240 for three warpgroups: with fewer at the start the kernel would hang."""
    text = output_of(cuobjdump(), "-res-usage", str(programs / "launch_cost"))
    found = dict(re.findall(r"costILj(\d+)E.*\s+REG:(\d+)", text))
    dealt = {features: int(n) for features, n in found.items() if int(features) & 1}
    assert len(dealt) == 4 and set(dealt.values()) == {168}


def test_a_loop_that_changed_is_seen():
    text = """mainI\n
        /*0000*/ CS2R R2, SR_CLOCKLO ;
        /*0010*/ HGMMA.64x64x16.F32 R24, gdesc[UR4] ;
        /*0020*/ CS2R R4, SR_CLOCKLO ;
        /*0030*/ @P0 LDS.128 R8, [R1] ;
        /*0040*/ @!P1 BRA 0x10 ;
        /*0050*/ STL [R1], R2 ;"""
    kernel = sass.Kernel(text)
    assert kernel.loops == [["HGMMA.64x64x16.F32", "CS2R", "LDS.128", "BRA"]]
    code = Code("mainI", {"HGMMA": 2, "CS2R": 1}, order="CS2R HGMMA")
    found = "\n".join(sass.problems([kernel], (code, Code("other", {}))))
    for expected in ("STL", "1 HGMMA, not 2", "LDS in the timed part", "order", "called other"):
        assert expected in found


def test_a_value_outside_its_bounds_is_disbelieved():
    bounds = {"rate": (1.0, 2.0)}
    for value in (0.5, 2.5, float("nan"), float("inf")):
        assert micro.judged({"name": "rate", "value": value}, bounds)["disbelieved"]
    assert "disbelieved" not in micro.judged({"name": "rate", "value": 1.5}, bounds)
    assert micro.judged({"name": "unknown", "value": 1.5}, bounds)["disbelieved"]


def test_a_program_that_is_missing_or_fails_is_no_result(tmp_path):
    keys = dict(micro.steps(tmp_path))
    assert list(keys) == [f"micro.{name}" for name in PROGRAMS]
    timing, facts = keys["micro.wgmma_sweep"]()
    assert timing is None and "bench.micro build" in facts["skipped"]
    (tmp_path / "wgmma_sweep").write_text("#!/bin/sh\necho '{}'\necho no driver >&2\nexit 3\n")
    with pytest.raises(RuntimeError, match=r"exit 3[\s\S]*no driver"):
        keys["micro.wgmma_sweep"]()
    line = '{"name": "bf16_ss_n64", "value": 1, "unit": "cycles/wgmma"}'
    (tmp_path / "wgmma_sweep").write_text(f"#!/bin/sh\necho '{line}'\n")
    assert keys["micro.wgmma_sweep"]()[1]["metrics"][0]["disbelieved"]


def test_every_program_says_what_to_believe():
    sources = sorted(path.stem for path in micro.SOURCES.glob("*.cu"))
    assert sources == sorted(PROGRAMS)
    page = (ROOT / "docs" / "measuring.md").read_text()
    for name in PROGRAMS:
        head = (micro.SOURCES / f"{name}.cu").read_text().split("#include")[0]
        assert re.search(r"^// Bound: ", head, re.M) and re.search(r"^// Loops?: ", head, re.M)
        assert re.search(r"^// Disbelieve: ", head, re.M), name
        assert f"`{name}`" in page
