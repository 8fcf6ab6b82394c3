"""The demo checkpoint whole, text and image: used under the emulator and on a GPU."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import l4kernels
from bench.checks.rounding import excess, limit, worse
from l4kernels import demo
from l4kernels.engine.llama4 import Llama4
from l4kernels.prompt.chat import Prompter, user_message
from l4kernels.testing import relative_error

OPTIONS = {
    "bf16": {"weights": "bf16"},
    "fp8": {"weights": "fp8"},
    "fp8_kv": {"weights": "fp8", "kv_dtype": "fp8"},
    "int4": {"weights": "int4"},
    "int4+fp8attn": {"weights": "int4+fp8attn"},
}
SAME_WEIGHTS = {form: {"weights": form} for form in ("int4", "int4+fp8attn")}
"""What these are compared with has their weights, and differs from them by the rounding to bfloat16
alone: int4's activations are not quantised, and those of fp8 attention are in float32 as well."""
# The prompt fills one chunk of 64 and most of the next; the new tokens cross into the third.
PROMPT_TOKENS, NEW_TOKENS = 126, 4
PASSAGES = ((12, 7), (32, 224))
"""Chapter and first token. Each step's first two logits are 7.8 standard deviations of what e4m3
does to their difference apart (`check` asks for `CLEAR`), so that rounding cannot change a token.
Of 1,287 passages no other has logits 2 apart at every step."""
CLEAR = 5.5  # exceeded by chance once in 5e7 steps
PICTURES = 8
UNIT = 4
"""Neighbouring tokens of a row that count as one sample: their errors have little in common, and
those of two units even less."""


def load(form: str, device: str = "cpu") -> Llama4:
    options = OPTIONS[form]
    return Llama4.from_pretrained(demo.CHECKPOINT, device, torch.bfloat16, **options)


def text() -> dict[str, Any]:
    """Passages of two chapters that the model never saw, as one batch."""
    prompter = Prompter(demo.CHECKPOINT)
    chapters = demo.held_out_chapters()
    rows = []
    for chapter, first in PASSAGES:
        begin, *ids = prompter.raw(chapters[chapter]).ids
        rows.append([begin, *ids[first : first + PROMPT_TOKENS - 1]])
    return {"input_ids": torch.tensor(rows), "max_new_tokens": NEW_TOKENS, "stop_ids": ()}


def image() -> dict[str, Any]:
    """Pictures of digits, asked about in the checkpoint's chat form."""
    prompter = Prompter(demo.CHECKPOINT)
    message = user_message(demo.QUESTION, num_images=1)
    digits = demo.held_out_digits().images[:PICTURES]
    prompts = [prompter.chat([message], [demo.as_image(d)]) for d in digits]
    return {
        "input_ids": torch.tensor([p.ids for p in prompts]),
        "max_new_tokens": 2,
        "pixel_values": torch.cat([p.pixel_values for p in prompts]),
    }


PROMPTS = {"text": text, "image": image}
CASES = [
    ("bf16", "text"),
    ("bf16", "image"),
    ("fp8", "text"),
    ("fp8", "image"),
    ("fp8_kv", "text"),
    ("int4", "text"),
    ("int4", "image"),
    ("int4+fp8attn", "text"),
]


@dataclass
class Run:
    """Greedy tokens of every step, the logits they were taken from, and the last layer's rows."""

    ids: list[Any]
    logits: Tensor  # [steps, B, vocabulary]
    hidden: Tensor  # [B, tokens, D], of all prompts and new tokens


def generate(model: Llama4, prompt: dict[str, Any], route: AbstractContextManager[Any]) -> Run:
    logits: list[Tensor] = []
    hidden: list[Tensor] = []
    batch = len(prompt["input_ids"])

    def see(_: Any, __: Any, out: tuple[Tensor, None]) -> None:
        rows, _ = out
        hidden.append(rows.float().view(batch, -1, rows.shape[-1]))

    hooks = [
        model.lm_head.register_forward_hook(lambda _, __, out: logits.append(out.float())),
        model.layers[-1].register_forward_hook(see),
    ]
    try:
        with route:
            ids = [step.tolist() for step in model.stream(**prompt)]
    finally:
        for hook in hooks:
            hook.remove()
    return Run(ids, torch.stack(logits).cpu(), torch.cat(hidden, 1).cpu())


def distances(run: Run, exact: Run) -> Tensor:
    """The logarithm of each token's distance from the exact model's, averaged over its unit."""
    logs = (run.hidden - exact.hidden).norm(dim=-1).log()
    return logs[:, : logs.shape[1] // UNIT * UNIT].unflatten(1, (-1, UNIT)).mean(-1).flatten()


def clearness(run: Run, exact: Run) -> float:
    """How far apart the first two logits are, in what the format does to their difference."""
    first, second = exact.logits.topk(2)[0].unbind(-1)
    error = (run.logits - exact.logits).square().mean(-1).sqrt()
    return ((first - second) / (2**0.5 * error)).min().item()


def check(
    form: str, prompt: str, route: AbstractContextManager[Any], device: str = "cpu"
) -> dict[str, float]:
    """The tokens that the references give, and rows as close to the exact model as theirs.

    Kernels and references round differently, and the next quantisation makes that a difference of
    whole e4m3 steps; so neither is the other's yardstick.
    """
    model, arguments = load(form, device), PROMPTS[prompt]()
    reference = generate(model, arguments, l4kernels.reference())
    got = generate(model, arguments, route)
    unrounded = Llama4.from_pretrained(demo.CHECKPOINT, **SAME_WEIGHTS.get(form, {}))
    exact = generate(unrounded, arguments, l4kernels.reference())
    what = f"{form} {prompt}"
    assert reference.ids == exact.ids and clearness(reference, exact) > CLEAR, f"{what}: a near tie"
    assert got.ids == reference.ids, f"{what}: tokens {got.ids}, on the references {reference.ids}"
    further = (distances(got, exact) - distances(reference, exact)).tolist()
    above = worse({"distance": further})
    assert not above, f"{what}: further from the exact model than the references: {above}"
    return {
        "error": relative_error(got.logits, exact.logits),
        "reference_error": relative_error(reference.logits, exact.logits),
        "excess": excess(further),
        "excess_allowed": limit(1),
    }
