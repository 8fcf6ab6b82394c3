"""The shipped checkpoint and the data it never saw: what `l4k demo` runs on."""

import lzma
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

FOLDER = Path(__file__).parent
CHECKPOINT = FOLDER / "checkpoint"
DATA = FOLDER / "data"
QUESTION = "Which digit is this?"


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
    from l4kernels.model.image_processor import decode_image

    labels = [int(c) for c in "".join((DATA / "digits.txt").read_text().split())]
    sheet = decode_image(DATA / "digits.png")[0]
    rows, cols = sheet.shape[0] // 8, sheet.shape[1] // 8
    images = sheet.view(rows, 8, cols, 8).transpose(1, 2).reshape(-1, 8, 8)
    return Digits(images[: len(labels)].clone(), labels)


def as_image(digit: Tensor) -> Tensor:
    """uint8 [8, 8] -> the RGB image [3, 8, 8] that the image processor takes."""
    return digit.expand(3, 8, 8).contiguous()


def read_digits(model, prompter, images: Tensor, batch: int = 60) -> list[str]:
    """The model's answers to `QUESTION`, each image through template and image processor.

    An answer that does not end within two tokens is given with a trailing ellipsis.
    """
    from l4kernels.model.chat import user_message
    from l4kernels.model.defaults import GenerationDefaults

    stop_ids = GenerationDefaults.from_pretrained(prompter.path, prompter.config).stop_ids
    message = user_message(QUESTION, num_images=1)
    answers = []
    for part in images.split(batch):
        prompts = [prompter.chat([message], [as_image(image)]) for image in part]
        generation = model.stream(
            torch.tensor([p.ids for p in prompts]),
            2,
            torch.cat([p.pixel_values for p in prompts]),
            stop_ids=stop_ids,
        )
        ids = torch.stack(list(generation), 1).tolist()
        for row, reason in zip(ids, generation.finish_reasons, strict=True):
            text = prompter.tokenizer.decode(row)
            answers.append(text if reason == "stop" else text + "...")
    return answers


def bits_per_byte(model, tokenizer, chapters: list[str], window: int = 512, batch: int = 8):
    """Cross-entropy of the chapters in bits per byte of their UTF-8 text.

    Chapters are cut every `window` tokens, as in training; the begin-of-text token opens each
    piece; every token counts once. Pieces of equal length go through in batches.
    """
    pieces: dict[int, list[list[int]]] = {}
    for chapter in chapters:
        ids = tokenizer.encode(chapter, bos=False)
        for at in range(0, len(ids), window):
            piece = ids[at : at + window]
            pieces.setdefault(len(piece), []).append(piece)
    nats = 0.0
    for same_length in pieces.values():
        for at in range(0, len(same_length), batch):
            targets = torch.tensor(same_length[at : at + batch])
            first = torch.full((len(targets), 1), tokenizer.bos_id)
            logits = model(torch.cat([first, targets[:, :-1]], 1)).flatten(0, 1)
            wanted = targets.flatten().to(logits.device)
            nats += torch.nn.functional.cross_entropy(logits, wanted, reduction="sum").item()
    num_bytes = sum(len(chapter.encode()) for chapter in chapters)
    return nats / torch.tensor(2.0).log().item() / num_bytes
