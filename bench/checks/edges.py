"""The memory-bound kernels at their edges: ids nobody should pass, odd strides, far offsets, rows
at any place of a batch. For the emulator and for a GPU, which also run those of the sampler."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import l4kernels
from bench.checks import edges_append, edges_w4  # noqa: F401  register their own
from bench.checks.cases import cases
from bench.checks.edges_sample import sampling
from bench.checks.edges_step import advanced, processing, state
from bench.checks.inputs import FP8, I32, Case
from bench.checks.kernel_checks import BF16_ERROR, E4M3_ERROR, bound, mutated, tensors
from bench.checks.machine import EDGES, Machine, edge
from l4kernels import ops
from l4kernels.ops import OPS
from l4kernels.testing import assert_close

__all__ = ["EDGES"]  # all of them, once this module is imported


@edge
def rope_cache_rejects_slots_and_positions(m: Machine) -> None:
    for cache in (torch.bfloat16, FP8):
        qkv = m.make.randn(5, 4 * 128)
        table = ops.rope_table(8, theta=500000.0).to(m.device)
        good_positions, good_slots = m.ids(3, 0, 5, 7, 1), m.ids(0, 1, 2, -1, 6)
        clean = [torch.full((2, 4, 1, 128), 0.5, device=m.device).to(cache) for _ in range(2)]
        expected = [t.clone() for t in clean]
        options = {"num_heads": 2, "cos_sin": table}
        q = ops.rope_cache.reference(qkv, good_positions, good_slots, *expected, **options)
        for wrong, row, value in (
            ("positions", 1, -1),
            ("slot_mapping", 2, 8),
            ("slot_mapping", 2, 2**40),
            ("slot_mapping", 0, -2),
        ):
            positions, slots = good_positions.clone(), good_slots.clone()
            (positions if wrong == "positions" else slots)[row] = value
            caches = [t.clone() for t in clean]
            with m.dispatch():
                got = ops.rope_cache(qkv, positions, slots, *caches, **options)
            assert m.error() == f"rope_cache: {wrong}"
            kept = [r for r in range(5) if r != row]
            assert got[row].count_nonzero() == 0
            assert_close(got[kept], q[kept], 3e-3)
            slot = int(good_slots[row])
            for after, wanted, before in zip(caches, expected, clean, strict=True):
                rows = wanted.flatten(0, 1).clone()
                rows[slot] = 0 if wrong == "positions" else before.flatten(0, 1)[slot]
                assert_close(after.flatten(0, 1), rows, E4M3_ERROR if cache == FP8 else BF16_ERROR)


@edge
def rope_cache_at_far_positions(m: Machine) -> None:
    positions = m.ids(0, 8190, 8191, 8192, 2**20, 10 * 2**20 - 1, 2**32 + 5, 2**62)
    qkv, slots = m.make.randn(8, 3 * 128), torch.arange(8, device=m.device)
    table = ops.rope_table(100, theta=500000.0).to(m.device)
    for options in ({"cos_sin": table, "qk_norm_eps": 1e-5}, {"attn_scale": 0.1}):
        mine = [m.make.randn(2, 4, 1, 128) for _ in range(2)]
        theirs = [t.clone() for t in mine]
        with m.dispatch():
            q = ops.rope_cache(qkv, positions, slots, *mine, num_heads=1, **options)
        expected = ops.rope_cache.reference(qkv, positions, slots, *theirs, num_heads=1, **options)
        assert m.error() == ""
        assert_close((q, *mine), (expected, *theirs), 3e-3)


@edge
def a_bad_index_zeroes_its_row_and_no_other(m: Machine) -> None:
    x, order = m.make.randn(3, 256), m.make.permutation(6)
    kept = [0, 1, 2, 3, 5]
    for bad in (-1, 6, 2**31 - 1, -(2**31)):
        wrong = order.clone()
        wrong[4] = bad
        with m.dispatch():
            rows = ops.moe_permute(x, wrong, 2)
            assert m.error() == "moe_permute: permutation"
            quantised = ops.moe_permute_fp8(x, wrong, 2)
            assert m.error() == "moe_permute: permutation"
            combined = ops.moe_combine(x.repeat(2, 1), wrong, 2, x)
            assert m.error() == "moe_combine: inverse"
            normed = ops.moe_combine_norm_fp8(x.repeat(2, 1), wrong, 2, x[0], residual=x)
            assert m.error() == "moe_combine: inverse"
        expected = ops.moe_permute.reference(x, order, 2)
        assert rows[4].count_nonzero() == 0 and torch.equal(rows[kept], expected[kept])
        assert quantised.q[4].float().count_nonzero() == 0 and quantised.scale[4] == 1
        reference = ops.moe_permute_fp8.reference(x, order, 2)
        assert_close(quantised.q[kept], reference.q[kept], 0.0)
        assert combined[2].count_nonzero() == 0
        assert torch.equal(normed.x, combined)
        assert normed.q[2].float().count_nonzero() == 0
        assert normed.scale[2] == 1
        summed = ops.moe_combine.reference(x.repeat(2, 1), order, 2, x)
        assert_close(combined[:2], summed[:2], 3e-3)


@edge
def a_bad_index_zeroes_its_row_of_a_product_that_gathers(m: Machine) -> None:
    x = m.make.randn(3, 256)
    order = m.make.permutation(6)
    options = {"expert_offsets": m.ids(0, 1, 6, dtype=I32), "top_k": 2}
    weights = {"gemm": m.make.randn(2, 16, 256), "w4_gemm": m.make.tiles(2, 16, 256)}
    kept = [0, 1, 2, 3, 5]
    for form, b in weights.items():
        expected = OPS[form].reference(x, b, permutation=order, **options)
        for bad in (-1, 6, 2**31 - 1, -(2**31)):
            wrong = order.clone()
            wrong[4] = bad
            with m.dispatch():
                got = OPS[form](x, b, permutation=wrong, **options)
                assert m.error() == f"{form}: permutation"
            assert got[4].count_nonzero() == 0
            assert_close(got[kept], expected[kept], BF16_ERROR)


@edge
def embed_rejects_ids(m: Machine) -> None:
    weight, features = m.make.randn(50, 128), m.make.randn(2, 128)
    for dtype in (torch.int64, I32):
        ids = m.ids(0, 50, 49, -1, 2**31 - 1, 7, dtype=dtype)
        with m.dispatch():
            text = ops.embed(ids, weight)
            assert m.error() == "embed: input_ids"
            image = ops.embed(ids, weight, features, m.ids(-1, 0, 2, 1, -2, -1, dtype=I32))
            assert m.error() == "embed: image_rows"
        assert text[[1, 3, 4]].count_nonzero() == 0
        assert torch.equal(text[[0, 2, 5]], weight[[0, 49, 7]])
        assert image[[2, 4]].count_nonzero() == 0
        assert torch.equal(image[[0, 1, 3, 5]], torch.cat([weight[:1], features, weight[7:8]]))


@edge
def nan_logits_set_the_error_word(m: Machine) -> None:
    logits = m.make.randn(70, 16)
    with m.dispatch():
        ops.moe_route(logits)
        assert m.error() == ""
        logits[69, 3] = float("nan")
        routing = ops.moe_route(logits, 2)
        assert m.error() == "moe_route: logits (NaN)"
    assert_close(routing, ops.moe_route.reference(logits, 2), 1e-5)


@edge
def routing_of_any_shape(m: Machine) -> None:
    shapes = ((1, 1), (3, 2), (16, 1), (16, 5), (16, 6), (16, 7), (100, 8), (128, 1), (255, 3))
    for experts, top_k in shapes:
        for tokens in (64, 65, 300):
            for logits in (
                m.make.randn(tokens, experts, dtype=torch.float32),
                m.make.randn(tokens, experts + 1)[:, 1:],
                m.make.integers(tokens, experts, high=2).bfloat16(),
            ):
                for shared in (False, True):
                    with m.dispatch(mode="random", seed=tokens, sms=3):
                        got = ops.moe_route(logits, top_k, shared)
                    assert_close(got, ops.moe_route.reference(logits, top_k, shared), 1e-5)


@edge
def routing_to_one_expert_of_many(m: Machine) -> None:
    logits = torch.full((200, 128), -5.0, device=m.device).bfloat16()
    logits[:, 77] = 3
    with m.dispatch(sms=3):
        got = ops.moe_route(logits)
    assert_close(got, ops.moe_route.reference(logits), 1e-5)


@edge
def a_row_has_the_same_bits_at_any_place(m: Machine) -> None:
    t, d = 13, 640
    x, other, weight = m.make.randn(t, d), m.make.randn(t, d), m.make.randn(d)
    table = ops.rope_table(8, theta=500000.0).to(m.device)
    scattered, router = m.make.permutation(t), m.make.randn(24, d, scale=d**-0.5)
    options, step, tokens = processing(m, t, d), state(m, t, 99), m.make.permutation(t).long()

    def rope(x: Tensor, order: Tensor) -> tuple[Tensor, ...]:
        """Tokens move, and with them positions and slots; the caches then hold the same."""
        caches = [torch.zeros(1, 16, 1, 128, device=m.device).to(FP8) for _ in "kv"]
        options = {"num_heads": 3, "cos_sin": table, "qk_norm_eps": 1e-5}
        q = ops.rope_cache(x, order, order, *caches, **options)
        return q, *(c.flatten(0, 1)[order] for c in caches)

    rows: dict[str, Callable[[Tensor, Tensor], Any]] = {
        "rms_norm": lambda x, order: ops.rms_norm(x, weight),
        "add_rms_norm": lambda x, order: ops.add_rms_norm(x, other[order], weight),
        "rms_norm_fp8": lambda x, order: ops.rms_norm_fp8(x, weight, residual=x, keep_y=True),
        "quantize_fp8 row": lambda x, order: ops.quantize_fp8(x, "row"),
        "quantize_fp8 1x128": lambda x, order: ops.quantize_fp8(x, "1x128"),
        "silu_mul": lambda x, order: ops.silu_mul(x),
        "silu_mul_fp8": lambda x, order: ops.silu_mul_fp8(x, "row"),
        "rope_cache": rope,
        "moe_permute": lambda x, order: ops.moe_permute(other, scattered[order], 1),
        "moe_permute_fp8": lambda x, order: ops.moe_permute_fp8(other, scattered[order], 1),
        "moe_combine": lambda x, order: ops.moe_combine(other, scattered[order], 1, x, x),
        "moe_combine_norm": lambda x, order: ops.moe_combine_norm(
            other, scattered[order], 1, weight, residual=x
        ),
        "moe_combine_norm_fp8": lambda x, order: ops.moe_combine_norm_fp8(
            other, scattered[order], 1, weight, residual=x
        ),
        "embed": lambda x, order: ops.embed(order, weight.expand(t, d).contiguous()),
        "moe_route": lambda x, order: ops.moe_route(x[:, :128], 4)[:2],
        "moe_router": lambda x, order: ops.moe_router(x, weight, router, 20, top_k=4)[:3],
        "sample": lambda x, order: ops.sample(x, *sampling(t, rows=order), top_logprobs=3),
        "process_logits": lambda x, order: ops.process_logits(x, *(o[order] for o in options)),
        "advance_step": lambda x, order: advanced(step, tokens, order),
    }
    stay, order = torch.arange(t, device=m.device), m.make.permutation(t).long()
    for name, run in rows.items():
        with m.dispatch(sms=2, perturb=False):
            whole, moved = tensors(run(x, stay)), tensors(run(x[order].contiguous(), order))
        for a, b in zip(whole, moved, strict=True):
            a, b = (r.contiguous().view(torch.uint8).reshape(t, -1) for r in (a, b))
            assert torch.equal(a[order], b), f"{name}: other bits at another place"


@edge
def the_router_normalises_as_rms_norm_does(m: Machine) -> None:
    """To the bit, so that a token's rows do not depend on how many others there are."""
    for tokens, width in ((1, 5120), (64, 648), (9, 16_384), (3, 8)):
        x, norm = m.make.randn(tokens, width), m.make.randn(width)
        router = m.make.randn(8, width, scale=width**-0.5)
        with m.dispatch(perturb=False):
            normed, wanted = ops.moe_router(x, norm, router, 8).normed, ops.rms_norm(x, norm)
        assert torch.equal(normed, wanted), f"{tokens} x {width}"


