"""When two results may be called equally well rounded: the rule of every test that compares two
roundings of one computation, and what it takes to compare a bfloat16 model with transformers'.

Two roundings never give the same error, and which of two is the smaller one on a given input is
chance: the order of a sum decides it, which depends on the CPU. So nothing is compared once, nor
by a margin that looked ample on one machine.
"""

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from parity import Case, hf_logits, load_hf, prompt, save_model
from torch import Tensor, nn

from l4kernels import Llama4

FALSE_ALARM = 1e-6


def excess(differences: Sequence[float]) -> float:
    """How far a sum of independent differences `ours - theirs` is above 0, in units of its size.

    If ours are no worse, each difference is as likely to be -d as d (or lower than that): given
    their sizes the sum is one of random signs, and by Hoeffding's inequality

        P(sum(d) >= t * sqrt(sum(d^2))) <= exp(-t^2 / 2)

    whatever the distribution, its spread, or the number of samples. The left side is at most
    sqrt(n), so n samples can say something only if sqrt(n) > t.
    """
    d = torch.tensor(differences, dtype=torch.float64)
    size = d.square().sum().sqrt().item()
    return d.sum().item() / size if size else 0.0


def limit(comparisons: int) -> float:
    """The `t` that any of so many comparisons exceeds by chance with probability FALSE_ALARM."""
    return math.sqrt(2 * math.log(comparisons / FALSE_ALARM))


def worse(measures: dict[str, Sequence[float]]) -> dict[str, float]:
    """The measures by which ours are worse: the excess of each that is above the limit."""
    most = limit(len(measures))
    assert all(len(d) > (1.1 * most) ** 2 for d in measures.values()), "too few samples to tell"
    return {name: t for name, d in measures.items() if (t := excess(d)) > most}


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
            lambda m: m(self.ids),
            self.chosen,
        ).errors(self.exact)
        for handle in hooks:
            handle.remove()
        theirs = self.theirs.errors(self.exact)
        return {name: ours[name] - theirs[name] for name in ours}
