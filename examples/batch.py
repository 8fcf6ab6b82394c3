"""Several prompts at once: prompts of one length form a batch, whatever their order.

    python examples/batch.py [CHECKPOINT]

A batch has no padding, so prompts are grouped by their number of tokens. A row that has met an end
token is filled with the pad token until all rows have ended.
"""

import sys
from collections import defaultdict

import torch

import l4kernels
from l4kernels.demo import CHECKPOINT

PROMPTS = [
    "And it came to pass",
    "In the beginning",
    "And the LORD said",
    "The sons of",
    "Blessed is the man",
    "And God saw",
]


def by_length(rows: list[list[int]]) -> list[list[int]]:
    """The numbers of the rows that have one length, for each length."""
    groups = defaultdict(list)
    for number, row in enumerate(rows):
        groups[len(row)].append(number)
    return list(groups.values())


def complete(folder: str, prompts: list[str], new_tokens: int) -> list[str]:
    """Continues every prompt; the results are in the order of the prompts."""
    model = l4kernels.Llama4.from_pretrained(folder)
    prompter = l4kernels.Prompter(folder)
    rows = [prompter.raw(prompt).ids for prompt in prompts]
    texts = [""] * len(prompts)
    for group in by_length(rows):
        ids = torch.tensor([rows[number] for number in group])  # [B, S]
        for number, tokens in zip(group, model.generate(ids, new_tokens), strict=True):
            texts[number] = prompter.tokenizer.decode(tokens)
        print(f"{len(group)} prompts of {ids.shape[1]} tokens in one batch", file=sys.stderr)
    return texts


if __name__ == "__main__":
    folder = sys.argv[1] if len(sys.argv) > 1 else str(CHECKPOINT)
    for text in complete(folder, PROMPTS, 12):
        print(text.replace("\n", " "))
