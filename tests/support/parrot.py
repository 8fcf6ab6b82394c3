"""A model that answers a chat with what the user said last, token by token.

It stands in for `Llama4` where a test wants to decide what a model says. Its prompts are those of
the demo checkpoint's tokenizer and chat template, its engine needs `capture=as_it_is`: what it does
between ops no capture sees.
"""

from dataclasses import replace

import torch
from torch import Tensor

from l4kernels.engine.llama4 import Llama4
from l4kernels.layers.options import ModelOptions
from tests.support import checksums

VOCAB, HEADER_END, END = 1056, 1030, 1032
BREAK = 1
"""Tokens of the line break after a header, before a text that begins with a letter or so."""


class Parrot(Llama4):
    """Its one layer keeps the token of each position."""

    def __init__(self, context: int = 4096):
        config = replace(
            checksums.config(0, "global", context), vocab_size=VOCAB, eos_token_ids=(END,)
        )
        super().__init__(config, ModelOptions(torch.float32, torch.device("cpu")))
        self.vision = None

    def embed(self, ids: Tensor, features=None, rows=None) -> Tensor:
        return ids.float()[:, None].expand(-1, 8)

    def forward(self, x, metadata, caches):
        x = x if x.is_floating_point() else self.embed(x)
        meta, keys = metadata[0], caches[0].k
        checksums.write(keys, meta.slots, x[:, 0])
        if meta.max_seqlen_q > 1:
            return x
        lengths = meta.seqlens_k.tolist()
        rows = zip(checksums.contents_of(meta, keys).tolist(), lengths, strict=True)
        following = [_next(ids[:length]) for ids, length in rows]
        return torch.tensor(following).float()[:, None].expand(-1, 8)

    def compute_logits(self, hidden: Tensor) -> Tensor:
        logits = hidden.new_zeros(len(hidden), VOCAB, dtype=torch.float32)
        return logits.scatter_(1, hidden[:, :1].long(), 30.0)


def _next(ids: list[int]) -> int:
    ends = [place for place, token in enumerate(ids) if token == HEADER_END]
    if len(ends) < 2:  # a row without a sequence
        return END
    said = ids[ends[-2] + 1 + BREAK :]
    said = said[: said.index(END)]
    spoken = len(ids) - (ends[-1] + 1 + BREAK)
    return said[spoken] if 0 <= spoken < len(said) else END
