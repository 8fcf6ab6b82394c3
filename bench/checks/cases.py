"""Sample inputs of every op: what its tests and its kernels' tests run on.

`cases(name)` builds the cases of an op, seeded, on any device and in any float dtype. They are
small, and legal for the CUDA kernels: K and N multiples of what the kernels need, heads of 128.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from bench.checks import cases_attention, cases_moe
from bench.checks.inputs import FP8, I32, Case, Cases, Maker, added_to
from l4kernels import ops


def cases(op_name: str, device: str = "cpu", dtype: torch.dtype = torch.bfloat16) -> list[Case]:
    return list(_CASES[op_name](Maker(device, dtype, seed=0)))


_CASES: Cases = {**cases_attention.CASES, **cases_moe.CASES}
_of = added_to(_CASES)


@_of("mma_tile")
def _mma_tile(make: Maker, name: str) -> Iterator[Case]:
    a, b = (make.randn(64, 64, dtype=torch.bfloat16) for _ in range(2))
    yield Case("random", (a, b))


@_of("word_sum")
def _word_sum(make: Maker, name: str) -> Iterator[Case]:
    for words in (0, 4, 1028, 70_000):
        yield Case(f"{words} words", (make.integers(words, low=-(2**31), high=2**31),))
    yield Case("floats", (make.randn(16, 8),))


@_of("silu_mul", "silu_mul_fp8")
def _silu_mul(make: Maker, name: str) -> Iterator[Case]:
    for rows, width in ((0, 128), (1, 8192), (7, 384), (65, 128)):
        yield Case(f"{rows}x{width}", (make.randn(rows, 2 * width, scale=3),))
    yield Case("strided", (make.randn(5, 3 * 256)[:, 128:640],))
    yield Case("large", (make.tensor([[100.0] * 64 + [-100.0] * 64] * 2, make.dtype),))
    yield Case("zeros", (make.randn(3, 256, scale=0),))
    if name == "silu_mul_fp8":
        yield Case("1x128", (make.randn(9, 1024),), {"scaling": "1x128"})


@_of("rms_norm")
def _rms_norm(make: Maker, name: str) -> Iterator[Case]:
    for shape in ((0, 128), (1, 5120), (33, 640), (2, 3, 256)):
        yield Case("x".join(map(str, shape)), (make.randn(*shape), make.randn(shape[-1])))
    yield Case("zeros", (make.randn(3, 256, scale=0), make.randn(256)))
    yield Case("large", (make.randn(3, 256, scale=1e4), make.randn(256)))
    yield Case("small", (make.randn(3, 256, scale=1e-4), make.randn(256), 1e-6))
    yield Case("strided", (make.randn(5, 768)[:, 256:512], make.randn(256)))


@_of("add_rms_norm")
def _add_rms_norm(make: Maker, name: str) -> Iterator[Case]:
    for t, d in ((0, 128), (1, 5120), (33, 640)):
        yield Case(f"{t}x{d}", (make.randn(t, d), make.randn(t, d), make.randn(d)))
    x = make.randn(3, 256, scale=100)
    yield Case("cancel", (x, -x, make.randn(256)))


@_of("rms_norm_fp8")
def _rms_norm_fp8(make: Maker, name: str) -> Iterator[Case]:
    for t, d in ((0, 128), (1, 5120), (33, 640)):
        x, weight, residual = make.randn(t, d), make.randn(d), make.randn(t, d)
        yield Case(f"{t}x{d}", (x, weight))
        both = {"residual": residual, "keep_y": True}
        yield Case(f"{t}x{d} residual", (x, weight), both)
        yield Case(f"{t}x{d} 1x128", (x, weight), {"scaling": "1x128", **both})
    yield Case("zeros", (make.randn(2, 256, scale=0), make.randn(256)), {"keep_y": True})


@_of("rope_cache")
def _rope_cache(make: Maker, name: str) -> Iterator[Case]:
    table = ops.rope_table(64, theta=500000.0).to(make.device)
    for tokens, heads, kv_heads, page_size in ((1, 40, 8, 16), (0, 4, 2, 16), (19, 5, 1, 8)):
        qkv = make.randn(tokens, (heads + 2 * kv_heads) * 128)
        positions = make.integers(tokens, high=20_000, dtype=torch.int64)
        slots = make.permutation(4 * page_size)[:tokens].long()
        slots[1::4] = -1
        layers = {
            "rope": {"cos_sin": table},
            "rope and norm": {"cos_sin": table, "qk_norm_eps": 1e-5},
            "temperature": {"attn_scale": 0.1},
        }
        for cache in (make.dtype, FP8):
            for layer, options in layers.items():
                caches = (make.randn(4, page_size, kv_heads, 128).to(cache) for _ in range(2))
                options = {"num_heads": heads, **options}
                if cache == FP8 and layer != "rope":
                    scales = (make.uniform(kv_heads, low=0.01, high=2) for _ in range(2))
                    options |= zip(("k_scale", "v_scale"), scales, strict=True)
                label = f"{tokens} tokens {layer} {str(cache).removeprefix('torch.')}"
                yield Case(label, (qkv, positions, slots, *caches), options)


@_of("gemm")
def _gemm(make: Maker, name: str) -> Iterator[Case]:
    for m, n, k in ((0, 16, 128), (1, 128, 1024), (7, 16, 128), (65, 200, 384), (129, 264, 128)):
        a, b = make.randn(m, k), make.randn(n, k, scale=k**-0.5)
        yield Case(f"{m}x{n}x{k}", (a, b))
    m, n, k = 35, 160, 256
    a, b = make.randn(m, k), make.randn(n, k, scale=k**-0.5)
    bias, scale = make.randn(n), make.uniform(m)
    yield Case(
        "bias gelu residual",
        (a, b),
        {"bias": bias, "activation": "gelu", "residual": make.randn(m, n)},
    )
    yield Case("swiglu", (a, b), {"activation": "swiglu", "row_scale": scale})
    yield Case("float32 result", (a, b), {"out_dtype": torch.float32, "row_scale": scale})
    yield Case(
        "integers",
        tuple(make.integers(*s, low=-4, high=5).to(make.dtype) for s in ((m, k), (n, k))),
    )
    for label, counts, rows in _ragged():
        experts = {"expert_offsets": make.offsets(counts)}
        a, b = make.randn(rows, k), make.randn(len(counts), 96, k, scale=k**-0.5)
        yield Case(f"ragged {label}", (a, b), experts)
        yield Case(
            f"ragged {label} swiglu",
            (a, b),
            {**experts, "row_scale": make.uniform(rows), "activation": "swiglu"},
        )
        residual = make.randn(rows, 96)
        yield Case(f"ragged {label} residual", (a, b), {**experts, "residual": residual})
    for label, tokens, experts in _gathered(make):
        b = make.randn(4, 48, 200, scale=0.1)
        yield Case(f"gathered {label}", (make.randn(tokens, 200), b), experts)
    for sfa, sfb in (("tensor", "tensor"), ("row", "row"), ("1x128", "128x128"), ("1x128", "row")):
        (a, sa), (b, sb) = make.fp8(35, 256, scaling=sfa), make.fp8(144, 256, scaling=sfb)
        yield Case(f"fp8 {sfa} {sfb}", (a, b), {"sfa": sa, "sfb": sb})
        b, sb = make.fp8(3, 144, 256, scaling=sfb)
        ragged = {"expert_offsets": make.offsets([9, 0, 20]), "sfa": sa, "sfb": sb}
        yield Case(f"fp8 {sfa} {sfb} ragged", (a, b), {**ragged, "activation": "swiglu"})


def _ragged() -> Iterator[tuple[str, list[int], int]]:
    yield "mixed", [3, 0, 17, 1], 21
    yield "one takes all", [0, 0, 20, 0], 20
    yield "one each", [1] * 16, 16
    yield "tail", [2, 0, 5], 12
    yield "none", [0, 0], 0


def _gathered(make: Maker) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Of four experts: tokens, and the arguments of a product that takes their rows itself."""
    for tokens, top_k, counts in (
        (1, 2, [1, 0, 0, 1]),
        (16, 1, [0, 9, 0, 7]),
        (16, 2, [10, 6, 0, 15]),
        (0, 2, [0] * 4),
    ):
        experts = {
            "expert_offsets": make.offsets(counts),
            "permutation": make.permutation(tokens * top_k),
            "top_k": top_k,
            "activation": "swiglu",
        }
        yield f"{counts} top {top_k}", tokens, experts


