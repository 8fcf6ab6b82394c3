"""Requests sent to an engine all at once or at a rate, and when each of their tokens came."""

import itertools
import math
import time
from dataclasses import dataclass

import torch

from l4kernels.engine.engine import Engine, Stream
from l4kernels.engine.request import Request


@dataclass(frozen=True)
class Load:
    """What is asked of an engine: prompts of random tokens, greedy answers of one length."""

    requests: int
    prompt: int
    new_tokens: int
    rate: float | None = None
    """Requests a second, as a Poisson process; None: all at once."""
    seed: int = 0

    def arrivals(self) -> list[float]:
        """Seconds from the first, in order.

        >>> Load(requests=3, prompt=1, new_tokens=1).arrivals()
        [0.0, 0.0, 0.0]
        """
        if self.rate is None:
            return [0.0] * self.requests
        gaps = torch.empty(self.requests, dtype=torch.float64)
        gaps.exponential_(self.rate, generator=torch.Generator().manual_seed(self.seed))
        times: list[float] = (gaps.cumsum(0) - gaps[0]).tolist()
        return times

    def prompts(self, vocab_size: int) -> torch.Tensor:
        """int64 `[requests, prompt]`, no two of which begin alike but by chance."""
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randint(vocab_size, (self.requests, self.prompt), generator=generator)


@dataclass(frozen=True)
class Timeline:
    """Of one request, in seconds of one clock."""

    arrived: float
    tokens: list[float]


@dataclass(frozen=True)
class Latencies:
    """Of a load, in milliseconds; p50 and p99 are values that occurred."""

    first_p50: float
    first_p99: float
    """From a request's arrival to its first token."""
    between_p50: float
    between_p99: float
    """From a token of a request to its next one."""
    tokens_per_second: float
    """Of all requests, from the first arrival to the last token."""
    at_once: float
    """Requests that were between their first token and their last one, on average over the time
    in which any was."""

    @classmethod
    def of(cls, timelines: list[Timeline]) -> "Latencies":
        """
        >>> Latencies.of([Timeline(0.0, [0.25, 0.5, 0.75]), Timeline(0.25, [0.5, 0.75])]).at_once
        1.5
        """
        first = sorted(line.tokens[0] - line.arrived for line in timelines)
        between = sorted(b - a for line in timelines for a, b in itertools.pairwise(line.tokens))
        begun = min(line.tokens[0] for line in timelines)
        ended = max(line.tokens[-1] for line in timelines)
        answering = sum(line.tokens[-1] - line.tokens[0] for line in timelines)
        total = ended - min(line.arrived for line in timelines)
        return cls(
            1e3 * percentile(first, 0.5),
            1e3 * percentile(first, 0.99),
            1e3 * percentile(between, 0.5),
            1e3 * percentile(between, 0.99),
            sum(len(line.tokens) for line in timelines) / total,
            answering / (ended - begun),
        )


def percentile(ordered: list[float], share: float) -> float:
    """The least value that so large a share of all values does not exceed.

    >>> [percentile([1.0, 2.0, 3.0, 4.0], share) for share in (0.5, 0.51, 0.99)]
    [2.0, 3.0, 4.0]
    """
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def serve(engine: Engine, load: Load) -> list[Timeline]:
    """Sends the requests when they arrive, whether or not others are done, and waits for all."""
    timelines: list[Timeline] = []
    streams: list[Stream] = []
    prompts = load.prompts(engine.model.config.vocab_size)
    began = time.perf_counter()
    for prompt, arrival in zip(prompts, load.arrivals(), strict=True):
        time.sleep(max(0.0, began + arrival - time.perf_counter()))
        line = Timeline(began + arrival, [])
        timelines.append(line)
        streams.append(
            engine.add(
                Request(
                    prompt,
                    load.new_tokens,
                    stop_ids=(),
                    on_output=lambda _, own=line: own.tokens.append(time.perf_counter()),  # type: ignore[misc]
                )
            )
        )
    for stream in streams:
        stream.result()
    return timelines


WARM_PROMPT, WARM_TOKENS = 8, 6
"""Tokens that are few, and enough for a step to be captured and replayed."""


def warm(engine: Engine, slots: int, prompt: int, new_tokens: int) -> None:
    """Has the engine do, and capture, every step that requests of these sizes can meet, up to
    `slots` of them at once."""
    few, tokens = min(prompt, WARM_PROMPT), min(new_tokens, WARM_TOKENS)
    for together in sorted({min(1 << i, slots) for i in range(slots.bit_length() + 1)}):
        serve(engine, Load(together, few, tokens))
    serve(engine, Load(slots, prompt, min(new_tokens, 2)))