@edge
def a_layer_of_dependent_launches(m: Machine) -> None:
    """Norm, routing in two launches, gather, combine, sample, router: none reads ahead."""
    x, residual, weight = m.make.randn(80, 256), m.make.randn(80, 256), m.make.randn(256)
    plain, router = [t.to(m.device) for t in sampling(80)], m.make.randn(32, 256, scale=1 / 16)

    def layer(given: tuple[Any, ...] = ()) -> tuple[Any, ...]:
        normed = ops.add_rms_norm(x, residual, weight)
        y, stream = given[0] if given else normed
        routing = ops.moe_route(y[:, :16], 2, shared_expert=True)
        order = given[1] if given else routing
        rows = ops.moe_permute(y, order.permutation, 3)
        quantised = ops.moe_permute_fp8(y, order.permutation, 3)
        summed = ops.moe_combine(given[2] if given else rows, order.inverse, 3, y, stream)
        sampled = ops.sample(given[4] if given else summed, *plain)
        routed = ops.moe_router((given[4] if given else summed)[:17], weight, router, 30, top_k=2)
        return normed, routing, rows, quantised, summed, sampled, routed

    for mode in ("late", "early", "random"):
        with m.dispatch(mode=mode, seed=5, sms=2), m.chained():
            got = layer()
        # Each op runs on the result of the one before: a rounding there is not its own.
        with l4kernels.reference():
            expected = layer(got)
        for a, b, tolerance in zip(
            got, expected, (BF16_ERROR, 1e-5, 0.0, 0.0, BF16_ERROR, 1e-5, BF16_ERROR), strict=True
        ):
            assert_close(a, b, tolerance)


