"""flash_prefill in the emulator: chunks x pages x groups against float64, edges of chunks, what
nobody may see, hostile arguments, traffic, and the overlap that the compiler may undo."""

import math
import re

import pytest
import torch

from bench.checks.inputs import FP8, I32, Maker
from bench.checks.kernel_checks import device_error
from l4kernels import STATUS, ops
from l4kernels.emulation import toolchain
from l4kernels.testing import assert_close, emulated
from tests.support import naive
from tests.support.prefill import check, problem
from tests.support.tensors import i32
from tools import nvcc

pytestmark = pytest.mark.skipif(not STATUS.loaded, reason="no compiled kernels: run `make build`")
NAN = float("nan")


# Every chunk meets every page size; groups, lengths and modes rotate against them.
GRID = [
    (chunk, page, (1, 4, 5, 8, 16)[(i + j) % 5], ("late", "early", "random")[(i + 2 * j) % 3])
    for i, chunk in enumerate((0, 1, 3, 16, 64, 128))
    for j, page in enumerate((16, 32, 64, 128, 256, 48, 8))
]


@pytest.mark.parametrize("chunk, page, group, mode", GRID)
@pytest.mark.parametrize("dtype", (torch.bfloat16, FP8), ids=("bf16", "fp8"))
def test_chunks_pages_and_groups(dtype, chunk, page, group, mode):
    seed = chunk * 1000 + page * 16 + group
    make = Maker("cpu", torch.bfloat16, seed)
    new = make.integers(3, high=2 * (128 // group) + 2).tolist()
    old = [0, *make.integers(2, high=150).tolist()]
    len_qs, len_ks = [*new, 0, 1], [*map(sum, zip(new, old, strict=True)), 17, 130]
    kv_heads = 2 if group == 1 else 1
    args, options = problem(
        make, len_qs, len_ks, heads=group * kv_heads, kv_heads=kv_heads, page=page, dtype=dtype
    )
    options["chunk"] = chunk
    if dtype == FP8:
        options |= {s: make.uniform(kv_heads, low=0.5, high=2) for s in ("k_scale", "v_scale")}
    with emulated(mode=mode, seed=seed, sms=3):
        check(args, options, factor=3.0 if dtype == FP8 else 2.0)
    assert device_error() == ""


@pytest.mark.parametrize("sms", (1, 12), ids=("whole", "pieces"))
@pytest.mark.parametrize("dtype", (torch.bfloat16, FP8), ids=("bf16", "fp8"))
@pytest.mark.parametrize("size", (1e2, 1e5, 1e6, 1e7, 3e7, 1e8, 3e8, 1e9, 1e12))
def test_scores_of_any_size_give_what_is_right_or_nan(size, dtype, sms):
    """All values are 1, so every result is. Past 2^28 (in base 2) float32 cannot tell by how much
    a score exceeds another, and the row says so."""
    args, options = problem(Maker("cpu", torch.bfloat16, 7), [16], [600], page=8, dtype=dtype)
    args[0] *= size
    args[2].fill_(1)
    with emulated(sms=sms):
        got = ops.flash_prefill(*args, **options)
    largest = ops.flash_prefill.reference(*args, **options).lse[0] / math.log(2)
    out = got.out[:, 0]
    within, beyond = largest.abs() < 0.9 * 2**28, largest.abs() > 1.1 * 2**28
    assert (out[within] - 1).abs().max() < 0.02 if within.any() else beyond.any()
    assert out[beyond].isnan().all()
    assert (out.isnan() | ((out - 1).abs() < 0.02)).all()


@pytest.mark.parametrize("dtype", (torch.bfloat16, FP8), ids=("bf16", "fp8"))
@pytest.mark.parametrize("edge", (8192, 16384, 10_485_760))
def test_edges_of_the_full_chunk(dtype, edge):
    """Queries on both sides of an edge; a ring of pages holds the last two chunks."""
    args, options = problem(
        Maker("cpu", torch.bfloat16, 1), [4, 1, 2], [edge + 2, edge, edge + 1], heads=5, page=256,
        dtype=dtype, ring=64,
    )  # fmt: skip
    options["chunk"] = 8192
    with emulated(mode="random", seed=edge):
        got = ops.flash_prefill(*args, **options)
    expected = ops.flash_prefill.reference(*args, **options)
    assert_close(got, expected, 3e-3)
    first_of_chunk = [2, 6]  # it sees itself alone
    table, page = args[5][0, edge // 256], edge % 256
    alone = args[2][table, page].to(torch.bfloat16).expand(5, 128)
    assert torch.equal(got.out[first_of_chunk[0]], alone)


@pytest.mark.parametrize("power", (-100, -20, 20, 100))
def test_queries_of_any_size_over_e4m3_keys(power):
    """They are computed in f16: a power of two in Q, and its inverse in the keys' scale, changes no
    bit. In a row with an infinity or a NaN everything is NaN, and in no other row."""
    args, options = problem(
        Maker("cpu", torch.bfloat16, 11), [30], [150], heads=4, kv_heads=2, dtype=FP8
    )
    options["k_scale"] = torch.tensor([1.0, 0.5])
    args[0][3] = 0
    with emulated(mode="random", seed=3, perturb=False):
        expected = check(args, options, factor=3.0)
        args[0] *= 2.0**power
        options["k_scale"] *= 2.0**-power
        got = ops.flash_prefill(*args, **options)
        assert torch.equal(got.out, expected.out) and torch.equal(got.lse, expected.lse)
        args[0][7, 1, 5], args[0][8, 3, 0] = NAN, float("inf")
        got = ops.flash_prefill(*args, **options)
    spoilt = torch.zeros(30, 4, dtype=torch.bool)
    spoilt[7, 1] = spoilt[8, 3] = True
    assert got.out[spoilt].isnan().all()
    assert torch.equal(got.out[~spoilt], expected.out[~spoilt])


@pytest.mark.parametrize("dtype", (torch.bfloat16, FP8), ids=("bf16", "fp8"))
@pytest.mark.parametrize("nats", (10.0, 17.5, 24.0))
def test_many_weak_keys_count_beside_a_strong_one(dtype, nats):
    """Each is below what f16 could hold beside a weight of 1; all together they are the result."""
    keys, strong = 2000, 900
    cache = torch.zeros(125, 16, 1, 128)
    values = torch.full_like(cache, 448.0)
    cache[strong // 16, strong % 16, 0, 0] = 16.0
    values[strong // 16, strong % 16] = 0.0
    q = torch.zeros(1, 1, 128, dtype=torch.bfloat16)
    q[0, 0, 0] = nats / 16 * 128**0.5
    table = torch.arange(125, dtype=I32)[None]
    args = [q, cache.to(dtype), values.to(dtype), i32(0, 1), i32(keys), table]
    options = {"softmax_scale": 128**-0.5, "max_seqlen_q": 1}
    with emulated(mode="random", seed=3):
        got = ops.flash_prefill(*args, **options)
    expected = ops.flash_prefill.reference(*args, **options)
    assert_close(got.out.float(), expected.out.float(), 2.0**-7)
    assert_close(got.lse, expected.lse, 1e-5)
    assert expected.out.min() > 0


def test_relaunch_with_other_lengths():
    """The same tensors with new lengths in them: what a captured graph does."""
    args, options = problem(Maker("cpu", torch.bfloat16, 2), [20, 12], [64, 40], heads=2, page=16)
    options |= {"chunk": 32, "max_seqlen_q": 32}
    offsets, len_ks = args[3:5]
    for cache in args[1:3]:
        cache.nan_to_num_(0.5)
    for bounds, lengths in (((0, 20, 32), (33, 40)), ((0, 0, 31), (31, 32)), ((0, 7, 9), (64, 2))):
        offsets.copy_(i32(*bounds))
        len_ks.copy_(i32(*lengths))
        with emulated(mode="random", seed=lengths[0]):
            got = ops.flash_prefill(*args, **options)
        assert_close(got, ops.flash_prefill.reference(*args, **options), 3e-3)
        assert got.out[bounds[-1] :].count_nonzero() == 0
        assert got.lse[:, bounds[-1] :].eq(-torch.inf).all()


@pytest.mark.parametrize("dtype", (torch.bfloat16, FP8), ids=("bf16", "fp8"))
@pytest.mark.parametrize("bad", (-1, 10**6, 2**31 - 1, None))
def test_a_page_that_does_not_exist_zeroes_who_sees_it(dtype, bad):
    args, options = problem(
        Maker("cpu", torch.bfloat16, 3), [90, 40], [100, 40], heads=4, kv_heads=2, page=16,
        dtype=dtype,
    )  # fmt: skip
    options["chunk"] = 64
    expected = ops.flash_prefill.reference(*args, **options)
    if bad is None:  # the table is too narrow for the last 4 keys of the first sequence
        args[5] = args[5][:, :6].contiguous()
        first_bad, end_bad = 96, 100
    else:
        args[5][0, 2] = bad
        first_bad, end_bad = 32, 64
    with emulated(mode="random", seed=5):
        got = ops.flash_prefill(*args, **options)
    assert device_error() == "flash_prefill: block_table"
    positions = 10 + torch.arange(90)
    broken = torch.zeros(130, dtype=torch.bool)
    broken[:90] = (positions >= first_bad) & (positions < end_bad)
    assert got.out[broken].count_nonzero() == 0 and got.lse[:, broken].eq(-torch.inf).all()
    assert_close(got.out[~broken], expected.out[~broken], 3e-3)
    assert_close(got.lse[:, ~broken], expected.lse[:, ~broken], 1e-4)


@pytest.mark.parametrize("chunk", (0, 64))
@pytest.mark.parametrize("length", (2**31 - 1, 2**31 - 40, 97, -1, -(2**31)))
def test_a_length_that_no_table_holds_costs_no_more_than_the_table(length, chunk):
    """Two billion keys would be hours of tiles without a page."""
    args, options = problem(Maker("cpu", torch.bfloat16, 3), [90, 40], [96, 40], heads=5, page=16)
    options["chunk"] = chunk
    expected = ops.flash_prefill.reference(*args, **options)
    args[4][0] = length
    with emulated(mode="random", seed=5):
        got = ops.flash_prefill(*args, **options)
    wrong = "block_table" if length > 0 else "seqlens_k"
    assert device_error() == f"flash_prefill: {wrong}"
    positions = torch.arange(90) + length - 90
    broken = (positions < 0) | (positions >= 96)  # seeing nothing, or a key without a place
    assert got.out[:90][broken].count_nonzero() == 0
    assert got.lse[:, :90][:, broken].eq(-torch.inf).all()
    assert got.out[:90][~broken].ne(0).any(-1).all() and broken.any()
    assert_close(got.out[90:], expected.out[90:], 3e-3)


@pytest.mark.parametrize(
    "offsets, max_seqlen_q",
    (((0, 30, 20), 30), ((1, 20, 40), 30), ((0, 20, 41), 30), ((0, -5, 40), 45), ((0, 31, 40), 30)),
)
def test_offsets_out_of_order_give_zeros(offsets, max_seqlen_q):
    args, options = problem(Maker("cpu", torch.bfloat16, 4), [20, 20], [20, 30], heads=2)
    args[3] = i32(*offsets)
    options["max_seqlen_q"] = max_seqlen_q
    with emulated():
        got = ops.flash_prefill(*args, **options)
    assert device_error() == "flash_prefill: cu_seqlens_q or max_seqlen_q"
    assert got.out.count_nonzero() == 0 and got.lse.eq(-torch.inf).all()


def test_strided_queries_and_a_sequence_alone():
    """q as a slice of wider rows; a sequence has the same bits alone and in a batch."""
    make = Maker("cpu", torch.bfloat16, 5)
    args, options = problem(make, [33, 60, 5], [50, 60, 90], heads=5, page=32)
    wide = make.randn(98, 7, 128)
    wide[:, 1:6] = args[0]
    with emulated(mode="random", seed=1, perturb=False):
        whole = check([wide[:, 1:6], *args[1:]], options)
        alone = ops.flash_prefill(
            args[0][33:93], *args[1:3], i32(0, 60), args[4][1:2], args[5][1:2], **options
        )
    assert torch.equal(whole.out[33:93], alone.out) and torch.equal(whole.lse[:, 33:93], alone.lse)


def test_pages_behind_4_gib():
    """A sparse cache of 2^31 elements, of which a few pages exist."""
    cache = torch.empty(1 << 16, 256, 1, 128, dtype=torch.bfloat16)
    args, options = problem(Maker("cpu", torch.bfloat16, 9), [30], [500], heads=5, page=256)
    pages = torch.tensor([[65_535, 33_000]])
    for source in args[1:3]:
        cache[pages[0]] = source[args[5][0].long()]
        with emulated():
            got = ops.flash_prefill(args[0], cache, cache, *args[3:5], pages.to(I32), **options)
        expected = ops.flash_prefill.reference(args[0], source, source, *args[3:], **options)
        assert_close(got, expected, 3e-3)


def test_more_sequences_than_the_planner_has_threads():
    len_qs = [0] * 2100
    for b, length in ((0, 3), (1023, 1), (1024, 30), (1030, 26), (2099, 2)):
        len_qs[b] = length
    args, options = problem(Maker("cpu", torch.bfloat16, 8), len_qs, len_qs, heads=5)
    with emulated(mode="random", seed=8):
        got = ops.flash_prefill(*args, **options)
    assert_close(got, ops.flash_prefill.reference(*args, **options), 3e-3)


def test_what_the_kernel_does_not_take():
    make = Maker("cpu", torch.bfloat16, 6)
    for changes, options_changed, message in (
        ({"page": 12}, {}, r"pages of a multiple of 8 slots"),
        ({"heads": 17}, {}, r"1 to 16 heads of q for each"),
        ({}, {"softmax_scale": -1.0}, r"softmax_scale to be positive"),
        ({}, {"k_scale": torch.ones(1)}, r"no k_scale"),
    ):
        args, options = problem(make, [3], [3], **changes)
        with emulated(), pytest.raises((RuntimeError, ValueError), match=message):
            ops.flash_prefill(*args, **options | options_changed)


def prefill_counters(args, options):
    with emulated(sms=4) as control:
        control.reset()
        ops.flash_prefill(*args, **options)
        return next(c for name, c in control.counters().items() if "flash_prefill_kernel" in name)


@pytest.mark.parametrize("dtype", (torch.bfloat16, FP8), ids=("bf16", "fp8"))
@pytest.mark.parametrize("chunk", (0, 128, 200))
def test_traffic_is_what_the_tiles_need(dtype, chunk):
    """Copies: Q once per tile, and the boxes of pages that hold a key which the tile sees."""
    page, len_q, len_k, group = 32, 200, 500, 5
    args, options = problem(
        Maker("cpu", torch.bfloat16, 7), [len_q], [len_k], heads=group, page=page, dtype=dtype
    )
    options["chunk"] = chunk
    counters = prefill_counters(args, options)
    per_key = 2 * 128 * args[1].element_size()
    tokens = 128 // group
    bulk, seen = 0, set()
    for first in range(0, len_q, tokens):
        rows = range(len_k - len_q + first, min(len_k - len_q + first + tokens, len_k))
        keys = {j for p in rows for j in naive.visible(p, len_k, chunk)}
        seen |= keys
        bulk += len({j // page for j in keys}) * page * per_key
        bulk += min(tokens, len_q - first) * group * 256  # rows past the end of Q are not read
    assert counters["bulk_bytes"] == bulk
    pages = len({j // page for j in seen}) * page * per_key
    others = 2 * args[0].nbytes + 4 * args[0].shape[1] * len_q + args[5].nbytes
    touched = counters["distinct_read_bytes"] + counters["distinct_written_bytes"]
    assert touched <= 1.05 * (pages + others) + 512
    assert counters.get("bank_conflicts", 0) == 0


def touched_in_flight(sass):
    """Instructions that read or write a sum of a product in flight, or write its A registers."""
    groups, opened, found = [], (set(), set()), []
    for match in re.finditer(r"/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\d+ )?([A-Z][^;]*);", sass):
        text = match[1].rstrip()
        if product := re.match(r"HGMMA\S* R(\d+), (?:R(\d+), )?gdesc", text):
            opened[0].update(range(int(product[1]), int(product[1]) + 64))
            if product[2]:
                opened[1].update(range(int(product[2]), int(product[2]) + 4))
            if "gsb0" in text:
                groups, opened = [*groups, opened], (set(), set())
        elif wait := re.match(r"WARPGROUP\.DEPBAR\.LE gsb0, 0x(\d)", text):
            groups = groups[len(groups) - int(wait[1]) :]
        elif groups or opened[0]:
            sums, a = (set().union(opened[i], *(g[i] for g in groups)) for i in (0, 1))
            used = [int(r) for r in re.findall(r"\bR(\d+)\b", text)]
            width = 4 if ".128" in text else 2 if re.search(r"\.64|WIDE", text) else 1
            first = re.match(r"(?!ST|BAR|BRA|SYNCS)\S+ (?:P\d, )?R(\d+)\b", text)
            written = range(int(first[1]), int(first[1]) + width) if first else ()
            if sums.intersection(used) or (sums | a).intersection(written):
                found.append(text)
    assert not groups and not opened[0]
    return found


def test_a_touched_register_is_found():
    issue = "HGMMA.64x128x16.F32.BF16 R24, R152, gdesc[UR4], R24, gsb0"
    for text, bad in (
        ("FADD R200, R24, R3", True), ("MOV R155, R3", True), ("LDS.128 R152, [R3]", True),
        ("FADD R200, R152, R3", False), ("STS [R3], R2", False), ("MOV R156, R3", False),
    ):  # fmt: skip
        lines = (issue, text, "WARPGROUP.DEPBAR.LE gsb0, 0x0", text)
        sass = "".join(f"/*{i:04x}*/ {line} ;" for i, line in enumerate(lines))
        assert touched_in_flight(sass) == ([text] if bad else [])


def test_the_compiler_keeps_softmax_beside_the_products():
    """No register of a product in flight is touched; and between issuing both products and waiting
    for the second lie the 64 exponentials of a thread. ptxas moves that wait up in front of them if
    the loop is written another way."""
    if toolchain.nvcc() is None or nvcc.cuobjdump() is None:
        pytest.skip("needs nvcc and cuobjdump")
    cubin = nvcc.ROOT / "build" / "flash_prefill.cubin"
    source = "csrc/kernels/flash_prefill/flash_prefill.cu"
    nvcc.output_of(toolchain.nvcc(), *nvcc.FLAGS, "-cubin", source, "-o", str(cubin))
    functions = nvcc.output_of(nvcc.cuobjdump(), "-sass", str(cubin)).split("Function : ")[1:]
    kernels = [f for f in functions if "flash_prefill_kernel" in f.splitlines()[0]]
    assert len(kernels) == 2
    for sass in kernels:
        assert touched_in_flight(sass) == []
        after = sass[sass.rindex("BAR.ARV") :]
        waits = [m.start() for m in re.finditer(r"WARPGROUP\.DEPBAR", after)]
        assert after[waits[0] : waits[1]].count("MUFU.EX2") >= 2 * 64  # whole and edge tiles
