"""`l4k generate`."""

import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from l4kernels.cli.output import console, print_json, stream
from l4kernels.env import gpu_problem
from l4kernels.layers.linear import FORMATS
from l4kernels.model.chat import ChatError, Prompt, Prompter, user_message
from l4kernels.model.config import Llama4Config
from l4kernels.model.generate import Sampling
from l4kernels.model.llama4 import DTYPES, Llama4, find_device
from l4kernels.model.prompt import check_length
from l4kernels.model.tokenizer import Detokenizer


@dataclass(frozen=True)
class Request:
    model: Path
    prompt: str
    images: tuple[Path, ...] = ()
    chat: bool = False
    system: str | None = None
    max_new_tokens: int = 256
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int = 0
    stop: tuple[str, ...] = ()
    weights: str = "bf16"
    dtype: str | None = None
    device: str | None = None
    kv_dtype: str = "auto"
    reference: bool = False


def run(request: Request, *, as_json: bool) -> None:
    """Everything that can be checked is checked before the weights are read."""
    started = time.perf_counter()
    options = load_options(
        request.device,
        request.dtype,
        request.weights,
        request.kv_dtype,
        reference=request.reference,
    )
    if request.max_new_tokens < 1:
        raise ValueError(f"expected --max-new-tokens >= 1, got {request.max_new_tokens}")
    if not request.model.is_dir():
        raise FileNotFoundError(f"{request.model}: no such checkpoint folder")
    config = Llama4Config.from_pretrained(request.model)
    sampling = _sampling(request)
    prompter = Prompter(request.model, config)
    prompt = build_prompt(request, prompter)
    text = Detokenizer(prompter.tokenizer, request.stop)
    check_length(config, len(prompt.ids), request.max_new_tokens)
    prepared = time.perf_counter()
    model = Llama4.from_pretrained(request.model, **options)
    loaded = time.perf_counter()

    generation = model.stream(
        torch.tensor([prompt.ids]),
        request.max_new_tokens,
        prompt.pixel_values,
        sampling,
    )
    show = (lambda part: None) if as_json else stream
    token_ids: list[int] = []
    for ids in generation:
        token_ids.append(int(ids[0]))
        show(text.push(token_ids[-1]))
        if text.stopped:
            break
    show(text.finish())
    finish_reason = "stop" if text.stopped else generation.finish_reasons[0]
    timings = {
        "prepare_s": prepared - started,
        "load_s": loaded - prepared,
        "image_s": generation.timings.image_s,
        "prefill_s": generation.timings.prefill_s,
        "decode_s": generation.timings.decode_s,
        "tokens_per_second": generation.timings.tokens_per_second,
        "total_s": time.perf_counter() - started,
    }
    if as_json:
        print_json(
            {
                "text": text.text,
                "token_ids": token_ids,
                "prompt_tokens": len(prompt.ids),
                "completion_tokens": len(token_ids),
                "finish_reason": finish_reason,
                "timings": timings,
            }
        )
        return
    stream("\n")
    console.print(
        f"[dim]{len(prompt.ids)} + {len(token_ids)} tokens ({finish_reason}) · load "
        f"{timings['load_s']:.1f} s · prompt {timings['image_s'] + timings['prefill_s']:.2f} s · "
        f"{timings['tokens_per_second']:.1f} tokens/s[/dim]"
    )


def load_options(
    device: str | None,
    dtype: str | None,
    weights: str,
    kv_dtype: str = "auto",
    *,
    reference: bool = False,
) -> dict[str, Any]:
    """Arguments of `Llama4.from_pretrained` behind the command line's spellings."""
    target = find_device(device or _default_device(weights, reference))
    dtype = dtype or ("bfloat16" if target.type == "cuda" else "float32")
    for option, value, known in (
        ("--dtype", dtype, DTYPES),
        ("--weights", weights, FORMATS),
        ("--kv-dtype", kv_dtype, ("auto", "fp8")),
    ):
        if value not in known:
            raise ValueError(f"expected {option} to be one of {', '.join(known)}, got {value!r}")
    small = kv_dtype == "fp8" or (weights == "int4" and target.type == "cuda")
    return {
        "device": target,
        "dtype": DTYPES[dtype],
        "weights": weights,
        "kv_dtype": "fp8" if small else None,
    }


def _default_device(weights: str, reference: bool) -> str:
    """The GPU if a whole model can run there; an idle GPU is never passed over in silence."""
    if not torch.cuda.is_available():
        return "cpu"
    problem = None if reference else gpu_problem(weights)
    if problem is None:
        return "cuda"
    print(f"l4k: running on the CPU: {problem}", file=sys.stderr)
    return "cpu"


def build_prompt(request: Request, prompter: Prompter) -> Prompt:
    """Raw text, or the checkpoint's chat form if there are images or a system message."""
    text = sys.stdin.read() if request.prompt == "-" else request.prompt
    if not (request.chat or request.images or request.system is not None):
        return prompter.raw(text)
    if not text and not request.images:
        raise ChatError("the prompt is empty")
    messages = [] if request.system is None else [{"role": "system", "content": request.system}]
    return prompter.chat([*messages, user_message(text, len(request.images))], request.images)


def _sampling(request: Request) -> Sampling:
    """What the request leaves open, the checkpoint decides."""
    asked = {name: getattr(request, name) for name in ("temperature", "top_k", "top_p", "min_p")}
    asked = {name: value for name, value in asked.items() if value is not None}
    return replace(Sampling.from_pretrained(request.model), **asked, seed=request.seed)