STREAMING = (
    "add_rms_norm", "advance_step", "embed", "moe_combine", "moe_combine_norm",
    "moe_combine_norm_fp8", "moe_permute", "moe_permute_fp8", "moe_route", "moe_router",
    "process_logits", "quantize_fp8", "rms_norm", "rms_norm_fp8", "rope_cache", "sample",
    "silu_mul", "silu_mul_fp8", "w4_gemm", "word_sum",
)  # fmt: skip


def variants(t: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The values of a tensor, laid out otherwise in memory."""
    yield "after one element", t.new_empty(t.numel() + 1)[1:].view(t.shape).copy_(t)
    yield "with gaps", t.new_empty(*t.shape, 2)[..., 0].copy_(t)
    if t.dim() > 1:
        for gap in (1, 16):
            wide = t.new_empty(*t.shape[:-1], t.shape[-1] + gap)
            yield f"rows {gap} apart", wide[..., : t.shape[-1]].copy_(t)
        yield "transposed", t.mT.contiguous().mT
    yield "one for all", t[:1].expand_as(t)


@edge
def any_strides_give_the_right_result_or_an_error_that_names_the_tensor(m: Machine) -> None:
    for op in STREAMING:
        smallest = next(c for c in cases(op, m.device) if c.args[0].numel() > 1)
        names = list(OPS[op].signature.parameters)
        values = dict(zip(names, smallest.args, strict=False)) | smallest.kwargs
        for name, value in values.items():
            if not isinstance(value, Tensor):
                continue
            for layout, odd in variants(value):
                mine, theirs = (
                    {n: v.clone() if isinstance(v, Tensor) else v for n, v in values.items()}
                    for _ in range(2)
                )
                mine[name], theirs[name] = odd, odd.clone(memory_format=torch.contiguous_format)
                what = f"{op}: {name} {layout}"
                try:
                    with m.dispatch():
                        got = tensors(OPS[op](**mine))
                except (RuntimeError, TypeError, ValueError) as error:
                    assert name in str(error), f"{what}: {error}"
                    continue
                for a, e in zip(got, tensors(OPS[op].reference(**theirs)), strict=True):
                    assert_close(a, e, bound(op, smallest, e), what)
                pairs = (mutated(op, Case("", (), named)) for named in (mine, theirs))
                for (written, a), (_, e) in zip(*pairs, strict=True):
                    assert_close(a, e, bound(op, smallest, e), f"{what}: {written}")


@edge
def rows_beyond_4_gib(m: Machine) -> None:
    """Sparse buffers whose last rows begin past 2^31 elements."""

    def far(rows: int, width: int) -> Tensor:
        wide = torch.empty(rows, 2**31 // (rows - 1) + 128, dtype=torch.bfloat16, device=m.device)
        return wide[:, :width].copy_(m.make.randn(rows, width))

    weight, order = m.make.randn(256), m.make.permutation(5)
    calls = {
        "rms_norm": lambda: (far(5, 256), weight),
        "add_rms_norm": lambda: (far(5, 256), far(5, 256), weight),
        "silu_mul": lambda: (far(5, 256),),
        "silu_mul_fp8": lambda: (far(5, 256),),
        "quantize_fp8": lambda: (far(5, 256), "row"),
        "moe_permute": lambda: (far(5, 256), order, 1),
        "moe_permute_fp8": lambda: (far(5, 256), order, 1),
        "moe_combine": lambda: (far(5, 256), order, 1, far(5, 256), far(5, 256)),
        "moe_combine_norm": lambda: (far(5, 256), order, 1, weight, 1e-5, far(5, 256)),
        "moe_combine_norm_fp8": lambda: (far(5, 256), order, 1, weight, 1e-5, far(5, 256)),
        "moe_route": lambda: (far(5, 128), 2),
        "moe_router": lambda: (far(5, 256), weight, m.make.randn(16, 256, scale=1 / 16), 16),
        "embed": lambda: (m.ids(4, 0, 3), far(5, 256)),
        "sample": lambda: (far(5, 1000), *(t.to(m.device) for t in sampling(5)), 3),
        "process_logits": lambda: (far(5, 1000), *processing(m, 5, 1000)),
    }
    for op, make in calls.items():
        args = make()
        with m.dispatch():
            got = tensors(OPS[op](*args))
        close = tuple(t.contiguous() if isinstance(t, Tensor) else t for t in args)
        for a, e in zip(got, tensors(OPS[op].reference(*close)), strict=True):
            assert_close(a, e, bound(op, Case("", ()), e), op)
    # 2^31 elements of cache, of which the last page is written.
    small, qkv = m.make.randn(1, 64, 1, 128), m.make.randn(3, 3 * 128)
    positions, slots = m.ids(0, 1, 2), m.ids(60, 61, 62)
    for cache in (torch.bfloat16, FP8):
        whole = [torch.empty(2**18 + 1, 64, 1, 128, dtype=cache, device=m.device) for _ in "kv"]
        pages = [small.to(cache).clone() for _ in "kv"]
        for t in whole:
            t[-1] = small[0].to(cache)
        with m.dispatch():
            q = ops.rope_cache(qkv, positions, slots + 2**24, *whole, num_heads=1)
        expected = ops.rope_cache.reference(qkv, positions, slots, *pages, num_heads=1)
        tolerance = E4M3_ERROR if cache == FP8 else BF16_ERROR
        assert_close(q, expected, BF16_ERROR)
        assert_close((whole[0][-1:], whole[1][-1:]), tuple(pages), tolerance)
