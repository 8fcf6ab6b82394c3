"""The sampler at its edges: for the emulator and for a GPU."""

import torch
from torch import Tensor

from bench.checks.inputs import I32
from bench.checks.machine import Machine, edge
from l4kernels import ops
from l4kernels.testing import assert_close


def sampling(
    batch: int,
    temperature: float = 1.0,
    top_k: float = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    rows: Tensor | None = None,
) -> list[Tensor]:
    """The sampler's arguments after the logits; a row's seed and counter are those of its number
    in `rows`."""
    rows = torch.arange(batch) if rows is None else rows
    floats = (torch.full_like(rows, v, dtype=torch.float32) for v in (temperature, top_p, min_p))
    heat, nucleus, least = floats
    best = torch.full_like(rows, top_k, dtype=I32)
    return [heat, best, nucleus, least, rows * 7 + 2**40, rows * 3 + 2**33]


SAMPLING = (
    {},
    {"top_k": 7},
    {"top_p": 0.5},
    {"top_p": 0.95, "temperature": 3.0},
    {"min_p": 0.1},
    {"top_k": 40, "top_p": 0.8, "min_p": 0.01, "temperature": 0.6},
    {"top_k": 300, "top_p": 0.999},
    {"temperature": 0.0},
)


@edge
def sampling_draws_the_reference_token(m: Machine) -> None:
    for options in SAMPLING:
        for dtype in (torch.float32, torch.bfloat16):
            logits = m.make.randn(4, 1000, scale=2, dtype=dtype)
            logits[3] = logits[3].round()  # many ties
            arguments = (logits, *(t.to(m.device) for t in sampling(4, **options)))
            with m.dispatch(mode="random"):
                got = ops.sample(*arguments, top_logprobs=20)
            expected = ops.sample.reference(*arguments, top_logprobs=20)
            assert_close(got, expected, 1e-5, str(options))


VOCABULARIES = 202_048, 300_001, 458_752


@edge
def sampling_from_large_vocabularies(m: Machine) -> None:
    """Llama 4's, one whose rows are not aligned, the largest; the last two need a second round."""
    for vocab in VOCABULARIES:
        for dtype, temperature in ((torch.float32, 0.0), (torch.bfloat16, 0.7)):
            logits = m.make.randn(2, vocab, scale=3, dtype=dtype)
            logits[1, vocab - 1] = 40
            options = sampling(2, temperature=temperature, top_k=500)
            arguments = logits, *(t.to(m.device) for t in options)
            with m.dispatch():
                got = ops.sample(*arguments, top_logprobs=2)
            expected = ops.sample.reference(*arguments, top_logprobs=2)
            assert_close(got, expected, 1e-5, f"{vocab} {dtype}")


DRAWS = {"cpu": 400, "cuda": 1_000_000}


@edge
def sampling_follows_the_softmax(m: Machine) -> None:
    draws = DRAWS[m.device]
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -torch.inf, 1.0, 0.5, -9.0]).repeat(draws, 1)
    rows = (t.to(m.device) for t in sampling(draws, top_k=6, temperature=1.5))
    with m.dispatch():
        ids = ops.sample(logits.to(m.device), *rows).ids.cpu()
    kept = torch.tensor([0, 1, 2, 3, 5, 6])
    expected = (logits[0, kept] / 1.5).softmax(0) * draws
    counts = torch.bincount(ids, minlength=8)
    assert counts.sum() == counts[kept].sum()
    chi_square = ((counts[kept] - expected) ** 2 / expected).sum().item()
    assert chi_square < 20.5  # p = 1e-3 with 5 degrees of freedom


