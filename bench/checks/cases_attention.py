"""Sample inputs of attention over a paged cache."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from bench.checks.appended import new_tokens, plan_for
from bench.checks.inputs import FP8, I32, Case, Cases, Maker, added_to
from l4kernels import ops

CASES: Cases = {}
_of = added_to(CASES)


def _paged(
    make: Maker, len_ks: list[int], kv_heads: int, page_size: int, cache: torch.dtype
) -> dict[str, Tensor]:
    """A cache in which sequences own random pages; pages nobody owns are full of NaN."""
    counts = [-(-length // page_size) for length in len_ks]
    owned = sum(counts)
    pages = make.permutation(owned + 2)
    shape = (owned + 2, page_size, kv_heads, 128)
    k_cache, v_cache = (make.randn(*shape).to(cache) for _ in range(2))
    for tensor in (k_cache, v_cache):
        tensor[pages[owned:].long()] = float("nan")
    table = torch.full((len(len_ks), max([*counts, 1])), -1, dtype=I32, device=make.device)
    first = 0
    for row, count in enumerate(counts):
        table[row, :count] = pages[first : first + count]
        first += count
    lengths = make.tensor(len_ks)
    return {"k": k_cache, "v": v_cache, "lengths": lengths, "table": table}


_PREFILL = {
    # name: new tokens, all keys, q heads, kv heads, page size, chunk
    "one": ([1], [1], 5, 1, 16, 0),
    "scout heads": ([33], [33], 40, 8, 16, 0),
    "varlen": ([5, 0, 70, 1], [5, 3, 90, 33], 4, 2, 8, 0),
    "chunked": ([5, 40, 17], [64, 40, 81], 5, 1, 16, 32),
    "chunk edge": ([1, 2, 3], [33, 33, 33], 2, 1, 16, 32),
    "odd chunk": ([50], [60], 2, 2, 8, 7),
    "no keys": ([3, 4], [0, 2], 2, 1, 8, 0),
    "empty": ([], [], 2, 1, 8, 0),
}


def _prefill_plan(args: tuple[Tensor, ...], options: dict[str, Any]) -> Tensor:
    """Of a call of flash_prefill. The reference's: it serves every GPU, and the emulator."""
    q, k_cache, _, *lengths, table = args
    sizes = {"rows": q.shape[0], "num_heads": q.shape[1], "kv_heads": k_cache.shape[2]}
    sizes |= {name: options[name] for name in ("chunk", "max_seqlen_q")}
    capacity = table.shape[1] * k_cache.shape[1]
    return ops.flash_prefill_plan.reference(*lengths, capacity=capacity, **sizes)


