"""What the streaming int4 kernel touches, in the emulator: nothing outside, nothing too early,
nothing twice; whatever stands in its memory before, and whatever the offsets say."""

import ctypes
from typing import Any

import pytest
import torch
from torch import Tensor

import l4kernels
from bench.checks.edges_w4 import HOSTILE
from bench.checks.edges_w4 import exact_rows as rows
from bench.checks.edges_w4 import exact_tiles as weights
from bench.checks.inputs import I32, Maker
from bench.checks.kernel_checks import device_error
from l4kernels import STATUS, ops, testing
from l4kernels.ops import w4_gemm
from l4kernels.testing import assert_close, chained, emulated

pytestmark = pytest.mark.skipif(
    "w4_gemm" not in STATUS.kernels, reason=STATUS.reason or "no kernel"
)

F32, NAN = torch.float32, float("nan")
MODES = ("late", "early", "random")
STREAM: dict[str, Any] = {"config": 0}
BAND = 4096


def maker(seed: int = 0) -> Maker:
    return Maker("cpu", torch.bfloat16, seed)


class Tile(ctypes.Structure):
    """Int4Tile of csrc/tile/int4.h."""

    _fields_ = (("groups", ctypes.c_int), ("zeros", ctypes.c_bool))


class Scales(ctypes.Structure):
    """GemmScales of csrc/tile/scaling.h."""

    _fields_ = (
        ("kind_a", ctypes.c_int),
        ("kind_b", ctypes.c_int),
        ("a", ctypes.c_void_p),
        ("b", ctypes.c_void_p),
    )


class Gather(ctypes.Structure):
    """RowGather of csrc/tile/few_rows.h."""

    _fields_ = (("permutation", ctypes.c_void_p), ("top_k", ctypes.c_int))


class Epilogue(ctypes.Structure):
    """Of csrc/tile/epilogue.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("d", "row_scale", "bias", "residual")),
        ("residual_stride", ctypes.c_int64),
        ("activation", ctypes.c_int),
        ("out_float32", ctypes.c_bool),
    )


class Params(ctypes.Structure):
    """StreamGemmParams of csrc/kernels/stream_gemm/stream_gemm.h."""

    _fields_ = (
        *((name, ctypes.c_int) for name in ("m", "n", "k", "num_experts", "format")),
        ("a", ctypes.c_void_p),
        ("a_stride", ctypes.c_int64),
        ("gather", Gather),
        ("weights", ctypes.c_void_p),
        ("tile", Tile),
        ("scales", Scales),
        ("expert_offsets", ctypes.c_void_p),
        ("epilogue", Epilogue),
        ("static_weights", ctypes.c_bool),
        ("workspace", ctypes.c_void_p),
        ("nonce", ctypes.c_uint64),
        ("activation_bytes", ctypes.c_int),
        ("error", ctypes.c_void_p),
    )


class Banded:
    """A tensor's copy between two bands of memory that nobody may write to."""

    def __init__(self, tensor: Tensor):
        room = -tensor.nbytes % 16
        self.memory = torch.full((tensor.nbytes + room + 2 * BAND + 16,), 0xA5, dtype=torch.uint8)
        self.first = BAND + -self.memory.data_ptr() % 16
        self.bytes = self.memory[self.first : self.first + tensor.nbytes]
        self.tensor = self.bytes.view(tensor.dtype).view(tensor.shape).copy_(tensor)

    def intact(self) -> bool:
        end = self.first + self.bytes.numel()
        return all((band == 0xA5).all() for band in (self.memory[: self.first], self.memory[end:]))


