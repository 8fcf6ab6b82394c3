"""The MoE layer against loops over its tokens; the shared expert is the last of its products."""

import pytest
import torch
from torch import nn
from torch.nn.functional import silu

from bench.checks.kernel_checks import same_bits
from l4kernels import ops
from l4kernels.layers.moe import MoE
from l4kernels.layers.norm import RMSNorm
from l4kernels.layers.options import ModelOptions
from l4kernels.testing import emulated, relative_error

CPU = torch.device("cpu")
HIDDEN, WIDTH = 128, 128
# Experts, top_k: one, several, and the most of both, which with the shared one are 256 and 9.
SIZES = ((1, 1), (4, 1), (3, 2), (255, 8))


def layer(experts: int, top_k: int, dtype: torch.dtype = torch.float32, weights: str = "bf16"):
    """The layer, the norm before it, and what they were made of."""
    generator = torch.Generator().manual_seed(experts)
    moe = MoE(HIDDEN, WIDTH, experts, top_k, ModelOptions(dtype, CPU, weights))
    norm = RMSNorm(HIDDEN, 1e-5, ModelOptions(dtype, CPU))
    norm.weight.copy_(torch.rand(HIDDEN, generator=generator) + 0.5)
    router = torch.randn(experts, HIDDEN, generator=generator) * 0.1
    gate_up = torch.randn(experts + 1, 2 * WIDTH, HIDDEN, generator=generator) * 0.1
    down = torch.randn(experts + 1, HIDDEN, WIDTH, generator=generator) * 0.1
    moe.router.store(router)
    for expert in range(experts + 1):
        moe.gate_up_proj.store(gate_up[expert], "gate_up", expert)
        moe.down_proj.store(down[expert], expert=expert)
    return moe, norm, router, gate_up, down


def by_loops(x, norm, router, gate_up, down, top_k):
    """The score scales an expert's input; that of the shared one, which is the last, stays."""
    out = torch.empty_like(x)
    for t, row in enumerate(norm(x)):
        scores, chosen = (router @ row).topk(top_k)
        inputs = [(int(e), s.sigmoid() * row) for s, e in zip(scores, chosen, strict=True)]
        out[t] = x[t]
        for expert, scaled in (*inputs, (len(router), row)):
            gate, up = (gate_up[expert] @ scaled).chunk(2)
            out[t] += down[expert] @ (silu(gate) * up)
    return out