@_of("flash_prefill_plan")
def _flash_prefill_plan(make: Maker, name: str) -> Iterator[Case]:
    for label, (len_qs, len_ks, heads, kv_heads, page_size, chunk) in _PREFILL.items():
        offsets = make.offsets(len_qs) if len_qs else make.tensor([0])
        options = {
            "rows": sum(len_qs) + 2 * (label == "varlen"),
            "num_heads": heads,
            "kv_heads": kv_heads,
            "capacity": -(-max([*len_ks, 1]) // page_size) * page_size,
            "max_seqlen_q": max([*len_qs, 0]),
            "chunk": chunk,
        }
        yield Case(label, (offsets, make.tensor(len_ks)), options)


@_of("flash_prefill")
def _flash_prefill(make: Maker, _: str) -> Iterator[Case]:
    for cache in (make.dtype, FP8):
        for label, (len_qs, len_ks, heads, kv_heads, page_size, chunk) in _PREFILL.items():
            paged = _paged(make, len_ks, kv_heads, page_size, cache)
            options = {
                "softmax_scale": 128**-0.5,
                "chunk": chunk,
                "max_seqlen_q": max([*len_qs, 0]),
            }
            if cache == FP8 and chunk:
                options |= {
                    s: make.uniform(kv_heads, low=0.5, high=2) for s in ("k_scale", "v_scale")
                }
            padding = 2 if label == "varlen" else 0
            q = make.randn(sum(len_qs) + padding, heads, 128)
            offsets = make.offsets(len_qs) if len_qs else make.tensor([0])
            args = (q, paged["k"], paged["v"], offsets, paged["lengths"], paged["table"])
            name = f"{label} {str(cache).removeprefix('torch.')}"
            yield Case(name, args, options)
            if label == "varlen":
                plan = _prefill_plan(args, options)
                yield Case(f"{name} planned", args, {**options, "plan": plan})


_DECODE = {
    # name: new tokens of each sequence, all keys, q heads, kv heads, page size, chunk
    "one": (1, [1], 5, 1, 16, 0),
    "scout heads": (1, [100, 17], 40, 8, 16, 0),
    "idle rows": (1, [40, 0, 3], 4, 2, 16, 0),
    "several": (4, [40, 4, 70], 10, 2, 16, 0),
    "chunked": (1, [32, 33, 65, 20], 5, 1, 16, 32),
    "several over an edge": (3, [34, 66], 2, 1, 16, 32),
    "fewer keys than tokens": (3, [2], 2, 1, 16, 0),
    "no sequences": (1, [], 2, 1, 16, 0),
    "one long": (1, [1500], 5, 1, 32, 0),
    "long and short": (2, [1000, 1, 260, 16], 8, 2, 48, 0),
    "two blocks of rows": (16, [300], 16, 1, 64, 0),
    "page of 256": (5, [700, 257], 8, 2, 256, 128),
    "chunk of 1": (2, [20, 1], 8, 2, 16, 1),
    "chunk of 3": (16, [50, 4], 4, 1, 16, 3),
    "chunk of 16": (16, [130], 5, 1, 16, 16),
    "chunk of 64": (5, [129, 64, 65], 16, 1, 32, 64),
    "second chunk": (16, [132, 128, 127], 5, 1, 16, 128),
}


_PLANNED = "several"


@_of("flash_decode")
def _flash_decode(make: Maker, name: str) -> Iterator[Case]:
    for cache in (make.dtype, FP8):
        for label, (tokens, len_ks, heads, kv_heads, page_size, chunk) in _DECODE.items():
            paged = _paged(make, len_ks, kv_heads, page_size, cache)
            options = {"softmax_scale": 128**-0.5, "chunk": chunk}
            if cache == FP8 and chunk:
                options |= {
                    s: make.uniform(kv_heads, low=0.5, high=2) for s in ("k_scale", "v_scale")
                }
            q = make.randn(len(len_ks), tokens, heads, 128)
            args = (q, paged["k"], paged["v"], paged["lengths"], paged["table"])
            if label == _PLANNED:
                options["plan"] = plan_for(name, args, options)
            yield Case(f"{label} {str(cache).removeprefix('torch.')}", args, options)


@_of("flash_decode_plan")
def _flash_decode_plan(make: Maker, name: str) -> Iterator[Case]:
    for label in ("one", "several", "chunked", "long and short", "two blocks of rows"):
        tokens, len_ks, heads, kv_heads, page_size, chunk = _DECODE[label]
        options = {"num_heads": heads, "kv_heads": kv_heads, "tokens": tokens, "chunk": chunk}
        columns = 1 + max(-(-length // page_size) for length in len_ks)
        yield Case(label, (make.tensor(len_ks),), options | {"capacity": columns * page_size})
    many = make.integers(700, high=3000, dtype=I32)
    yield Case("many", (many,), {"num_heads": 8, "kv_heads": 8, "capacity": 1 << 40})


_APPENDED = (
    "one", "idle rows", "several", "chunked", "several over an edge", "fewer keys than tokens",
    "no sequences", "long and short", "two blocks of rows", "page of 256", "chunk of 3",
    "second chunk",
)  # fmt: skip


@_of("flash_decode_append")
def _flash_decode_append(make: Maker, name: str) -> Iterator[Case]:
    """Chunked layers rotate."""
    rope = {"cos_sin": ops.rope_table(64, theta=500000.0).to(make.device), "qk_norm_eps": 1e-5}
    for cache in (make.dtype, FP8):
        for label in _APPENDED:
            tokens, len_ks, heads, kv_heads, page_size, chunk = _DECODE[label]
            args = new_tokens(make, len_ks, tokens, (heads, kv_heads), cache, page_size)
            options = {"num_heads": heads, "tokens": tokens, "softmax_scale": 128**-0.5}
            options |= {"chunk": chunk, **(rope if chunk else {"attn_scale": 0.1})}
            if cache == FP8 and chunk:
                options |= {
                    s: make.uniform(kv_heads, low=0.5, high=2) for s in ("k_scale", "v_scale")
                }
            if label == _PLANNED:
                options["plan"] = plan_for(name, tuple(args), options)
            label = f"{label} {str(cache).removeprefix('torch.')}"
            yield Case(label, tuple(args), options | {"floor_scale": 16})


@_of("merge_attention_states")
def _merge_attention_states(make: Maker, name: str) -> Iterator[Case]:
    for shape in ((1, 1, 1), (2, 7, 5), (3, 2, 4, 8), (19, 5, 3), (2, 0, 4)):
        *leading, tokens, heads = shape
        outs = make.randn(*shape, 128)
        lses = make.randn(*leading, heads, tokens, scale=4, dtype=torch.float32)
        lses[0, ..., ::3] = float("-inf")
        outs[0, ..., ::3, :, :] = float("nan")  # no key: not looked at
        yield Case("x".join(map(str, shape)), (outs, lses))
