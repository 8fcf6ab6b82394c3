"""Our bfloat16 model is as good as transformers', and the test would notice if it were not."""

import math

import pytest
import torch
from rounding import FALSE_ALARM, Pair, excess, limit, worse

# Seven measures: a limit of 5.6, which 48 differences reach if their mean is 1.4 standard
# deviations above 0. The errors of two models of one size differ by 2 to 4 %, so an error larger
# by 6 % is found; the counts of experts tell only a gross fault.
PAIRS = 48


@pytest.fixture(scope="module")
def pairs():
    return [Pair(seed) for seed in range(PAIRS)]


def measures(pairs, **planted):
    found = [pair.differences(**planted) for pair in pairs]
    return {name: [d[name] for d in found] for name in found[0]}


def test_bf16_is_as_good_as_transformers(pairs):
    assert not worse(measures(pairs))


def coarse(bits):
    """Rounds to so many significant bits; bfloat16 has 8."""

    def rounded(x):
        mantissa, exponent = torch.frexp(x.float())
        return torch.ldexp((mantissa * 2**bits).round() / 2**bits, exponent).to(x.dtype)

    return rounded


def routers(model):
    return [layer.feed_forward.router for layer in model.layers]


def on_input(modules, change):
    return [
        m.register_forward_pre_hook(lambda _m, args: (change(args[0]), *args[1:])) for m in modules
    ]


def on_output(modules, change):
    return [m.register_forward_hook(lambda _m, _args, out: change(out)) for m in modules]


FAULTS = {
    "router's input rounded again, a bit short": (
        lambda model: on_input(routers(model), coarse(7)),
        "router of layer 0",
    ),
    "residual stream rounded again, a bit short": (
        lambda model: on_output(model.layers, coarse(7)),
        "logits",
    ),
    "router's input rounded to e4m3": (
        lambda model: on_input(routers(model), coarse(4)),
        "experts",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_one_rounding_too_many_is_found(pairs, name):
    fault, measure = FAULTS[name]
    assert measure in worse(measures(pairs, fault=fault))


def logits_against_products(pair, fault=lambda model: []):
    """The largest difference of the router's logits from the product of what goes into it."""
    worst = []

    def hook(router, args, out):
        product = args[0].double() @ router.weight.double().T
        worst.append(((out - product).abs().max() / product.abs().max()).item())

    hooks = fault(pair.model) + [r.register_forward_hook(hook) for r in routers(pair.model)]
    pair.model(pair.ids)
    for handle in hooks:
        handle.remove()
    return max(worst)


def test_the_logits_of_the_router_are_not_rounded(pairs):
    """Nothing that transformers' error, which is a little larger than ours, could hide.

    A sum of 256 products in float32 is off by a few 2^-24 of its largest terms.
    """
    assert logits_against_products(pairs[0]) < 1e-5
    rounded = logits_against_products(
        pairs[0], lambda model: on_output(routers(model), lambda out: out.bfloat16().float())
    )
    assert rounded > 1e-3


def test_planted_faults_are_taken_out_again(pairs):
    before = pairs[0].differences()
    pairs[0].differences(FAULTS["residual stream rounded again, a bit short"][0])
    assert pairs[0].differences() == before


def test_the_limit_is_that_of_its_probability():
    """Random signs are the worst case: the bound holds, and is not idle."""
    draw = torch.randint(0, 2, (1_000_000, 64), generator=torch.Generator().manual_seed(0)) * 2 - 1
    sums = draw.sum(1) / 8
    for t in (2.0, 3.0, 4.0):
        share = (sums >= t).float().mean().item()
        assert math.exp(-(t**2) / 2) / 20 < share <= math.exp(-(t**2) / 2)
    assert math.exp(-(limit(7) ** 2) / 2) == pytest.approx(FALSE_ALARM / 7)


def test_excess_has_no_unit_and_no_favourite():
    assert excess([0.0] * 50) == 0.0
    assert excess([3.0] * 49) == excess([0.001] * 49) == pytest.approx(7.0)
    assert excess([1.0, -1.0] * 30) == 0.0
    with pytest.raises(AssertionError, match="too few samples"):
        worse({"few": [1.0] * 20})
