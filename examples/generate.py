"""Text, a stream and an image through a model.

    python examples/generate.py [CHECKPOINT]

Without an argument it runs the shipped demo model, which knows the King James text and handwritten
digits. Any folder with a Llama 4 checkpoint of Hugging Face will do.
"""

import sys

import torch

import l4kernels
from l4kernels.demo import CHECKPOINT, QUESTION, as_image, held_out_digits


def complete(model: l4kernels.Llama4, prompter: l4kernels.Prompter) -> None:
    """Text to text: `generate` returns prompt and answer as ids `[B, S + n]`."""
    prompt = prompter.raw("And it came to pass")
    tokens = model.generate(torch.tensor([prompt.ids]), max_new_tokens=16)
    print("greedy: ", prompter.tokenizer.decode(tokens[0]))


def stream(model: l4kernels.Llama4, prompter: l4kernels.Prompter) -> None:
    """Token by token, sampled; `Sampling.from_pretrained(folder)` is what the checkpoint asks."""
    prompt = prompter.raw("In the beginning")
    sampling = l4kernels.Sampling(temperature=0.8, top_p=0.9, seed=1)
    generation = model.stream(torch.tensor([prompt.ids]), 16, sampling=sampling)
    print("sampled: In the beginning", end="")
    for ids in generation:  # [B], one token of each sequence
        print(prompter.tokenizer.decode(ids), end="", flush=True)
    rate = generation.timings.tokens_per_second
    print(f"\n          {generation.finish_reasons[0]}, {rate:.0f} tokens/s")


def look(model: l4kernels.Llama4, prompter: l4kernels.Prompter) -> None:
    """A question about an image: a file, a Pillow image, an array or a tensor uint8 [3, H, W]."""
    digits = held_out_digits()
    content = [
        {"type": "image"},
        {"type": "text", "text": QUESTION},
    ]
    messages = [{"role": "user", "content": content}]
    prompt = prompter.chat(messages, [as_image(digits.images[0])])
    ids = torch.tensor([prompt.ids])
    tokens = model.generate(ids, 2, pixel_values=prompt.pixel_values)
    answer = prompter.tokenizer.decode(tokens[0, ids.shape[1] :])
    print(f"image:    {QUESTION} {answer} (it is {digits.labels[0]})")


if __name__ == "__main__":
    folder = sys.argv[1] if len(sys.argv) > 1 else CHECKPOINT
    model = l4kernels.Llama4.from_pretrained(folder)
    prompter = l4kernels.Prompter(folder)
    complete(model, prompter)
    stream(model, prompter)
    if model.config.vision is not None:
        look(model, prompter)
