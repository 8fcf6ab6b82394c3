"""A whole model through its compiled kernels, in the emulator: the demo checkpoint, text and image,
across chunk boundaries, against the same model on the typed references."""

import functools
import itertools
from unittest import mock

import pytest
import torch

from bench.checks.rounding import coarse
from bench.checks.whole_model import CASES, check
from l4kernels import Llama4, Llama4Config
from l4kernels.bench.e2e import shortened
from l4kernels.layers.attention import Attention
from l4kernels.testing import assert_close, emulated

MODES = itertools.cycle(("late", "early", "random"))


@pytest.mark.parametrize("form, prompt, mode", [(*case, next(MODES)) for case in CASES])
def test_the_model_on_kernels_says_what_it_says_on_references(form, prompt, mode):
    check(form, prompt, emulated(mode=mode))


@pytest.mark.parametrize("form, prompt, bits", [("bf16", "text", 7), ("fp8", "image", 5)])
def test_one_rounding_too_many_is_found(form, prompt, bits):
    forward = Attention.forward
    faulty = mock.patch.object(
        Attention, "forward", lambda self, *args: coarse(bits)(forward(self, *args))
    )
    with pytest.raises(AssertionError, match="further from the exact model"):
        check(form, prompt, faulty)


@pytest.mark.parametrize("form", ["bf16", "fp8"])
def test_random_models_are_built_by_the_kernels_too(form):
    config = shortened(Llama4Config.preset("demo"), 2)  # one dense layer, one of experts
    build = functools.partial(Llama4.random, config, dtype=torch.bfloat16, weights=form)
    wanted = build().state_dict()
    with emulated():
        got = build().state_dict()
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        assert_close(got[name].float(), value.float(), 1e-2, name)
