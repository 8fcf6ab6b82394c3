"""flash_decode_append in the emulator beyond its cases and edges: batches drawn at random, far
pages, traffic."""

import random

import pytest
import torch

from bench.checks.appended import new_tokens
from bench.checks.edges_append import SCALE, rules
from bench.checks.inputs import FP8, I32, Maker
from bench.checks.kernel_checks import device_error
from bench.checks.machine import Machine
from l4kernels import STATUS
from l4kernels.bench.counters import count
from l4kernels.bench.shapes import calls
from l4kernels.ops import flash_decode_append
from l4kernels.testing import assert_close, emulated

pytestmark = pytest.mark.skipif(
    "flash_decode_append" not in STATUS.kernels, reason=STATUS.reason or "no kernel"
)


@pytest.mark.parametrize("seed", range(8))
def test_batches_drawn_at_random(seed):
    draw = random.Random(seed)
    pick, machine = draw.choice, Machine()
    chunk, page = pick([0, 1, 3, 16, 64, 100, 128]), pick([16, 32, 48, 80, 128, 256])
    group, tokens, kv_heads = pick([1, 2, 4, 5, 8, 16]), pick([1, 2, 5, 16]), pick([1, 2])
    lengths = [pick([0, 1, tokens, draw.randrange(400), draw.randrange(1500)]) for _ in range(3)]
    cache, heads = (torch.bfloat16, FP8)[seed % 2], (group * kv_heads, kv_heads)
    args = new_tokens(Maker("cpu", torch.bfloat16, seed), lengths, tokens, heads, cache, page)
    options = {"tokens": tokens, "chunk": chunk, **SCALE, **rules(machine, heads[0])[seed % 3]}
    mine, theirs = ([t.clone() for t in args] for _ in range(2))
    mode, sms = ("late", "early", "random")[seed % 3], pick([1, 2, 4, 7, 16])
    with emulated(mode=mode, seed=seed, sms=sms):
        got = flash_decode_append(*mine, **options)
    expected = flash_decode_append.reference(*theirs, **options)
    assert device_error() == ""
    assert_close(got.out, expected.out, 3e-3)
    assert_close(got.lse, expected.lse, 1e-4)
    for a, b in zip(mine[3:5], theirs[3:5], strict=True):
        assert_close(a.float().nan_to_num(9), b.float().nan_to_num(9), 3e-3)


@pytest.mark.parametrize("cache", [torch.bfloat16, FP8], ids=str)
def test_pages_behind_2_gi_elements(cache):
    """A sparse cache, of which a few pages exist."""
    args = new_tokens(Maker("cpu", torch.bfloat16, 5), [600], 1, (5, 1), cache, 256)
    far = [torch.empty(1 << 17, 256, 1, 128, dtype=cache) for _ in "kv"]
    pages = torch.tensor([[131_071, 70_000, 100_001]])
    for source, target in zip(args[3:5], far, strict=True):
        target.view(torch.uint8)[pages[0]] = source.view(torch.uint8)[args[6][0, :3].long()]
    place = pages[:, 599 // 256] * 256 + 599 % 256
    options = {"num_heads": 5, **SCALE}
    with emulated():
        got = flash_decode_append(*args[:2], place, *far, args[5], pages.to(I32), **options)
    assert_close(got, flash_decode_append.reference(*args, **options), 3e-3)
    for t, near in zip(far, args[3:5], strict=True):
        assert_close(t.flatten(0, 1)[place], near.flatten(0, 1)[args[2]], 3e-3)


def test_ten_million_tokens_in_a_ring_of_pages():
    """Pages hold the last chunk and the one before; the new key begins a chunk, or is in one."""
    edge, page, ring = 10_485_760, 256, 64
    machine = Machine()
    rule = rules(machine, 5)[0]
    k, v = (machine.make.randn(ring, page, 1, 128) for _ in "kv")
    table = (torch.arange(edge // page + 1) % ring).to(I32).expand(2, -1)
    at = torch.tensor([edge, edge - 1])
    where = at, at // page % ring * page + at % page
    args = [machine.make.randn(2, 7 * 128), *where, k, v, (at + 1).to(I32), table]
    mine, theirs = ([t.clone() for t in args] for _ in range(2))
    with emulated(sms=5):
        got = flash_decode_append(*mine, chunk=8192, **SCALE, **rule)
    expected = flash_decode_append.reference(*theirs, chunk=8192, **SCALE, **rule)
    assert device_error() == ""
    assert_close((*got, *mine[3:5]), (*expected, *theirs[3:5]), 3e-3)


@pytest.mark.parametrize("cache", [torch.bfloat16, FP8], ids=str)
def test_keys_and_values_move_once_and_without_conflicts(cache):
    """Over 4096 keys, so that the partial results and half sectors are small beside them."""
    args = new_tokens(Maker("cpu", torch.bfloat16, 5), [4096], 1, (10, 2), cache)
    for rule in rules(Machine(), 10)[1:]:
        c = count("flash_decode_append", tuple(args), {**SCALE, **rule})
        assert c.touched_bytes <= 1.05 * c.needed_bytes, str(c)
        assert c.bank_conflicts == 0 and c.launches == 2, str(c)  # the first plans


def test_the_calls_that_are_timed_are_right():
    for call in calls("flash_decode_append", ("demo",), ("decode",), {"decode": (200,)}):
        with emulated():  # one of them has a plan, which is for this machine's grid
            args, options = call.make("cpu")
            theirs = tuple(t.clone() for t in args)
            got = flash_decode_append(*args, **options)
        assert device_error() == ""
        assert_close(got.out, flash_decode_append.reference(*theirs, **options).out, 3e-3)
