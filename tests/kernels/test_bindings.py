"""The compiled library loads into a torch without CUDA and agrees with the schemas."""

import ctypes
import re
import subprocess

import pytest
import torch

import l4kernels
from l4kernels import STATUS
from l4kernels.ops import OPS
from l4kernels.ops.library import LIBRARY_PATH


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    assert STATUS.loaded, STATUS.reason
    return ctypes.CDLL(str(LIBRARY_PATH))


def types_of(schema: str) -> str:
    """`gemm(Tensor a, *, Tensor? bias=None) -> Tensor` -> `gemm(Tensor, Tensor?) -> Tensor`"""
    name, rest = schema.split("(", 1)
    arguments, result = rest.rsplit(") -> ", 1)
    types = [a.split(" ")[0] for a in arguments.split(", ") if a and a != "*"]
    types = [re.sub(r"\(\w+!\)", "", t).replace("SymInt", "int") for t in types]
    result = re.sub(r"\(\w+!\)", "", result)
    return f"{name}({', '.join(types)}) -> {result}"


def test_signatures_equal_the_schemas(library):
    library.l4k_signatures.restype = ctypes.c_char_p
    lines = library.l4k_signatures().decode().splitlines()
    schemas = {op.name: types_of(op.schema) for op in OPS.values()}
    schemas |= {f"{op.name}.out": types_of(op.out_schema) for op in OPS.values() if op.has_out}
    assert lines, "no binding has registered"
    for line in lines:
        assert line == schemas[line.split("(")[0]]


def test_kernels_are_in_the_dispatch_table(library):
    assert "silu_mul" in STATUS.kernels
    for name in STATUS.kernels:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"l4kernels::{name}", "CUDA")


def test_library_needs_torch_and_the_c_runtime_only():
    dynamic = subprocess.run(
        ["readelf", "-d", str(LIBRARY_PATH)], capture_output=True, text=True, check=True
    ).stdout
    needed = set(re.findall(r"NEEDED.*\[(.+)\]", dynamic))
    allowed = {"libtorch.so", "libtorch_cpu.so", "libc10.so", "libc.so.6", "libm.so.6"}
    allowed |= {"libstdc++.so.6", "libgcc_s.so.1", "ld-linux-x86-64.so.2"}
    assert needed <= allowed, needed - allowed


def test_stream_symbol_is_weak():
    symbols = subprocess.run(
        ["nm", "-D", str(LIBRARY_PATH)], capture_output=True, text=True, check=True
    ).stdout
    assert re.search(r" w aoti_torch_get_current_cuda_stream", symbols)


def test_only_c_entry_points_are_exported():
    """Static variables that the emulated twin also exports would be one in a process with both."""
    symbols = subprocess.run(
        ["nm", "-DC", "--defined-only", str(LIBRARY_PATH)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "l4k_signatures" in symbols and "l4k::" not in symbols


def test_cpu_tensors_run_the_reference_beside_the_library():
    x = torch.randn(2, 8)
    assert torch.equal(l4kernels.ops.silu_mul(x), l4kernels.ops.silu_mul.reference(x))


def test_taking_device_errors_without_a_gpu_is_harmless():
    l4kernels.take_device_error()
