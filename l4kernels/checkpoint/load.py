"""Fills a model: from a checkpoint folder, or with random weights."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from l4kernels.checkpoint.files.layout import Slot, layout
from l4kernels.checkpoint.files.reader import NamedTensor
from l4kernels.checkpoint.formats.unquantised import Unquantised
from l4kernels.checkpoint.progress import Progress, terminal_counter
from l4kernels.inputs.arguments import whole_number
from l4kernels.inputs.files import shown
from l4kernels.layers.weights.linear import Linear
from l4kernels.layers.weights.staging import ToDevice, Upload, uploading
from l4kernels.model.llama4 import Llama4Model

_ROWS = 1024
"""Of a parameter that is copied at a time."""


def load_weights(model: Llama4Model, source: Unquantised, progress: Progress | None = None) -> None:
    """Fills a model of the source's config; without `progress`, a terminal shows how far it is."""
    if progress is None:
        progress = terminal_counter()
    elif not callable(progress):
        raise ValueError(f"expected progress to be a function, got {shown(progress)}")
    tensors = source.tensors(model.embedding.dtype)
    with uploading(model.device) as upload:
        fill(model, source.slots, _reporting(tensors, source, progress), upload)
    model.kv_scales = source.kv_scales
    _finish(model, source.slots)


def load_random(model: Llama4Model, seed: int) -> None:
    """Fills a model with random weights."""
    seed = whole_number("seed", seed, -(1 << 63), (1 << 63) - 1)
    slots = layout(model.config)
    tensors = random_tensors(slots, model.device, seed)
    rows = ((n, e, t.t() if slots[n].transposed else t) for n, e, t in tensors)
    fill(model, slots, rows, ToDevice(model.device))
    _finish(model, slots)


def fill(
    model: Llama4Model, slots: dict[str, Slot], tensors: Iterable[NamedTensor], upload: Upload
) -> None:
    """Writes tensors into the model's parameters, each brought to its device by `upload`."""
    for name, expert, data in tensors:
        slot = slots[name]
        target = _find(model, slot.target)
        if isinstance(target, Linear):
            target.store(data, slot.rows, slot.expert if expert is None else expert, upload)
        else:
            assert isinstance(data, Tensor)
            _copy(target if slot.rows == "all" else target[slot.rows], data, upload)
        del data  # the last reference to a mapped file would keep it beside the next one


def _copy(target: Tensor, data: Tensor, upload: Upload) -> None:
    """In parts: what is on its way to a GPU is there twice."""
    for own, part in zip(target.split(_ROWS), data.split(_ROWS), strict=True):
        own.copy_(upload(part))


def _find(model: nn.Module, path: str) -> Any:
    """A module of the model, or a parameter."""
    for part in path.split("."):
        model = getattr(model, part)
    return model


def _finish(model: Llama4Model, slots: dict[str, Slot]) -> None:
    """Gives lm_head the embedding's weights where the config ties them; a head of its own that
    the checkpoint holds all the same stays, as it does in transformers. Then nothing writes weights
    any more: kernels may read them while others run."""
    if model.config.tie_word_embeddings:
        own_head = any(slot.target == "lm_head" for slot in slots.values())
        model.lm_head.tie(model.embedding, filled=own_head)
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


def random_tensors(
    slots: dict[str, Slot], device: torch.device, seed: int
) -> Iterator[tuple[str, int | None, Tensor]]:
    """Random weights, as a checkpoint has them, that keep activations of ordinary size: norms
    near 1."""
    generator = torch.Generator(device).manual_seed(seed)
    for name, slot in slots.items():
        shape, stacked = slot.shape, len(slot.shape) == 3
        for expert in range(shape[0]) if stacked else (None,):
            part = shape[1:] if stacked else shape
            data = torch.randn(part, generator=generator, device=device, dtype=torch.float32)
            if len(part) == 1:
                is_norm = "norm" in name and name.endswith(".weight")
                data = data.mul_(0.1).add_(1.0 if is_norm else 0.0)
            else:
                fan_in = part[0] if slot.transposed else part[1]
                data = data.mul_(fan_in**-0.5)
            yield name, expert, data


def _reporting(
    tensors: Iterator[NamedTensor], source: Unquantised, progress: Progress
) -> Iterator[NamedTensor]:
    done, total = 0, source.checkpoint.size
    for tensor in tensors:
        name, expert, _ = tensor
        slot = source.slots[name]
        stored = sum(source.checkpoint.entries[piece].bytes for piece in source.pieces[name])
        done += stored // (1 if expert is None else slot.shape[0])
        yield tensor
        del tensor, _  # as in `fill`
        progress(done, total)
    progress(total, total)