@_of("gemm_swiglu_fp8")
def _gemm_swiglu_fp8(make: Maker, name: str) -> Iterator[Case]:
    for sfa, sfb in (("row", "row"), ("1x128", "128x128"), ("1x128", "row"), ("tensor", "tensor")):
        (a, sa), (b, sb) = make.fp8(13, 256, scaling=sfa), make.fp8(512, 256, scaling=sfb)
        options = {"sfa": sa, "sfb": sb, "row_scale": make.uniform(13)}
        yield Case(f"{sfa} {sfb}", (a, b), options)
        b, sb = make.fp8(2, 256, 256, scaling=sfb)
        offsets = make.offsets([4, 7])
        yield Case(f"{sfa} {sfb} tail", (a, b), {"sfa": sa, "sfb": sb, "expert_offsets": offsets})


@_of("w4_gemm")
def _w4_gemm(make: Maker, name: str) -> Iterator[Case]:
    for m, n, k in _W4_SHAPES:
        yield Case(f"{m}x{n}x{k}", (make.randn(m, k), make.tiles(n, k)))
    for m in (5, 33):
        yield from _w4_options(make, m, 96, 256)
    for label, counts, rows in (*_ragged(), ("wide", [40, 0, 23], 63)):
        a, b = make.randn(rows, 256), make.tiles(len(counts), 48, 256)
        experts = {"expert_offsets": make.offsets(counts)}
        yield Case(f"ragged {label}", (a, b), experts)
        routed = {"activation": "swiglu", "row_scale": make.uniform(rows), "static_weights": True}
        yield Case(f"ragged {label} swiglu", (a, b), {**experts, **routed})
        odd = make.tiles(len(counts), 32, 128, group=32, zeros=True)
        yield Case(
            f"ragged {label} zeros of 32",
            (make.randn(rows, 128), odd),
            {**experts, "residual": make.randn(rows, 32), "out_dtype": torch.float32},
        )

    for label, tokens, experts in _gathered(make):
        b = make.tiles(4, 48, 384)
        yield Case(f"gathered {label}", (make.randn(tokens, 384), b), experts)


