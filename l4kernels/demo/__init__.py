"""The shipped checkpoint and the data it never saw: what `l4k demo` runs on."""

import lzma
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from l4kernels.engine.llama4 import Llama4
    from l4kernels.prompt.chat import Prompter
    from l4kernels.prompt.tokenizer import Tokenizer

FOLDER = Path(__file__).parent
CHECKPOINT = FOLDER / "checkpoint"
DATA = FOLDER / "data"
QUESTION = "Which digit is this?"
WINDOW = 512
"""Tokens of a piece of text, as in training."""
BATCH = 4
"""Pieces at once: few enough for their activations to stay in a core's cache."""


class Digits(NamedTuple):
    images: Tensor  # uint8 [N, 8, 8], 0 is background
    labels: list[int]


def held_out_chapters() -> list[str]:
    """60 chapters of the King James text, one verse a line."""
    text = lzma.decompress((DATA / "chapters.txt.xz").read_bytes()).decode()
    blocks = text.removeprefix("# ").rstrip("\n").split("\n# ")
    return [block.split("\n", 1)[1] for block in blocks]


def held_out_digits() -> Digits:
    """360 handwritten digits, read row by row from a sheet."""
    from l4kernels.prompt.images import decode_image

    labels = [int(c) for c in "".join((DATA / "digits.txt").read_text().split())]
    sheet = decode_image(DATA / "digits.png")[0]
    rows, cols = sheet.shape[0] // 8, sheet.shape[1] // 8
    images = sheet.view(rows, 8, cols, 8).transpose(1, 2).reshape(-1, 8, 8)
    return Digits(images[: len(labels)].clone(), labels)


def as_image(digit: Tensor) -> Tensor:
    """uint8 [8, 8] -> the RGB image [3, 8, 8] that the image processor takes."""
    return digit.expand(3, 8, 8).contiguous()


def read_digits(
    model: "Llama4", prompter: "Prompter", images: Tensor, batch: int = 60
) -> list[str]:
    """The model's answers to `QUESTION`, each image through template and image processor.

    An answer that does not end within two tokens is given with a trailing ellipsis.
    """
    from l4kernels.prompt.chat import user_message

    message = user_message(QUESTION, num_images=1)
    answers = []
    for part in images.split(batch):
        prompts = [prompter.chat([message], [as_image(image)]) for image in part]
        generation = model.stream(
            torch.tensor([p.ids for p in prompts]),
            2,
            torch.cat([p.pixel_values for p in prompts if p.pixel_values is not None]),
        )
        ids = torch.stack(list(generation), 1).tolist()
        for row, reason in zip(ids, generation.finish_reasons, strict=True):
            text = prompter.tokenizer.decode(row)
            answers.append(text if reason == "stop" else text + "...")
    return answers


def bits_per_byte(
    model: "Llama4",
    tokenizer: "Tokenizer",
    chapters: list[str],
    window: int = WINDOW,
    batch: int = BATCH,
) -> float:
    """Cross-entropy of the chapters in bits per byte of their UTF-8 text: see `score`."""
    from l4kernels.engine.perplexity import score

    return score(model, tokenizer, chapters, window, batch).bits_per_byte
