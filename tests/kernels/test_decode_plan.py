"""Plans of decoding in the emulator: what calls share, what a fence lets them read early, and plans
that are another call's or nobody's."""

import contextlib
import math
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.checks.appended import new_tokens
from bench.checks.inputs import FP8, I32, Maker
from bench.checks.kernel_checks import device_error, same_bits
from l4kernels import STATUS, ops
from l4kernels.ops.decode_plan import PLAN_WORDS
from l4kernels.testing import assert_close, chained, emulated

pytestmark = pytest.mark.skipif(not STATUS.loaded, reason="no compiled kernels: run `make build`")
HEADS, KV_HEADS, TOKENS, PAGE = 10, 2, 2, 16
RULE: dict[str, Any] = {"num_heads": HEADS, "tokens": TOKENS, "softmax_scale": 0.1}
LENGTHS = [700, 3, 129, 0]


def step(
    cache: torch.dtype = torch.bfloat16, chunk: int = 0
) -> tuple[list[Tensor], dict[str, Any]]:
    make = Maker("cpu", torch.bfloat16, 5)
    args = new_tokens(make, LENGTHS, TOKENS, (HEADS, KV_HEADS), cache, PAGE)
    return args, RULE | {"chunk": chunk}


def plan_of(args: list[Tensor], **changed: Any) -> Tensor:
    shape = {"num_heads": HEADS, "kv_heads": KV_HEADS, "tokens": TOKENS, "chunk": 0}
    shape["capacity"] = args[6].shape[1] * PAGE
    return ops.flash_decode_plan(args[5], **shape | changed)


def append(args: list[Tensor], options: dict[str, Any], **more: Any) -> list[Tensor]:
    own = [t.clone() for t in args]
    return [*ops.flash_decode_append(*own, **options, **more), *own[3:5]]


@pytest.mark.parametrize("cache", [torch.bfloat16, FP8], ids=str)
@pytest.mark.parametrize("chunk", [0, 64])
def test_a_plan_changes_no_bit_and_serves_again(cache, chunk):
    args, options = step(cache, chunk)
    with emulated(sms=5, perturb=False):
        alone = append(args, options)
        plan = plan_of(args, chunk=chunk)
        before = plan.clone()
        for settled in (False, True):
            got = append(args, options, plan=plan, settled=settled)
            assert all(map(same_bits, got, alone))
    assert same_bits(plan, before)  # its counters are 0 again
    assert device_error() == ""


def layers(args: list[Tensor], options: dict[str, Any]) -> list[Tensor]:
    """A step as the engine makes it: plan, embedding, and two layers that attend."""
    plan = plan_of(args)
    ids, weight = torch.arange(8), torch.ones(args[0].shape[1], dtype=torch.bfloat16)
    x = ops.embed(ids, args[0])
    qkv = ops.rms_norm(x, weight)
    out, _ = ops.flash_decode_append(qkv, *args[1:], **options, plan=plan, settled=True)
    again = ops.flash_decode(
        out, *args[3:], softmax_scale=options["softmax_scale"], plan=plan, settled=True
    )
    return [out, *again, plan, ids, weight, x, qkv]  # kept until the launches have ended


@pytest.mark.parametrize("mode", ["late", "early", "random"])
def test_behind_a_fence_old_keys_are_read_before_the_wait(mode):
    args, options = step()
    expected = layers([t.clone() for t in args], options)
    with emulated(mode=mode, seed=3, sms=4), chained():
        got = layers(args, options)
    for a, b in zip(got[:3], expected[:3], strict=True):
        assert_close(a, b, 6e-3)
    assert device_error() == ""


@pytest.mark.parametrize("streams", [0, 1])
def test_a_plan_that_no_fence_follows_is_reported(streams):
    """As what it is, whatever else the program has: other streams are compared in another way."""
    args, options = step()
    race = pytest.raises(RuntimeError, match="dependency-race")
    with race, emulated(mode="late", seed=3, sms=4) as control, chained():
        for _ in range(streams):
            control.create_stream()
        plan = plan_of(args)
        ops.flash_decode_append(*args, **options, plan=plan, settled=True)


WRONG = {
    "heads": lambda args: plan_of(args, kv_heads=1),
    "tokens": lambda args: plan_of(args, tokens=1),
    "chunk": lambda args: plan_of(args, chunk=64),
    "capacity": lambda args: plan_of(args, capacity=args[6].shape[1] * PAGE + 16),
    "nothing": lambda args: torch.zeros_like(plan_of(args)),
    "lengths": lambda args: plan_of([*args[:5], args[5] - 1, args[6]]),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_another_calls_plan_gives_nothing_and_a_report(wrong):
    args, options = step()
    with pytest.raises(IndexError, match="flash_decode_append: expected plan to be"):
        append(args, options, plan=WRONG[wrong](args))
    with emulated(sms=5):
        out, lse, k, v = append(args, options, plan=WRONG[wrong](args))
    assert device_error() == "flash_decode: plan"
    assert not out.any() and (lse == -math.inf).all()
    if wrong != "lengths":
        assert same_bits(k, args[3]) and same_bits(v, args[4])


def test_a_plan_for_another_grid_is_another_calls():
    args, options = step()
    with emulated(sms=5):
        plan = plan_of(args)
    with emulated(sms=4):
        out, *_ = append(args, options, plan=plan)
    assert device_error() == "flash_decode: plan" and not out.any()


@pytest.mark.parametrize("seed", range(12))
def test_no_contents_of_a_plan_lead_out_of_memory_or_into_an_endless_wait(seed):
    """The header is right, the rest is not: words of anything, small ones, other places."""
    draw = random.Random(seed)
    args, options = step((torch.bfloat16, FP8)[seed % 2])
    mode = ("late", "random")[seed % 2]
    with emulated(mode=mode, seed=seed, sms=5, stop="never", print=0) as control:
        control.reset()
        plan = plan_of(args)
        places = plan[16 : 16 + 5 * 16].view(5, 16)
        for place in places:
            for word in draw.sample(range(15), draw.choice([1, 3, 15])):
                small = draw.randrange(-1, 20)
                place[word] = draw.choice([small, small, draw.randrange(-(2**31), 2**31)])
        if seed % 3 == 0:
            places.copy_(places[torch.randperm(5)])
        plan[PLAN_WORDS:] = torch.tensor(draw.choices([0, 5, 900, -1, 2**31 - 1], k=4), dtype=I32)
        with contextlib.suppress(RuntimeError):  # reports of the races
            append(args, options, plan=plan, settled=True)
        found = {report["kind"] for report in control.reports()}
        control.reset()
    device_error()
    # Two CTAs may do one split, and nobody another.
    assert found <= {"stale-global-read", "global-race", "same-value-race"}


def test_the_binding_refuses_what_is_no_plan():
    args, options = step()
    right = plan_of(args)
    for plan in (right[:-1], right.long(), right[None], torch.cat([right, right])[::2]):
        refusal = pytest.raises((ValueError, TypeError), match="flash_decode_append: expected plan")
        with refusal, emulated(sms=5):
            append(args, options, plan=plan)
