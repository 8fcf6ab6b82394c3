"""Streams and allocations through the control module and the settings."""

import array
import os
import subprocess

import pytest

from tests.emulator.emulator_programs import PROGRAMS, build, control

TOUCH = """
.version 8.0
.target sm_90a
.address_size 64
.visible .entry touch(.param .u64 address) {
  .reg .b64 %a; .reg .b32 %v;
  ld.param.u64 %a, [address];
  mov.b32 %v, 7;
  st.global.b32 [%a + 4], %v;
  ret;
}
"""


@pytest.mark.parametrize("waits", [False, True])
def test_a_block_that_is_handed_out_again_while_another_stream_may_use_it(waits: bool) -> None:
    emulator = control()
    emulator.reset()
    memory = array.array("i", [0] * 8)
    address, size = memory.buffer_info()[0], 32
    kernel = emulator.PtxKernel(TOUCH, "touch")
    argument = [address.to_bytes(8, "little")]
    owner, other = emulator.create_stream(), emulator.create_stream()
    emulator.register_range(address, size)
    kernel.launch(grid=(1, 1, 1), block=(1, 1, 1), arguments=argument, stream=other)
    emulator.end_range(address, size)
    if waits:
        assert emulator.synchronize()
    emulator.allocate_range(address, size, owner)
    launch = {"grid": (1, 1, 1), "block": (1, 1, 1), "arguments": argument, "stream": owner}
    if waits:
        kernel.launch(**launch)
        assert emulator.last_report() is None
    else:
        with pytest.raises(RuntimeError, match="stream-race: kernel touch on stream"):
            kernel.launch(**launch)
    emulator.reset()
    for _ in range(2):
        emulator.unregister_range(address, size)


def test_what_is_never_freed_is_listed_on_request() -> None:
    build("kernels")
    for leaks in (0, 1):
        environment = dict(os.environ, L4K_EMU=f"leaks={leaks}")
        done = subprocess.run(
            [str(PROGRAMS / "vector_add")], capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0
        assert ("bytes at 0x" in done.stderr) == bool(leaks), done.stderr
