"""The memory-bound kernels at their edges, in the emulator: ids nobody should pass, misaligned
tensors, float32 logits, rows at any place of a batch, and the sampler's distribution."""

import contextlib

import pytest
import torch

import l4kernels
from l4kernels import STATUS, ops
from l4kernels.testing import assert_close, chained, emulated
from tests.kernel_checks import device_error, tensors
from tests.making import FP8, I32, Maker

pytestmark = pytest.mark.skipif(not STATUS.loaded, reason="no compiled kernels: run `make build`")


@pytest.fixture
def make() -> Maker:
    return Maker("cpu", torch.bfloat16, seed=3)


@pytest.mark.parametrize("cache", (torch.bfloat16, FP8))
def test_rope_cache_rejects_slots_and_positions(make, cache):
    qkv = make.randn(5, 4 * 128)
    table = ops.rope_table(8, theta=500000.0)
    good_positions = torch.tensor([3, 0, 5, 7, 1])
    good_slots = torch.tensor([0, 1, 2, -1, 6])
    clean = [torch.full((2, 4, 1, 128), 0.5).to(cache) for _ in range(2)]
    expected = [t.clone() for t in clean]
    q = ops.rope_cache.reference(
        qkv, good_positions, good_slots, *expected, num_heads=2, cos_sin=table
    )
    for wrong, positions, slots in (
        ("positions", {1: -1}, {}),
        ("slot_mapping", {}, {2: 8}),
        ("slot_mapping", {}, {2: 2**40}),
        ("slot_mapping", {}, {0: -2}),
    ):
        given_positions, given_slots = good_positions.clone(), good_slots.clone()
        for row, value in positions.items():
            given_positions[row] = value
        for row, value in slots.items():
            given_slots[row] = value
        bad = [*positions, *slots]
        with emulated():
            caches = [t.clone() for t in clean]
            got = ops.rope_cache(
                qkv, given_positions, given_slots, *caches, num_heads=2, cos_sin=table
            )
        assert device_error() == f"rope_cache: {wrong}"
        kept = [row for row in range(5) if row not in bad]
        assert got[bad].count_nonzero() == 0
        assert_close(got[kept], q[kept], 3e-3)
        for cache_got, cache_expected, before in zip(caches, expected, clean, strict=True):
            rows = cache_got.flatten(0, 1).float()
            wanted = cache_expected.flatten(0, 1).float()
            for row in bad:
                slot = int(good_slots[row])
                wanted[slot] = 0 if row in positions else before.flatten(0, 1)[slot].float()
            assert_close(rows, wanted, 2e-2)


def test_rope_cache_at_far_positions(make):
    positions = torch.tensor([0, 8190, 8191, 8192, 2**20, 10 * 2**20 - 1, 2**32 + 5, 2**62])
    qkv, slots = make.randn(8, 3 * 128), torch.arange(8)
    table = ops.rope_table(100, theta=500000.0)
    for options in ({"cos_sin": table, "qk_norm_eps": 1e-5}, {"attn_scale": 0.1}):
        caches = [[make.randn(2, 4, 1, 128) for _ in range(2)] for _ in range(2)]
        with emulated():
            q = ops.rope_cache(qkv, positions, slots, *caches[0], num_heads=1, **options)
        expected = ops.rope_cache.reference(
            qkv, positions, slots, *caches[1], num_heads=1, **options
        )
        assert device_error() == ""
        assert_close((q, *caches[0]), (expected, *caches[1]), 3e-3)


@pytest.mark.parametrize("bad", (-1, 6, 2**31 - 1, -(2**31)))
def test_a_bad_index_zeroes_its_row_and_no_other(make, bad):
    x, order = make.randn(3, 256), make.permutation(6)
    wrong = order.clone()
    wrong[4] = bad
    kept = [0, 1, 2, 3, 5]
    with emulated():
        rows = ops.moe_permute(x, wrong, 2)
        assert device_error() == "moe_permute: permutation"
        quantised = ops.moe_permute_fp8(x, wrong, 2)
        assert device_error() == "moe_permute: permutation"
        combined = ops.moe_combine(x.repeat(2, 1), wrong, 2, x)
        assert device_error() == "moe_combine: inverse"
    expected = ops.moe_permute.reference(x, order, 2)
    assert rows[4].count_nonzero() == 0 and torch.equal(rows[kept], expected[kept])
    assert quantised.q[4].float().count_nonzero() == 0 and quantised.scale[4] == 1
    reference = ops.moe_permute_fp8.reference(x, order, 2)
    assert_close(quantised.q[kept], reference.q[kept], 2e-2)
    assert combined[2].count_nonzero() == 0
    summed = ops.moe_combine.reference(x.repeat(2, 1), order, 2, x)
    assert_close(combined[:2], summed[:2], 3e-3)


@pytest.mark.parametrize("dtype", (torch.int64, I32))
def test_embed_rejects_ids(make, dtype):
    weight, features = make.randn(50, 128), make.randn(2, 128)
    ids = torch.tensor([0, 50, 49, -1, 2**31 - 1, 7], dtype=dtype)
    with emulated():
        text = ops.embed(ids, weight)
        assert device_error() == "embed: input_ids"
        rows = torch.tensor([-1, 0, 2, 1, -2, -1], dtype=I32)
        image = ops.embed(ids, weight, features, rows)
        assert device_error() == "embed: image_rows"
    assert text[[1, 3, 4]].count_nonzero() == 0
    assert torch.equal(text[[0, 2, 5]], weight[[0, 49, 7]])
    assert image[[2, 4]].count_nonzero() == 0
    assert torch.equal(image[[0, 1, 3, 5]], torch.cat([weight[:1], features, weight[7:8]]))