POISON = {"0xff": -1, "NaN": 0x7FC07FC0, "Inf": 0x7F807F80, "zero": 0}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("poison", POISON)
def test_a_replay_follows_offsets_whatever_its_memory_held(poison, mode):
    """What a captured graph does: one launch, workspace and nonce over again, while only device
    memory changes. Every buffer stands between bands."""
    make, experts, m, n, k = maker(1), 4, 20, 48, 2560
    library = ctypes.CDLL(str(testing.emulator.BUILD / "libl4kernels_emulated.so"))
    size = library._ZN3l4k21stream_gemm_workspaceERKNS_16StreamGemmParamsE
    launch = library._ZN3l4k11stream_gemmERKNS_16StreamGemmParamsEP11CUstream_st
    size.restype = ctypes.c_int64
    given = {
        "a": rows(make, m, k),
        "weights": weights(make, experts, n, k),
        "expert_offsets": make.offsets([0] * experts),
        "d": torch.empty(m, n, dtype=F32),
        "row_scale": torch.full((m,), 0.25),
        "error": torch.zeros(1, dtype=I32),
    }
    params = Params(m, n, k, experts, a_stride=k, nonce=0x123456789ABC)
    params.tile.groups, params.epilogue.out_float32 = 1, True
    with emulated(mode=mode, seed=3, sms=5, perturb=False) as control:
        given["workspace"] = torch.full((size(ctypes.byref(params)),), POISON[poison], dtype=I32)
        buffers = {name: Banded(tensor) for name, tensor in given.items()}
        for name, buffer in buffers.items():
            owner = params.epilogue if name in ("d", "row_scale") else params
            setattr(owner, name, buffer.tensor.data_ptr())
            control.register_range(buffer.memory.data_ptr(), buffer.memory.nbytes)
        a, b, offsets, out = (buffers[x].tensor for x in ("a", "weights", "expert_offsets", "d"))
        for counts in ([20, 0, 0, 0], [1, 16, 0, 3], [1, 16, 0, 3], [0, 0, 0, 0], [5, 5, 5, 4]):
            offsets.copy_(make.offsets(counts))
            out.view(I32).fill_(POISON[poison])
            assert launch(ctypes.byref(params), None) == 0
            control.synchronize()
            assert control.last_report() is None
            options = {"expert_offsets": offsets.clone(), "row_scale": given["row_scale"]}
            assert torch.equal(out, w4_gemm.reference(a, b, out_dtype=F32, **options))
        assert all(buffer.intact() for buffer in buffers.values())
        assert not buffers["error"].tensor.any()
        for buffer in buffers.values():
            control.unregister_range(buffer.memory.data_ptr(), buffer.memory.nbytes)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_offsets_are_clamped_and_reported(name, mode):
    """Each row comes out as some expert's product, or as zeros; bands around it stay."""
    make, m, k = maker(2), 24, 2560
    a, b = rows(make, m, k), weights(make, 4, 32, k)
    each = torch.stack([w4_gemm.reference(a, expert, out_dtype=F32) for expert in b])
    device_error()
    out = Banded(torch.full((m, 32), NAN))
    with emulated(mode=mode, seed=2, sms=3) as control:
        offsets = make.tensor(HOSTILE[name])
        w4_gemm(a, b, expert_offsets=offsets, out_dtype=F32, **STREAM, out=out.tensor)
        assert control.last_report() is None
    assert device_error() == "w4_gemm: expert_offsets" and out.intact()
    # The running maximum within [0, M].
    ends = torch.tensor(HOSTILE[name][1:]).clamp(0, m).cummax(0).values
    owner = torch.searchsorted(ends, torch.arange(m), right=True)
    for row in range(m):
        wanted = each[owner[row], row] if owner[row] < 4 else torch.zeros(32)
        assert torch.equal(out.tensor[row], wanted), row


def test_rows_may_be_apart_but_not_misaligned():
    make = maker()
    wide, b = make.randn(9, 400), make.tiles(32, 256)
    residual, overlapping = make.randn(9, 48), wide[:1, :256].expand(9, 256)
    tile = b.shape[-1]
    apart = torch.cat([b, b], -1)[..., :tile]
    shifted = torch.cat([b.flatten()[:1], b.flatten()])[1:].view(b.shape)
    with emulated():
        got = w4_gemm(wide[:, 8:264], b, residual=residual[:, 8:40], **STREAM)
        one = w4_gemm(wide[:1, 8:264].as_strided((1, 256), (7, 1), 8), b, **STREAM)
        for wrong, said in (
            ((wide[:, 1:257], b), "rows of a .*16-byte aligned"),
            ((overlapping, b), "rows of a not to overlap"),
            ((wide.T.contiguous().T[:, :256], b), r"\ba\b"),
            ((wide[:, :256], apart), "packed"),
            ((wide[:, :256], shifted), "packed .*16-byte aligned"),
        ):
            with pytest.raises((RuntimeError, ValueError), match=said):
                w4_gemm(*wrong, **STREAM)
    expected = w4_gemm.reference(wide[:, 8:264], b, residual=residual[:, 8:40])
    assert_close(got, expected, 3e-3)
    assert_close(one, w4_gemm.reference(wide[:1, 8:264], b), 3e-3)


