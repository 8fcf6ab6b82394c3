"""Calls of flash_prefill, and how far a result may be from float64."""

import itertools

import torch

from bench.checks.inputs import FP8, I32
from l4kernels import ops
from l4kernels.testing import assert_close, relative_error
from tests.support import naive
from tests.support.tensors import i32

NAN = float("nan")


def problem(make, len_qs, len_ks, *, heads=1, kv_heads=1, page=16, dtype=torch.bfloat16, ring=0):
    """Arguments of flash_prefill. Sequences own shuffled pages; pages nobody owns and the slots
    after a sequence's last key are NaN. With `ring`, the pages repeat after this many."""
    counts = [-(-n // page) for n in len_ks]
    if ring:
        counts = [min(n, ring) for n in counts]
    pages = make.permutation(sum(counts) + 2)
    caches = [make.randn(sum(counts) + 2, page, kv_heads, 128).to(dtype) for _ in "kv"]
    width = max([-(-n // page) for n in len_ks] + [1])
    table = torch.full((len(len_ks), width), -1, dtype=I32)
    first = 0
    for b, (count, length) in enumerate(zip(counts, len_ks, strict=True)):
        owned = pages[first : first + count]
        first += count
        for cache in caches:
            if length % page and not ring:
                cache[int(owned[-1]), length % page :] = NAN
        columns = -(-length // page)
        if columns:
            table[b, :columns] = owned.repeat(-(-columns // count))[:columns]
    for cache in caches:
        cache[pages[first:].long()] = NAN
    q = make.randn(sum(len_qs), heads, 128)
    offsets = i32(0, *itertools.accumulate(len_qs))
    options = {"softmax_scale": 128**-0.5, "max_seqlen_q": max([*len_qs, 0])}
    return [q, *caches, offsets, i32(*len_ks), table], options


def same_precision(args, options):
    """PyTorch in bfloat16: products rounded to bfloat16, softmax in float32."""
    q, k_cache, v_cache, offsets, len_ks, table = args
    out = torch.zeros_like(q)
    scales = [options.get(s) for s in ("k_scale", "v_scale")]
    page, group = k_cache.shape[1], q.shape[1] // k_cache.shape[2]
    for b, len_k in enumerate(len_ks.tolist()):
        first, end = int(offsets[b]), int(offsets[b + 1])
        keys = torch.arange(len_k)
        slots = table[b, keys // page] * page + keys % page
        k, v = (
            (c.flatten(0, 1)[slots].float() * (1 if s is None else s[:, None])).to(q.dtype)
            for c, s in zip((k_cache, v_cache), scales, strict=True)
        )
        position = len_k - (end - first) + torch.arange(end - first)[:, None]
        seen = keys <= position
        if chunk := options.get("chunk", 0):
            seen &= keys // chunk == position.div(chunk, rounding_mode="floor")
        k, v = (t.repeat_interleave(group, 1).transpose(0, 1) for t in (k, v))
        scores = (q[first:end].transpose(0, 1) @ k.mT) * options["softmax_scale"]
        weights = scores.float().masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num()
        out[first:end] = (weights.to(q.dtype) @ v).transpose(0, 1)
    return out


def check(args, options, factor=2.0):
    got = ops.flash_prefill(*args, **options)
    out, lse = (torch.from_numpy(t) for t in naive.flash_prefill(*args, **options))
    mine = relative_error(got.out.double(), out)
    theirs = relative_error(same_precision(args, options).double(), out)
    assert mine <= factor * theirs + 2**-10, (mine, theirs)
    assert_close(got.lse, lse.float(), 1e-3 if args[1].dtype == FP8 else 1e-4, "lse")
    return got
