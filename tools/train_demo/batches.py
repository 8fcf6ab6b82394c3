"""Training batches: windows of text, questions about digits, verses continued as a chat."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer
from torch import Tensor

from .data import FORMS, Chapter, Digits, augment, chat, normalise, two_tile_image
from .tokenizer import SPECIAL_ID, encode

IGNORE = -100
BOS, PAD, EOT = (SPECIAL_ID[f"<|{n}|>"] for n in ("begin_of_text", "finetune_right_pad", "eot"))
END_OF_TEXT = SPECIAL_ID["<|end_of_text|>"]
WINDOW = 512
CHAT_TOKENS = 64


def pad_batch(rows: list[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor]:
    """(prompt, answer) pairs → inputs and targets [B, S]; only the answer is learned."""
    length = max(len(p) + len(a) for p, a in rows) - 1
    inputs = torch.full((len(rows), length), PAD)
    targets = torch.full((len(rows), length), IGNORE)
    for i, (prompt, answer) in enumerate(rows):
        row = torch.tensor(prompt + answer)
        inputs[i, : len(row) - 1] = row[:-1]
        targets[i, len(prompt) - 1 : len(row) - 1] = row[len(prompt) :]
    return inputs, targets


class TextBatches:
    """Every window starts with BOS; each epoch cuts the stream at another phase."""

    def __init__(self, tokenizer: Tokenizer, chapters: list[Chapter], seed: int) -> None:
        parts = [[*encode(tokenizer, c.text), END_OF_TEXT] for c in chapters]
        self.stream = torch.tensor([t for part in parts for t in part])
        self.seed = seed

    def batch(self, step: int, size: int) -> tuple[Tensor, Tensor]:
        per_epoch = (len(self.stream) - WINDOW) // WINDOW
        epoch, at = divmod(step * size, per_epoch - per_epoch % size)
        generator = torch.Generator().manual_seed(self.seed * 1000 + epoch)
        phase = int(torch.randint(WINDOW, (), generator=generator))
        windows = torch.randperm(per_epoch, generator=generator)[at : at + size]
        targets = torch.stack([self.stream[phase + w * WINDOW :][:WINDOW] for w in windows])
        inputs = torch.cat([torch.full((size, 1), BOS), targets[:, :-1]], 1)
        return inputs, targets


class DigitBatches:
    def __init__(self, tokenizer: Tokenizer, digits: Digits) -> None:
        self.digits = digits
        self.prompts = {form: encode(tokenizer, text) for form, text in FORMS.items()}
        self.tokenizer = tokenizer

    def rows(self, form: str, labels: list[str]) -> list[tuple[list[int], list[int]]]:
        answers = [[*encode(self.tokenizer, label), EOT] for label in labels]
        return [(self.prompts[form], answer) for answer in answers]

    def batch(self, counts: dict[str, int], generator: torch.Generator):
        """counts of each form → inputs, targets [B, S] and tiles in prompt order."""
        rows, tiles = [], []
        for form, count in counts.items():
            n = count if form == "one" else 2 * count
            pick = torch.randint(len(self.digits.labels), (n,), generator=generator)
            images = augment(self.digits.images[pick], generator)
            values = [str(int(v)) for v in self.digits.labels[pick]]
            if form == "one":
                labels = values
            else:
                labels = [f"{a} {b}" for a, b in zip(values[::2], values[1::2], strict=True)]
            if form in ("wide", "tall"):
                images = two_tile_image(images[::2], images[1::2], vertical=form == "tall")
            rows += self.rows(form, labels)
            tiles.append(images)
        return *pad_batch(rows), normalise(torch.cat(tiles))


class ChatBatches:
    """The user says how a verse begins, the assistant says the rest."""

    def __init__(self, tokenizer: Tokenizer, chapters: list[Chapter]) -> None:
        verses = [v.split(" ") for c in chapters for v in c.text.split("\n")]
        self.verses = [v for v in verses if len(v) >= 10]
        self.tokenizer = tokenizer

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        rows = []
        while len(rows) < size:
            verse = self.verses[int(torch.randint(len(self.verses), (), generator=generator))]
            cut = int(torch.randint(3, 9, (), generator=generator))
            prompt = encode(self.tokenizer, chat(" ".join(verse[:cut])))
            answer = [*encode(self.tokenizer, " ".join(verse[cut:])), EOT]
            if len(prompt) + len(answer) <= CHAT_TOKENS:
                rows.append((prompt, answer))
        return pad_batch(rows)
