"""The ops around the model at their edges: for the emulator and for a GPU."""

from typing import Any

import torch
from torch import Tensor

import l4kernels
from bench.checks.edges_sample import sampling
from bench.checks.inputs import I32
from bench.checks.kernel_checks import same_bits
from bench.checks.machine import Machine, edge
from l4kernels import ops
from l4kernels.ops.step import IDLE, LENGTH, RUNNING, STOP, words


def processing(m: Machine, batch: int, vocab: int) -> list[Tensor]:
    """Arguments of process_logits after the logits: all that there is, every row another."""
    masks = [m.make.integers(batch, words(vocab), low=-(2**31), high=2**31) for _ in "as"]
    counts = [m.make.integers(batch, high=3, dtype=torch.int64) for _ in "gm"]
    tally = m.make.integers(batch, vocab, low=-9, high=7).clamp(min=0)
    factors = [m.make.uniform(batch, low=low, high=2) for low in (0.5, -2, -2)]
    return [
        tally, m.make.randn(batch, vocab, dtype=torch.float32), *masks, *counts, *factors,
        m.make.integers(batch, high=4),
    ]  # fmt: skip


def state(m: Machine, batch: int, vocab: int, kinds: int = 2, page: int = 4) -> dict[str, Any]:
    """Arguments of advance_step but the tokens: most rows with a request, each at another place."""
    place = m.make.integers(batch, high=7 * page, dtype=torch.int64)
    place[::5] = -1
    columns = 8
    return {
        "ids": m.make.integers(batch, high=vocab, dtype=torch.int64),
        "positions": place.clamp(min=0),
        "seqlens_k": (place + 1).to(I32),
        "generated": m.make.integers(batch, high=9, dtype=torch.int64),
        "max_tokens": m.make.integers(batch, low=5, high=14, dtype=torch.int64),
        "stop_bits": m.make.integers(batch, words(vocab), high=2**31) & 0x01010101,
        "slots": m.make.integers(kinds, batch, low=-1, high=99, dtype=torch.int64),
        "block_tables": m.make.permutation(kinds * batch * columns).view(kinds, batch, columns),
        "results": torch.full((2, batch), 77, device=m.device),
        "page_size": page,
        "tally": m.make.integers(batch, vocab, high=3),
        "feature_rows": m.make.integers(batch, low=-1, high=3),
    }


def advanced(t: dict[str, Any], sampled: Tensor, order: Tensor) -> tuple[Tensor, ...]:
    """The state of rows in this order after a step, a row of each result for a row of it."""
    across = "slots", "block_tables", "results"
    own = {
        n: v if n == "page_size" else v[:, order] if n in across else v[order] for n, v in t.items()
    }
    ops.advance_step(sampled[order], **own)
    return tuple(
        torch.stack(v.unbind(1)) if n in across else v for n, v in own.items() if n != "page_size"
    )


@edge
def steps_of_dependent_launches(m: Machine) -> None:
    """Embed, process, sample, advance, over and over: ids, tallies and counts feed back, and no
    launch reads ahead of another. The embeddings are the logits."""
    batch, vocab, steps = 9, 256, 6
    weight, options = m.make.randn(vocab, vocab, scale=3), processing(m, batch, vocab)
    options[2].fill_(-1)  # all allowed
    given = state(m, batch, vocab)
    greedy = [t.to(m.device) for t in sampling(batch, temperature=0.0)]

    def run() -> dict[str, Any]:
        t = {n: v.clone() if isinstance(v, Tensor) else v for n, v in given.items()}
        results = torch.zeros(steps, 2, batch, dtype=torch.int64, device=m.device)
        for step in range(steps):
            logits = ops.embed(t["ids"], weight)
            processed = ops.process_logits(
                logits, t["tally"], options[1], options[2], t["stop_bits"], t["generated"],
                *options[5:],
            )  # fmt: skip
            ops.advance_step(ops.sample(processed, *greedy).ids, **t | {"results": results[step]})
        return t | {"results": results}

    with l4kernels.reference():
        expected = run()
    assert {RUNNING, STOP, LENGTH, IDLE} <= {*expected["results"][:, 1].flatten().tolist()}
    for mode in ("late", "early", "random"):
        with m.dispatch(mode=mode, seed=5, sms=2), m.chained():
            got = run()
        for name, wanted in expected.items():
            assert name == "page_size" or same_bits(got[name], wanted), f"{mode}: {name}"


@edge
def logits_of_any_width_and_alignment(m: Machine) -> None:
    """Whole vectors, a tail of every length, rows that begin anywhere, more than a tile."""
    for vocab in (1, 7, 8, 9, 31, 33, 1023, 1024, 1031, 2052):
        for dtype in (torch.float32, torch.bfloat16):
            options = processing(m, 3, vocab)
            options[-1][0] = 1
            for first in (0, 1, 8):
                wide = m.make.randn(3, vocab + 16, scale=3, dtype=dtype)
                logits = wide[:, first : first + vocab]
                with m.dispatch(sms=1):
                    got = ops.process_logits(logits, *options)
                expected = ops.process_logits.reference(logits, *options)
                assert same_bits(got, expected), f"{vocab} from {first}, {dtype}"


@edge
def penalties_that_are_no_numbers(m: Machine) -> None:
    """Infinities and NaN anywhere give what the reference gives, and no other row."""
    inf, nan = float("inf"), float("nan")
    values = torch.tensor([0.0, -0.0, 1.0, -1.0, inf, -inf, nan, 3e38], device=m.device)
    vocab = len(values) ** 2
    logits, bias = values.repeat_interleave(len(values)), values.repeat(len(values))
    for place in (6, 7, 8):
        options = processing(m, len(values), vocab)
        options[1], options[2] = bias.repeat(len(values), 1), options[2] | -(2**31)
        options[place], options[-1] = values, torch.ones_like(options[-1])
        arguments = logits.repeat(len(values), 1), *options
        with m.dispatch():
            got = ops.process_logits(*arguments)
        expected = ops.process_logits.reference(*arguments)
        assert torch.equal(got.isnan(), expected.isnan())
        assert torch.equal(got.nan_to_num(7), expected.nan_to_num(7))


@edge
def rows_of_a_step_end_for_every_reason(m: Machine) -> None:
    """Every token of a small vocabulary and those beside it, at every kind of place; with many
    kinds of layers, and more rows than a CTA."""
    vocab, page = 40, 4
    tokens = [-(2**63), -1, *range(vocab + 1), 64, 2**31, 2**63 - 1]
    for kinds in (1, 2, 4, 5, 9):
        for tally in (False, True):
            t = state(m, 3 * len(tokens), vocab, kinds, page)
            if not tally:
                t["tally"] = t["feature_rows"] = None
            t["block_tables"][:, ::7] = -1
            t["positions"][1::9] = 2**40
            sampled = m.ids(*(3 * tokens))
            t = {n: v for n, v in t.items() if v is not None}
            stay = torch.arange(len(sampled), device=m.device)
            with m.dispatch(mode="random", seed=kinds):
                got = advanced(t, sampled, stay)
            with l4kernels.reference():
                expected = advanced(t, sampled, stay)
            assert all(same_bits(a, b) for a, b in zip(got, expected, strict=True))
