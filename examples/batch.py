"""Several prompts at once, of any lengths: an engine runs them together.

    python examples/batch.py [CHECKPOINT]

Each is a request of its own, with its own settings and its own end; none waits for another.
"""

import sys

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


def complete(folder: str, prompts: list[str], new_tokens: int) -> list[str]:
    """Continues every prompt; the results are in the order of the prompts."""
    prompter = l4kernels.Prompter(folder)
    model = l4kernels.Llama4.from_pretrained(folder)
    with l4kernels.Engine(model, tokenizer=prompter.tokenizer) as engine:
        streams = [
            engine.add(l4kernels.Request(prompter.raw(prompt).ids, new_tokens))
            for prompt in prompts
        ]
        answers = ["".join(output.text for output in stream) for stream in streams]
        print(f"{len(prompts)} prompts in {engine.stats().steps} steps", file=sys.stderr)
    return [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]


if __name__ == "__main__":
    folder = sys.argv[1] if len(sys.argv) > 1 else str(CHECKPOINT)
    for text in complete(folder, PROMPTS, 12):
        print(text.replace("\n", " "))
