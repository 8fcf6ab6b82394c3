"""Decoding in one launch at its edges, for the emulator and for a GPU: the bits of the two launches
that it stands for, wherever new tokens lie."""

from typing import Any

import torch
from torch import Tensor

from bench.checks.appended import new_tokens
from bench.checks.inputs import FP8
from bench.checks.kernel_checks import same_bits
from bench.checks.machine import Machine, edge
from l4kernels import ops
from l4kernels.testing import assert_close

SCALE = {"softmax_scale": 128**-0.5}
CACHES = (torch.bfloat16, FP8)


def two_launches(args: list[Tensor], tokens: int, rule: dict[str, Any], **options: Any) -> Any:
    scales = {name: options[name] for name in ("k_scale", "v_scale") if name in options}
    q = ops.rope_cache(*args[:5], **rule, **scales).unflatten(0, (-1, tokens))
    return ops.flash_decode(q, *args[3:], **options)


def rules(m: Machine, num_heads: int) -> list[dict[str, Any]]:
    """Of a chunked layer of Scout and of Maverick, and of a global one."""
    table = ops.rope_table(100, theta=500000.0).to(m.device)
    return [
        {"num_heads": num_heads, "cos_sin": table, "qk_norm_eps": 1e-5},
        {"num_heads": num_heads, "cos_sin": table},
        {"num_heads": num_heads, "attn_scale": 0.1, "floor_scale": 16},
    ]


def same_as_two(
    m: Machine, args: list[Tensor], tokens: int, rule: dict[str, Any], **options: Any
) -> None:
    """Results and caches, bit for bit."""
    mine, theirs = ([t.clone() for t in args] for _ in range(2))
    with m.dispatch(sms=5, perturb=False):
        got = ops.flash_decode_append(*mine, tokens=tokens, **rule, **options)
        expected = two_launches(theirs, tokens, rule, **options)
    assert m.error() == ""
    for a, b in zip((*got, *mine[3:5]), (*expected, *theirs[3:5]), strict=True):
        assert same_bits(a, b)


@edge
def appending_has_the_bits_of_two_launches(m: Machine) -> None:
    """Tiles of 128 keys, splits and chunks that end inside, before and after the new tokens; idle
    sequences; one q head for a KV head and up to 16; each kind of layer."""
    for tokens, lengths, chunk, (heads, kv_heads), kind in (
        (1, [1, 0, 127, 128, 129, 700, 257], 0, (5, 1), 2),
        (1, [64, 65, 128, 1, 0, 129, 192], 64, (10, 2), 0),
        (1, [127, 128, 129], 0, (2, 2), 1),
        (3, [3, 130, 65, 2, 0, 129, 300], 64, (5, 1), 0),
        (4, [129, 300], 0, (16, 1), 1),
        (16, [16, 135, 0, 900], 0, (16, 1), 2),
    ):
        rule = rules(m, heads)[kind]
        for cache in CACHES:
            args = new_tokens(m.make, lengths, tokens, (heads, kv_heads), cache)
            options: dict[str, Any] = {**SCALE, "chunk": chunk}
            if cache == FP8 and chunk:
                scales = (m.make.uniform(kv_heads, low=0.5, high=2) for _ in "kv")
                options |= zip(("k_scale", "v_scale"), scales, strict=True)
            same_as_two(m, args, tokens, rule, **options)


@edge
def appending_at_far_positions(m: Machine) -> None:
    far = (0, 8190, 8191, 8192, 2**20, 10 * 2**20 - 1, 2**32 + 5, 2**62)
    for cache in CACHES:
        for rule in rules(m, 2):
            args = new_tokens(m.make, [40] * len(far), 1, (2, 1), cache)
            args[1] = m.ids(*far)
            same_as_two(m, args, 1, rule, **SCALE)


@edge
def appending_leaves_cached_keys_alone(m: Machine) -> None:
    """Slot -1: the key is where the block table says, from an earlier launch."""
    for cache in CACHES:
        args = new_tokens(m.make, [135, 20, 0], 4, (10, 2), cache)
        for t in args[3:5]:
            t.copy_(m.make.randn(*t.shape).to(cache))
        for some in ([0, 1, 4, 6], list(range(12))):
            args[2][some] = -1
            same_as_two(m, args, 4, rules(m, 10)[0], chunk=100, **SCALE)


