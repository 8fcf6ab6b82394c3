"""`assert_close`: what passes is what rounding does, and nothing else."""

import pytest
import torch

from bench.checks.inputs import FP8
from bench.checks.kernel_checks import BF16_ERROR, E4M3_ERROR, SUM_ERROR
from l4kernels import STATUS, ops
from l4kernels.testing import assert_close, emulated
from l4kernels.testing.emulator import launches_of

SHAPES = [(1, 128), (1, 5120), (64, 512)]


def codes(*shape):
    return ops.quantize_fp8(torch.randn(shape), "row").q


def stepped(q, places, steps=1):
    """The codes at some places, `steps` further from 0, or nearer where there is no more."""
    flat = q.clone().view(torch.uint8).flatten()
    near = (flat[places] & 127) < 0x7E - steps
    flat[places] = torch.where(near, flat[places] + steps, flat[places] - steps)
    return flat.view(FP8).view(q.shape)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_one_code_one_step_apart_is_rounding(shape):
    q = codes(*shape)
    for value in (288.0, 256.0, 1.0, 2.0**-6, 2.0**-9, 0.0):  # ends of binades, subnormals
        q[0, 5] = value
        assert_close(stepped(q, torch.tensor([5])), q, E4M3_ERROR)
        with pytest.raises(AssertionError, match=r"1 of \d+ codes differ"):
            assert_close(stepped(q, torch.tensor([5])), q, 0.0)


@pytest.mark.parametrize("bound", [E4M3_ERROR, SUM_ERROR])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_code_two_steps_apart_is_not(shape, bound):
    q = codes(*shape)
    for value in (256.0, 240.0, 224.0, 128.0):
        q[0, 7] = value
        with pytest.raises(AssertionError, match=r"1 by more than a step; first at \[0, 7\]"):
            assert_close(stepped(q, torch.tensor([7]), 2), q, bound)


@pytest.mark.parametrize(
    "shape, bound", [*((s, E4M3_ERROR) for s in SHAPES), (SHAPES[2], SUM_ERROR)]
)
def test_five_percent_of_the_codes_one_step_apart_are_not(shape, bound):
    q = codes(*shape)
    places = torch.arange(0, q.numel(), 20)
    with pytest.raises(AssertionError, match=", 0 by more than a step"):
        assert_close(stepped(q, places), q, bound)


def test_signs_of_zero_are_equal_and_those_of_values_are_not():
    q = codes(4, 128)
    q[1, 3:5] = 0.0
    minus = q.clone()
    minus[1, 3] = -0.0
    assert_close(minus, q, 0.0)
    minus[0, 0] = -minus[0, 0].float()
    with pytest.raises(AssertionError, match=r"1 by more than a step; first at \[0, 0\]"):
        assert_close(minus, q, SUM_ERROR)


@pytest.mark.parametrize("bound", [0.0, E4M3_ERROR, SUM_ERROR])
def test_nan_equals_nan_only(bound):
    q = codes(4, 128)
    broken = q.clone()
    broken[2, 9] = float("nan")
    assert_close(broken, broken.clone(), bound)
    for pair in ((broken, q), (q, broken)):
        with pytest.raises(AssertionError, match=r"first at \[2, 9\]"):
            assert_close(*pair, bound)


def test_two_blocks_in_each_others_place_are_found():
    q = codes(64, 512)
    swapped = q.clone()
    swapped[:, :8], swapped[:, 8:16] = q[:, 8:16], q[:, :8]
    with pytest.raises(AssertionError, match="codes differ"):
        assert_close(swapped, q, SUM_ERROR)


@pytest.mark.parametrize("rows", [1, 1000])
def test_the_number_of_other_codes_is_what_the_bound_promises(rows):
    """Values that differ by the bound on average: the count is below its expectation of at most."""
    torch.manual_seed(1)
    for bound in (1e-5, SUM_ERROR):
        x = torch.randn(rows, 1024)
        scale = x.abs().amax(-1, keepdim=True) / 448
        y = x * (1 + bound * torch.randn_like(x))
        a, b = (t.div(scale).clamp(-448, 448).to(FP8) for t in (y, x))
        assert_close(a, b, bound)
        if rows == 1000:
            with pytest.raises(AssertionError, match=r"chance \d\.\de[-+]\d+\), 0 by more"):
                assert_close(a, b, bound / 100)


def test_scales_are_floats_of_a_few_ulp():
    scale = torch.rand(300) + 0.5
    assert_close(scale * (1 + 2**-22), scale, 2e-6)
    with pytest.raises(AssertionError, match="relative error"):
        assert_close(scale * (1 + 1e-5), scale, 2e-6)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (129, 133)], ids=str)
def test_a_tile_of_few_values_may_round_one_the_other_way(shape):
    """A step of bfloat16 is up to 2^-7 of a value: more than the bound of a tile of one."""
    y = torch.full(shape, 1.0).bfloat16()
    other = y.clone()
    other[-1, -1] += 2**-7
    assert_close(other, y, BF16_ERROR)
    with pytest.raises(AssertionError, match="relative error"):
        assert_close(other, y, 0.0)
    other[-1, -5:] = 1 + 2**-6  # two steps each
    with pytest.raises(AssertionError, match="relative error"):
        assert_close(other, y, BF16_ERROR)


def test_the_reference_rounds_alike_on_every_device():
    """Divisions by tensors: divided by a number, CUDA's torch multiplies with its reciprocal."""
    x = torch.randn(200, 512).bfloat16()
    q, scale = ops.quantize_fp8.reference(x, "row")
    assert torch.equal(scale, (x.float().abs().amax(-1).double() / 448).float())
    wanted = x.float() * (1 / scale.double()).float()[:, None]
    assert torch.equal(q.float(), wanted.to(FP8).float())


compiled = pytest.mark.skipif(not STATUS.loaded, reason="no compiled kernels: run `make build`")


@compiled
def test_launches_are_listed_and_not_run():
    """Of 40 GB of weights, too: nobody touches them."""
    weight = torch.empty(129, 30_000, 5120, dtype=torch.bfloat16, device="meta")
    offsets = torch.empty(130, dtype=torch.int32, device="meta")
    x = torch.empty(16, 5120, dtype=torch.bfloat16, device="meta")
    (launch,) = launches_of("gemm", x, weight, expert_offsets=offsets, sms=78)
    assert launch.grid == (78, 1, 1) and launch.dependent
    assert "stream_gemm_kernel" in launch.kernel and 64 << 10 < launch.shared_bytes <= 227 << 10
    small = torch.randn(3, 16).bfloat16()
    with emulated() as control:  # afterwards kernels run again
        control.reset()
        assert_close(ops.silu_mul(small), ops.silu_mul.reference(small), SUM_ERROR)
        assert sum(k["launches"] for k in control.counters().values()) == 1


@compiled
def test_what_cannot_be_launched_cannot_be_listed():
    with pytest.raises(ValueError, match="quantize_int4 has no kernel of its own: "):
        launches_of("quantize_int4", torch.empty(4, 128))
    with pytest.raises(RuntimeError, match=r"gemm: expected the rows of a to be"):
        launches_of("gemm", torch.empty(4, 12).bfloat16(), torch.empty(8, 12).bfloat16())
