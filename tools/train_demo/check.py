"""`python -m tools.train_demo.check`: measure the shipped files; compare with transformers."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from tokenizers import Tokenizer

from .batches import BOS
from .data import FORMS, Chapter, Digits, enlarge, normalise, two_tile_image
from .evaluate import bits_per_byte, digits_correct
from .export import read_checkpoint, read_data
from .model import DemoLlama4
from .tokenizer import encode


def measure(model: DemoLlama4, tokenizer: Tokenizer, data: Path) -> dict:
    chapters, digits = read_data(data)
    correct = digits_correct(model, tokenizer, digits)
    return {
        "bits_per_byte": round(bits_per_byte(model, tokenizer, chapters), 4),
        "bytes": sum(len(c.text.encode()) for c in chapters),
        "digits": {"correct": correct["one"], "total": len(digits.labels)},
        "pairs": {f: [correct[f], len(digits.labels) // 2] for f in ("wide", "tall", "two_images")},
    }


def parity_cases(
    tokenizer: Tokenizer, chapters: list[Chapter], digits: Digits
) -> dict[str, tuple[list[int], torch.Tensor | None]]:
    text = [BOS, *encode(tokenizer, "\n".join(c.text for c in chapters[:3]))]
    gray = enlarge(digits.images[:2]).float() / 255
    wide = normalise(two_tile_image(gray[:1], gray[1:], vertical=False))
    tall = normalise(two_tile_image(gray[:1], gray[1:], vertical=True))
    pixels = {"one": normalise(gray[:1]), "wide": wide, "tall": tall, "two_images": normalise(gray)}
    cases = {f"text of {n}": (text[:n], None) for n in (1, 63, 64, 65, 200, 512, 1000)}
    for form, prompt in FORMS.items():
        cases[form] = (encode(tokenizer, prompt), pixels[form])
        # The same question after a text that moves the image across a chunk boundary.
        cases[f"{form} at 50"] = (text[:50] + cases[form][0], pixels[form])
    return cases


@torch.no_grad()
def parity(model: DemoLlama4, tokenizer: Tokenizer, checkpoint: Path, data: Path) -> dict:
    from transformers import AutoTokenizer, Llama4ForConditionalGeneration

    other, info = Llama4ForConditionalGeneration.from_pretrained(
        checkpoint, dtype=torch.float32, output_loading_info=True
    )
    worst = {}
    for name, (ids, tiles) in parity_cases(tokenizer, *read_data(data)).items():
        row = torch.tensor([ids])
        got = model.logits(model(row, tiles))
        expected = other(input_ids=row, pixel_values=tiles).logits
        worst[name] = (got - expected).abs().max().item()
    content = [{"type": "image"}, {"type": "text", "text": "Which digit is this?"}]
    chat = AutoTokenizer.from_pretrained(checkpoint).apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    image = FORMS["one"][FORMS["one"].index("<|image_start|>") :].split("Which")[0]
    return {
        "keys": {k: sorted(map(str, info[k])) for k in ("missing_keys", "unexpected_keys")},
        "worst": max(worst.values()),
        "by_case": {k: float(f"{v:.2g}") for k, v in worst.items()},
        "chat_template": chat.replace("<|image|>", image) == FORMS["one"],
    }


def main() -> None:
    demo = Path(__file__).parents[2] / "l4kernels" / "demo"
    parser = argparse.ArgumentParser(prog="python -m tools.train_demo.check", description=__doc__)
    parser.add_argument("--demo", type=Path, default=demo, help="folder of checkpoint/ and data/")
    parser.add_argument("--parity", action="store_true", help="also compare with transformers")
    args = parser.parse_args()
    model, tokenizer = read_checkpoint(args.demo / "checkpoint")
    report = measure(model, tokenizer, args.demo / "data")
    if args.parity:
        report["transformers"] = parity(
            model, tokenizer, args.demo / "checkpoint", args.demo / "data"
        )
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