# Rows on either side of what a tensor core's product and a kernel take; a few tiles, and a row of
# tiles that is longer than any ring.
_W4_SHAPES = (
    (0, 16, 128), (1, 16, 128), (7, 48, 256), (2, 32, 5120), (8, 144, 384), (9, 64, 1024),
    (15, 16, 256), (16, 80, 640), (17, 32, 5120), (65, 208, 384),
)  # fmt: skip


def _w4_options(make: Maker, m: int, n: int, k: int) -> Iterator[Case]:
    """Every epilogue, and every kind of tile."""
    a, weight, scale = make.randn(m, k), make.int4(n, k), make.uniform(m)
    b = ops.tile_int4(*weight)
    epilogues: dict[str, dict[str, Any]] = {
        "swiglu": {"activation": "swiglu", "row_scale": scale},
        "swiglu bias residual": {
            "activation": "swiglu",
            "bias": make.randn(n),
            "residual": make.randn(m, n // 2),
        },
        "bias gelu": {"bias": make.randn(n), "activation": "gelu"},
        "residual": {"residual": make.randn(m, n), "static_weights": True},
        "float32 result": {"out_dtype": torch.float32, "row_scale": scale},
    }
    for label, options in epilogues.items():
        yield Case(f"{m} rows {label}", (a, b), options)
    yield Case(f"{m} strided rows", (make.randn(m, 3 * k)[:, k : 2 * k], b))
    for group in (128, 64, 32):
        for zeros in (False, True)[group == 128 :]:
            label = f"{m} rows groups of {group}{' zeros' * zeros}"
            yield Case(label, (a, make.tiles(32, k, group=group, zeros=zeros)))
    signs = make.integers(*weight.scales.shape, high=2) * 2 - 1
    for label, factor in (("scales of both signs", signs), ("tiny", 2.0**-100), ("huge", 2.0**110)):
        tiles = ops.tile_int4(weight.packed, (weight.scales * factor).bfloat16())
        yield Case(f"{m} rows {label}", (a, tiles))


@_of("quantize_fp8")
def _quantize_fp8(make: Maker, name: str) -> Iterator[Case]:
    for scaling in ("tensor", "row", "1x128", "128x128"):
        for shape in ((0, 128), (1, 512), (33, 256), (2, 130, 128)):
            yield Case(f"{shape} {scaling}", (make.randn(*shape), scaling))
        mixed = make.randn(9, 256)
        mixed[5], mixed[7] = 0, 1e4
        yield Case(f"mixed {scaling}", (mixed, scaling))
        yield Case(f"zeros {scaling}", (make.randn(2, 128, scale=0), scaling))


@_of("quantize_int4")
def _quantize_int4(make: Maker, name: str) -> Iterator[Case]:
    for search in (False, True):
        for shape in ((0, 128), (1, 1024), (2, 9, 256)):
            yield Case(f"{shape} {search}", (make.randn(*shape), search))
        yield Case(f"zeros {search}", (make.randn(2, 128, scale=0), search))
        outlier = make.randn(2, 256)
        outlier[0, 3], outlier[1, 200] = 40, -40
        yield Case(f"outlier {search}", (outlier, search))


@_of("embed")
def _embed(make: Maker, name: str) -> Iterator[Case]:
    weight = make.randn(300, 256)
    for dtype in (torch.int64, I32):
        yield Case(f"text {dtype}", (make.integers(17, high=300, dtype=dtype), weight))
    ids = make.integers(9, high=300, dtype=torch.int64)
    ids[3:6] = 10_000
    rows = make.tensor([-1, -1, -1, 2, 0, 1, -1, -1, -1])
    yield Case("image", (ids, weight, make.randn(3, 256), rows))
    nothing = make.randn(0, 256)
    yield Case("no image", (ids[:3], weight, nothing, rows[:3]))
    yield Case("empty", (ids[:0], weight))


@_of("process_logits")
def _process_logits(make: Maker, name: str) -> Iterator[Case]:
    for batch, vocab in ((0, 64), (1, 515), (3, 101), (4, 64)):
        tally = make.integers(batch, vocab, low=-40, high=60).clamp(min=0)
        biases = make.randn(batch, vocab, dtype=torch.float32)
        masks = [make.integers(batch, -(-vocab // 32), low=-(2**31), high=2**31) for _ in "as"]
        counts = [make.integers(batch, high=4, dtype=torch.int64) for _ in "gm"]
        factors = [make.uniform(batch, low=low, high=2) for low in (0.5, -2, -2)]
        active = make.integers(batch, low=-1, high=3).ne(0).to(I32)
        for dtype in (make.dtype, torch.float32):
            logits = make.randn(batch, vocab, scale=3, dtype=dtype)
            logits[:, 5:8], logits[1:, 9] = make.tensor([0.0, -0.0, 9.0], dtype), float("-inf")
            args = (logits, tally, biases, *masks, *counts, *factors)
            yield Case(f"{batch}x{vocab} {logits.dtype}", (*args, active))
    yield Case("all", (*args, torch.ones_like(active)))


@_of("advance_step")
def _advance_step(make: Maker, name: str) -> Iterator[Case]:
    sizes = ((0, 64, 1, 3), (1, 202, 2, 5), (40, 202, 2, 9), (9, 64, 5, 4))
    for batch, vocab, kinds, columns in sizes:

        def rows(high: int, low: int = 0, of: int = batch) -> Tensor:
            return make.integers(of, low=low, high=high, dtype=torch.int64)

        state = [rows(vocab), rows(8 * columns + 9), rows(40, -9).clamp(min=0).to(I32), rows(30)]
        stop_bits = make.integers(batch, -(-vocab // 32), low=-(2**31), high=2**31)
        slots = rows(99, of=kinds * batch).view(kinds, batch)
        tables = make.integers(kinds, batch, columns, low=-1, high=2**31 - 1)
        results = torch.zeros(2, batch, dtype=torch.int64, device=make.device)
        limits = state[-1] + rows(4)
        args = (rows(vocab + 9, -2), *state, limits, stop_bits & stop_bits.roll(1, 0), slots)
        options = {"page_size": 8}
        yield Case(f"{batch} rows", (*args, tables, results), options)
        tally = make.integers(batch, vocab, high=9)
        options |= {"tally": tally, "feature_rows": make.integers(batch, low=-1, high=5)}
        yield Case(f"{batch} rows tally", (*args, tables, results), options)


@_of("sample")
def _sample(make: Maker, name: str) -> Iterator[Case]:
    for batch, vocab in ((0, 64), (1, 2048), (6, 202)):
        rows = {
            "greedy": (0.0, 0, 1.0, 0.0),
            "plain": (1.0, 0, 1.0, 0.0),
            "all": (0.7, 20, 0.9, 0.02),
            "tight": (0.3, 1, 0.0, 1.0),
        }
        for label, values in rows.items():
            args = [make.randn(batch, vocab, scale=3)]
            args += [torch.full((batch,), value, device=make.device) for value in values]
            args[2] = args[2].to(I32)
            args += [make.integers(batch, high=2**31, dtype=torch.int64) for _ in range(2)]
            yield Case(f"{batch}x{vocab} {label}", tuple(args), {"top_logprobs": 5})
    logits = make.integers(3, 40, high=4).to(make.dtype)
    logits[0, 3], logits[1], logits[2, ::2] = float("nan"), float("-inf"), float("-inf")
    args[1:] = [t.new_full((3,), t[0].item()) for t in args[1:]]
    yield Case("ties and extremes", (logits, *args[1:]))
