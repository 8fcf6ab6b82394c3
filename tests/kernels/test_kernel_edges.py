"""The memory-bound kernels at their edges, in the emulator: bench/checks/edges.py, which a GPU runs
too, and what only the emulator can be asked."""

import contextlib
import subprocess
import sys

import pytest
import torch

from bench.checks.edges import EDGES
from bench.checks.inputs import Maker
from bench.checks.machine import Machine
from l4kernels import STATUS, ops
from l4kernels.testing import emulated

pytestmark = pytest.mark.skipif(not STATUS.loaded, reason="no compiled kernels: run `make build`")


@pytest.mark.parametrize("name", EDGES)
def test_edge(name):
    EDGES[name](Machine())


@pytest.fixture
def make() -> Maker:
    return Maker("cpu", torch.bfloat16, seed=3)


def test_misaligned_rows_are_refused_by_name(make):
    odd = make.randn(4 * 256 + 1)[1:].view(4, 256)
    with emulated(), pytest.raises(RuntimeError, match=r"rows of x .*16-byte aligned"):
        ops.rms_norm(odd, make.randn(256))
    with emulated(), pytest.raises(RuntimeError, match=r"rows of residual .*16-byte aligned"):
        ops.rms_norm_fp8(make.randn(4, 256), make.randn(256), residual=odd)


def test_the_number_of_sms_counts_in_every_launch(make):
    """A grid fills the machine of its own launch: each CTA reads the weights once."""
    x, weight, ctas = make.randn(64, 5120), make.randn(5120), []
    for sms in (2, 7, 1):
        with emulated(sms=sms) as control:
            control.reset_counters()
            ops.rms_norm(x, weight)
            (kernel,) = control.counters().values()
        ctas.append((kernel["global_bytes"] - 2 * x.nbytes) // weight.nbytes)
    assert ctas == [8, 28, 4]


def test_a_tensor_on_another_device_is_refused(make):
    x, weight = make.randn(4, 256), torch.empty(256, dtype=torch.bfloat16, device="meta")
    with emulated(), pytest.raises(ValueError, match="x on cpu, weight on meta"):
        ops.rms_norm(x, weight)
    binding = torch.ops.l4kernels_emulated.rms_norm.default
    on_cpu = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
    with emulated(), pytest.raises(RuntimeError, match="expected all tensors on one device"):
        binding.redispatch(on_cpu, x, weight, 1e-5)


def test_bad_input_is_the_same_error_as_on_a_cpu(make):
    for route in (contextlib.nullcontext(), emulated()):
        with route, pytest.raises(TypeError, match=r"l4kernels.gemm: expected b to be bfloat16"):
            ops.gemm(make.randn(4, 64), torch.zeros(8, 64))


def test_a_runtime_that_is_loaded_already_does_not_take_the_emulators_place(tmp_path):
    """As a torch with CUDA loads one, for everybody to see."""
    runtime, names = tmp_path / "libcudart.so", ("cudaDeviceGetAttribute", "cudaLaunchKernelExC")
    source = "".join(f"int {name}() {{ return 100; }}\n" for name in names)
    command = ["g++", "-x", "c", "-", "-shared", "-fPIC", "-o", str(runtime)]
    subprocess.run(command, input=source, text=True, check=True)
    program = f"""
import ctypes
ctypes.CDLL({str(runtime)!r}, mode=ctypes.RTLD_GLOBAL)
import torch
from l4kernels import ops
from l4kernels.testing import assert_close, emulated
x = torch.randn(3, 256).bfloat16()
with emulated():
    assert_close(ops.silu_mul(x), ops.silu_mul.reference(x), 3e-3)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
