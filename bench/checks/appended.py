"""Arguments of a step of decoding whose op stores the new tokens."""

from typing import Any

import torch
from torch import Tensor

from bench.checks.inputs import I32, Maker
from l4kernels import ops

NAN = float("nan")


def plan_for(op: str, args: tuple[Any, ...], options: dict[str, Any]) -> Tensor:
    """The plan of a call of flash_decode or flash_decode_append, made where its ops run now."""
    given = ops.OPS[op].signature.bind(*args, **options).arguments
    cache, table = given["k_cache"], given["block_table"]
    tokens, heads = given.get("tokens", 1), given.get("num_heads")
    if "q" in given:
        tokens, heads = given["q"].shape[1:3]
    return ops.flash_decode_plan(
        given["seqlens_k"], num_heads=heads, kv_heads=cache.shape[2], tokens=tokens,
        capacity=table.shape[1] * cache.shape[1], chunk=given.get("chunk", 0),
    )  # fmt: skip


def new_tokens(
    make: Maker,
    lengths: list[int],
    tokens: int,
    heads: tuple[int, int],
    cache: torch.dtype,
    page: int = 16,
) -> list[Tensor]:
    """Arguments of flash_decode_append for q heads and KV heads. Slots of new keys, and what lies
    behind them, are NaN before; table entries past the end are -1."""
    counts = [-(-length // page) for length in lengths]
    order = make.permutation(sum(counts)).tolist()
    k, v = (make.randn(max(sum(counts), 1), page, heads[1], 128).to(cache) for _ in "kv")
    table = torch.full((len(lengths), max([*counts, 1]) + 1), -1, dtype=I32)
    positions, slots = [], []
    for b, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        pages = [order.pop() for _ in range(count)]
        table[b, :count] = torch.tensor(pages, dtype=I32)
        places = [pages[key // page] * page + key % page for key in range(page * count)]
        for t in (k, v):
            t.flatten(0, 1)[places[max(length - tokens, 0) :]] = NAN
        keys = range(length - tokens, length)
        positions += [max(key, 0) for key in keys]
        slots += [places[key] if key >= 0 else -1 for key in keys]
    qkv = make.randn(len(lengths) * tokens, (heads[0] + 2 * heads[1]) * 128)
    at = (make.tensor(numbers, torch.int64) for numbers in (positions, slots))
    return [qkv, *at, k, v, make.tensor(lengths), table.to(make.device)]
