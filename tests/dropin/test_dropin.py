"""Drop-ins against the functions that they stand in for, where those run on a CPU."""

import doctest
import importlib

import pytest
import torch
from torch.nn.functional import silu

import l4kernels
from l4kernels import ops
from l4kernels.testing import assert_close, emulated
from tests.support.tensors import i32

FP8, BF16, F32 = torch.float8_e4m3fn, torch.bfloat16, torch.float32


def e4m3(*shape, scaling="row"):
    return ops.quantize_fp8(torch.randn(shape), scaling)


@pytest.mark.parametrize("module", ["attention", "matmul", "moe"])
def test_examples_of_the_docstrings(module):
    result = doctest.testmod(importlib.import_module(f"l4kernels.dropin.{module}"))
    assert result.attempted and not result.failed


SCALES = {
    "tensor": (lambda s: s[0, :1].reshape(()), lambda s: s[:1, 0].clone()),
    "row": (lambda s: s[:, :1].clone(), lambda s: s[:, :1].t().contiguous()),
}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("out_dtype", [BF16, F32])
@pytest.mark.parametrize("scaling", SCALES)
def test_fp8_matmul_is_scaled_mm(scaling, out_dtype, bias):
    torch.manual_seed(0)
    a, b = (torch.randn(n, 64).to(FP8) for n in (33, 48))
    sa, sb = torch.rand(33, 1) + 0.5, torch.rand(48, 1) + 0.5
    sa, sb = SCALES[scaling][0](sa), SCALES[scaling][1](sb)
    arguments = {"bias": torch.randn(48).to(out_dtype) if bias else None, "out_dtype": out_dtype}
    expected = torch._scaled_mm(a, b.t(), sa, sb, **arguments)
    got = l4kernels.fp8_matmul(a, b.t(), scale_a=sa, scale_b=sb, **arguments)
    assert_close(got, expected, 3e-3 if out_dtype == BF16 else 1e-6)


def test_fp8_matmul_with_block_scales():
    torch.manual_seed(1)
    a, sa = e4m3(5, 256, scaling="1x128")
    b, sb = e4m3(200, 256, scaling="128x128")
    expected = ops.dequantize_fp8(a, sa, "1x128") @ ops.dequantize_fp8(b, sb, "128x128").T
    outer_major = sa.t().contiguous().t()  # torch's layout
    for of_a in (sa, outer_major):
        got = l4kernels.fp8_matmul(a, b.t(), of_a, sb.t(), out_dtype=F32)
        assert_close(got, expected, 1e-6)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"mat2": torch.zeros(64, 48).to(FP8)}, "expected mat2 to be column-major"),
        ({"mat2": torch.zeros(48, 32).to(FP8).t()}, r"expected mat2 to be \[64, N\]"),
        ({"input": torch.zeros(33, 64)}, "expected input to be float8_e4m3fn"),
        ({"out_dtype": None}, "expected out_dtype bfloat16"),
        ({"scale_result": torch.ones(1)}, "expected no scale_result"),
        ({"scale_a": torch.ones(33)}, r"got \[33\] and \[1\]"),
    ],
)
def test_fp8_matmul_says_what_is_wrong(change, message):
    one = torch.ones(1)
    good = {"input": torch.zeros(33, 64).to(FP8), "mat2": torch.zeros(48, 64).to(FP8).t()}
    good |= {"scale_a": one, "scale_b": one, "out_dtype": BF16}
    l4kernels.fp8_matmul(**good)
    with pytest.raises((ValueError, TypeError), match=f"l4kernels.fp8_matmul: .*{message}"):
        l4kernels.fp8_matmul(**(good | change))


@pytest.mark.parametrize("offs", [(10, 10, 32), (0, 0, 32), (32, 32, 32), (1, 2, 3), (5, 20, 31)])
def test_grouped_gemm_is_grouped_mm(offs):
    torch.manual_seed(2)
    a, b = torch.randn(32, 64).bfloat16(), torch.randn(3, 48, 64).bfloat16()
    ends = i32(*offs)
    got = l4kernels.grouped_gemm(a, b.transpose(-2, -1), offs=ends)
    expected = torch._grouped_mm(a, b.transpose(-2, -1), offs=ends)
    assert_close(got[: offs[-1]], expected[: offs[-1]], 3e-3)
    assert not got[offs[-1] :].any()


