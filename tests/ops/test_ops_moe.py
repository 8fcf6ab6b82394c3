"""Routing, permuting, and the matrix products of the experts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.checks.inputs import FP8, I32
from l4kernels import ops
from tests.support import naive

LOGITS = st.sampled_from([0.0, -0.0, 1.0, 1.0, -1.0, -50.0, 50.0, float("inf"), -float("inf")])


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_routing_rules(data):
    experts = data.draw(st.sampled_from([1, 2, 4, 16, 17]))
    top_k = data.draw(st.integers(1, min(8, experts)))
    values = LOGITS if data.draw(st.booleans()) else LOGITS | st.just(float("nan"))
    rows = data.draw(st.lists(st.lists(values, min_size=experts, max_size=experts), max_size=7))
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
    shared = data.draw(st.booleans())
    logits = torch.tensor(rows, dtype=dtype).view(len(rows), experts)
    routing = ops.moe_route(logits, top_k, shared)
    for name, got, wanted in zip(
        routing._fields, routing, naive.moe_route(logits, top_k, shared), strict=True
    ):
        torch.testing.assert_close(
            got.double(),
            torch.from_numpy(wanted).double(),
            rtol=1e-6,
            atol=1e-30,
            equal_nan=True,
            msg=name,
        )
    # What the kernels rely on, said directly.
    choices = top_k + shared
    flat = torch.arange(len(rows) * choices)
    assert torch.equal(routing.permutation.long()[routing.inverse.long()], flat)
    by_expert = routing.topk_ids.flatten()[routing.permutation.long()]
    assert torch.equal(by_expert.sort().values, by_expert)
    assert routing.expert_offsets[-1] == len(rows) * choices
    for ids in routing.topk_ids.tolist():
        assert len(set(ids)) == choices


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 9), st.integers(1, 8), st.integers(0, 99))
def test_the_shared_expert_moves_nothing_of_the_others(tokens, top_k, seed):
    torch.manual_seed(seed)
    logits = torch.randn(tokens, 16)
    logits[tokens // 2 :: 3] = torch.nan
    plain, shared = ops.moe_route(logits, top_k), ops.moe_route(logits, top_k, shared_expert=True)
    routed = tokens * top_k
    for a, b in ((plain.topk_ids, shared.topk_ids), (plain.topk_weights, shared.topk_weights)):
        torch.testing.assert_close(a, b[:, :top_k], rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(
        plain.row_scale, shared.row_scale[:routed], rtol=0, atol=0, equal_nan=True
    )
    assert torch.equal(plain.expert_offsets, shared.expert_offsets[:17])
    assert torch.equal(plain.inverse, shared.inverse.view(tokens, top_k + 1)[:, :top_k].flatten())
    # One row of each token, in order, unscaled.
    token = torch.arange(tokens, dtype=I32)
    assert (shared.topk_ids[:, top_k] == 16).all() and (shared.topk_weights[:, top_k] == 1).all()
    assert torch.equal(shared.permutation[routed:], token * (top_k + 1) + top_k)
    assert (shared.row_scale[routed:] == 1).all() and shared.expert_offsets[17] == routed + tokens


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tokens, experts, top_k, shared", [(1, 16, 1, True), (64, 13, 3, False)])
def test_the_router_is_its_three_ops_to_the_bit(dtype, tokens, experts, top_k, shared):
    torch.manual_seed(tokens)
    x, norm, router = (torch.randn(*s).to(dtype) for s in ((tokens, 96), (96,), (16, 96)))
    routed = ops.moe_router(x, norm, router, experts, 1e-6, top_k, shared)
    normed = ops.rms_norm(x, norm, 1e-6)
    logits = ops.gemm(normed, router, out_dtype=torch.float32)[:, :experts]
    expected = normed, *ops.moe_route(logits, top_k, shared)
    assert routed._fields == ("normed", *ops.Routing._fields)
    for name, got, wanted in zip(routed._fields, routed, expected, strict=True):
        assert torch.equal(got, wanted), name


def test_the_router_says_what_it_expects():
    x, norm, router = torch.zeros(65_537, 8), torch.zeros(8), torch.zeros(16, 8)
    with pytest.raises(ValueError, match=r"at most 65536 tokens, got x .*; call rms_norm, gemm"):
        ops.moe_router(x, norm, router, 16)
    with pytest.raises(ValueError, match="row for each of 17 experts"):
        ops.moe_router(x[:2], norm, router, 17)
    with pytest.raises(ValueError, match="1 to 255 experts beside the shared one, got num"):
        ops.moe_router(x[:2], norm, torch.zeros(256, 8), 256, shared_expert=True)
    with pytest.raises(ValueError, match="top_k in 1 to 8 for 16 experts, got 9"):
        ops.moe_router(x[:2], norm, router, 16, top_k=9)


def test_ties_go_to_the_lowest_expert_in_a_wide_row():
    routing = ops.moe_route(torch.zeros(300, 128), 8)
    assert torch.equal(routing.topk_ids, torch.arange(8, dtype=I32).expand(300, 8))


def test_nan_rows_get_weight_nan():
    logits = torch.tensor([[1.0, float("nan"), 3.0], [0.0, 0.0, 2.0]])
    routing = ops.moe_route(logits, 2)
    assert routing.topk_ids.tolist() == [[0, 1], [2, 0]]
    assert routing.topk_weights[0].isnan().all() and not routing.topk_weights[1].isnan().any()


def test_routing_arguments():
    with pytest.raises(ValueError, match="top_k in 1 to 4 for 4 experts, got 5"):
        ops.moe_route(torch.zeros(2, 4), 5)
    with pytest.raises(ValueError, match="top_k in 1 to 8 for 16 experts, got 9"):
        ops.moe_route(torch.zeros(2, 16), 9)
    with pytest.raises(ValueError, match=r"1 to 256 experts, got logits \[2, 257\]"):
        ops.moe_route(torch.zeros(2, 257))
    with pytest.raises(ValueError, match=r"1 to 255 experts beside the shared one, got .*256\]"):
        ops.moe_route(torch.zeros(2, 256), shared_expert=True)
    assert (
        ops.moe_route(torch.zeros(2, 255), shared_expert=True).topk_ids.tolist() == [[0, 255]] * 2
    )


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 9), st.integers(1, 8), st.booleans(), st.integers(0, 99))
def test_combine_of_permute_is_a_sum(tokens, top_k, shared, seed):
    torch.manual_seed(seed)
    x = torch.randint(-8, 8, (tokens, 16)).float()
    routing, choices = ops.moe_route(torch.randn(tokens, 16), top_k, shared), top_k + shared
    rows = ops.moe_permute(x, routing.permutation, choices)
    assert torch.equal(ops.moe_combine(rows, routing.inverse, choices), x * choices)
    assert torch.equal(ops.moe_combine(rows, routing.inverse, choices, x, x), x * (choices + 2))


def test_hostile_permutations():
    x, bad = torch.zeros(2, 4), torch.tensor([0, 2], dtype=I32)
    with pytest.raises(IndexError, match=r"moe_permute: .* permutation in \[0, 2\), got 2"):
        ops.moe_permute(x, bad, 1)
    with pytest.raises(IndexError, match=r"moe_permute_fp8: .* permutation in \[0, 2\), got 2"):
        ops.moe_permute_fp8(x, bad, 1)
    with pytest.raises(IndexError, match=r"moe_combine: .* inverse in \[0, 2\), got -1"):
        ops.moe_combine(x, bad - 1, 1)
    with pytest.raises(ValueError, match=r"permutation to be \[4\], got \[2\]"):
        ops.moe_permute(x, bad, 2)
    with pytest.raises(ValueError, match="top_k in 1 to 9, got 10"):
        ops.moe_permute(x, bad, 10)
    with pytest.raises(ValueError, match=r"shared to be \[1, 4\], got \[2, 4\]"):
        ops.moe_combine(x, bad, 2, shared=x)


def moe(x, logits, gate_up, down, *, where):
    """Two expert GEMMs with the router's score on the input (Llama 4) or on the output."""
    r = ops.moe_route(logits, 2)
    rows = ops.moe_permute(x, r.permutation, 2)
    options = {"expert_offsets": r.expert_offsets}
    scale = {"row_scale": r.row_scale}
    hidden = ops.gemm(
        rows, gate_up, activation="swiglu", **options, **(scale if where == "input" else {})
    )
    y = ops.gemm(hidden, down, **options, **(scale if where == "output" else {}))
    return ops.moe_combine(y, r.inverse, 2)


