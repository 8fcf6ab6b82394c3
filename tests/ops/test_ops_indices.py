"""Every offset, length, id and index of every op and drop-in, with values that nobody may
pass: an IndexError that names it on a CPU; in a kernel a report, and no access outside."""

import contextlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import l4kernels
from bench.checks.cases import cases
from bench.checks.inputs import FP8, Maker
from bench.checks.kernel_checks import device_error
from l4kernels import STATUS, ops
from l4kernels.testing import emulated
from tests.support.tensors import i32

BIG = 2**31 - 1
MAKE = Maker("cpu", torch.bfloat16, 5)
KERNELS = pytest.mark.skipif(not STATUS.loaded, reason="no compiled kernels: run `make build`")


def i64(*values: int) -> Tensor:
    return torch.tensor(values)


X, Y = MAKE.randn(4, 128), MAKE.randn(8, 128)
CACHE = MAKE.randn(4, 16, 1, 128)
QKV = MAKE.randn(2, 3 * 128)
Q = MAKE.randn(10, 2, 128)
KEYS = MAKE.randn(10, 1, 128)
EXPERTS = MAKE.randn(2, 64, 128)
CODES, SCALES = MAKE.fp8(4, 128, scaling="row")
CODED, CODED_SCALES = MAKE.fp8(2, 256, 128, scaling="row")
TILES = MAKE.tiles(2, 64, 128)
GOOD = {
    "permutation": i32(7, 1, 0, 3, 2, 5, 4, 6), "positions": i64(0, 9), "slot_mapping": i64(3, -1),
    "cu_seqlens_q": i32(0, 3, 10), "seqlens_k": i32(20, 30),
    "block_table": i32(0, 1, 3, 2).view(2, 2),
}  # fmt: skip


class Argument(NamedTuple):
    """An argument of a call, and what no caller may pass for it."""

    call: Callable[[Any], Any]
    wrong: list[Any]
    message: str  # of the reference
    report: str | None  # of a kernel; None: there is none


def rope(**changed: Tensor) -> Any:
    given = {"positions": GOOD["positions"], "slot_mapping": GOOD["slot_mapping"]} | changed
    table = ops.rope_table(8, theta=1e4)
    return ops.rope_cache(
        QKV, **given, k_cache=CACHE.clone(), v_cache=CACHE.clone(), num_heads=1, cos_sin=table
    )


def prefill(**changed: Any) -> Any:
    names = "cu_seqlens_q", "seqlens_k", "block_table"
    given = {name: GOOD[name] for name in names} | {"max_seqlen_q": 7} | changed
    return ops.flash_prefill(Q, CACHE, CACHE, softmax_scale=0.1, **given)


def prefill_plan(**changed: Any) -> Any:
    given = {name: GOOD[name] for name in ("cu_seqlens_q", "seqlens_k")} | {"max_seqlen_q": 7}
    sizes = {"rows": 10, "num_heads": 2, "kv_heads": 1, "capacity": 32}
    return ops.flash_prefill_plan(**given | sizes | changed)


def decode(**changed: Tensor) -> Any:
    given = {name: GOOD[name] for name in ("seqlens_k", "block_table")} | changed
    return ops.flash_decode(Q[:4].unflatten(0, (2, 2)), CACHE, CACHE, softmax_scale=0.1, **given)


def decode_plan(**changed: Any) -> Tensor:
    sizes = {"num_heads": 2, "kv_heads": 1, "capacity": 32}
    return ops.flash_decode_plan(GOOD["seqlens_k"], **sizes | changed)


def append(**changed: Tensor) -> Any:
    """Two sequences of 20 and 30 keys, the last of the first new, of the second cached."""
    given = {"positions": i64(19, 29), "slot_mapping": i64(19, -1)}
    given |= {name: GOOD[name] for name in ("seqlens_k", "block_table")} | changed
    options = {"num_heads": 1, "softmax_scale": 0.1, "cos_sin": ops.rope_table(8, theta=1e4)}
    return ops.flash_decode_append(
        QKV, k_cache=CACHE.clone(), v_cache=CACHE.clone(), **given, **options
    )


