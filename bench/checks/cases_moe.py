"""Sample inputs of the ops of an MoE layer, its products aside."""

from collections.abc import Iterator

import torch

from bench.checks.inputs import FP8, Case, Cases, Maker, added_to

CASES: Cases = {}
_of = added_to(CASES)


@_of("moe_route")
def _moe_route(make: Maker, name: str) -> Iterator[Case]:
    shapes = ((0, 16, 1), (1, 16, 1), (33, 16, 1), (70, 128, 1), (9, 16, 2), (5, 256, 8), (6, 4, 4))
    for tokens, experts, top_k in shapes:
        yield Case(f"{tokens} of {experts} top {top_k}", (make.randn(tokens, experts), top_k))
    shapes = ((0, 16, 1), (1, 16, 1), (64, 128, 1), (70, 16, 1), (9, 255, 8), (100, 6, 5))
    for tokens, experts, top_k in shapes:
        logits = make.randn(tokens, experts)
        yield Case(f"{tokens} of {experts} top {top_k} shared", (logits, top_k, True))
    yield Case("all tied", (make.randn(40, 16, scale=0), 2))
    yield Case("few values", (make.integers(65, 16, high=3).to(make.dtype), 3))
    yield Case(
        "one takes all", (make.randn(50, 16) + 30 * (torch.arange(16) == 5).to(make.tensor(0)),)
    )
    extremes = make.randn(6, 16)
    extremes[0] = float("-inf")
    extremes[1, 3] = float("inf")
    extremes[2, 7] = -0.0
    extremes[3] = -100
    extremes[4] = 100
    yield Case("extremes", (extremes, 2))
    nan = extremes.where(extremes < 100, torch.nan)
    yield Case("NaN", (nan, 2))
    yield Case("NaN shared", (nan, 2, True))


@_of("moe_router")
def _moe_router(make: Maker, name: str) -> Iterator[Case]:
    shapes = (
        (0, 128, 16, 1), (1, 5120, 16, 1), (33, 264, 6, 2), (64, 648, 128, 1), (9, 640, 255, 8),
        (5, 1288, 100, 4), (17, 8, 1, 1),
        (65, 1288, 40, 1), (150, 648, 20, 2),
    )  # fmt: skip
    for tokens, width, experts, top_k in shapes:
        x, norm = make.randn(tokens, width), make.randn(width)
        # Rows of padding as a model has them, which nobody looks at.
        router = make.randn(-(-experts // 8) * 8, width, scale=width**-0.5)
        router[experts:] = torch.nan
        label = f"{tokens}x{width} of {experts} top {top_k}"
        yield Case(label, (x, norm, router, experts, 1e-5, top_k))
        yield Case(f"{label} shared", (x, norm, router, experts, 1e-5, top_k, True))
    x, norm, router = make.randn(9, 256), make.randn(256), make.randn(16, 256, scale=1 / 16)
    yield Case("all tied", (x, norm, make.randn(16, 256, scale=0), 16, 1e-5, 2))
    yield Case("strided", (make.randn(9, 768)[:, 256:512], norm, router, 16, 1e-6))
    yield Case("zeros", (make.randn(3, 256, scale=0), norm, router, 16))
    x = x.clone()
    x[4, 100] = torch.nan
    yield Case("NaN", (x, norm, router, 16, 1e-5, 2))
    yield Case("NaN shared", (x, norm, router, 16, 1e-5, 2, True))


def _permuted_sizes() -> Iterator[tuple[int, int, int]]:
    yield from ((0, 128, 1), (1, 5120, 1), (37, 256, 1), (9, 384, 2), (3, 128, 9))


@_of("moe_permute", "moe_permute_fp8")
def _moe_permute(make: Maker, name: str) -> Iterator[Case]:
    for tokens, width, top_k in _permuted_sizes():
        x, order = make.randn(tokens, width), make.permutation(tokens * top_k)
        label = f"{tokens}x{width} top {top_k}"
        yield Case(label, (x, order, top_k))
        if name == "moe_permute_fp8":
            yield Case(f"{label} 1x128", (x, order, top_k), {"scaling": "1x128"})
        else:
            yield Case(f"{label} e4m3", (x.to(FP8), order, top_k))


@_of("moe_combine")
def _moe_combine(make: Maker, name: str) -> Iterator[Case]:
    for tokens, width, top_k in _permuted_sizes():
        y = make.randn(tokens * top_k, width)
        inverse = make.permutation(tokens * top_k)
        shared, residual = make.randn(tokens, width), make.randn(tokens, width)
        label = f"{tokens}x{width} top {top_k}"
        yield Case(label, (y, inverse, top_k))
        yield Case(f"{label} shared", (y, inverse, top_k, shared))
        yield Case(f"{label} all", (y, inverse, top_k, shared, residual))


@_of("moe_combine_norm", "moe_combine_norm_fp8")
def _moe_combine_norm(make: Maker, name: str) -> Iterator[Case]:
    for tokens, width, top_k in (*_permuted_sizes(), (2, 16384, 2), (700, 136, 2)):
        y = make.randn(tokens * top_k, width)
        inverse = make.permutation(tokens * top_k)
        weight = make.randn(width)
        options = {
            "residual": make.randn(tokens, width),
            "eps": 1e-2,
        }
        label = f"{tokens}x{width} top {top_k}"
        yield Case(label, (y, inverse, top_k, weight))
        yield Case(f"{label} residual", (y, inverse, top_k, weight), options)