def test_score_on_the_input_is_not_score_on_the_output():
    torch.manual_seed(0)
    experts, hidden, width = 4, 32, 64
    x, logits = torch.randn(9, hidden), torch.randn(9, experts)
    gate, up = torch.randn(2, experts, width, hidden) * 0.3
    down = torch.randn(experts, hidden, width) * 0.3
    gate_up = ops.interleave_gate_up(gate, up)
    wanted = torch.zeros_like(x)
    for t in range(9):
        for e in logits[t].topk(2).indices.tolist():
            scaled = logits[t, e].sigmoid() * x[t]
            wanted[t] += down[e] @ (torch.nn.functional.silu(gate[e] @ scaled) * (up[e] @ scaled))
    right = moe(x, logits, gate_up, down, where="input")
    torch.testing.assert_close(right, wanted, rtol=1e-4, atol=1e-4)
    wrong = moe(x, logits, gate_up, down, where="output")
    assert (wrong - wanted).norm() > 0.1 * wanted.norm()


def test_experts_without_rows_are_never_read():
    b = torch.full((3, 16, 128), float("nan"))
    b[1] = 1.0
    offsets = torch.tensor([0, 0, 2, 2], dtype=I32)
    assert (ops.gemm(torch.ones(2, 128), b, expert_offsets=offsets) == 128).all()


