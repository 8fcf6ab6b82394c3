"""Blocks of `emulated()`: what they leave to the next, the one around them and other threads."""

import threading

import pytest
import torch

from l4kernels import STATUS, ops, take_device_error
from l4kernels.testing import emulated

pytestmark = pytest.mark.skipif(not STATUS.loaded, reason="no compiled kernels: run `make build`")
NOWHERE = """
.version 8.0
.target sm_90a
.address_size 64
.visible .entry nowhere() {
  .reg .b64 %a; .reg .b32 %v;
  mov.b64 %a, 64;
  ld.global.b32 %v, [%a];
  ret;
}
"""


def test_what_one_block_left_reported_is_not_the_next_ones():
    x = torch.ones(4, 128).bfloat16()
    with pytest.raises(RuntimeError, match="out-of-bounds"), emulated() as control:
        control.PtxKernel(NOWHERE, "nowhere").launch(grid=(1, 1, 1), block=(1, 1, 1), arguments=[])
    assert control.last_report() is not None
    with emulated():
        assert ops.silu_mul(x).shape == (4, 64)
    assert control.last_report() is None


def test_the_outer_blocks_settings_come_back():
    lengths = torch.tensor([700], dtype=torch.int32)
    plan = lambda: ops.flash_decode_plan(lengths, num_heads=1, kv_heads=1, capacity=704)  # noqa: E731
    with emulated(sms=6):
        before = plan()
        with emulated(sms=2):
            assert not torch.equal(plan(), before)
        assert torch.equal(plan(), before)


def test_blocks_may_end_in_any_order():
    lengths = torch.tensor([700], dtype=torch.int32)
    plan = lambda: ops.flash_decode_plan(lengths, num_heads=1, kv_heads=1, capacity=704)  # noqa: E731
    outer, inner = emulated(sms=6), emulated(sms=2)
    outer.__enter__()
    inner.__enter__()
    before = plan()
    outer.__exit__(None, None, None)
    assert torch.equal(plan(), before)
    inner.__exit__(None, None, None)
    with emulated(sms=6):
        assert not torch.equal(plan(), before)


def test_there_is_one_emulated_gpu():
    x, said = torch.ones(4, 128).bfloat16(), []

    def elsewhere():
        try:
            with emulated():
                said.append(ops.silu_mul(x).shape)
        except RuntimeError as error:
            said.append(str(error))

    def run():
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        return said.pop()

    with emulated():
        assert "another thread is in such a block" in run()
    assert run() == (4, 64)


def test_what_an_emulated_kernel_reports_is_raised():
    take_device_error()
    with emulated():
        out = ops.embed(torch.tensor([9]), torch.ones(3, 8).bfloat16())
    assert not out.any()
    with pytest.raises(IndexError, match=r"embed: .*a kernel met a value out of range"):
        take_device_error()
    take_device_error()


def test_a_plan_of_the_reference_is_for_the_references():
    refused = pytest.raises(ValueError, match="name these two as well")
    with refused, emulated(reference=("flash_decode_plan", "flash_decode")):
        pass
    with emulated(reference=("flash_decode_plan", "flash_decode", "flash_decode_append")):
        pass
