"""The engine's captured steps against the same steps as they are: what only a GPU can show."""

from typing import Any

from bench.checks.whole_model import load
from l4kernels import Sampling, demo
from l4kernels.engine.core import EngineCore
from l4kernels.engine.graphs import Capture, as_it_is
from l4kernels.engine.kv_cache import CacheShape, Pages
from l4kernels.engine.sequence import Choice, Sequence
from l4kernels.model.llama4 import Llama4Model
from l4kernels.ops.library import take_device_error
from l4kernels.prompt.chat import Prompter

PROMPTS = (3, 60, 64, 65, 127, 190, 30, 100)
"""Tokens of each: before, at and after the ends of chunks of 64."""
NEW_TOKENS = tuple(range(20, 100, 10))
SLOTS = 4
SETTINGS = {
    "greedy": Sampling(),
    "drawn": Sampling(0.8, top_p=0.95, repetition_penalty=1.1, frequency_penalty=0.2),
}


def captures_are_right(
    form: str, settings: str, device: str = "cuda", capture: Capture | None = None
) -> dict[str, Any]:
    """Tokens of sequences that come and go, replayed and run: the same kernels in the same order,
    so the same bits."""
    model = load(form, device)
    plain, steps, _ = _tokens(model, settings, as_it_is)
    captured, _, captures = _tokens(model, settings, capture)
    take_device_error()
    assert captured == plain, f"{form} {settings}: {captured} replayed, {plain} run"
    assert len({*map(tuple, plain)}) > 1, f"{form} {settings}: all sequences say the same"
    return {"steps": steps, "captures": captures}


def _tokens(
    model: Llama4Model, settings: str, capture: Capture | None
) -> tuple[list[list[int]], int, int]:
    shape = CacheShape.of(model.config, model.kv_dtype)
    needed = shape.needed(max(PROMPTS) + max(NEW_TOKENS))
    pages = Pages(*(SLOTS * count for count in needed))
    core = EngineCore(model, slots=SLOTS, context=512, pages=pages, capture=capture)
    sequences = [
        Sequence(ids, Choice(SETTINGS[settings], new, frozenset(), new, logprobs=2))
        for ids, new in zip(_prompts(), NEW_TOKENS, strict=True)
    ]
    for sequence in sequences:
        core.add(sequence)
    while not core.idle:
        for event in core.step():
            if event.error is not None:
                raise event.error
    tokens = [sequence.new_tokens for sequence in sequences]
    return tokens, core.steps, len(core.runner.captured)


def _prompts() -> list[list[int]]:
    prompter = Prompter(demo.CHECKPOINT)
    chapters = demo.held_out_chapters()
    ids = [prompter.raw(chapter).ids for chapter in chapters[: len(PROMPTS)]]
    return [(own * 20)[:length] for own, length in zip(ids, PROMPTS, strict=True)]
