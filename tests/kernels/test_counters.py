"""What the emulator counts: every byte once from memory, no bank conflicts, as few launches."""

import pytest
import torch

from l4kernels import STATUS
from l4kernels.bench.counters import count
from l4kernels.bench.shapes import SIZES, benchmarked_ops, calls
from l4kernels.testing.emulator import launches_of

TOKENS = 48
OWN_TESTS = {
    "advance_step", "embed", "moe_route", "moe_router", "process_logits", "sample", *SIZES,
}  # fmt: skip
BOTH = ("scout", "maverick")
STREAMING = sorted(set(benchmarked_ops()) & set(STATUS.kernels) - OWN_TESTS)


TILES = {
    "rms_norm": 1, "add_rms_norm": 1, "rms_norm_fp8": 1, "silu_mul": 4, "silu_mul_fp8": 1,
    "quantize_fp8": 1, "moe_permute": 2, "moe_permute_fp8": 2, "moe_combine": 1,
    "moe_combine_norm": 1, "moe_combine_norm_fp8": 1,
}  # fmt: skip
"""What a token of Scout is cut into by kernels whose CTAs go round, each its own tiles."""


def counters(op: str, tokens: int = TOKENS):
    for call in calls(op, ("scout",), ("decode",), {"decode": (tokens,)}):
        args, kwargs = call.make("cpu")
        yield call.key, count(op, args, kwargs)


@pytest.mark.parametrize("op", STREAMING)
def test_streaming_kernels_touch_what_they_need_and_no_more(op):
    for key, c in counters(op):
        assert c.touched_bytes <= 1.05 * c.needed_bytes, f"{key}: {c}"
        assert c.bank_conflicts == 0 and c.launches == 1, f"{key}: {c}"


@pytest.mark.parametrize("op", TILES)
def test_rows_of_1024_tokens_fill_their_waves(op):
    """docs/model.md has the table."""
    tiles = 1024 * TILES[op]
    for call in calls(op, ("scout",), ("decode",), {"decode": (1024,)}):
        args, kwargs = call.make("meta")
        (launch,) = launches_of(op, *args, **kwargs)
        filled = tiles / (-(-tiles // launch.grid[0]) * launch.grid[0])
        assert filled >= (0.96 if "rms_norm" in op else 0.85), (call.key, launch.grid)


def test_embedding_reads_the_rows_it_needs():
    ids = torch.tensor([5, 999, 0, 17, 5])
    c = count("embed", (ids, torch.randn(1000, 5120).bfloat16()), {})
    assert c.touched_bytes <= 1.05 * c.needed_bytes and c.launches == 1, str(c)


def test_routing_is_one_launch_up_to_64_tokens_and_two_beyond():
    for tokens, launches in ((1, 1), (64, 1), (65, 2)):
        for key, c in counters("moe_route", tokens):
            assert c.launches == launches, f"{key}: {c}"
            # Its arrays are so short that sectors cut in half are counted whole. What was chosen
            # is read again, with the shared expert's in between, and the counts of a first launch.
            again = 16 * tokens + (launches - 1) * 1024
            assert c.touched_bytes <= c.needed_bytes + 12 * 32 + again, f"{key}: {c}"


def test_the_router_is_one_launch_that_leaves_a_logit_for_each_slice():
    for tokens, models in ((1, BOTH), (8, BOTH), (64, BOTH), (300, ("scout",))):
        sizes = {"decode": (tokens,)}
        for call in calls("moe_router", models, ("decode",), sizes):
            args, kwargs = call.make("cpu")
            c, experts = count("moe_router", args, kwargs, sms=132), args[3]
            assert c.launches == 1, f"{call.key}: {c}"
            # Partial logits of eight slices, written and read; sectors cut in half.
            again = 2 * 8 * tokens * experts * 4 + 12 * 32 + 16 * tokens
            assert c.touched_bytes <= c.needed_bytes + again, f"{call.key}: {c}"
            # Counters of experts lie in the banks that the choices say.
            assert c.bank_conflicts < tokens, f"{call.key}: {c}"


def test_sampling_reads_the_logits_once():
    for key, c in counters("sample", 1):
        assert c.touched_bytes <= 1.05 * c.needed_bytes and c.launches == 1, f"{key}: {c}"


def test_logits_are_processed_in_one_pass():
    for key, c in counters("process_logits", 1):
        assert c.touched_bytes <= 1.05 * c.needed_bytes and c.launches == 1, f"{key}: {c}"
        # Beyond the sectors of the tables each warp asks for its row's settings.
        assert c.requested_bytes <= 1.15 * c.needed_bytes, f"{key}: {c}"


def test_a_row_that_is_not_processed_costs_its_copy():
    (call,) = calls("process_logits", ("scout",), ("decode",), {"decode": (1,)})
    args, kwargs = call.make("cpu")
    args[-1].zero_()
    c = count("process_logits", args, kwargs)
    assert c.needed_bytes < 9 * args[0].numel() and c.touched_bytes <= 1.05 * c.needed_bytes, str(c)


def test_a_step_is_advanced_in_one_launch():
    for tokens in (1, 64):
        for key, c in counters("advance_step", tokens):
            # A row of it touches a stop word, two pages and a tally, each in a sector of its own;
            # arrays of one element are a sector, too.
            assert c.launches == 1, f"{key}: {c}"
            assert c.touched_bytes <= c.needed_bytes + tokens * 5 * 32 + 18 * 32, f"{key}: {c}"
