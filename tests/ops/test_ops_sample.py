"""Sampling draws from the right distribution, repeatably."""

import math

import pytest
import torch

from l4kernels import ops
from l4kernels.ops.philox import gumbel_noise, philox4x32
from tests.support import naive_sample


def draw(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=0, counter=0, **options):
    """Scalars go to every row; sequences and tensors are one value per row."""
    batch = logits.shape[0]

    def rows(value, dtype):
        return torch.as_tensor(value, dtype=dtype).expand(batch).contiguous()

    return ops.sample(
        logits,
        rows(temperature, torch.float32),
        rows(top_k, torch.int32),
        rows(top_p, torch.float32),
        rows(min_p, torch.float32),
        rows(seed, torch.int64),
        rows(counter, torch.int64),
        **options,
    )


def chi_square_p(ids, probabilities):
    """Survival function of the chi-square statistic (Wilson and Hilferty's approximation)."""
    expected = probabilities * len(ids)
    assert expected[expected > 0].min() >= 5, "too few draws for the test"
    counts = torch.bincount(ids, minlength=len(expected)).double()
    assert (counts[expected == 0] == 0).all(), "drew a token that cannot be drawn"
    kept = expected > 0
    statistic = ((counts - expected)[kept].square() / expected[kept]).sum().item()
    freedom = int(kept.sum()) - 1
    z = (statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))
    return math.erfc(z / math.sqrt(2 / (9 * freedom)) / math.sqrt(2)) / 2


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.7},
        {"temperature": 2.0, "top_k": 7},
        {"top_p": 0.8},
        {"min_p": 0.2},
        {"temperature": 0.8, "top_k": 12, "top_p": 0.9, "min_p": 0.1},
    ],
    ids=str,
)
def test_draws_follow_the_softmax(options):
    check_draws(options, "seed")


def test_tokens_of_one_request_follow_the_softmax():
    check_draws({"temperature": 0.7}, "counter")


def check_draws(options, vary):
    torch.manual_seed(0)
    logits, draws = torch.randn(20) * 1.5, 100_000
    probabilities = filtered_softmax(logits.tolist(), **options)
    ids = draw(logits.expand(draws, 20), **options, **{vary: torch.arange(draws)}).ids
    assert chi_square_p(ids, probabilities) > 1e-3


