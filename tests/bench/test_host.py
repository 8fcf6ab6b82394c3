"""What a call costs the host before the driver, counted on the production objects."""

import statistics

import pytest
from torch import Tensor
from torch.utils._pytree import tree_iter

from bench.host import Cost, cases, stubbed, table
from bench.host.__main__ import main
from l4kernels import STATUS
from l4kernels.bench.shapes import Call

pytestmark = pytest.mark.skipif(not STATUS.loaded, reason="no compiled kernels: run `make build`")

LIMIT_US = 3.0
LIMIT_INSTRUCTIONS = 10_000
"""3 us of a CPU that does one in a cycle at 3.3 GHz; those that ran this did more than three."""
LOADED = 4
"""How much slower than its best a machine may be that has other things to do."""


def chosen() -> list[Call]:
    """One case of each op, and of products the last of each size: few rows stream."""
    found: dict[str, Call] = {}
    for case in cases():
        size = case.label.split(".")[0] if case.op.split("_")[0] in ("gemm", "w4") else ""
        found[case.op + size] = case
    return list(found.values())


@pytest.fixture(scope="module")
def costs() -> list[Cost]:
    found = stubbed().measure(chosen(), rounds=30)
    stubbed().count_instructions(found)
    return found


def test_a_warm_call_asks_the_runtime_for_launches_only(costs):
    assert {c.case.key: c.needless for c in costs if c.needless} == {}
    most = {"flash_prefill": 3}  # a plan, pieces, merging; others have at most one beside their own
    for c in costs:
        assert 1 <= c.launches <= most.get(c.case.op, 2) and c.asked["devices"] <= 8, (
            c.case.key,
            c.asked,
        )


def test_its_way_to_the_driver_is_short(costs):
    long = {c.case.key: c.instructions for c in costs if c.instructions > LIMIT_INSTRUCTIONS}
    assert not long, long
    assert min(c.instructions for c in costs) > 500, "something was counted"


def test_it_takes_three_microseconds_at_most(costs):
    slow = {c.case.key: min(c.to_driver_us) / c.launches for c in costs}
    assert not {key: us for key, us in slow.items() if us > LIMIT_US * LOADED}
    assert statistics.median(slow.values()) > 0.05, "something was timed"


def test_the_bindings_allocate_no_more_than_handles(costs):
    """One for each tensor that comes, goes or lies between, one for a string, and one to spare."""
    for c in costs:
        args = c.case.make("meta")
        tensors = sum(isinstance(t, (Tensor, str)) for t in tree_iter(args))
        results = 7 if c.case.op.startswith("moe_route") else 4
        assert 1 <= c.asked["allocations"] <= tensors + results + 1, (c.case.key, c.asked)


def test_a_table_has_a_line_for_each_case(costs):
    lines = table(costs, by_case=True).splitlines()
    assert len(lines) == len(costs) + 2
    assert len(table(costs, by_case=False).splitlines()) == len({c.case.op for c in costs}) + 2


def test_the_command_prints_a_line_for_an_op(capsys):
    assert main(["silu_mul", "--rounds", "3"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("| silu_mul | 1 | ")


@pytest.mark.parametrize(
    "options, said",
    [
        (["gem"], "no shapes for gem; there are shapes for add_rms_norm, "),
        (["silu_mul", "--rounds", "0"], "expected --rounds of 1 or more, got 0"),
    ],
)
def test_what_it_cannot_count_is_refused(options, said, capsys):
    with pytest.raises(SystemExit):
        main(options)
    assert said in capsys.readouterr().err