def test_grouped_gemm_of_groups_of_one_size():
    torch.manual_seed(5)
    a, b = torch.randn(3, 5, 64).bfloat16(), torch.randn(3, 48, 64).bfloat16()
    got = l4kernels.grouped_gemm(a, b.mT)
    assert_close(got, torch._grouped_mm(a, b.mT), 3e-3)
    assert l4kernels.grouped_gemm(a[:, :0], b.mT).shape == (3, 0, 48)
    (q, sa), (w, sb) = e4m3(3, 5, 64), e4m3(3, 48, 64)
    got = l4kernels.grouped_gemm(q, w.mT, scale_a=sa, scale_b=sb, out_dtype=F32)
    assert_close(got, ops.dequantize_fp8(q, sa, "row") @ ops.dequantize_fp8(w, sb, "row").mT, 1e-6)


def test_grouped_gemm_takes_indices_and_block_scales():
    torch.manual_seed(3)
    a, sa = e4m3(9, 128, scaling="1x128")
    b, sb = e4m3(4, 128, 128, scaling="128x128")
    groups = i32(0, 0, -1, 2, 2, 2, -1, 3, -1)  # group 1 is empty; padding after the others
    got = l4kernels.grouped_gemm(
        a, b.transpose(-2, -1), m_indices=groups, scale_a=sa, scale_b=sb, out_dtype=F32
    )
    weights = ops.dequantize_fp8(b, sb, "128x128")
    for row, group in enumerate(groups.tolist()):
        if group >= 0:
            expected = weights[group] @ ops.dequantize_fp8(a, sa, "1x128")[row]
            assert_close(got[row], expected, 1e-6)


def test_leading_padding_moves_no_row():
    a, b = torch.eye(4), torch.stack([torch.eye(4) * 10, torch.eye(4) * 100])
    got = l4kernels.grouped_gemm(a, b.mT, m_indices=i32(-1, -1, 1, 1))
    assert got[2:].diagonal(2).tolist() == [100.0, 100.0] and got.count_nonzero() == 4


@pytest.mark.parametrize("indices", [(1, 0, 0, 0), (0, 0, 1, 2), (0, -2, 1, 1)])
def test_wrong_indices_are_an_error(indices):
    a, b = torch.eye(4), torch.eye(4).repeat(2, 1, 1)
    with pytest.raises(IndexError, match=r"expected m_indices to ascend within \[0, 2\)"):
        l4kernels.grouped_gemm(a, b.mT, m_indices=i32(*indices))


def test_grouped_gemm_says_what_is_wrong():
    a, b = torch.zeros(4, 8), torch.zeros(2, 8, 6)
    with pytest.raises(ValueError, match="expected mat2 to be column-major"):
        l4kernels.grouped_gemm(a, b, i32(2, 4))
    b = torch.zeros(2, 6, 8).transpose(1, 2)
    with pytest.raises(ValueError, match="expected one of offs and m_indices"):
        l4kernels.grouped_gemm(a, b)
    with pytest.raises(ValueError, match="expected no bias"):
        l4kernels.grouped_gemm(a, b, i32(2, 4), torch.zeros(2, 6))
    with pytest.raises(ValueError, match="neither with input"):
        l4kernels.grouped_gemm(torch.zeros(2, 4, 8), b, i32(2, 4))
    with pytest.raises(ValueError, match=r"expected input to be \[2, M, 8\]"):
        l4kernels.grouped_gemm(torch.zeros(3, 4, 8), b)
    with pytest.raises(ValueError, match=r"expected mat2 to be \[G, K, N\].* along N or K"):
        l4kernels.grouped_gemm(a, b[0], i32(2, 4))
    with pytest.raises(ValueError, match=r"expected offs to be \[2\]"):
        l4kernels.grouped_gemm(a, b, i32(0, 2, 4))


def block(tokens=6, size=128, width=128, experts=3):
    torch.manual_seed(4)

    def weight(*shape):
        return torch.randn(shape) * shape[-1] ** -0.5

    gate, up = weight(experts, width, size), weight(experts, width, size)
    shared = weight(width, size), weight(width, size)
    w2, shared_w2 = weight(experts, size, width), weight(size, width)
    return weight(tokens, size) * 9, weight(8, size), gate, up, w2, *shared, shared_w2


def plain_ffn(x, router, gate, up, w2, shared_gate, shared_up, shared_w2, top_k):
    """Token by token, as the model's description reads."""
    experts = gate.shape[0]
    rows = []
    for token in x:
        chosen = (router[:experts] @ token).topk(top_k)
        total = shared_w2 @ (silu(shared_gate @ token) * (shared_up @ token))
        for logit, e in zip(chosen.values, chosen.indices, strict=True):
            scaled = token * torch.sigmoid(logit)
            total = total + w2[e] @ (silu(gate[e] @ scaled) * (up[e] @ scaled))
        rows.append(total)
    return torch.stack(rows)


