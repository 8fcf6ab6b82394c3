"""Our bfloat16 model is as good as transformers', and the test would notice if it were not."""

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from bench.checks.rounding import FALSE_ALARM, coarse, excess, limit, worse
from l4kernels import Llama4
from tests.support.parity import Case, hf_logits, load_hf, prompt, save_model

# Seven measures: a limit of 5.6, which 48 differences reach if their mean is 1.4 standard
# deviations above 0. The errors of two models of one size differ by 2 to 4 %, so an error larger
# by 6 % is found; the counts of experts tell only a gross fault.
PAIRS = 48


@dataclass
class Run:
    """What a model computed, its experts being given."""

    router: Tensor  # [MoE layers, tokens, experts]
    logits: Tensor

    def errors(self, exact: "Run") -> dict[str, float]:
        """Logarithms, so that a difference is one of orders of magnitude, and the flips."""
        layers = (self.router - exact.router).flatten(1).norm(dim=1).log().tolist()
        output = self.logits - exact.logits
        flips = (self.router.argmax(-1) != exact.router.argmax(-1)).sum().item()
        return {f"router of layer {i}": e for i, e in enumerate(layers)} | {
            "logits": output.norm().log().item(),
            "largest of the logits": output.abs().max().log().item(),
            "experts": flips,
        }


def run(model: nn.Module, routers: list[nn.Module], read, force, forward, chosen) -> Run:
    """Runs a model whose tokens go to the experts `chosen` [layers, tokens, 1], or to its own.

    A token at an expert of its own choice differs from there on by a jump, and so does everything
    that attends to it: few tokens would decide the outcome. Held to one choice, every token of
    every layer is a sample of what rounding does to it.
    """
    seen: list[Tensor] = []

    def hook(router: nn.Module, args: tuple[Tensor], out):
        layer = len(seen)
        seen.append(read(router, args[0], out))
        return None if chosen is None else force(out, chosen[layer])

    hooks = [router.register_forward_hook(hook) for router in routers]
    try:
        logits = forward(model)
    finally:
        for handle in hooks:
            handle.remove()
    return Run(torch.stack(seen), logits)


def only(logits: Tensor, chosen: Tensor) -> Tensor:
    return torch.full_like(logits, -torch.inf).scatter(1, chosen, logits.gather(1, chosen))


class Pair:
    """A random model and prompt: in float32, in transformers' bfloat16, and in ours."""

    def __init__(self, seed: int):
        self.case = Case(seed=seed, hidden=256, layers=4, length=64, chunk=24, batch=2, experts=8)
        self.ids, _ = prompt(self.case)
        with tempfile.TemporaryDirectory() as folder:
            save_model(self.case, folder)
            self.exact = self._theirs(folder, torch.float32, None)
            self.chosen = self.exact.router.argmax(-1, keepdim=True)
            self.theirs = self._theirs(folder, torch.bfloat16, self.chosen)
            self.model = Llama4.from_pretrained(folder, dtype=torch.bfloat16)

    def _theirs(self, folder: str, dtype: torch.dtype, chosen: Tensor | None) -> Run:
        hf = load_hf(self.case, folder, dtype)

        def read(router, x, out):  # before transformers rounds them, which ours never are
            return x.float() @ router.weight.float().T

        def force(out, chosen):
            return only(out[1], chosen).float().sigmoid().to(out[0].dtype), out[1]

        routers = [layer.feed_forward.router for layer in hf.model.layers]
        return run(hf, routers, read, force, lambda m: hf_logits(m, self.ids, None), chosen)

    def differences(self, fault: Callable[[Llama4], list] = lambda model: []) -> dict[str, float]:
        """Ours less theirs, by measure; `fault` plants one into our model and returns its hooks."""
        hooks = fault(self.model)
        experts = self.case.experts
        routers = [layer.feed_forward.router for layer in self.model.layers]
        ours = run(
            self.model,
            routers,
            lambda router, x, out: out[:, :experts].clone(),
            only,
            lambda m: m.prompt_logits(self.ids),
            self.chosen,
        ).errors(self.exact)
        for handle in hooks:
            handle.remove()
        theirs = self.theirs.errors(self.exact)
        return {name: ours[name] - theirs[name] for name in ours}


@pytest.fixture(scope="module")
def pairs():
    return [Pair(seed) for seed in range(PAIRS)]


def measures(pairs, **planted):
    found = [pair.differences(**planted) for pair in pairs]
    return {name: [d[name] for d in found] for name in found[0]}


def test_bf16_is_as_good_as_transformers(pairs):
    assert not worse(measures(pairs))


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
        lambda model: on_output(model.layers, lambda out: (coarse(7)(out[0]), out[1])),
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
    pair.model.prompt_logits(pair.ids)
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
