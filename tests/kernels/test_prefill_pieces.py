"""flash_prefill where tiles of queries are too few for the grid: pieces of their keys, merged.
And the plan that says so: made once for many calls, or for another call, or nonsense."""

import itertools

import pytest
import torch

from bench.checks.inputs import FP8, I32, Maker
from bench.checks.kernel_checks import device_error, same_bits
from l4kernels import STATUS, ops, reference
from l4kernels.testing import assert_close, emulated
from tests.support.prefill import check, problem
from tests.support.tensors import i32

pytestmark = pytest.mark.skipif(not STATUS.loaded, reason="no compiled kernels: run `make build`")
DTYPES = pytest.mark.parametrize("dtype", (torch.bfloat16, FP8), ids=("bf16", "fp8"))
HEADER = 12


def planned(args, options):
    """The plan of a call."""
    q, k_cache, _, offsets, lengths, table = args
    return ops.flash_prefill_plan(
        offsets, lengths, rows=q.shape[0], num_heads=q.shape[1], kv_heads=k_cache.shape[2],
        capacity=table.shape[1] * k_cache.shape[1], max_seqlen_q=options["max_seqlen_q"],
        chunk=options.get("chunk", 0),
    )  # fmt: skip


def unpacked(plan, tiles):
    """Pieces and cut items as (sequence, tile, slot, piece, pieces), and the warps that merge."""
    words = plan.tolist()
    _, pieces, cut, warps = words[8:HEADER]

    def items(first, count):
        rows = [words[first + 4 * i : first + 4 * i + 4] for i in range(count)]
        return [(*row[:3], row[3] & 0xFFFF, row[3] >> 16) for row in rows]

    return items(HEADER, pieces), items(HEADER + 4 * max(tiles, 1280), cut), warps


# New tokens and all keys of each sequence, heads, KV heads, page, chunk, SMs.
CUT = {
    "one": ([17], [700], 5, 1, 16, 0, 7),
    "two heads": ([25], [1000], 10, 2, 64, 0, 12),
    "ragged": ([3, 40, 0, 1], [900, 45, 17, 400], 5, 1, 32, 0, 12),
    "chunk": ([20, 9], [1500, 1030], 4, 1, 48, 1024, 12),
    "many pieces": ([2], [2600], 16, 1, 256, 0, 40),
    "diagonal": ([140], [900], 1, 1, 8, 0, 9),
}


def cut_problem(name, dtype=torch.bfloat16, seed=1):
    len_qs, len_ks, heads, kv_heads, page, chunk, sms = CUT[name]
    make = Maker("cpu", torch.bfloat16, seed)
    args, options = problem(
        make, len_qs, len_ks, heads=heads, kv_heads=kv_heads, page=page, dtype=dtype
    )
    options["chunk"] = chunk
    if dtype == FP8:
        options |= {s: make.uniform(kv_heads, low=0.5, high=2) for s in ("k_scale", "v_scale")}
    return args, options, sms


@DTYPES
@pytest.mark.parametrize("name", CUT)
def test_pieces_add_up(name, dtype):
    args, options, sms = cut_problem(name, dtype)
    results = []
    for mode, seed in (("late", 0), ("early", 0), ("random", 3)):
        with emulated(mode=mode, seed=seed, sms=sms, perturb=False) as control:
            control.reset()
            if results:
                results.append(ops.flash_prefill(*args, **options))
            else:
                results.append(check(args, options, factor=3.0 if dtype == FP8 else 2.0))
            counters = control.counters()
        merge = next(c for kernel, c in counters.items() if "merge" in kernel)
        assert merge["distinct_written_bytes"] > 256, "nothing was cut"
    assert device_error() == ""
    for again in results[1:]:
        assert all(map(same_bits, again, results[0]))