@pytest.mark.parametrize("top_k", [1, 2])
def test_moe_ffn_is_the_description(top_k):
    x, router, gate, up, w2, shared_gate, shared_up, shared_w2 = parts = block()
    expected = plain_ffn(*parts, top_k)
    w13 = ops.interleave_gate_up(gate, up)
    shared_w13 = ops.interleave_gate_up(shared_gate, shared_up)
    got = l4kernels.moe_ffn(x, router, w13, w2, shared_w13, shared_w2, top_k=top_k, residual=x)
    assert_close(got, expected + x, 1e-5)


def fp8_block():
    x, router, gate, up, w2, shared_gate, shared_up, shared_w2 = parts = block()
    weights = {
        "w13": ops.interleave_gate_up(gate, up),
        "w2": w2,
        "shared_w13": ops.interleave_gate_up(shared_gate, shared_up),
        "shared_w2": shared_w2,
    }
    arguments = {"x": x.bfloat16(), "router_w": router.bfloat16()}
    for name, weight in weights.items():
        arguments[name], arguments[f"{name}_scale"] = ops.quantize_fp8(weight, "row")
    return arguments, plain_ffn(*parts, 1)


def test_moe_ffn_in_fp8_is_close():
    arguments, expected = fp8_block()
    got = l4kernels.moe_ffn(**arguments)
    assert got.dtype == BF16
    assert_close(got.float(), expected, 0.08)  # three e4m3 roundings


def test_moe_ffn_says_what_is_wrong():
    arguments, _ = fp8_block()
    with pytest.raises(ValueError, match="expected w2_scale exactly for e4m3 weights"):
        l4kernels.moe_ffn(**(arguments | {"w2_scale": None}))
    with pytest.raises(ValueError, match="expected shared_w13 and shared_w2, or neither"):
        l4kernels.moe_ffn(**(arguments | {"shared_w2": None}))
    with pytest.raises(ValueError, match="a row for each of 3 experts, got 2"):
        l4kernels.moe_ffn(**(arguments | {"router_w": torch.zeros(2, 128)}))


def compiled_cases():
    arguments, _ = fp8_block()
    a, b = torch.randn(8, 128), torch.randn(2, 16, 128)
    one = torch.ones(1)
    yield "moe_ffn", lambda: l4kernels.moe_ffn(**arguments)
    for name in ("offs", "m_indices"):
        rows = i32(3, 8) if name == "offs" else i32(0, 0, 0, 1, 1, 1, 1, 1)
        options = {name: rows}
        yield f"grouped_gemm {name}", lambda o=options: l4kernels.grouped_gemm(a, b.mT, **o)
    yield (
        "fp8_matmul",
        lambda: l4kernels.fp8_matmul(a.to(FP8), b[0].to(FP8).t(), one, one, out_dtype=BF16),
    )


@pytest.mark.parametrize(
    "name, call", compiled_cases(), ids=lambda v: v if isinstance(v, str) else ""
)
def test_drop_ins_compile_into_one_graph(name, call):
    torch._dynamo.reset()
    expected = call()
    got = torch.compile(call, backend="aot_eager", fullgraph=True)()
    assert_close(got, expected, 1e-5, name)


def test_drop_ins_run_on_kernels():
    a, b = torch.randn(40, 64).bfloat16(), torch.randn(2, 48, 64).bfloat16()
    expected = torch._grouped_mm(a, b.transpose(-2, -1), offs=i32(9, 40))
    q, w = a.to(FP8), b[0].to(FP8)
    one = torch.ones(1)
    scaled = torch._scaled_mm(q, w.t(), one, one, out_dtype=BF16)
    with emulated() as control:
        control.reset()
        got = l4kernels.grouped_gemm(a, b.transpose(-2, -1), i32(9, 40))
        got_scaled = l4kernels.fp8_matmul(q, w.t(), one, one, out_dtype=BF16)
        assert sum(k["launches"] for k in control.counters().values()) == 2
    assert_close(got, expected, 3e-3)
    assert_close(got_scaled, scaled, 3e-3)


def test_moe_ffn_runs_on_kernels():
    x, router, gate, up, w2, shared_gate, shared_up, shared_w2 = (t.bfloat16() for t in block())
    plain = {
        "x": x,
        "router_w": router,
        "w13": ops.interleave_gate_up(gate, up),
        "w2": w2,
        "shared_w13": ops.interleave_gate_up(shared_gate, shared_up),
        "shared_w2": shared_w2,
    }
    for arguments, launches, bound in ((plain, 8, 1e-2), (fp8_block()[0], 9, 5e-2)):
        expected = l4kernels.moe_ffn(**arguments)
        with emulated() as control:
            control.reset()
            got = l4kernels.moe_ffn(**arguments)
            assert sum(k["launches"] for k in control.counters().values()) == launches
        assert_close(got, expected, bound)
