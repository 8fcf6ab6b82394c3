"""One sequence: its tokens, what it asks for, and the pages and the slot that it has."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from l4kernels.engine.images import PromptImages
from l4kernels.engine.pages import chain, root
from l4kernels.engine.prompts import PromptTokens
from l4kernels.engine.sampling import Sampling

TokenMask = Callable[[list[int]], Tensor | None]
"""The tokens of the answer so far -> which may follow: int32 `[ceil(V / 32)]`, token v is bit
`v % 32` of word `v // 32`; None: all."""


@dataclass(frozen=True)
class Choice:
    """How the tokens of a sequence are chosen, and when it ends."""

    sampling: Sampling
    seed: int
    """Of this sequence: no other of a batch draws from the same stream."""
    stop_ids: frozenset[int]
    max_new_tokens: int
    logprobs: int | None = None
    """How many of the likeliest tokens to report with each token's log-probability; None: not even
    that."""
    token_mask: TokenMask | None = None


@dataclass(eq=False)
class Sequence:
    """A prompt and what follows it.

    Args:
        tokens: the prompt; the answer is appended as it becomes known.
        priority: less goes first; among equals, who came first.
        salt: only sequences with the same salt share pages.
    """

    tokens: list[int]
    choice: Choice
    images: PromptImages | None = None
    priority: int = 0
    salt: bytes = b""
    prompt_length: int = field(init=False)
    finish_reason: str | None = None
    """"stop" after an end token, "length" after as many tokens as it may have, "cancelled",
    "error"; None before."""
    arrival: int = 0
    slot: int | None = None
    """Its row in the step's tensors, from the moment its prompt is computed."""
    computed: int = 0
    """Its tokens whose keys and values are in pages, or will be when the steps that were launched
    are done."""
    decoding: bool = False
    pages: tuple[list[int], list[int]] = field(default_factory=lambda: ([], []))
    """Of the global and of the chunked layers, by logical page."""
    named: int = 0
    """Full pages that others can find."""
    awaits: "tuple[Sequence, int] | None" = None
    """Who is about to compute pages that this one can share, and up to which token."""
    preemptions: int = 0
    reused: int = 0
    """Tokens of its prompt that were in the cache when it began."""
    _names: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.prompt_length = len(self.tokens)

    @property
    def prompt(self) -> PromptTokens:
        """All of its tokens, as a prompt."""
        return PromptTokens(self.tokens, self.images)

    @property
    def new_tokens(self) -> list[int]:
        return self.tokens[self.prompt_length :]

    @property
    def capacity(self) -> int:
        """The most tokens it can have; the last is never read."""
        return self.prompt_length + self.choice.max_new_tokens - 1

    @property
    def order(self) -> tuple[int, int]:
        return self.priority, self.arrival

    def page_name(self, page: int, size: int) -> bytes:
        """Of the full page of tokens `[page * size, (page + 1) * size)`."""
        while len(self._names) <= page:
            start = len(self._names) * size
            content = b"" if self.images is None else self.images.content(start, start + size)
            parent = self._names[-1] if self._names else root(self.salt)
            self._names.append(chain(parent, self.tokens[start : start + size], content))
        return self._names[page]
