"""How likely a model finds the tokens of a prompt."""

from collections.abc import Sequence
from typing import NamedTuple

from l4kernels.engine.prompts import prompt_of
from l4kernels.engine.runner import run_whole
from l4kernels.engine.state import MAX_LOGPROBS
from l4kernels.inputs.arguments import whole_number
from l4kernels.model.llama4 import Llama4Model
from l4kernels.ops.ambient import isolated
from l4kernels.planning.footprint import MAX_PREFILL_TOKENS

_ROWS = 256
"""Logits at once: 200 MB of them for Llama 4's vocabulary."""


class TokenLogprob(NamedTuple):
    """A token's natural log-probability, and the likeliest tokens in its place, best first."""

    logprob: float
    top: list[tuple[int, float]]


@isolated
def prompt_logprobs(model: Llama4Model, ids: Sequence[int], top: int = 0) -> list[TokenLogprob]:
    """Of every token of a prompt but the first, which nothing predicts.

    Args:
        ids: at most 8,192 tokens: they go through the model in one step, with a KV cache of their
            own.
        top: how many of the likeliest tokens to report, 0 to 20.

    Raises:
        ValueError: an argument, named with what was expected and what came.

    >>> from l4kernels import Llama4, demo
    >>> model = Llama4.from_pretrained(demo.CHECKPOINT)
    >>> [round(token.logprob, 1) for token in prompt_logprobs(model, [1024, 256, 68])]
    [-6.1, -3.8]
    """
    prompt = prompt_of(model, ids)
    top = whole_number("top", top, 0, min(MAX_LOGPROBS, model.config.vocab_size))
    if len(prompt.ids) > MAX_PREFILL_TOKENS:
        raise ValueError(
            f"expected at most {MAX_PREFILL_TOKENS} tokens for log-probabilities of a prompt, got "
            f"{len(prompt.ids)}"
        )
    hidden = run_whole(model, [prompt])
    found: list[TokenLogprob] = []
    for first in range(0, len(prompt.ids) - 1, _ROWS):
        following = prompt.ids[first + 1 : first + 1 + _ROWS]
        logprobs = model.compute_logits(hidden[first : first + len(following)]).log_softmax(-1)
        own = logprobs[range(len(following)), following].tolist()
        values, tokens = (part.tolist() for part in logprobs.topk(top))
        for row, logprob in enumerate(own):
            found.append(TokenLogprob(logprob, [*zip(tokens[row], values[row], strict=True)]))
    return found