def varlen(queries: int, **changed: Any) -> Any:
    """A few queries a sequence are decoded, more go through flash_prefill."""
    ends = i32(0, queries, 2 * queries)
    given = {"cu_seqlens_q": ends, "cu_seqlens_k": i32(0, 6, 10), "max_seqlen_q": queries}
    given |= {"max_seqlen_k": 6, "causal": True}
    q = Q.repeat(4, 1, 1)[: 2 * queries]
    return l4kernels.flash_attn_varlen_func(q, KEYS, KEYS, **given | changed)


def kvcache(queries: int, **changed: Any) -> Any:
    given = {"cache_seqlens": i32(4, 9), "causal": True} | changed
    q = Q.repeat(4, 1, 1)[: 2 * queries]
    if "cu_seqlens_q" not in given:
        q = q.unflatten(0, (2, queries))
    return l4kernels.flash_attn_with_kvcache(q, CACHE.clone(), CACHE.clone(), **given)


OFFSETS = [i32(1, 1, 4), i32(0, 3, 2), i32(0, -1, 4), i32(0, 2, 5), i32(0, BIG, 4), i32(-1, 2, 4)]
LENGTHS = [i32(-5, 3), i32(3, -1), i32(3, 33), i32(BIG, 3), i32(-(2**31), 3)]
ROWS = [i32(0, 1, 2, 3, 4, 5, 6, wrong) for wrong in (8, -1, BIG, -(2**31))]
TABLES = [i32(0, 4, 3, 2).view(2, 2), i32(0, 1, -1, 2).view(2, 2), i32(BIG, 1, 3, 2).view(2, 2)]
STARTS_Q = [i32(1, 3, 10), i32(0, 3, 11), i32(0, 5, 3), i32(0, 99, 10), i32(0, -1, 6)]
STARTS_K = [
    i32(0, 6, 99),
    i32(0, 99, 10),
    i32(1, 6, 10),
    i32(0, 9, 6),
    i32(0, -4, 2),
    i32(0, 6, BIG),
]
ARGUMENTS = {
    "embed input_ids": Argument(
        lambda v: ops.embed(v, X), [i64(0, 4), i64(-1, 0), i64(2**40, 0), i32(0, BIG)],
        "embed: expected every value of input_ids in", "embed: input_ids",
    ),
    "embed image_rows": Argument(
        lambda v: ops.embed(i64(0, 1), X, Y, v), [i32(-1, 8), i32(-2, 0), i32(BIG, 0)],
        "embed: expected every value of image_rows in", "embed: image_rows",
    ),
    "moe_permute permutation": Argument(
        lambda v: ops.moe_permute(X, v, 2), ROWS,
        "moe_permute: expected every value of permutation in", "moe_permute: permutation",
    ),
    "moe_permute_fp8 permutation": Argument(
        lambda v: ops.moe_permute_fp8(X, v, 2), ROWS,
        "moe_permute_fp8: expected every value of permutation in", "moe_permute: permutation",
    ),
    "moe_combine inverse": Argument(
        lambda v: ops.moe_combine(Y, v, 2), ROWS,
        "moe_combine: expected every value of inverse in", "moe_combine: inverse",
    ),
    "moe_combine_norm inverse": Argument(
        lambda v: ops.moe_combine_norm(Y, v, 2, Y[0]), ROWS,
        "moe_combine_norm: expected every value of inverse in", "moe_combine: inverse",
    ),
    "moe_combine_norm_fp8 inverse": Argument(
        lambda v: ops.moe_combine_norm_fp8(Y, v, 2, Y[0]), ROWS,
        "moe_combine_norm_fp8: expected every value of inverse in", "moe_combine: inverse",
    ),
    "rope_cache positions": Argument(
        lambda v: rope(positions=v), [i64(0, -1), i64(-(2**63), 0)],
        "rope_cache: expected every value of positions in", "rope_cache: positions",
    ),
    "rope_cache slot_mapping": Argument(
        lambda v: rope(slot_mapping=v), [i64(64, 0), i64(0, -2), i64(2**62, 0), i64(-(2**63), 0)],
        "rope_cache: expected every value of slot_mapping in", "rope_cache: slot_mapping",
    ),
    "gemm expert_offsets": Argument(
        lambda v: ops.gemm(X, EXPERTS, expert_offsets=v), OFFSETS,
        "gemm: expected expert_offsets to ascend from 0 to at most 4", "gemm: expert_offsets",
    ),
    "gemm permutation": Argument(
        lambda v: ops.gemm(X, EXPERTS, expert_offsets=i32(0, 3, 8), permutation=v, top_k=2), ROWS,
        "gemm: expected every value of permutation in", "gemm: permutation",
    ),
    "w4_gemm permutation": Argument(
        lambda v: ops.w4_gemm(X, TILES, expert_offsets=i32(0, 3, 8), permutation=v, top_k=2), ROWS,
        "w4_gemm: expected every value of permutation in", "w4_gemm: permutation",
    ),
    "gemm_swiglu_fp8 expert_offsets": Argument(
        lambda v: ops.gemm_swiglu_fp8(CODES, CODED, sfa=SCALES, sfb=CODED_SCALES, expert_offsets=v),
        OFFSETS, "gemm_swiglu_fp8: expected expert_offsets to ascend", "gemm: expert_offsets",
    ),
    "w4_gemm expert_offsets": Argument(
        lambda v: ops.w4_gemm(X, TILES, expert_offsets=v), OFFSETS,
        "w4_gemm: expected expert_offsets to ascend from 0 to at most 4", "w4_gemm: expert_offsets",
    ),
    "flash_prefill cu_seqlens_q": Argument(
        lambda v: prefill(cu_seqlens_q=v), STARTS_Q,
        "flash_prefill: expected cu_seqlens_q to ascend from 0 to at most 10",
        "flash_prefill: cu_seqlens_q or max_seqlen_q",
    ),
    "flash_prefill max_seqlen_q": Argument(
        lambda v: prefill(max_seqlen_q=v), [0, 6],
        "flash_prefill: expected max_seqlen_q to bound the sequences",
        "flash_prefill: cu_seqlens_q or max_seqlen_q",
    ),
    "flash_prefill seqlens_k": Argument(
        lambda v: prefill(seqlens_k=v), LENGTHS,
        "flash_prefill: expected (seqlens_k >= 0|block_table to have a column)",
        "flash_prefill: (seqlens_k|block_table)",
    ),
    "flash_prefill block_table": Argument(
        lambda v: prefill(block_table=v), TABLES,
        "flash_prefill: expected the visible entries of block_table in",
        "flash_prefill: block_table",
    ),
    "flash_prefill plan": Argument(
        lambda v: prefill(plan=v),
        [
            prefill_plan(capacity=48), prefill_plan(chunk=7), prefill_plan(num_heads=1),
            prefill_plan(seqlens_k=GOOD["seqlens_k"] - 1),
        ],
        "flash_prefill: expected a plan of flash_prefill_plan", "flash_prefill: plan",
    ),
    "flash_prefill_plan cu_seqlens_q": Argument(
        lambda v: prefill_plan(cu_seqlens_q=v), STARTS_Q,
        "flash_prefill_plan: expected cu_seqlens_q to ascend from 0 to at most 10",
        "flash_prefill: cu_seqlens_q or max_seqlen_q",
    ),
    "flash_prefill_plan seqlens_k": Argument(
        lambda v: prefill_plan(seqlens_k=v), [i32(-5, 3), i32(3, -(2**31))],
        "flash_prefill_plan: expected seqlens_k >= 0", "flash_prefill: seqlens_k",
    ),
    "flash_decode seqlens_k": Argument(
        lambda v: decode(seqlens_k=v), LENGTHS,
        "flash_decode: expected (seqlens_k >= 0|block_table to have a column)",
        "flash_decode: seqlens_k",
    ),
    "flash_decode block_table": Argument(
        lambda v: decode(block_table=v), TABLES,
        "flash_decode: expected the visible entries of block_table in", "flash_decode: block_table",
    ),
    "flash_decode plan": Argument(
        lambda v: decode(plan=v), [decode_plan(capacity=1), decode_plan(chunk=7)],
        "flash_decode: expected plan to be flash_decode_plan of", "flash_decode: plan",
    ),
    "flash_decode_append plan": Argument(
        lambda v: append(plan=v), [decode_plan(capacity=1), decode_plan(chunk=7)],
        "flash_decode_append: expected plan to be flash_decode_plan of", "flash_decode: plan",
    ),
    "flash_decode_append positions": Argument(
        lambda v: append(positions=v), [i64(0, -1), i64(-(2**63), 0)],
        "flash_decode_append: expected every value of positions in", "flash_decode: positions",
    ),
    "flash_decode_append slot_mapping": Argument(
        lambda v: append(slot_mapping=v),
        [i64(18, -1), i64(20, -1), i64(19, 30), i64(19, -2), i64(64, -1), i64(2**62, -1)],
        "flash_decode_append: expected every value of slot_mapping to be -1 or",
        "flash_decode: slot_mapping",
    ),
    "flash_decode_append seqlens_k": Argument(
        lambda v: append(seqlens_k=v), [i32(20, -1), *LENGTHS],
        "flash_decode_append: expected (seqlens_k >= 0|every value of slot_mapping to be -1 or)",
        "flash_decode: (seqlens_k|slot_mapping)",
    ),
    "flash_decode_append block_table": Argument(
        lambda v: append(block_table=v),
        [*TABLES[:2], i32(0, 1, 3, 9).view(2, 2), i32(BIG, 1, 3, 2).view(2, 2)],
        "flash_decode_append: expected (the visible entries of block_table in|.*block_table, the)",
        "flash_decode: block_table",
    ),
    "grouped_gemm offs": Argument(
        lambda v: l4kernels.grouped_gemm(X, EXPERTS.mT, v),
        [i32(1, 5), i32(3, 2), i32(-1, 4), i32(BIG, 4)],
        "grouped_gemm: expected offs to ascend from at least 0 to at most 4",
        "gemm: expert_offsets",
    ),
    "grouped_gemm m_indices": Argument(
        lambda v: l4kernels.grouped_gemm(X, EXPERTS.mT, m_indices=v),
        [i32(0, 0, 1, 2), i32(1, 0, 0, 0), i32(0, -2, 1, 1), i32(BIG, 0, 0, 0)],
        r"grouped_gemm: expected m_indices to ascend within \[0, 2\)", "gemm: expert_offsets",
    ),
}  # fmt: skip
for few in (2, 17):
    attention = f"flash_{'decode' if few == 2 else 'prefill'}: "
    wrong = "flash_(decode|prefill): (seqlens_k|cu_seqlens_q or max_seqlen_q)"
    name = "flash_attn_varlen_func"
    starts = [i32(1, few, 2 * few), i32(0, few, 99), i32(0, 2 * few, few), i32(0, -1, 2)]
    longer = i32(0, few - 1, 2 * few)
    ARGUMENTS |= {
        f"{name} cu_seqlens_q {few}": Argument(
            lambda v, few=few: varlen(few, cu_seqlens_q=v), starts,
            f"{name}: expected cu_seqlens_q to ascend from 0 to at most", wrong,
        ),
        f"{name} cu_seqlens_k {few}": Argument(
            lambda v, few=few: varlen(few, cu_seqlens_k=v, max_seqlen_k=100), STARTS_K,
            f"{name}: expected cu_seqlens_k to ascend from 0 to at most 10", wrong,
        ),
        f"{name} seqused_k {few}": Argument(
            lambda v, few=few: varlen(few, seqused_k=v), [i32(7, 1), i32(6, -1), i32(BIG, 4)],
            f"{name}: expected seqused_k between 0 and the keys of each sequence", wrong,
        ),
        f"{name} max_seqlen_q {few}": Argument(
            lambda v, few=few, longer=longer: varlen(few, cu_seqlens_q=longer, max_seqlen_q=v),
            [few, few - 1, 0],
            f"{name}: expected max_seqlen_q to bound every length", wrong,
        ),
        f"{name} max_seqlen_k {few}": Argument(
            lambda v, few=few: varlen(few, max_seqlen_k=v), [5, 0, 1],
            f"{name}: expected max_seqlen_k to bound every length", wrong,
        ),
    }  # fmt: skip
    name = "flash_attn_with_kvcache"
    paged = {"page_table": GOOD["block_table"]}
    ARGUMENTS |= {
        f"{name} cache_seqlens {few}": Argument(
            lambda v, few=few: kvcache(few, cache_seqlens=v),
            [i32(-1, 3), i32(17, 3), i32(BIG, 3), -1, 17, 2**40],
            f"{name}: expected cache_seqlens between 0 and 16", attention,
        ),
        f"{name} cache_seqlens of pages {few}": Argument(
            lambda v, few=few, paged=paged: kvcache(few, cache_seqlens=v, **paged), LENGTHS,
            f"{name}: expected cache_seqlens between 0 and 32", attention,
        ),
        f"{name} cache_seqlens and new keys {few}": Argument(
            lambda v, few=few: kvcache(few, cache_seqlens=v, k=KEYS[:4].view(2, 2, 1, 128),
                                       v=KEYS[:4].view(2, 2, 1, 128)),
            [i32(-1, 3), i32(15, 3), i32(BIG, 3)],
            f"{name}: expected cache_seqlens between 0 and 14", "(rope_cache|flash_)",
        ),
        f"{name} page_table {few}": Argument(
            lambda v, few=few: kvcache(few, cache_seqlens=i32(20, 30), page_table=v), TABLES,
            rf"{name}: expected page_table in \[0, 4\)", attention + "block_table",
        ),
        f"{name} cache_batch_idx {few}": Argument(
            lambda v, few=few: kvcache(few, cache_batch_idx=v),
            [i32(4, 0), i64(0, -1), i32(BIG, 0), i32(-(2**31), 0)],
            rf"{name}: expected cache_batch_idx in \[0, 4\)", attention + "seqlens_k",
        ),
        f"{name} cu_seqlens_q {few}": Argument(
            lambda v, few=few: kvcache(few, cu_seqlens_q=v, max_seqlen_q=few), starts,
            f"{name}: expected cu_seqlens_q to ascend from 0 to at most", wrong,
        ),
        f"{name} max_seqlen_q {few}": Argument(
            lambda v, few=few, longer=longer: kvcache(few, cu_seqlens_q=longer, max_seqlen_q=v),
            [few, 0],
            f"{name}: expected max_seqlen_q to bound every length", wrong,
        ),
    }  # fmt: skip

