"""A CPU's captured steps against the same steps as they are, in the way that a GPU run asks."""

import pytest

from bench.checks.engine import SETTINGS, captures_are_right
from l4kernels.ops import tape


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("form", ["bf16", "int4"])
def test_captured_steps_give_the_same_tokens(form, settings):
    facts = captures_are_right(form, settings, "cpu", tape.capture)
    assert facts["captures"] >= 2 and facts["steps"] > 140
