"""The programs of conformance on the emulator: right by other means; what a GPU run would say."""

import os
import re

import numpy as np
import pytest
from filelock import FileLock

from bench import conformance
from bench.conformance import FAMILIES, Expected, Table, products, sums
from bench.conformance.compare import compare, exact, summary
from l4kernels.emulation.toolchain import nvcc
from tests.bench import conformance_reference
from tools.nvcc import ROOT

pytestmark = pytest.mark.skipif(nvcc() is None, reason="needs nvcc")


@pytest.fixture(scope="session")
def tables():
    """Of every family, once a process; the programs are compiled once for all."""
    folder = conformance.EMULATED
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        conformance.build_emulated()
    found: dict[str, Table] = {}

    def of(name: str) -> Table:
        if name not in found:
            found[name] = conformance.run(name, folder, L4K_EMU=conformance.SETTINGS)
        return found[name]

    return of


def with_difference(table: Table, case: int, row: int, bit: int = 0) -> Table:
    outputs = table.outputs.copy()
    outputs[case, row, 0] ^= np.uint32(1 << bit)
    return Table(table.cases, table.inputs, outputs)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_planted_difference_is_found_and_named(tables, name):
    """One bit of one value, as large as the family's tolerance leaves no doubt about."""
    table, judge = tables(name), FAMILIES[name].judge
    expected = Expected.unpack(Expected.of(table).pack())
    assert summary(compare(table, expected, judge)) == ""
    case, row = len(table.cases) // 2, table.outputs.shape[1] // 3
    facts = compare(with_difference(table, case, row, 30), expected, judge)
    assert facts["different"] == {table.cases[case]: 1}
    assert facts["equal"] == facts["values"] - 1
    first = facts["first"][0]
    assert (first["case"], first["row"]) == (table.cases[case], row)
    assert int(first["got"].split()[0], 16) ^ int(first["expected"].split()[0], 16) == 1 << 30
    assert first["inputs"].split()[0] == f"{table.inputs_of(case)[row, 0]:08x}"
    assert table.cases[case] in summary(facts) and first["got"] in summary(facts)


@pytest.mark.parametrize("mode", ["early", "random"])
@pytest.mark.parametrize("name", FAMILIES)
def test_results_do_not_depend_on_the_mode(tables, name, mode):
    """Nor approximations, within their bounds, on how they are moved about."""
    settings = f"mode={mode},seed=5" + (",perturb=0" if FAMILIES[name].judge is exact else "")
    table = conformance.run(name, conformance.EMULATED, L4K_EMU=settings)
    facts = compare(table, Expected.of(tables(name)), FAMILIES[name].judge)
    assert summary(facts) == ""
    if name == "approximate":
        moved = facts["values"] - facts["equal"]
        assert moved > 20000 and 0.9 < facts["largest"]["ex2.approx.f32"]["of_bound"] <= 1


REFERENCED = sorted(conformance_reference.FAMILIES)


@pytest.mark.parametrize("name", REFERENCED)
def test_the_emulator_gives_what_another_implementation_gives(tables, name):
    table = tables(name)
    compared, problems = conformance_reference.differences(name, table)
    assert not problems, "\n".join(problems[:20])
    assert compared >= conformance_reference.FAMILIES[name], "cases that have a reference"


def test_the_model_of_a_sum_is_recognised(tables):
    """Sums as another machine may add them: which one is told, and that they are inside."""
    table = tables("mma_sums")
    case = next(i for i, name in enumerate(table.cases) if "f32.bf16" in name)
    product = products.mma(table.cases[case], table.inputs_of(case))
    emulated = product.results(table.outputs[case]).view(np.float32).astype(float)
    for model in (sums.Model(24, 8, True), sums.Model(25, 16, False)):
        other = model.sums(product.a, product.b, product.c)
        facts = sums.likeliest(product, other, emulated)
        assert facts["model"] == str(model) and facts["fits"] == 1 and facts["emulator"] < 1
        assert (np.abs(other - emulated) <= 2 * sums.tolerance(product)).all()
    coarse = sums.Model(13, 16, True).sums(product.a, product.b, product.c)
    exact_sums = product.a @ product.b + product.c
    assert (np.abs(coarse - exact_sums) > sums.tolerance(product)).any()


def test_a_step_says_what_differs_and_keeps_the_counts(tables, tmp_path):
    """The emulator stands for the GPU."""
    steps = dict(conformance.steps(tmp_path))
    assert list(steps) == [f"conformance.{name}" for name in FAMILIES]
    ((_, facts),) = steps["conformance.mbarrier"]()
    assert "make gpu-files" in facts["skipped"]
    table = tables("mbarrier")
    os.symlink(conformance.EMULATED / "mbarrier", tmp_path / "mbarrier")
    (tmp_path / "mbarrier.xz").write_bytes(Expected.of(table).pack())
    ((_, facts),) = steps["conformance.mbarrier"]()
    assert facts["equal"] == facts["values"] == 256 and facts["different"] == {}
    (tmp_path / "mbarrier.xz").write_bytes(Expected.of(with_difference(table, 0, 9)).pack())
    step = steps["conformance.mbarrier"]()
    _, facts = next(step)
    assert facts["equal"] == 255
    with pytest.raises(
        AssertionError, match="1 of 256 values in 1 cases differ, first mbarrier of"
    ):
        next(step)
    other = Table(table.cases, table.inputs + np.uint32(1), table.outputs)
    (tmp_path / "mbarrier.xz").write_bytes(Expected.of(other).pack())
    with pytest.raises(ValueError, match="another build"):
        next(steps["conformance.mbarrier"]())


def test_every_family_is_described():
    page = (ROOT / "docs" / "emulator.md").read_text()
    assert all(re.search(rf"`{name}`", page) for name in FAMILIES)
    sources = sorted(path.stem for path in conformance.SOURCES.glob("*.cu"))
    assert sources == sorted(conformance.PROGRAMS)
