"""`l4k demo`: the whole model on real input, in seconds, on any machine."""

import time

import torch
from torch import Tensor

from l4kernels import demo as data
from l4kernels.cli.loading import checkpoint_bytes, load_options
from l4kernels.cli.output import can_print, line, print_json, stream, styled
from l4kernels.cli.progress import loading_bar
from l4kernels.engine.llama4 import Llama4
from l4kernels.engine.sampling import Sampling
from l4kernels.planning import cpu
from l4kernels.prompt.chat import Prompter
from l4kernels.prompt.tokenizer import Detokenizer

PROMPT = "And it came to pass"
NEW_TOKENS = 60
SHOWN = 9
BLOCKS = " ▄▀█"
"""Nothing, the lower, the upper and both of two pixels."""
ASCII_BLOCKS = " .':"


def run(
    *, weights: str, device: str | None, seed: int, as_json: bool, reference: bool = False
) -> None:
    options = load_options(device, None, weights, reference=reference)
    place = str(options["device"])
    dtype = str(options["dtype"]).removeprefix("torch.")
    started = time.perf_counter()
    size = checkpoint_bytes(data.CHECKPOINT)
    with cpu.threads(cpu.threads_for(size)):
        prompter = Prompter(data.CHECKPOINT)
        with loading_bar() as progress:
            model = Llama4.from_pretrained(
                data.CHECKPOINT, config=prompter.config, progress=progress, **options
            )
        loaded = time.perf_counter()
        if not as_json:
            what = f": {weights} weights, {dtype} on {place}, loaded in {loaded - started:.1f} s\n"
            line(styled("Llama 4, demo size", "bold"), what)
        text = sample(model, prompter, seed, show=not as_json)
        sampled = time.perf_counter()
    with cpu.threads(cpu.threads_for(size, data.BATCH * data.WINDOW)):
        chapters = data.held_out_chapters()
        bits = data.bits_per_byte(model, prompter.tokenizer, chapters)
        measured = time.perf_counter()
        if not as_json:
            kilobytes = sum(len(c.encode()) for c in chapters) / 1000
            what = f"{len(chapters)} unseen chapters, {kilobytes:.0f} kB"
            _result("text", f"{bits:.3f} bits per byte", what, measured - sampled)
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
    _result("digits", f"{sum(right)} of {len(right)} right", "unseen images", ended - measured)
    line()
    for row in pictures(digits.images[:SHOWN], BLOCKS if can_print(BLOCKS) else ASCII_BLOCKS):
        line("  " + row)
    line(*(f"  {answer[:8]:^8}" for answer in answers[:SHOWN]))
    line()
    line(styled(f"{ended - started:.1f} s in all", "dim"))


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
        stream(rest + "\n\n")
    return PROMPT + text.text


def pictures(images: Tensor, blocks: str = BLOCKS) -> list[str]:
    """Digits side by side, two rows of pixels to a line."""
    ink = (images >= 96).int()
    lines = []
    for row in range(0, 8, 2):
        pairs = (2 * ink[:, row] + ink[:, row + 1]).tolist()
        lines.append("  ".join("".join(blocks[i] for i in digit) for digit in pairs))
    return lines


def _result(name: str, result: str, what: str, seconds: float) -> None:
    line(styled(f"  {name:<8}{result:<24}", "bold"), f"{what:<32}{seconds:>5.1f} s")
