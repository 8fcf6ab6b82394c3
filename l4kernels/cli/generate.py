"""`l4k generate`."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from l4kernels.cli.interrupts import exit_code
from l4kernels.cli.loading import Loader, ModelRequest
from l4kernels.cli.output import print_json, stream
from l4kernels.cli.streams import read_input
from l4kernels.engine.generate import Generation
from l4kernels.engine.prompts import check_length
from l4kernels.prompt.chat import Prompt, Prompter, user_message
from l4kernels.prompt.chat_template import ChatError
from l4kernels.prompt.tokenizer import Detokenizer
from l4kernels.prompt.video import FRAMES, sample_frames, video_parts


@dataclass(frozen=True, kw_only=True)
class Request(ModelRequest):
    prompt: str
    images: tuple[Path, ...] = ()
    video: Path | None = None
    frames: int | None = None  # of the video
    chat: bool = False
    system: str | None = None
    max_new_tokens: int = 256


def run(request: Request, *, as_json: bool) -> int:
    """Everything that can be checked is checked before the weights are read.

    Returns the exit code: a generation that is interrupted shows what it has.
    """
    started = time.perf_counter()
    config = request.config()
    sampling = request.sampling()
    prompter = Prompter(request.model, config)
    prompt = build_prompt(request, prompter)
    text = Detokenizer(prompter.tokenizer, request.stop)
    check_length(config, len(prompt.ids), request.max_new_tokens)
    loader = Loader(request, config)
    prepared = time.perf_counter()
    with loader.loaded() as model:
        loaded = time.perf_counter()
        ids = torch.tensor([prompt.ids])
        generation = model.stream(
            ids,
            request.max_new_tokens,
            prompt.pixel_values,
            sampling,
            attention_mask=torch.ones_like(ids),  # a pad token in it is text
        )
        token_ids: list[int] = []
        interruption = write(generation, text, token_ids, show=not as_json)
    timings = {
        "prepare_s": prepared - started,
        "load_s": loaded - prepared,
        "image_s": generation.timings.image_s,
        "prefill_s": generation.timings.prefill_s,
        "decode_s": generation.timings.decode_s,
        "tokens_per_second": generation.timings.tokens_per_second,
        "total_s": time.perf_counter() - started,
    }
    if interruption:
        reason = "interrupted"
    else:
        reason = "stop" if text.stopped else generation.finish_reasons[0]
    result = {
        "text": text.text,
        "token_ids": token_ids,
        "prompt_tokens": len(prompt.ids),
        "completion_tokens": len(token_ids),
        "finish_reason": reason,
        "timings": timings,
    }
    if as_json:
        print_json(result | ({"error": "interrupted"} if interruption else {}))
    else:
        _print_status(result)
    return exit_code(interruption) if interruption else 0


def write(
    generation: Generation, text: Detokenizer, token_ids: list[int], *, show: bool
) -> KeyboardInterrupt | None:
    """Writes the tokens to `token_ids` and `text`, and shows the text as it comes; returns what
    interrupted it, if anything did."""
    show_part = stream if show else (lambda part: None)
    interruption = None
    try:
        for ids in generation:
            token_ids.append(int(ids[0]))
            show_part(text.push(token_ids[-1]))
            if text.stopped:
                break
    except KeyboardInterrupt as error:
        interruption = error
    show_part(text.finish())
    return interruption


def _print_status(result: dict[str, Any]) -> None:
    """One line on standard error: standard output holds the text and nothing else."""
    if sys.stdout.isatty():
        stream("\n")
    timings = result["timings"]
    print(
        f"{result['prompt_tokens']} + {result['completion_tokens']} tokens "
        f"({result['finish_reason']}), load {timings['load_s']:.1f} s, prompt "
        f"{timings['image_s'] + timings['prefill_s']:.2f} s, "
        f"{timings['tokens_per_second']:.1f} tokens/s",
        file=sys.stderr,
    )


def build_prompt(request: Request, prompter: Prompter) -> Prompt:
    """Raw text, or the checkpoint's chat form if there is an image, a video or a system message."""
    if request.frames is not None and request.video is None:
        raise ValueError("--frames is the number of frames of a --video, but there is none")
    text = read_input() if request.prompt == "-" else request.prompt
    pictures = request.images or request.video is not None
    if not (request.chat or pictures or request.system is not None):
        return prompter.raw(text)
    if not text and not pictures:
        raise ChatError("the prompt is empty")
    parts: list[dict[str, str]] = []
    images: list[Any] = [*request.images]
    if request.video is not None:
        count = FRAMES if request.frames is None else request.frames
        video = sample_frames(request.video, count, max_side=prompter.tile_size)
        parts, frames = video_parts(video)
        images += frames
    messages = [] if request.system is None else [{"role": "system", "content": request.system}]
    turn = user_message(text, len(request.images), parts)
    return prompter.chat([*messages, turn], images)
