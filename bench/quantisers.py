"""What quantising costs: bits per byte of the demo's held-out text, by format and quantiser, on the
typed references of a CPU. `python -m bench.quantisers` prints the table of docs/numerics.md."""

import contextlib
import functools
from collections.abc import Iterator
from unittest import mock

import torch

from l4kernels import Llama4, demo, ops
from l4kernels.prompt.chat import Prompter

ROWS = {  # what it is called: the format, and the arguments of its quantiser that are not defaults
    "bf16": ("bf16", {}),
    "fp8": ("fp8", {}),
    "int4, round to nearest (amax / 7.5)": ("int4", {"search": False}),
    "int4, searched clip": ("int4", {}),
    "int4+fp8attn, searched clip": ("int4+fp8attn", {}),
}


@contextlib.contextmanager
def quantising(**options: bool) -> Iterator[None]:
    """In the block models quantise int4 with these arguments."""
    quantiser = functools.partial(ops.quantize_int4, **options)
    with mock.patch.object(ops, "quantize_int4", quantiser):
        yield


def load(row: str) -> Llama4:
    """The demo in float32 activations, so that weights alone differ."""
    weights, options = ROWS[row]
    with quantising(**options):
        return Llama4.from_pretrained(demo.CHECKPOINT, dtype=torch.float32, weights=weights)


def bits_per_byte(row: str, chapters: int | None = None) -> float:
    tokenizer = Prompter(demo.CHECKPOINT).tokenizer
    return demo.bits_per_byte(load(row), tokenizer, demo.held_out_chapters()[:chapters])


def main() -> None:
    print("| weights | bits per byte | more than bf16 |\n| --- | --- | --- |")
    found: dict[str, float] = {}
    for row in ROWS:
        found[row] = bits_per_byte(row)
        print(f"| {row} | {found[row]:.4f} | {found[row] - found['bf16']:+.4f} |", flush=True)


if __name__ == "__main__":
    main()
