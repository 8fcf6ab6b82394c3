"""`l4k demo`: the whole model on real input, in seconds, on any machine."""

import time

import torch
from torch import Tensor

from l4kernels import demo as data
from l4kernels.cli.generate import load_options
from l4kernels.cli.output import console, print_json, stream
from l4kernels.model.chat import Prompter
from l4kernels.model.generate import Sampling
from l4kernels.model.llama4 import Llama4
from l4kernels.model.tokenizer import Detokenizer

PROMPT = "And it came to pass"
NEW_TOKENS = 60
SHOWN = 9


def run(
    *, weights: str, device: str | None, seed: int, as_json: bool, reference: bool = False
) -> None:
    options = load_options(device, None, weights, reference=reference)
    started = time.perf_counter()
    prompter = Prompter(data.CHECKPOINT)
    model = Llama4.from_pretrained(data.CHECKPOINT, **options)
    loaded = time.perf_counter()
    place = str(options["device"])
    dtype = str(options["dtype"]).removeprefix("torch.")
    if not as_json:
        console.print(
            f"[bold]Llama 4, demo size[/bold] · {weights} weights, {dtype} on {place} · loaded in "
            f"{loaded - started:.1f} s\n"
        )
    text = sample(model, prompter, seed, show=not as_json)
    sampled = time.perf_counter()
    if not as_json:
        stream("\n\n")
    chapters = data.held_out_chapters()
    bits = data.bits_per_byte(model, prompter.tokenizer, chapters)
    measured = time.perf_counter()
    if not as_json:
        size = sum(len(c.encode()) for c in chapters) / 1000
        _line(
            "text",
            f"{bits:.3f} bits per byte",
            f"{len(chapters)} unseen chapters, {size:.0f} kB",
            measured - sampled,
        )
    digits = data.held_out_digits()
    answers = data.read_digits(model, prompter, digits.images)
    ended = time.perf_counter()
    right = [a == str(label) for a, label in zip(answers, digits.labels, strict=True)]
    if as_json:
        print_json(
            {
                "text": text,
                "bits_per_byte": bits,
                "digits": {"correct": sum(right), "total": len(right)},
                "weights": weights,
                "dtype": dtype,
                "device": place,
                "seed": seed,
                "timings": {
                    "load_s": loaded - started,
                    "text_s": sampled - loaded,
                    "bits_per_byte_s": measured - sampled,
                    "digits_s": ended - measured,
                    "total_s": ended - started,
                },
            }
        )
        return
    _line("digits", f"{sum(right)} of {len(right)} right", "unseen images", ended - measured)
    console.print()
    for row in pictures(digits.images[:SHOWN]):
        console.print("  " + row, markup=False)
    for answer in answers[:SHOWN]:
        console.print(f"  {answer[:8]:^8}", end="", markup=False)
    console.print(f"\n\n[dim]{ended - started:.1f} s in all[/dim]")


def sample(model: Llama4, prompter: Prompter, seed: int, *, show: bool) -> str:
    """A continuation of `PROMPT`, shown as it comes."""
    prompt = prompter.raw(PROMPT)
    text = Detokenizer(prompter.tokenizer)
    if show:
        stream("  " + PROMPT)
    for ids in model.stream(
        torch.tensor([prompt.ids]), NEW_TOKENS, sampling=Sampling(0.7, top_p=0.9, seed=seed)
    ):
        part = text.push(int(ids[0]))
        if show:
            stream(part.replace("\n", "\n  "))
    rest = text.finish()
    if show:
        stream(rest)
    return PROMPT + text.text


def pictures(images: Tensor) -> list[str]:
    """Digits side by side, two rows of pixels to a line of half blocks."""
    ink = images >= 96
    lines = []
    for row in range(0, 8, 2):
        pairs = zip(ink[:, row].tolist(), ink[:, row + 1].tolist(), strict=True)
        lines.append("  ".join(_half_blocks(upper, lower) for upper, lower in pairs))
    return lines


def _half_blocks(upper: list[bool], lower: list[bool]) -> str:
    return "".join(" ▄▀█"[2 * up + low] for up, low in zip(upper, lower, strict=True))


def _line(name: str, result: str, what: str, seconds: float) -> None:
    console.print(f"  [bold]{name:<8}{result:<24}[/bold]{what:<32}{seconds:>5.1f} s")
