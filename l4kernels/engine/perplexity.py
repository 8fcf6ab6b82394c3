"""How well a model predicts a text."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from l4kernels.engine.llama4 import Llama4
from l4kernels.prompt.tokenizer import Tokenizer

_FILL = -1  # after the end of a piece: a target that does not count


class Score(NamedTuple):
    """The cross-entropy of a text.

    >>> score = Score(nats=20.0, tokens=10, bytes=40)
    >>> round(score.perplexity, 3), round(score.bits_per_byte, 3)
    (7.389, 0.721)
    """

    nats: float
    tokens: int
    bytes: int

    @property
    def perplexity(self) -> float:
        mean = self.nats / self.tokens
        return math.inf if mean > 700 else math.exp(mean)

    @property
    def bits_per_byte(self) -> float:
        """Of the text's UTF-8."""
        return self.nats / math.log(2) / self.bytes


def pieces_of(tokenizer: Tokenizer, texts: Iterable[str], window: int) -> list[Tensor]:
    """Token ids of the texts, cut every `window` tokens."""
    pieces: list[Tensor] = []
    for text in texts:
        ids = torch.tensor(tokenizer.encode(text, bos=False), dtype=torch.int64)
        pieces += ids.split(window) if len(ids) else ()
    return pieces


def score(
    model: Llama4,
    tokenizer: Tokenizer,
    texts: list[str],
    window: int,
    batch: int,
) -> Score:
    """Of the texts, cut every `window` tokens, or as long as the context is.

    The begin-of-text token opens each piece; every token counts once. Pieces of similar length go
    through together, filled up after their end, where nothing looks back from.

    Raises:
        ValueError: there is no text, or the tokenizer has no begin-of-text token.
    """
    if tokenizer.bos_id is None:
        raise ValueError("the tokenizer has no begin-of-text token to open a text with")
    window = min(window, model.config.max_position_embeddings - 1)
    pieces = sorted(pieces_of(tokenizer, texts, window), key=len, reverse=True)
    if not pieces:
        raise ValueError("the text is empty: expected at least one token")
    nats = 0.0
    for at in range(0, len(pieces), batch):
        targets = pad_sequence(pieces[at : at + batch], batch_first=True, padding_value=_FILL)
        first = torch.full((len(targets), 1), tokenizer.bos_id)
        inputs = torch.cat([first, targets[:, :-1].clamp(min=0)], 1)
        logits = model.prompt_logits(inputs).flatten(0, 1)
        wanted = targets.flatten().to(logits.device)
        nats += cross_entropy(logits, wanted, ignore_index=_FILL, reduction="sum").item()
    return Score(nats, sum(map(len, pieces)), sum(len(text.encode()) for text in texts))
