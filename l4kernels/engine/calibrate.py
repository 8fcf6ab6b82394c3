"""What a model's keys, values and activations look like on a text."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from l4kernels import ops
from l4kernels.engine.llama4 import Llama4
from l4kernels.engine.perplexity import pieces_of
from l4kernels.engine.prompts import PromptTokens
from l4kernels.engine.runner import run_whole
from l4kernels.layers.attention import Attention, AttentionMetadata, LayerCache
from l4kernels.layers.weights.linear import Linear
from l4kernels.ops.ambient import isolated
from l4kernels.ops.quant import FP8_MAX
from l4kernels.prompt.tokenizer import Tokenizer

WINDOW = 2048
"""Tokens of a piece of text."""


@dataclass
class Statistics:
    """Largest magnitudes.

    Attributes:
        keys, values: as they enter the cache, by layer.
        inputs: of the linear layers, by the layer's name in our model.
        tokens: how many went through.
    """

    keys: dict[int, float] = field(default_factory=dict)
    values: dict[int, float] = field(default_factory=dict)
    inputs: dict[str, float] = field(default_factory=dict)
    tokens: int = 0

    def kv_scales(self) -> dict[int, tuple[float, float]]:
        """Of e4m3 keys and values, by layer; 1 where all are zero."""
        return {
            layer: (self.keys[layer] / FP8_MAX or 1.0, self.values[layer] / FP8_MAX or 1.0)
            for layer in sorted(self.keys)
        }


@isolated
def calibrate(model: Llama4, tokenizer: Tokenizer, text: str, window: int = WINDOW) -> Statistics:
    """Runs the model over a text, cut every `window` tokens; each piece begins with the
    begin-of-text token, if there is one.

    Raises:
        ValueError: the text is empty, the cache is no float cache, or a value is not finite.
    """
    if model.kv_dtype != model.options.dtype:
        raise ValueError("expected a model whose cache has the activations' type to calibrate")
    found = Statistics()
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    window = min(window, model.config.max_position_embeddings - len(bos))
    pieces = pieces_of(tokenizer, [text], window)
    if not pieces:
        raise ValueError("the text is empty: expected at least one token")
    handles = [
        hook for name, module in model.named_modules() for hook in _watch(name, module, found)
    ]
    try:
        for piece in pieces:
            run_whole(model, [PromptTokens(bos + piece.tolist())])
            found.tokens += len(bos) + len(piece)
    finally:
        for handle in handles:
            handle.remove()
    for kind, values in (("keys", found.keys), ("values", found.values), ("inputs", found.inputs)):
        wrong = [place for place, value in values.items() if value == float("inf")]
        if wrong:
            raise ValueError(f"{kind} of {wrong[0]} are not finite on this text")
    return found


def _watch(name: str, module: nn.Module, found: Statistics) -> list[Any]:
    """Hooks that note what goes through a module."""
    if isinstance(module, Attention):
        layer = int(name.split(".")[1])
        return [module.register_forward_hook(_note_cache(layer, found))]
    if isinstance(module, Linear) and name.startswith(("layers.", "lm_head")):
        return [module.register_forward_pre_hook(_note_input(name, found))]
    return []


def _note_cache(layer: int, found: Statistics) -> Callable[..., None]:
    def note(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
        metadata, cache = arguments[2], arguments[3]
        assert isinstance(metadata, AttentionMetadata) and isinstance(cache, LayerCache)
        for pages, largest in ((cache.k, found.keys), (cache.v, found.values)):
            largest[layer] = max(
                largest.get(layer, 0.0), _absmax(pages.flatten(0, 1)[metadata.slots])
            )

    return note


def _note_input(name: str, found: Statistics) -> Callable[..., None]:
    def note(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        x = arguments[0]
        if not isinstance(x, Tensor):
            x = ops.dequantize_fp8(x.q, x.scale, "row" if x.scale.dim() == 1 else "1x128")
        found.inputs[name] = max(found.inputs.get(name, 0.0), _absmax(x))

    return note


def _absmax(x: Tensor) -> float:
    """Infinity where a value is NaN."""
    largest = x.detach().float().abs().amax()
    return float(torch.nan_to_num(largest, nan=torch.inf, posinf=torch.inf))