def test_nan_logits_set_the_error_word(make):
    logits = make.randn(70, 16)
    with emulated():
        ops.moe_route(logits)
        assert device_error() == ""
        logits[69, 3] = float("nan")
        routing = ops.moe_route(logits, 2)
        assert device_error() == "moe_route: logits (NaN)"
    assert_close(routing, ops.moe_route.reference(logits, 2), 1e-5)


@pytest.mark.parametrize("experts, top_k", ((1, 1), (3, 2), (16, 1), (100, 8), (128, 1), (255, 3)))
@pytest.mark.parametrize("tokens", (64, 65, 300))
def test_routing_of_any_shape(make, experts, top_k, tokens):
    for logits in (
        make.randn(tokens, experts, dtype=torch.float32),
        make.randn(tokens, experts + 1)[:, 1:],
        make.integers(tokens, experts, high=2).bfloat16(),
    ):
        with emulated(mode="random", seed=tokens, sms=3):
            got = ops.moe_route(logits, top_k)
        assert_close(got, ops.moe_route.reference(logits, top_k), 1e-5)


def test_routing_to_one_expert_of_many(make):
    logits = torch.full((200, 128), -5.0).bfloat16()
    logits[:, 77] = 3
    with emulated(sms=3):
        got = ops.moe_route(logits)
    assert_close(got, ops.moe_route.reference(logits), 1e-5)


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


def test_a_row_has_the_same_bits_at_any_place(make):
    x, weight = make.randn(13, 640), make.randn(640)
    order = make.permutation(13).long()
    with emulated(sms=2):
        for run in (
            lambda x: ops.rms_norm(x, weight),
            lambda x: ops.rms_norm_fp8(x, weight, residual=x, keep_y=True),
            lambda x: ops.quantize_fp8(x, "row"),
            lambda x: ops.silu_mul_fp8(x, "row"),
        ):
            whole, moved = tensors(run(x)), tensors(run(x[order].contiguous()))
            for a, b in zip(whole, moved, strict=True):
                rows = (t.view(torch.uint8).reshape(13, -1) for t in (a, b))
                assert torch.equal(next(rows)[order], next(rows))


@pytest.mark.parametrize("mode", ("late", "early", "random"))
def test_a_layer_of_dependent_launches(make, mode):
    """Norm, routing in two launches, gather, combine, sample: none reads ahead of another."""
    x, residual, weight = make.randn(80, 256), make.randn(80, 256), make.randn(256)
    plain = sampling(80)

    def layer():
        normed = ops.add_rms_norm(x, residual, weight)
        routing = ops.moe_route(normed.y[:, :16], 2)
        rows = ops.moe_permute(normed.y, routing.permutation, 2)
        quantised = ops.moe_permute_fp8(normed.y, routing.permutation, 2)
        summed = ops.moe_combine(rows, routing.inverse, 2, normed.y, normed.residual)
        return normed, routing, rows, quantised, summed, ops.sample(summed, *plain)

    with emulated(mode=mode, seed=5, sms=2), chained():
        got = layer()
    with l4kernels.reference():
        expected = layer()
    for a, b, bound in zip(got, expected, (3e-3, 1e-5, 3e-3, 2e-2, 3e-3, 1e-2), strict=True):
        assert_close(a, b, bound)


def sampling(batch: int, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0) -> list[torch.Tensor]:
    return [
        torch.full((batch,), temperature),
        torch.full((batch,), top_k, dtype=I32),
        torch.full((batch,), top_p),
        torch.full((batch,), min_p),
        torch.arange(batch) * 7 + 2**40,
        torch.arange(batch) * 3 + 2**33,
    ]


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize(
    "options",
    (
        {},
        {"top_k": 7},
        {"top_p": 0.5},
        {"top_p": 0.95, "temperature": 3.0},
        {"min_p": 0.1},
        {"top_k": 40, "top_p": 0.8, "min_p": 0.01, "temperature": 0.6},
        {"top_k": 300, "top_p": 0.999},
    ),
    ids=str,
)
def test_sampling_draws_the_reference_token(make, dtype, options):
    logits = make.randn(4, 1000, scale=2, dtype=dtype)
    logits[3] = logits[3].round()  # many ties
    arguments = (logits, *sampling(4, **options))
    with emulated(mode="random"):
        got = ops.sample(*arguments, top_logprobs=20)
    assert_close(got, ops.sample.reference(*arguments, top_logprobs=20), 1e-5)


def test_sampling_follows_the_softmax(make):
    draws = 400
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, float("nan"), 1.0, 0.5, -9.0]).repeat(draws, 1)
    with emulated():
        ids = ops.sample(logits, *sampling(draws, top_k=6, temperature=1.5)).ids
    kept = torch.tensor([0, 1, 2, 3, 5, 6])
    expected = (logits[0, kept] / 1.5).softmax(0) * draws
    counts = torch.bincount(ids, minlength=8)
    assert counts.sum() == counts[kept].sum()
    chi_square = ((counts[kept] - expected) ** 2 / expected).sum().item()
    assert chi_square < 20.5  # p = 1e-3 with 5 degrees of freedom


def test_a_row_of_nothing_gives_token_0():
    logits = torch.full((2, 100), float("-inf"))
    logits[1] = float("nan")
    with emulated():
        got = ops.sample(logits, *sampling(2, temperature=0.8))
    assert got.ids.tolist() == [0, 0]
