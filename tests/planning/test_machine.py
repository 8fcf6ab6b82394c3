"""What `l4k env` says of ops: which run on kernels, which need none, which lack one."""

import pytest
import torch

from l4kernels import STATUS
from l4kernels.ops import OPS
from l4kernels.planning import machine
from l4kernels.testing import emulated


def test_a_model_needs_the_ops_of_its_format(monkeypatch):
    monkeypatch.setattr(machine, "_blocked", lambda gpus: "")
    monkeypatch.setattr(machine, "STATUS", type("Status", (), {"kernels": tuple(OPS)[:-1]}))
    last = tuple(OPS)[-1]
    assert last == "word_sum" and machine.gpu_problem("bf16") is None
    kernels = tuple(op for op in OPS if op not in ("w4_gemm", "embed"))
    monkeypatch.setattr(machine, "STATUS", type("Status", (), {"kernels": kernels}))
    assert machine.gpu_problem("fp8").endswith("no CUDA kernel: embed")
    for form in ("int4", "int4+fp8attn"):
        assert machine.gpu_problem(form).endswith("no CUDA kernel: embed, w4_gemm")


def test_env_tells_what_needs_no_kernel_from_what_lacks_one(monkeypatch):
    monkeypatch.setattr(machine, "_blocked", lambda gpus: "")
    kernels = tuple(op for op in OPS if op not in ("quantize_int4", "embed"))
    monkeypatch.setattr(machine, "STATUS", type("Status", (), {"kernels": kernels}))
    states = machine._kernels([])
    assert states["gemm"] == {"active": "cuda", "reason": ""}
    assert (
        states["embed"]["active"] == "reference" and "no CUDA kernel" in states["embed"]["reason"]
    )
    assert states["quantize_int4"]["active"] == "torch"
    assert OPS["quantize_int4"].without_kernel in states["quantize_int4"]["reason"]
    assert "quantize_int4" not in machine.gpu_problem("int4")
    monkeypatch.setattr(machine, "_blocked", lambda gpus: "there is no GPU")
    blocked = machine._kernels([])
    assert blocked["quantize_int4"] == states["quantize_int4"]
    assert blocked["gemm"]["reason"] == "there is no GPU"


def test_an_op_without_a_kernel_runs_everywhere():
    without = [name for name, op in OPS.items() if op.without_kernel]
    assert without == ["quantize_int4"] and not {*without} & {*STATUS.kernels}
    for name in without:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"l4kernels::{name}", "CUDA")


@pytest.mark.skipif(not STATUS.loaded, reason="no compiled kernels: run `make build`")
def test_the_emulator_runs_it_as_well():
    w = torch.randn(4, 256)
    with emulated():
        assert all(map(torch.equal, OPS["quantize_int4"](w), OPS["quantize_int4"].reference(w)))