@pytest.mark.parametrize("experts, top_k", SIZES)
@pytest.mark.parametrize("tokens", [0, 1, 20, 65])
def test_a_token_gets_its_experts_and_the_shared_one(experts, top_k, tokens):
    moe, norm, *parts = layer(experts, top_k)
    x = torch.randn(tokens, HIDDEN, generator=torch.Generator().manual_seed(0))
    expected = by_loops(x, norm, *parts, top_k)
    torch.testing.assert_close(moe(x, norm), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("experts, top_k", SIZES)
@pytest.mark.parametrize("weights", ["bf16", "fp8"])
def test_kernels_compute_what_the_references_do(experts, top_k, weights):
    moe, norm, *_ = layer(experts, top_k, torch.bfloat16, weights)
    x = torch.randn(19, HIDDEN, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = moe(x, norm)
    for mode in ("late", "early", "random"):
        with emulated(mode=mode):
            got = moe(x, norm)
        assert relative_error(got - x, expected - x) < 1e-2


@pytest.mark.parametrize("weights", ["bf16", "fp8", "int4"])
def test_a_row_of_nan_spoils_its_own_token_only(weights):
    moe, norm, *_ = layer(4, 2, torch.bfloat16, weights)
    x = torch.randn(5, HIDDEN, generator=torch.Generator().manual_seed(0)).bfloat16()
    clean = moe(x, norm)
    x[2, 7] = torch.nan
    got = moe(x, norm)
    assert got[2].isnan().all()
    kept = [0, 1, 3, 4]
    assert torch.equal(got[kept], clean[kept])


def calls_of(moe, norm, tokens, monkeypatch) -> list[str]:
    """The ops that a layer calls, the next layer's norm among them."""
    calls = []
    for name, op in ops.OPS.items():
        counted = lambda *a, name=name, op=op, **k: (calls.append(name), op(*a, **k))[1]  # noqa: E731
        monkeypatch.setattr(ops, name, counted)
    next_norm = RMSNorm(HIDDEN, 1e-5, ModelOptions(torch.bfloat16, CPU, moe.gate_up_proj.name))
    next_norm.weight.fill_(1)
    calls.clear()
    moe.forward_then_norm(torch.randn(tokens, HIDDEN).bfloat16(), norm, next_norm)
    return calls


@pytest.mark.parametrize("tokens", [3, 16, 17, 65])
@pytest.mark.parametrize("weights", ["bf16", "fp8", "int4"])
def test_each_product_is_one_call(weights, tokens, monkeypatch):
    """The way to the experts is one call, too, and the first product gathers few rows itself, if
    they are not quantised."""
    moe, norm, *_ = layer(4, 1, torch.bfloat16, weights)
    product = {"bf16": "gemm", "fp8": "gemm_swiglu_fp8", "int4": "w4_gemm"}[weights]
    down = {"fp8": "gemm"}.get(weights, product)
    fp8 = "_fp8" * (weights == "fp8")
    permute = [f"moe_permute{fp8}"] * (tokens > 16 or weights == "fp8")
    assert calls_of(moe, norm, tokens, monkeypatch) == [
        "moe_router", *permute, product, down, f"moe_combine_norm{fp8}",
    ]  # fmt: skip


def test_more_tokens_than_the_router_is_fast_for_take_its_three_ops(monkeypatch):
    moe, norm, *_ = layer(4, 1, torch.bfloat16)
    monkeypatch.setattr("l4kernels.layers.moe.router_tokens", lambda experts: 2 * experts)
    assert calls_of(moe, norm, 8, monkeypatch)[0] == "moe_router"
    assert calls_of(moe, norm, 9, monkeypatch)[:3] == ["rms_norm", "gemm", "moe_route"]


@pytest.mark.parametrize("tokens", [1, 40])
def test_hooks_of_what_a_launch_computes_together_are_called(tokens):
    moe, norm, *_ = layer(4, 1, torch.bfloat16)
    next_norm = RMSNorm(HIDDEN, 1e-5, ModelOptions(torch.bfloat16, CPU))
    next_norm.weight.copy_(torch.ones(HIDDEN))
    seen = []
    for module in (norm, moe.router, moe, next_norm):
        module.register_forward_hook(lambda called, args, out: seen.append(called))
    x = torch.randn(tokens, HIDDEN).bfloat16()
    moe.forward_then_norm(x, norm, next_norm)
    assert seen == [norm, moe.router, moe, next_norm]


@pytest.mark.parametrize("tokens", [1, 40])
@pytest.mark.parametrize("hooked", ["moe", "norm", "router", "next_norm"])
def test_a_hook_changes_what_a_module_gives(hooked, tokens):
    moe, norm, *_ = layer(4, 1, torch.bfloat16)
    next_norm = RMSNorm(HIDDEN, 1e-5, ModelOptions(torch.bfloat16, CPU))
    next_norm.weight.copy_(torch.ones(HIDDEN))
    x = torch.randn(tokens, HIDDEN).bfloat16()
    before = moe.forward_then_norm(x, norm, next_norm)
    modules = {"moe": moe, "norm": norm, "router": moe.router, "next_norm": next_norm}
    modules[hooked].register_forward_hook(lambda called, args, out: out * -3)
    after = moe.forward_then_norm(x, norm, next_norm)
    assert not torch.equal(after[1], before[1])


class Wrapped(nn.Module):
    """As somebody's adapter around a layer of the model."""

    def __init__(self, own: nn.Module):
        super().__init__()
        self.own, self.calls = own, 0

    def forward(self, *args, **options):
        self.calls += 1
        return self.own(*args, **options)


@pytest.mark.parametrize("tokens", [1, 40])
def test_modules_of_somebody_else_are_called(tokens):
    moe, norm, *_ = layer(4, 1, torch.bfloat16)
    next_norm = RMSNorm(HIDDEN, 1e-5, ModelOptions(torch.bfloat16, CPU))
    next_norm.weight.copy_(torch.ones(HIDDEN))
    x = torch.randn(tokens, HIDDEN).bfloat16()
    expected = moe.forward_then_norm(x, norm, next_norm)
    others = Wrapped(norm), Wrapped(moe.router), Wrapped(next_norm)
    moe.router = others[1]
    got = moe.forward_then_norm(x, others[0], others[2])
    assert [other.calls for other in others] == [1, 1, 1]
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("tokens", [0, 1, 16, 17])
@pytest.mark.parametrize("weights", ["bf16", "fp8", "int4"])
def test_a_layer_with_the_next_norm_is_the_layer_and_the_norm(weights, tokens):
    moe, own, *_ = layer(3, 1, torch.bfloat16, weights)
    norm = RMSNorm(HIDDEN, 1e-5, ModelOptions(torch.bfloat16, CPU, weights))
    generator = torch.Generator().manual_seed(tokens)
    norm.weight.copy_(torch.randn(HIDDEN, generator=generator))
    x = torch.randn(tokens, HIDDEN, generator=generator).bfloat16()
    alone = moe(x, own)
    together, normed = moe.forward_then_norm(x, own, norm)
    assert torch.equal(together, alone)
    wanted = norm(alone)
    if weights == "fp8":
        assert same_bits(normed.q, wanted.q) and torch.equal(normed.scale, wanted.scale)
    else:
        assert torch.equal(normed, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_few_tokens_have_the_bits_of_many(dtype, monkeypatch):
    """Whichever way they take: on the references it is the same arithmetic."""
    moe, norm, *_ = layer(4, 2, dtype)
    x = torch.randn(9, HIDDEN, generator=torch.Generator().manual_seed(0)).to(dtype)
    few = moe(x, norm)
    monkeypatch.setattr("l4kernels.layers.moe.router_tokens", lambda experts: 0)
    assert torch.equal(moe(x, norm), few)