NOT_INDICES = {"data", "packed", "top_k", "counters", "seeds"}
ANSWERED = {"advance_step", "process_logits", "flash_decode_plan"}
"""Ops in which every value of an integer has a meaning (test_ops_step.py), if only for those that
take the result: test_decode_plan.py."""


def integers(op: ops.Op[..., Any]) -> set[str]:
    """Names of the arguments that may be lengths, offsets or ids, by their sample values."""
    found = set()
    for case in cases(op.name):
        values = dict(zip(op.signature.parameters, case.args, strict=False)) | case.kwargs
        found |= {
            name
            for name, value in values.items()
            if isinstance(value, Tensor) and not value.is_floating_point() and value.dtype != FP8
        }
    return found - NOT_INDICES


def test_the_table_has_every_argument():
    for name, op in ops.OPS.items():
        for argument in integers(op) if name not in ANSWERED else ():
            assert f"{name} {argument}" in ARGUMENTS


@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_error_that_names_it(name):
    argument = ARGUMENTS[name]
    for route in (contextlib.nullcontext, l4kernels.reference):
        for wrong in argument.wrong:
            with route(), pytest.raises(IndexError, match=f"l4kernels.{argument.message}"):
                argument.call(wrong)


@KERNELS
@pytest.mark.parametrize("name", [n for n, a in ARGUMENTS.items() if a.report])
def test_a_kernel_reports_it_and_reads_nothing_outside(name):
    argument = ARGUMENTS[name]
    for wrong in argument.wrong:
        device_error()
        with emulated():  # an access outside of a tensor raises
            argument.call(wrong)
        assert re.match(argument.report, device_error()), wrong