def test_rows_past_the_last_expert_are_zero_whatever_they_hold():
    a = torch.ones(4, 128)
    a[2:] = float("nan")
    offsets = torch.tensor([0, 1, 2], dtype=I32)
    d = ops.gemm(a, torch.ones(2, 16, 128), expert_offsets=offsets, residual=torch.ones(4, 16))
    assert d[:, 0].tolist() == [129, 129, 0, 0]


@pytest.mark.parametrize("offsets", [(1, 2, 3), (0, 3, 2), (0, 2, 5), (0, -1, 4)])
def test_hostile_expert_offsets(offsets):
    with pytest.raises(IndexError, match="gemm: expected expert_offsets to ascend from 0"):
        ops.gemm(
            torch.zeros(4, 8), torch.zeros(2, 8, 8), expert_offsets=torch.tensor(offsets, dtype=I32)
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "relu"}, "activation to be one of none, gelu, swiglu, got 'relu'"),
        ({"activation": "swiglu"}, "N with swiglu .* multiple of 16, got 24"),
        ({"bias": torch.zeros(23)}, r"bias to be \[24\], got \[23\]"),
        ({"residual": torch.zeros(3, 24)}, r"residual to be \[4, 24\], got \[3, 24\]"),
        ({"row_scale": torch.zeros(3)}, r"row_scale to be \[4\], got \[3\]"),
        ({"sfa": torch.ones(1)}, "no sfa or sfb with torch.float32"),
        ({"expert_offsets": torch.zeros(2, dtype=I32)}, "expert_offsets exactly when"),
        ({"out_dtype": torch.int32}, "float out_dtype, got torch.int32"),
    ],
)
def test_gemm_arguments(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        ops.gemm(torch.zeros(4, 8), torch.zeros(24, 8), **options)


GATHER = {
    "expert_offsets": torch.tensor([0, 3, 8], dtype=I32),
    "permutation": torch.tensor([7, 1, 0, 3, 2, 5, 4, 6], dtype=I32),
    "top_k": 2,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_that_gathers_equals_one_of_permuted_rows(dtype):
    a, b = torch.randn(4, 128).to(dtype), torch.randn(2, 32, 128).to(dtype)
    tiles = ops.tile_int4(*ops.quantize_int4(b.float(), search=False))
    experts, order, top_k = GATHER.values()
    rows = ops.moe_permute(a, order, top_k)
    options = {"row_scale": torch.rand(8), "activation": "swiglu"}
    for product, weight in ((ops.gemm, b), (ops.w4_gemm, tiles)):
        wanted = product(rows, weight, expert_offsets=experts, **options)
        assert torch.equal(product(a, weight, **GATHER, **options), wanted)
        work = product.work(a, weight, **GATHER), product.work(rows, weight, expert_offsets=experts)
        assert work[0].flops == work[1].flops
        assert work[0].bytes == work[1].bytes - (rows.nbytes - a.nbytes) + order.nbytes


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"top_k": 0}, "top_k in 1 to 9, got 0"),
        ({"top_k": 1}, r"permutation to be \[4\], got \[8\]"),
        ({"permutation": None}, "no top_k without permutation, got 2"),
        ({"permutation": GATHER["permutation"].long()}, "permutation to be int32"),
        ({"top_k": 9}, "at most 32 rows of permutation, got 36; call moe_permute first"),
        ({"row_scale": torch.ones(4)}, r"row_scale to be \[8\], got \[4\]"),
        ({"residual": torch.ones(4, 32)}, r"residual to be \[8, 32\], got \[4, 32\]"),
    ],
)
def test_what_a_product_that_gathers_refuses(changed, message):
    a, b = torch.zeros(4, 128), torch.zeros(2, 32, 128)
    tiles = ops.tile_int4(*ops.quantize_int4(b, search=False))
    for product, weight in ((ops.gemm, b), (ops.w4_gemm, tiles)):
        with pytest.raises((ValueError, TypeError), match=message):
            product(a, weight, **{**GATHER, **changed})