@edge
def a_row_with_nothing_to_draw_gives_no_token(m: Machine) -> None:
    """NaN at every kind of place: in each CTA of the cluster, in whole vectors and at the end."""
    inf, nan, vocab = float("inf"), float("nan"), 1003
    places = (0, 1, 7, 8, 127, 128, 500, 1000, 1002)
    logits = m.make.randn(len(places) + 8, vocab, dtype=torch.float32)
    for row, place in enumerate(places):
        logits[row, place] = nan
    logits[-8], logits[-7], logits[-6, ::2], logits[-6, 1::2] = -inf, nan, -inf, nan
    logits[-5, 3], logits[-5, 900] = inf, nan
    for dtype in (torch.float32, torch.bfloat16):
        for temperature in (0.0, 0.8, inf):
            settings = sampling(len(logits), temperature=temperature, top_p=0.9)
            for row, setting in ((-4, 0), (-3, 2), (-2, 3)):  # temperature, top_p, min_p
                settings[setting][row] = nan
            arguments = logits.to(dtype), *(t.to(m.device) for t in settings)
            with m.dispatch():
                got = ops.sample(*arguments, top_logprobs=2)
            assert got.ids[:-1].tolist() == [-1] * (len(logits) - 1) and got.ids[-1] >= 0
            assert_close(got, ops.sample.reference(*arguments, top_logprobs=2), 1e-5)


TIED = [0.0, 1e-9, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]  # at a high temperature
HOT = 1e38, float("inf")
NONE = float("-inf")
EXTREMES: tuple[tuple[list[float], dict[str, float], set[int]], ...] = (
    # Equals are kept in the order of their ids, so the likeliest token need not be among them.
    *((TIED, {"temperature": t, "top_k": 1}, {0}) for t in HOT),
    *((TIED, {"temperature": t, "top_k": 3}, {0, 1, 2}) for t in HOT),
    *((TIED, {"temperature": t, "top_p": 1e-6}, {0}) for t in HOT),
    *((TIED, {"temperature": t, "top_p": 0.3}, {0, 1, 2}) for t in HOT),
    *((TIED, {"temperature": t, "top_p": 0.0, "min_p": 1.0}, {0}) for t in HOT),
    *((TIED, {"temperature": t, "min_p": 1.0}, set(range(8))) for t in HOT),
    *((TIED, {"temperature": t, "top_k": 1, "top_p": 0.5, "min_p": 1.0}, {0}) for t in HOT),
    # What has no probability is not drawn, however hot.
    *(([0.0, NONE, 1.0], {"temperature": t}, {0, 2}) for t in (1.0, *HOT)),
    *(([0.0, NONE, 1.0], {"temperature": t, "top_k": 3}, {0, 2}) for t in HOT),
    *(([NONE, NONE, 1.0], {"temperature": t, "top_k": 2}, {2}) for t in HOT),
    *(([NONE, 0.0, 0.0], {"temperature": t, "top_p": 1e-6}, {1}) for t in HOT),
    *(([NONE, 0.0, 0.0], {"temperature": t, "min_p": 0.5}, {1, 2}) for t in HOT),
    # The other end: too cold for a second token, and no temperature at all.
    (TIED, {"temperature": 1e-38}, {1}),
    ([0.0, 2.0, 2.0], {"temperature": 1e-45, "top_k": 2}, {1, 2}),
    ([0.0, 2.0, 2.0], {"temperature": 1e-45, "top_p": 0.0}, {1}),
    *((TIED, {"temperature": t, "top_k": 3}, {1}) for t in (-1.0, 0.0)),
)


@edge
def sampling_at_extreme_temperatures(m: Machine) -> None:
    """Where distances between tokens underflow or are infinite; many rows in one call."""
    for sms in (4, 8):
        for row, options, wanted in EXTREMES:
            logits = torch.tensor(row, device=m.device).repeat(32, 1)
            settings = [t.to(m.device) for t in sampling(32, **options)]
            settings[-2][0], settings[-1][0] = 3, 0  # a seed and a counter
            with m.dispatch(sms=sms):
                got = ops.sample(logits, *settings)
            expected = ops.sample.reference(logits, *settings)
            for what, ids in (("kernel", got.ids), ("reference", expected.ids)):
                assert set(ids.tolist()) <= wanted, f"{what} {row} {options}: {ids.tolist()}"
            assert set(expected.ids.tolist()) == wanted, f"{row} {options}: not all are drawn"
            assert_close(got, expected, 1e-5, f"{row} {options} sms={sms}")