@pytest.mark.parametrize("mode", MODES)
def test_the_result_may_take_the_place_of_the_residual(mode):
    """Runs that meet: one CTA alone reads and writes each result."""
    make, m, k = maker(5), 8, 2560
    a, b, residual = rows(make, m, k), weights(make, 80, k), rows(make, m, 80)
    expected = w4_gemm.reference(a, b, residual=residual)
    with emulated(mode=mode, seed=4, sms=7):
        w4_gemm(a, b, residual=residual, out=residual, **STREAM)
    assert_close(residual, expected, 3e-3)


def test_operands_beyond_2_gib():
    """Sparse buffers whose last expert begins past 2^31 bytes, the last rows past 2^31 elements."""
    make, experts, n, k, m = maker(), 256, 256, 65_536, 3
    a, residual = (torch.empty(m, 1 << 30, dtype=torch.bfloat16) for _ in range(2))
    a, residual = a[:, :k], residual[:, :n]
    b = torch.empty(experts, n // 16, k // 128, 264, dtype=I32)
    b[-1] = make.tiles(n, k)
    a.copy_(make.randn(m, k))
    residual.copy_(make.randn(m, n))
    offsets = torch.tensor([0] * experts + [m], dtype=I32)
    with emulated():
        got = w4_gemm(a, b, expert_offsets=offsets, residual=residual, out_dtype=F32, **STREAM)
    expected = w4_gemm.reference(a, b[-1], residual=residual, out_dtype=F32)
    assert_close(got, expected, 1e-4)


def test_more_slices_than_items_are_refused_and_fewer_are_right():
    """128 rows of 512 blocks of K would be 184 items, and there is room for 56."""
    make, k = maker(), 512 * 128
    a, b = rows(make, 128, k), weights(make, 16, k)
    with emulated(), pytest.raises(RuntimeError, match=r"config 0 .* fewer rows"):
        w4_gemm(a, b, **STREAM)
    with emulated():
        got = w4_gemm(a[:24], b, out_dtype=F32, **STREAM)
    assert torch.equal(got, w4_gemm.reference(a[:24], b, out_dtype=F32))


# ---- Launches that overlap ----------------------------------------------------------------------


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_a_layer_of_dependent_launches(mode, static):
    """A, residual, offsets and scale are results of the launches before; weights never are."""
    make, tokens, k, experts = maker(4), 9, 256, 8
    x, router = make.randn(tokens, k), make.randn(experts, k)
    first, second, third = make.tiles(k, k), make.tiles(experts, k, k), make.tiles(k, 128)

    def layer(given: tuple[Any, ...] = ()) -> tuple[Any, ...]:
        options = {"static_weights": static}
        y = w4_gemm(x, first, residual=x, **options, config=0)
        y = given[0] if given else y
        logits = ops.gemm(y, router)
        routing = ops.moe_route(given[1] if given else logits)
        routing = given[2] if given else routing
        gathered = ops.moe_permute(y, routing.permutation, 1)
        inner = w4_gemm(
            given[3] if given else gathered, second, expert_offsets=routing.expert_offsets,
            row_scale=routing.row_scale, activation="swiglu", **options, config=0,
        )  # fmt: skip
        last = w4_gemm(given[4] if given else inner, third, residual=y, **options, config=0)
        return y, logits, routing, gathered, inner, last

    with emulated(mode=mode, seed=5, sms=3), chained():
        got = layer()
    with l4kernels.reference():
        expected = layer(got)
    for a, b in zip(got, expected, strict=True):
        assert_close(a, b, 3e-3)


ORDER = torch.arange(2 * 64 * 1056 // 528, dtype=I32)


def written(b: Tensor) -> Tensor:
    """The same weights, as the result of a kernel that was just launched."""
    as_rows = b.view(torch.bfloat16).view(-1, 264)
    order = ORDER[: as_rows.shape[0]]  # outlives the launch
    return ops.moe_permute(as_rows, order, 1).view(I32).view(b.shape)


@pytest.mark.parametrize("experts", [(), (2,)])
@pytest.mark.parametrize("mode", MODES)
def test_weights_that_the_launch_before_writes_are_waited_for(mode, experts):
    make = maker(6)
    a, b = rows(make, 3, 640), weights(make, *experts, 48, 640)
    options = {"expert_offsets": make.offsets([1, 2])} if experts else {}
    with emulated(mode=mode, seed=1, sms=3), chained():
        copy = written(b)
        got = w4_gemm(a, copy, out_dtype=F32, **STREAM, **options)
    assert torch.equal(got, w4_gemm.reference(a, b, out_dtype=F32, **options))


@pytest.mark.parametrize("mode", MODES)
def test_a_wrong_word_that_weights_are_static_is_reported(mode):
    """What the caller promised is not so: silent on a GPU, most of the time."""
    make = maker(6)
    a, b = rows(make, 3, 640), weights(make, 48, 640)
    with emulated(mode=mode, seed=1, sms=3) as control:
        kept = []
        with pytest.raises(RuntimeError, match="dependency-race"), chained():
            kept.append(written(b))
            kept.append(w4_gemm(a, kept[0], out_dtype=F32, static_weights=True, **STREAM))
        control.reset()


# ---- Counters -----------------------------------------------------------------------------------


def check_traffic(m: int, n: int, k: int, counts: list[int] | None = None, **tile: Any) -> None:
    """Weights of experts that have rows, and rows, are read once; partial sums come on top."""
    make = Maker("cpu", torch.bfloat16, 0)
    shape = (n, k) if counts is None else (len(counts), n, k)
    options = {} if counts is None else {"expert_offsets": make.offsets(counts)}
    a, b = rows(make, m, k), weights(make, *shape, **tile)
    with emulated(sms=3) as control:
        control.reset()
        w4_gemm(a, b, **STREAM, **options)
        (c,) = control.counters().values()
    experts = 1 if counts is None else sum(n > 0 for n in counts)
    needed = experts * n * k // (16 * 128) * 4 * b.shape[-1] + a.nbytes
    partials = c["distinct_written_bytes"] - 2 * m * n  # each is read once
    assert c["distinct_read_bytes"] - partials <= 1.02 * needed, str(c)
    assert 0 <= partials <= 0.05 * needed, str(c)
    assert c["bank_conflicts"] == 0 and c["launches"] == 1, str(c)
    # From L2: a CTA's copies are its share of weights, and rows of A once for each of its items.
    assert c["bulk_bytes"] <= 1.02 * needed + 3 * a.nbytes, str(c)


@pytest.mark.parametrize("m", [1, 6, 8, 9, 16])
@pytest.mark.parametrize("k", [5120, 8192])
def test_weights_are_read_once_and_without_conflicts(m, k):
    check_traffic(m, 512, k)


@pytest.mark.parametrize("m, k", [(1, 5120), (8, 5120), (5, 8192)])
def test_a_stage_of_a_dense_product_is_one_copy(m, k):
    make, n, ctas, stage = maker(m), 512, 3, 16
    with emulated(sms=ctas) as control:
        control.reset()
        w4_gemm(rows(make, m, k), weights(make, n, k), static_weights=True, **STREAM)
        (kernel,) = control.counters().values()
    lines = [line for at, line in kernel["lines"].items() if "weights.cuh" in at]
    copies = sum(line["issued"] for line in lines if line["bulk_bytes"])
    units = n * k // (16 * 128)
    assert ctas <= copies <= ctas * -(-units // (ctas * stage))


@pytest.mark.parametrize("group, zeros", [(128, True), (64, False), (32, True)])
def test_groups_and_zero_points_cost_no_conflicts(group, zeros):
    check_traffic(8, 256, 2560, group=group, zeros=zeros)


@pytest.mark.parametrize("counts", [[1] * 5, [0, 16, 0, 1, 0], [3, 2, 0, 0, 8]], ids=str)
def test_an_expert_is_read_once_however_many_tokens_chose_it(counts):
    check_traffic(sum(counts), 128, 2560, counts)
