"""Dependent launch can be turned off, to tell a race between neighbours from a wrong kernel."""

import contextlib
import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from l4kernels import STATUS, ops, testing
from l4kernels.testing import chained, emulated, serial_launches

pytestmark = pytest.mark.skipif(not STATUS.loaded, reason="no compiled kernels: run `make build`")
EMULATED = testing.emulator.BUILD / "libl4kernels_emulated.so"


def launches_are_dependent() -> bool:
    """In the emulator, late: a dependent launch overlaps its predecessor, which is not done yet."""
    x = torch.ones(64, 512).bfloat16()  # alive to the end of the chain
    with chained():
        first = ops.silu_mul(x)
        second = ops.silu_mul(first)
        waiting = bool(first.isnan().any())  # as new memory is
    assert not first.isnan().any() and not second.isnan().any()
    return waiting


def test_a_block_is_serial_and_nothing_behind_it():
    with emulated():
        assert launches_are_dependent()
        with serial_launches():
            assert not launches_are_dependent()
            with serial_launches():
                assert not launches_are_dependent()
            assert not launches_are_dependent()
        assert launches_are_dependent()
        with contextlib.suppress(KeyError), serial_launches():
            raise KeyError
        assert launches_are_dependent()


@pytest.mark.parametrize("which", ["library", "emulated twin"])
def test_the_switch_returns_what_held_before(which):
    path = STATUS.path if which == "library" else EMULATED
    with emulated():  # loads the twin with what it needs
        allow = ctypes.CDLL(str(path)).l4k_allow_dependent_launches
        before = [allow(n) for n in (0, 0, 1, 7, 0, 1)]
    assert before == [1, 0, 0, 1, 1, 0]


@pytest.mark.parametrize(
    "value, dependent",
    [("", True), ("serial", False), ("1", True), ("1,serial", False), ("serial,1", False),
     ("serially", True), ("serial ", True)],
)  # fmt: skip
def test_the_environment_holds_for_a_process(value, dependent):
    program = """
from l4kernels.testing import emulated
from tests.kernels.test_serial_launches import launches_are_dependent
with emulated():
    print(launches_are_dependent())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True,
        env=os.environ | {"L4K_CHECK": value}, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == str(dependent)