def test_only_unquantised_rows_of_experts_are_gathered():
    order = {"permutation": torch.arange(4, dtype=I32)}
    with pytest.raises(ValueError, match="expected expert_offsets with permutation, got none"):
        ops.gemm(torch.zeros(4, 128), torch.zeros(8, 128), **order)
    a, b, one = torch.zeros(4, 128).to(FP8), torch.zeros(1, 16, 128).to(FP8), torch.ones(1)
    offsets = torch.tensor([0, 4], dtype=I32)
    with pytest.raises(TypeError, match=r"expected a to be float32 .*got .* float8_e4m3fn"):
        ops.gemm(a, b, sfa=one, sfb=one[None], expert_offsets=offsets, **order)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("with_residual", [False, True])
def test_combining_with_the_next_norm_is_both_ops_bit_by_bit(dtype, with_residual):
    y, weight = torch.randn(12, 128).to(dtype), torch.randn(128).to(dtype)
    order = torch.randperm(12).to(I32)
    residual = torch.randn(6, 128).to(dtype) if with_residual else None
    x = ops.moe_combine(y, order, 2, residual=residual)
    fused = ops.moe_combine_norm(y, order, 2, weight, 1e-3, residual)
    assert torch.equal(fused.x, x) and torch.equal(fused.normed, ops.rms_norm(x, weight, 1e-3))
    coded = ops.moe_combine_norm_fp8(y, order, 2, weight, 1e-3, residual)
    wanted = ops.rms_norm_fp8(x, weight, 1e-3)
    assert torch.equal(coded.x, x) and torch.equal(coded.scale, wanted.scale)
    assert torch.equal(coded.q.view(torch.uint8), wanted.q.view(torch.uint8))