@edge
def appending_a_bad_token_zeroes_its_sequence_and_no_other(m: Machine) -> None:
    for cache in CACHES:
        args = new_tokens(m.make, [300, 150, 33], 2, (10, 2), cache)
        rule = rules(m, 10)[0]
        theirs = [t.clone() for t in args]
        expected = ops.flash_decode_append.reference(*theirs, tokens=2, **rule, **SCALE)
        for which, at, wrong in ((1, 3, -1), (2, 3, 0), (2, 2, -2), (2, 3, 2**40), (6, 1, 2**20)):
            mine = [t.clone() for t in args]
            if which == 6:
                mine[6][1, 149 // 16] = wrong  # the page of the new keys
            else:
                mine[which][at] = wrong
            with m.dispatch(sms=7):
                out, lse = ops.flash_decode_append(*mine, tokens=2, **rule, **SCALE)
            name = {1: "positions", 2: "slot_mapping", 6: "block_table"}[which]
            assert m.error() == f"flash_decode: {name}"
            assert not out[1].any() and (lse[1] == -torch.inf).all()
            assert_close((out[::2], lse[::2]), (expected.out[::2], expected.lse[::2]), 3e-3)
            # Of the caches, what good tokens wrote is theirs, and nothing else has changed.
            slots = args[2].tolist()
            bad = slots.pop(3 if which == 6 else at)
            bad_pair = {bad, slots.pop(2)}
            for got, wanted, before in zip(mine[3:5], theirs[3:5], args[3:5], strict=True):
                got, wanted, before = (t.flatten(0, 1) for t in (got, wanted, before))
                assert_close(got[slots], wanted[slots], 3e-3)
                touched = {*slots, *bad_pair}
                others = [slot for slot in range(len(got)) if slot not in touched]
                assert same_bits(got[others], before[others])
                assert same_bits(got[bad], before[bad])


@edge
def appending_has_the_same_bits_at_any_place_of_a_batch(m: Machine) -> None:
    lengths = [700, 3, 129, 0, 64, 700]
    args = new_tokens(m.make, lengths, 2, (10, 2), FP8)
    rule = rules(m, 10)[0]
    order = m.make.permutation(len(lengths)).long()
    rows = (2 * order[:, None] + torch.arange(2, device=m.device)).flatten()
    moved = [t.clone() for t in args]
    for i in (0, 1, 2):
        moved[i] = moved[i][rows].contiguous()
    for i in (5, 6):
        moved[i] = moved[i][order].contiguous()
    with m.dispatch(sms=5, perturb=False):
        whole = ops.flash_decode_append(*args, tokens=2, **rule, **SCALE)
        again = ops.flash_decode_append(*moved, tokens=2, **rule, **SCALE)
    for a, b in zip(whole, again, strict=True):
        assert same_bits(a[order], b)
    assert all(same_bits(a, b) for a, b in zip(args[3:5], moved[3:5], strict=True))


@edge
def steps_of_appending_in_dependent_launches(m: Machine) -> None:
    """Each reads what those before it have appended, over the edge of a tile and a chunk."""
    for cache, mode in ((torch.bfloat16, "late"), (FP8, "early"), (torch.bfloat16, "random")):
        last = new_tokens(m.make, [131, 68, 0], 1, (10, 2), cache)
        rule = rules(m, 10)[0]
        options = {**SCALE, "chunk": 64}
        steps = []
        for back in range(5, -1, -1):
            lengths = (last[5] - back).clamp(min=0)
            keys = (lengths - 1).clamp(min=0).long()
            pages = last[6].gather(1, keys[:, None] // 16)[:, 0].long()
            slots = torch.where(lengths > 0, pages * 16 + keys % 16, -1)
            qkv = m.make.randn(*last[0].shape)
            steps.append((qkv, keys, slots, lengths))
        mine, theirs = ([t.clone() for t in last[3:5]] for _ in range(2))
        for caches in (mine, theirs):  # what earlier steps left
            for t in caches:
                t.copy_(t.float().nan_to_num(0.5).to(cache))
        with m.dispatch(mode=mode, seed=5, sms=4), m.chained():
            got = [
                ops.flash_decode_append(q, at, s, *mine, n, last[6], **rule, **options)
                for q, at, s, n in steps
            ]
        assert m.error() == ""
        for (q, at, s, n), result in zip(steps, got, strict=True):
            expected = ops.flash_decode_append.reference(
                q, at, s, *theirs, n, last[6], **rule, **options
            )
            assert_close(result, expected, 3e-3)
        assert_close(tuple(mine), tuple(theirs), 3e-3)
