"""What is asked of an engine, and what comes back."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from l4kernels.engine.generate import check_biases, stop_ids_of
from l4kernels.engine.prompts import prompt_of
from l4kernels.engine.sampling import Sampling
from l4kernels.engine.sequence import Choice, TokenMask
from l4kernels.engine.sequence import Sequence as EngineSequence
from l4kernels.engine.state import MAX_LOGPROBS
from l4kernels.inputs.arguments import whole_number
from l4kernels.inputs.files import shown
from l4kernels.model.llama4 import Llama4Model
from l4kernels.ops.philox import stream_seed

MAX_SAMPLES = 1024


class Output(NamedTuple):
    """A token of one sample of a request."""

    sample: int
    """0 to n - 1."""
    token_id: int | None
    """None where a sample is cancelled. The token that completes a stop string is there, its text
    is not."""
    text: str
    """What the token adds to the sample's text; empty without a tokenizer."""
    finish_reason: str | None
    """"stop" (an end token, or a stop string), "length" or "cancelled" with a sample's last; None
    before."""
    logprob: float | None = None
    top_logprobs: list[tuple[int, float]] | None = None
    """The likeliest tokens and their log-probabilities, best first."""


@dataclass(frozen=True, eq=False)
class Request:
    """A prompt, and what is wanted of its continuation.

    Args:
        prompt: token ids, a tensor or array `[S]` or any iterable of integers.
        max_new_tokens: of every sample.
        sampling: how tokens are chosen. Sample i draws from stream i of the seed
            (`ops.philox.stream_seed`), as row i of a batch does.
        pixel_values: `[tiles, channels, H, W]` of the prompt's images, or None.
        stop_ids: end a sample; None: the end tokens of the checkpoint.
        stop: strings that end a sample before they begin; the engine needs a tokenizer.
        n: samples; they share the prompt's pages.
        logprobs: report each token's log-probability, and those of so many of the likeliest
            tokens, 0 to 20, by the model's own logits; None: do not.
        priority: requests of a lower one go first.
        cache_salt: only requests with the same salt reuse each other's prefixes.
        token_mask: called before each token with the sample's tokens so far; returns which may
            follow, int32 `[ceil(V / 32)]`, token v is bit `v % 32` of word `v // 32`, or None for
            all. The engine waits for it. One function for all samples, or a list of one for each.
        on_output: called by the engine's thread with each output; what it raises ends the request.
        on_end: called by the engine's thread once, after the last output, with the error that ended
            the request, or None. It must not raise.
    """

    prompt: Any
    max_new_tokens: int = 32
    sampling: Sampling = field(default_factory=Sampling)
    pixel_values: Tensor | None = None
    stop_ids: int | Iterable[int] | Tensor | None = None
    stop: str | Sequence[str] = ()
    n: int = 1
    logprobs: int | None = None
    priority: int = 0
    cache_salt: str = ""
    token_mask: TokenMask | Sequence[TokenMask] | None = None
    on_output: Callable[[Output], None] | None = None
    on_end: Callable[[BaseException | None], None] | None = None

    def sequences(self, model: Llama4Model) -> list[EngineSequence]:
        """One for each sample.

        Raises:
            ValueError: an argument, named with what was expected and what came.
        """
        new_tokens = whole_number("max_new_tokens", self.max_new_tokens, 1, 1 << 62)
        samples = whole_number("n", self.n, 1, MAX_SAMPLES)
        priority = whole_number("priority", self.priority, -(1 << 62), 1 << 62)
        logprobs = self.logprobs
        if logprobs is not None:
            most = min(MAX_LOGPROBS, model.config.vocab_size)
            logprobs = whole_number("logprobs", logprobs, 0, most)
        if not isinstance(self.sampling, Sampling):
            raise ValueError(f"expected sampling to be a Sampling, got {shown(self.sampling)}")
        if not isinstance(self.cache_salt, str):
            raise ValueError(f"expected cache_salt to be a string, got {shown(self.cache_salt)}")
        for name in ("on_output", "on_end"):
            given = getattr(self, name)
            if given is not None and not callable(given):
                raise ValueError(f"expected {name} to be a function or None, got {shown(given)}")
        masks = self._masks(samples)
        stop = frozenset(stop_ids_of(model, self.stop_ids))
        check_biases(model, self.sampling)
        prompt = prompt_of(model, self.prompt, self.pixel_values)
        seed = self.sampling.seed_now()
        seeds = [stream_seed(seed, index) for index in range(samples)]
        rest = stop, new_tokens, logprobs
        shared = prompt.images, priority, self.cache_salt.encode()
        return [
            EngineSequence(prompt.ids.copy(), Choice(self.sampling, own, *rest, mask), *shared)
            for own, mask in zip(seeds, masks, strict=True)
        ]

    def _masks(self, samples: int) -> Sequence[TokenMask | None]:
        """Of each sample."""
        given = self.token_mask
        if given is None or callable(given):
            return [given] * samples
        good = isinstance(given, (list, tuple)) and all(map(callable, given))
        if not good or len(given) != samples:
            raise ValueError(
                f"expected token_mask to be a function, a list of {samples}, one for each sample, "
                f"or None, got {shown(given)}"
            )
        return given
