"""The demo checkpoint whole, text and image: used under the emulator and on a GPU."""

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

import l4kernels
from l4kernels import demo
from l4kernels.model.chat import Prompter, user_message
from l4kernels.model.llama4 import Llama4
from l4kernels.testing import relative_error

FORMATS = {
    "bf16": {"weights": "bf16"},
    "fp8": {"weights": "fp8"},
    "fp8_kv": {"weights": "fp8", "kv_dtype": "fp8"},
}
# The prompt fills one chunk of 64 and most of the next; the new tokens cross into the third.
PROMPT_TOKENS, NEW_TOKENS = 126, 4
CHAPTERS = (5, 31)
"""No step is near a tie in any format, so that rounding cannot change a token."""


def load(form: str, device: str = "cpu") -> Llama4:
    options = FORMATS[form]
    return Llama4.from_pretrained(demo.CHECKPOINT, device, torch.bfloat16, **options)


def text() -> dict[str, Any]:
    """Two chapters that the model never saw, as one batch."""
    prompter = Prompter(demo.CHECKPOINT)
    chapters = demo.held_out_chapters()
    rows = [prompter.raw(chapters[i]).ids[:PROMPT_TOKENS] for i in CHAPTERS]
    return {"input_ids": torch.tensor(rows), "max_new_tokens": NEW_TOKENS, "stop_ids": ()}


def image() -> dict[str, Any]:
    """Two pictures of digits, asked about in the checkpoint's chat form."""
    prompter = Prompter(demo.CHECKPOINT)
    message = user_message(demo.QUESTION, num_images=1)
    digits = demo.held_out_digits().images[:2]
    prompts = [prompter.chat([message], [demo.as_image(d)]) for d in digits]
    return {
        "input_ids": torch.tensor([p.ids for p in prompts]),
        "max_new_tokens": 2,
        "pixel_values": torch.cat([p.pixel_values for p in prompts]),
    }


PROMPTS = {"text": text, "image": image}
CASES = [("bf16", "text"), ("bf16", "image"), ("fp8", "text"), ("fp8", "image"), ("fp8_kv", "text")]


def generate(
    model: Llama4, prompt: dict[str, Any], route: AbstractContextManager[Any]
) -> tuple[list[Any], Tensor]:
    """Greedy tokens of every step, and the logits that they were taken from."""
    seen: list[Tensor] = []
    head = model.lm_head.register_forward_hook(lambda _, __, logits: seen.append(logits.float()))
    try:
        with route:
            ids = [step.tolist() for step in model.stream(**prompt)]
    finally:
        head.remove()
    return ids, torch.stack(seen).cpu()


def check(
    form: str, prompt: str, route: AbstractContextManager[Any], device: str = "cpu"
) -> dict[str, float]:
    """The tokens that the references give, and logits as close to the unquantised model as theirs.

    Kernels and references round differently, and the next quantisation makes that a difference of
    whole e4m3 steps; so neither is the other's yardstick.
    """
    model, arguments = load(form, device), PROMPTS[prompt]()
    expected, wanted = generate(model, arguments, l4kernels.reference())
    got, logits = generate(model, arguments, route)
    assert got == expected, f"{form} {prompt}: tokens {got}, on the references {expected}"
    exact = Llama4.from_pretrained(demo.CHECKPOINT)
    _, truth = generate(exact, arguments, l4kernels.reference())
    errors = {
        "error": relative_error(logits, truth),
        "reference_error": relative_error(wanted, truth),
    }
    bound = (1.3 if form == "bf16" else 1.5) * errors["reference_error"]
    assert errors["error"] <= bound, f"{form} {prompt}: {errors}, bound {bound:.3g}"
    return errors