def filtered_softmax(row, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    order = sorted(range(len(row)), key=lambda i: -row[i])
    weight = {i: math.exp(row[i] / temperature) for i in order[: top_k or None]}
    total, before, kept = sum(weight.values()), 0.0, {}
    for i, w in weight.items():
        if before <= top_p * total and w >= min_p * max(weight.values()):
            kept[i] = w
        before += w
    return torch.tensor([kept.get(i, 0.0) for i in range(len(row))]).double() / sum(kept.values())


def test_same_seed_same_token_in_any_batch():
    torch.manual_seed(0)
    logits = torch.randn(64, 500)
    seeds, counters = torch.arange(64) * 977, torch.arange(64) * 31
    options = {"temperature": 0.9, "top_k": 40, "top_p": 0.95, "min_p": 0.01}
    together = draw(logits, seed=seeds, counter=counters, **options)
    order = torch.randperm(64)
    shuffled = draw(logits[order], seed=seeds[order], counter=counters[order], **options)
    assert torch.equal(shuffled.ids, together.ids[order])
    for row in range(0, 64, 7):
        alone = draw(
            logits[row : row + 1], seed=int(seeds[row]), counter=int(counters[row]), **options
        )
        assert alone.ids.item() == together.ids[row]
        assert alone.logprobs.item() == together.logprobs[row]


def test_seed_and_counter_both_matter():
    """All 64 bits of each: no two of these rows draw the same sequence of tokens."""
    seeds, counters = torch.cartesian_prod(*[torch.tensor([0, 1, 2**32, -1])] * 2).T
    tokens = draw(torch.zeros(16, 10_000), seed=seeds, counter=counters).ids
    more = draw(torch.zeros(16, 10_000), seed=seeds, counter=counters + 2).ids
    assert len(set(zip(tokens.tolist(), more.tolist(), strict=True))) == 16


def test_greedy_rows_are_exact_beside_drawn_ones():
    logits = torch.randint(0, 3, (50, 40)).float()
    temperature = torch.arange(50) % 2 * 5.0
    ids = draw(logits, temperature, seed=torch.arange(50)).ids
    for row in range(0, 50, 2):
        assert ids[row] == int((logits[row] == logits[row].max()).nonzero()[0])


def test_one_token_is_left():
    """Each filter at its tightest is greedy, and ties go to the lowest id."""
    torch.manual_seed(0)
    logits = torch.randint(0, 4, (200, 30)).float()
    best = draw(logits, 0.0).ids
    seeds = torch.arange(200)
    for options in ({"top_k": 1}, {"top_p": 0.0}, {"top_p": -1.0}, {"top_k": 1, "min_p": 1.0}):
        assert torch.equal(draw(logits, 1.3, seed=seeds, **options).ids, best), options
    equal = logits.gather(1, draw(logits, seed=seeds, min_p=1.0).ids[:, None])
    assert torch.equal(equal.squeeze(1), logits.amax(1))
    assert torch.equal(draw(torch.randn(200, 1), seed=seeds).ids, torch.zeros(200).long())


def test_filters_that_are_off_change_nothing():
    torch.manual_seed(0)
    logits, seeds = torch.randn(200, 50), torch.arange(200)
    plain = draw(logits, seed=seeds).ids
    for options in (
        {"top_k": 50},
        {"top_k": 10**6},
        {"top_k": -1},
        {"top_p": 2.0},
        {"min_p": -1.0},
    ):
        assert torch.equal(draw(logits, seed=seeds, **options).ids, plain), options


def test_the_crossing_token_is_kept():
    logits = torch.tensor([0.5, 0.3, 0.2]).log().expand(2000, 3)
    seeds = torch.arange(2000)
    for top_p, kept in ((0.4, {0}), (0.6, {0, 1}), (0.79, {0, 1}), (0.81, {0, 1, 2})):
        assert set(draw(logits, top_p=top_p, seed=seeds).ids.tolist()) == kept


def test_ties_at_the_edge_of_top_k_are_cut_by_id():
    logits = torch.tensor([1.0, 2.0, 1.0, 1.0]).expand(2000, 4)
    ids = draw(logits, 3.0, top_k=3, seed=torch.arange(2000)).ids
    assert set(ids.tolist()) == {0, 1, 2}


@pytest.mark.parametrize("temperature", [0.0, 1.0, 1e-30, 1e30, math.inf])
def test_extreme_logits(temperature):
    inf = math.inf
    rows = {
        (-inf, -inf, 0.0): {2},
        (0.0, -inf, 1.0): {2} if temperature < 1 else {0, 2},
        (0.0, inf, -inf): {1} if temperature < inf else {0, 1},
        (3e38, -3e38, -inf): {0} if temperature < 1e30 else {0, 1},
    }
    for row, allowed in rows.items():
        got = draw(torch.tensor([row]).expand(50, 3), temperature, seed=torch.arange(50))
        assert set(got.ids.tolist()) <= allowed, row
        assert not got.logprobs.isnan().any()


NAN = math.nan
NOTHING_TO_DRAW = {
    "one NaN": ([0.0, NAN, 9.0], {}),
    "a NaN beside infinity": ([0.0, math.inf, NAN], {}),
    "all NaN": ([NAN] * 3, {}),
    "all -inf": ([-math.inf] * 3, {}),
    "NaN and -inf": ([-math.inf, NAN, -math.inf], {}),
    "temperature": ([0.0, 1.0, 2.0], {"temperature": NAN}),
    "top_p": ([0.0, 1.0, 2.0], {"top_p": NAN}),
    "min_p": ([0.0, 1.0, 2.0], {"min_p": NAN}),
}


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {}, {"temperature": math.inf}], ids=str)
@pytest.mark.parametrize("name", NOTHING_TO_DRAW)
def test_no_token_comes_out_of_nan(name, options):
    """NaN in, NaN out: neither a plausible id nor a plausible log-probability."""
    row, broken = NOTHING_TO_DRAW[name]
    logits = torch.tensor([[0.0, 1.0, 2.0], row])
    settings = {"temperature": 1.0, "top_p": 1.0, "min_p": 0.0, **options}
    rows = {k: torch.tensor([v, broken.get(k, v)]) for k, v in settings.items()}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        got = draw(logits.to(dtype), **rows, top_logprobs=2)
        assert 0 <= got.ids[0] < 3 and not got.logprobs[0].isnan()
        assert got.ids[1] == -1 and got.logprobs[1].isnan()
        assert got.top_ids[1].tolist() == [-1, -1] and got.top_logprobs[1].isnan().all()


def test_logprobs_are_of_the_raw_logits():
    torch.manual_seed(0)
    logits = torch.randn(5, 60)
    got = draw(logits, 0.5, top_k=3, seed=torch.arange(5), top_logprobs=7)
    wanted = logits.log_softmax(-1)
    torch.testing.assert_close(got.logprobs, wanted.gather(1, got.ids[:, None]).squeeze(1))
    torch.testing.assert_close(got.top_logprobs, wanted.topk(7).values)
    assert torch.equal(got.top_ids, wanted.topk(7).indices)


def test_philox_known_answers():
    """The published test vectors of Philox4x32-10 (counter and key all ones; digits of pi)."""
    ones = [torch.tensor(0xFFFFFFFF)] * 4
    got = [int(w) for w in philox4x32(ones, ones[:2])]
    assert got == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    pi = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0]
    got = philox4x32([torch.tensor(w) for w in pi[:4]], [torch.tensor(w) for w in pi[4:]])
    assert [int(w) for w in got] == [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]
    assert naive_sample.philox(tuple(pi[:4]), tuple(pi[4:])) == tuple(map(int, got))


def test_noise_is_gumbel():
    noise = gumbel_noise(torch.arange(50), torch.arange(50), 4001)
    assert noise.shape == (50, 4001) and torch.isfinite(noise).all()
    assert noise.mean().item() == pytest.approx(0.57722, abs=0.01)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, rel=0.02)


def test_arguments():
    logits = torch.zeros(2, 8)
    with pytest.raises(ValueError, match=r"top_logprobs in 0 to 8 .* got 9"):
        draw(logits, top_logprobs=9)
    one = torch.ones(2)
    with pytest.raises(TypeError, match=r"expected top_k to be int32, got .* float32"):
        ops.sample(logits, one, one, one, one, one.long(), one.long())
    with pytest.raises(ValueError, match=r"expected seeds to be \[2\], got \[1\]"):
        ops.sample(logits, one, one.int(), one, one, one[:1].long(), one.long())