@pytest.mark.parametrize("name", CUT)
def test_a_plan_has_every_key_tile_once(name):
    args, options, sms = cut_problem(name)
    len_qs, len_ks, heads, kv_heads, _, chunk, _ = CUT[name]
    with emulated(sms=sms, mode="random", seed=2):
        plan = planned(args, options)
    tokens = 128 // (heads // kv_heads)
    tiles = [(b, tile) for b, n in enumerate(len_qs) for tile in range(-(-n // tokens))]
    pieces, cut, warps = unpacked(plan, len(tiles))
    assert sorted({item[:2] for item in pieces}) == tiles
    slots = []
    for item in tiles:
        own = sorted(p for p in pieces if p[:2] == item)
        count = own[0][4]
        assert [p[3] for p in own] == list(range(count)) and {p[4] for p in own} == {count}
        if count > 1:
            assert (*item, own[0][2], 0, count) in cut
            assert 8 * warps >= min(count, 64)
            slots += range(own[0][2], own[0][2] + count)
        first = len_ks[item[0]] - len_qs[item[0]] + item[1] * tokens
        last = min(first + tokens, len_ks[item[0]]) - 1
        low = first // chunk * chunk if chunk else 0
        assert count <= last // 128 + 1 - low // 128
    assert len(slots) == len(set(slots)) and max(slots) < 5 * sms // kv_heads
    assert len(cut) == sum(p[3] == 0 and p[4] > 1 for p in pieces) > 0
    with reference():
        assert planned(args, options)[:7].tolist() == plan[:7].tolist()


@DTYPES
def test_a_plan_serves_calls_with_other_keys(dtype):
    """Layers of one kind: the same lengths, other caches. A planned call has the bits of one that
    plans for itself."""
    for name, make in itertools.product(("ragged", "chunk"), (1, 2)):
        args, options, sms = cut_problem(name, dtype, seed=make)
        with emulated(sms=sms, mode="random", seed=4, perturb=False) as control:
            plan = planned(args, options)
            control.reset()
            mine = ops.flash_prefill(*args, **options, plan=plan)
            assert not any("plan" in kernel for kernel in control.counters())
            own = ops.flash_prefill(*args, **options)
        assert all(map(same_bits, mine, own))
        exact = ops.flash_prefill.reference(*args, **options)
        assert_close(mine.out, exact.out, 3e-3)
        same = ops.flash_prefill(*args, **options, plan=planned(args, options))
        assert all(map(same_bits, same, exact))
    assert device_error() == ""


def test_equal_rows_have_equal_bits_at_every_place_of_a_batch():
    args, options, sms = cut_problem("ragged")
    order = [3, 0, 2, 1]
    offsets = args[3].tolist()
    rows = [torch.arange(offsets[b], offsets[b + 1]) for b in order]
    moved = [args[0][torch.cat(rows)], *args[1:3]]
    lengths = [len(r) for r in rows]
    moved += [i32(0, *itertools.accumulate(lengths)), args[4][order], args[5][order]]
    with emulated(sms=sms, mode="random", seed=1, perturb=False):
        whole = ops.flash_prefill(*args, **options)
        other = ops.flash_prefill(*moved, **options)
    for at, own in zip(other.out.split(lengths), rows, strict=True):
        assert same_bits(at, whole.out[own])
    assert same_bits(other.lse, whole.lse[:, torch.cat(rows)])


@DTYPES
@pytest.mark.parametrize("bad", ("page", "narrow", "long", "negative"))
def test_who_sees_a_page_that_does_not_exist_gets_zeros(bad, dtype):
    args, options, sms = cut_problem("ragged", dtype)
    expected = ops.flash_prefill.reference(*args, **options)
    broken = torch.zeros(44, dtype=torch.bool)
    broken[:3] = True  # the first sequence, 900 keys
    if bad == "page":
        args[5][0, 11] = 10**6
    elif (
        bad == "narrow"
    ):  # keys 896 and on have no place: the first sequence's last queries see them
        args[5] = args[5][:, :28].contiguous()
        broken[:3] = False
        broken[0:3] = torch.arange(897, 900) >= 896
    else:
        args[4][0] = 2**31 - 1 if bad == "long" else -5
    with emulated(sms=sms, mode="random", seed=6):
        got = ops.flash_prefill(*args, **options)
    assert device_error() == f"flash_prefill: {'seqlens_k' if bad == 'negative' else 'block_table'}"
    assert got.out[broken].count_nonzero() == 0 and got.lse[:, broken].eq(-torch.inf).all()
    assert_close(got.out[~broken], expected.out[~broken], 3e-3)
    assert_close(got.lse[:, ~broken], expected.lse[:, ~broken], 1e-3)


def test_nan_reaches_who_sees_it_and_no_key_is_not_weight_0():
    """A NaN in one piece makes the row NaN; a row whose scores are all -inf is NaN, not 0."""
    args, options, sms = cut_problem("one")
    table = args[5][0]
    args[2][table[3], 5] = float("nan")
    with emulated(sms=sms):
        assert ops.flash_prefill(*args, **options).out.isnan().all()
    args[2][table[3], 5] = 0
    args[0][:] = 1
    args[1][table[:44].long()] = -torch.inf
    with emulated(sms=sms):
        got = ops.flash_prefill(*args, **options)
    assert got.out.isnan().all()


@DTYPES
def test_every_key_is_read_once_for_an_item(dtype):
    args, options, sms = cut_problem("two heads", dtype)
    with emulated(sms=sms) as control:
        control.reset()
        ops.flash_prefill(*args, **options)
        counters = control.counters()
    main = next(c for name, c in counters.items() if "flash_prefill_kernel" in name)
    merge = next(c for name, c in counters.items() if "merge" in name)
    pieces = 2 * 4  # four of two key tiles for each KV head
    keys = 2 * 1000 * args[1][0, 0].numel() * args[1].element_size()
    page = 24 * args[1][0, 0].numel() * args[1].element_size() * 2  # slots after the last key
    assert main["bulk_bytes"] == keys + page + pieces * 125 * 256
    partial, result = pieces * 125 * (128 * 4 + 8), 250 * (256 + 4)
    assert partial <= main["distinct_written_bytes"] <= 1.01 * partial
    assert result <= merge["distinct_written_bytes"] <= 1.01 * result
    assert partial <= merge["distinct_read_bytes"] <= 1.01 * partial
    assert main.get("bank_conflicts", 0) == merge.get("bank_conflicts", 0) == 0


def test_a_plan_for_other_shapes_is_an_error_and_gives_zeros():
    args, options, sms = cut_problem("ragged")
    with emulated(sms=sms):
        plan = planned(args, options)
    other = {"chunk": 512}, {"max_seqlen_q": 44}
    for changed in other:
        with emulated(sms=sms):
            got = ops.flash_prefill(*args, **options | changed, plan=plan)
        assert device_error() == "flash_prefill: plan"
        assert got.out.count_nonzero() == 0 and got.lse.eq(-torch.inf).all()
        with pytest.raises(IndexError, match="expected a plan of flash_prefill_plan"):
            mine = planned(args, options)
            ops.flash_prefill.reference(*args, **options | changed, plan=mine)
    with emulated(sms=sms + 1):  # made on another GPU
        got = ops.flash_prefill(*args, **options, plan=plan)
    assert device_error() == "flash_prefill: plan"
    assert got.out.count_nonzero() == 0
    for wrong in (plan[:-4], plan.long(), plan[None]):
        with emulated(sms=sms), pytest.raises((TypeError, ValueError), match="expected plan"):
            ops.flash_prefill(*args, **options, plan=wrong)


@pytest.mark.parametrize("seed", range(6))
def test_no_contents_of_a_plan_lead_out_of_bounds(seed):
    """The header is right and nothing else: the emulator would report an address, or never end."""
    args, options, sms = cut_problem("ragged")
    with emulated(sms=sms):
        plan = planned(args, options)
    random = torch.Generator().manual_seed(seed)
    noise = torch.randint(-(2**31), 2**31, plan.shape, generator=random).to(I32)
    small = torch.randint(-1, 5, plan.shape, generator=random).to(I32)
    small[HEADER + 3 :: 4] = small[HEADER + 3 :: 4].clamp(0) | small[HEADER + 3 :: 4] << 16
    hostile = noise if seed % 2 else small
    hostile[:8] = plan[:8]
    hostile[-9:] = plan[-9:]  # the lengths
    hostile[9:11] = i32(*((2**31 - 1, 2**31 - 1) if seed < 2 else (60, 9)))
    with emulated(sms=sms, mode="random", seed=seed):
        ops.flash_prefill(*args, **options, plan=hostile)
    assert device_error() in ("flash_prefill: plan", "flash_prefill: block_table")


@pytest.mark.parametrize("name", ["ragged", "diagonal"])
@pytest.mark.parametrize("changed", ["cu_seqlens_q", "seqlens_k"])
def test_a_plan_of_other_lengths_is_an_error_and_gives_zeros(name, changed):
    """As the second pass of a program that planned once: rows that nobody planned must not come
    back as whatever lay in the memory of the result."""
    args, options, sms = cut_problem(name)
    with emulated(sms=sms):
        plan = planned(args, options)
    args[3 if changed == "cu_seqlens_q" else 4][-1] -= 1
    with emulated(sms=sms):
        got = ops.flash_prefill(*args, **options, plan=plan)
    assert device_error() == "flash_prefill: plan"
    assert got.out.count_nonzero() == 0 and got.lse.eq(-torch.inf).all()
    with pytest.raises(IndexError, match="for this call's cu_seqlens_q and seqlens_k, got one of"):
        ops.flash_prefill.reference(*args, **options, plan=plan)


def test_a_plan_for_offsets_out_of_order_leaves_no_rows():
    args, options, sms = cut_problem("ragged")
    args[3] = i32(0, 30, 20, 20, 44)
    with emulated(sms=sms):
        plan = planned(args, options)
        assert device_error() == "flash_prefill: cu_seqlens_q or max_seqlen_q"
        got = ops.flash_prefill(*args, **options, plan=plan)
    assert got.out.count_nonzero() == 0 and got.lse.eq(-torch.inf).all()


def test_enough_tiles_are_left_whole():
    """Then a sequence has the same bits alone and in a batch."""
    args, options, _ = cut_problem("ragged")
    with emulated(sms=1) as control:  # five tiles at most
        control.reset()
        ops.flash_prefill(*args, **options)
        assert not any("merge" in kernel for kernel in control.counters())