def test_gemm_operands():
    a = torch.zeros(4, 128)
    with pytest.raises(ValueError, match=r"b to be \[N, 128\] or \[E, N, 128\], got \[8, 64\]"):
        ops.gemm(a, torch.zeros(8, 64))
    with pytest.raises(TypeError, match=r"expected b to be float32, got .* bfloat16"):
        ops.gemm(a, torch.zeros(8, 128).bfloat16())
    with pytest.raises(ValueError, match=r"b to be contiguous.*call b.contiguous"):
        ops.gemm(a, torch.zeros(128, 8).T)
    with pytest.raises(ValueError, match="expected sfa and sfb with float8"):
        ops.gemm(a.to(FP8), a.to(FP8))
    one, channel, per_row = torch.ones(1), torch.ones(8), torch.ones(4)
    b = torch.zeros(8, 128).to(FP8)
    for sfa, sfb in ((one, channel), (per_row, one), (per_row, torch.ones(1, 1))):
        with pytest.raises(ValueError, match=r"sfa and sfb to be one of \[1\] with \[1\].* got"):
            ops.gemm(a.to(FP8), b, sfa=sfa, sfb=sfb)
    with pytest.raises(ValueError, match=r"packed to be \[N, 16\].* got \[8, 8\] int32"):
        ops.w4_gemm(a, torch.zeros(8, 8, dtype=I32), torch.ones(8, 1))
    with pytest.raises(ValueError, match=r"K .columns of a. .* multiple of 128, got 64"):
        ops.w4_gemm(a[:, :64], torch.zeros(8, 8, dtype=I32), torch.ones(8, 1))


def test_interleaving_round_trip():
    gate, up = torch.randn(2, 3, 24, 5)
    weight = ops.interleave_gate_up(gate, up)
    assert torch.equal(weight[:, 16:24], gate[:, 8:16]) and torch.equal(
        weight[:, 24:32], up[:, 8:16]
    )
    back = ops.deinterleave_gate_up(weight)
    assert torch.equal(back[0], gate) and torch.equal(back[1], up)
    with pytest.raises(ValueError, match="F a multiple of 8, got"):
        ops.interleave_gate_up(gate[:, :9], up[:, :9])
    with pytest.raises(ValueError, match="2F a multiple of 16, got"):
        ops.deinterleave_gate_up(weight[:, :40])


def test_swiglu_gemm_equals_gemm_then_silu_mul():
    torch.manual_seed(0)
    a, gate, up = torch.randn(5, 128), torch.randn(32, 128), torch.randn(32, 128)
    fused = ops.gemm(a, ops.interleave_gate_up(gate, up), activation="swiglu")
    torch.testing.assert_close(fused, ops.silu_mul(ops.gemm(a, torch.cat([gate, up]))))


def test_large_weights_expand_in_blocks(monkeypatch):
    """A low-precision weight is expanded piece by piece; the pieces join up."""
    from l4kernels.ops import epilogue

    torch.manual_seed(0)
    a, residual = torch.randn(3, 256).bfloat16(), torch.randn(3, 288).bfloat16()
    b, bias = torch.randn(576, 256).bfloat16(), torch.randn(576)
    options = {"bias": bias, "residual": residual, "activation": "swiglu"}
    whole = ops.gemm(a, b, **options)
    packed = ops.quantize_int4(b.float(), search=False)
    whole_w4 = ops.w4_gemm(a, *packed, **options)
    monkeypatch.setattr(epilogue, "_BLOCK_ELEMENTS", 1)
    assert torch.equal(ops.gemm(a, b, **options), whole)
    assert torch.equal(ops.w4_gemm(a, *packed, **options), whole_w4)


def test_embed_refuses_ids_outside_the_vocabulary():
    weight = torch.zeros(10, 4)
    for bad in (10, -1):
        with pytest.raises(IndexError, match=rf"embed: .* input_ids in \[0, 10\), got {bad}"):
            ops.embed(torch.tensor([1, bad]), weight)
    rows = torch.tensor([0, 3], dtype=I32)
    with pytest.raises(IndexError, match=r"embed: .* image_rows in \[-1, 3\), got 3"):
        ops.embed(torch.tensor([1, 1]), weight, torch.zeros(3, 4), rows)
    with pytest.raises(ValueError, match="image_features and image_rows together"):
        ops.embed(torch.tensor([1, 1]), weight, torch.zeros(3, 4))
