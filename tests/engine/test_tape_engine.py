"""A CPU's captured steps against the same steps as they are, in the way that a GPU run asks."""

import pytest

from bench.checks.engine import captures_are_right
from l4kernels.ops import tape


@pytest.mark.parametrize("form, settings", [("bf16", "greedy"), ("int4", "drawn")])
def test_captured_steps_give_the_same_tokens(form, settings):
    facts = captures_are_right(form, settings, "cpu", tape.capture)
    assert facts["captures"] >= 2 and facts["steps"] > 100
