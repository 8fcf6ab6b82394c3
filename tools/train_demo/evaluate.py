"""What the demo reports: bits per byte on held-out chapters, held-out digits read correctly."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from .batches import BOS, EOT, WINDOW
from .data import FORMS, Chapter, Digits, enlarge, normalise, two_tile_image
from .model import DemoLlama4
from .tokenizer import encode


@torch.no_grad()
def bits_per_byte(
    model: DemoLlama4, tokenizer: Tokenizer, chapters: list[Chapter], window: int = WINDOW
) -> float:
    """Each chapter is cut every `window` tokens; BOS opens each piece; every token counts once."""
    model.eval()
    nats, size = 0.0, 0
    for chapter in chapters:
        tokens = torch.tensor(encode(tokenizer, chapter.text))
        size += len(chapter.text.encode())
        for piece in tokens.split(window):
            inputs = torch.cat([torch.tensor([BOS]), piece[:-1]])
            logits = model.logits(model(inputs[None]))[0]
            nats += F.cross_entropy(logits.float(), piece, reduction="sum").item()
    return nats / math.log(2) / size


@torch.no_grad()
def digits_correct(
    model: DemoLlama4, tokenizer: Tokenizer, digits: Digits, forms: tuple[str, ...] = tuple(FORMS)
) -> dict[str, int]:
    """Whole greedy answers, end of turn included, that are right: by form of question.

    A greedy answer is right if and only if each token of the right answer is the most likely one
    after the right tokens before it, so one forward pass tells.
    """
    model.eval()
    images = enlarge(digits.images).float() / 255
    values = [str(int(v)) for v in digits.labels]
    pairs = [f"{a} {b}" for a, b in zip(values[::2], values[1::2], strict=True)]
    first, second = images[::2], images[1::2]
    tiles = {
        "one": images,
        "wide": two_tile_image(first, second, vertical=False),
        "tall": two_tile_image(first, second, vertical=True),
        "two_images": images,
    }
    correct = {}
    for form in forms:
        prompt = encode(tokenizer, FORMS[form])
        answers = values if form == "one" else pairs
        wanted = torch.tensor([[*encode(tokenizer, a), EOT] for a in answers])
        ids = torch.cat([torch.tensor([prompt] * len(answers)), wanted[:, :-1]], 1)
        hidden = model(ids, normalise(tiles[form]))[:, len(prompt) - 1 :]
        correct[form] = int((model.logits(hidden).argmax(-1) == wanted).all(-1).sum())
    return correct
