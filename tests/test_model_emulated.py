"""A whole model through its compiled kernels, in the emulator: the demo checkpoint, text and image,
across chunk boundaries, against the same model on the typed references."""

import pytest

from l4kernels import STATUS
from l4kernels.testing import emulated
from tests.whole_model import CASES, check

MISSING = tuple(
    op for op in ("flash_decode", "flash_prefill", "gemm_swiglu_fp8") if op not in STATUS.kernels
)


@pytest.mark.parametrize("form, prompt", CASES)
def test_the_model_on_kernels_says_what_it_says_on_references(form, prompt):
    check(form, prompt, emulated(reference=MISSING))
