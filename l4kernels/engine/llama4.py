"""`Llama4`: a model that is loaded from a checkpoint and generates."""

import contextlib
import functools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from l4kernels.checkpoint import layout as loading
from l4kernels.checkpoint.reader import Checkpoint
from l4kernels.engine.generate import Generation
from l4kernels.engine.kv_cache import FP8
from l4kernels.engine.runner import Runner
from l4kernels.engine.sampler import Sampling
from l4kernels.engine.sequence import make_sequences
from l4kernels.inputs.arguments import whole_number
from l4kernels.inputs.files import shown
from l4kernels.layers.linear import FORMATS, Build
from l4kernels.model.config import Llama4Config
from l4kernels.model.llama4 import Llama4Model
from l4kernels.ops.ambient import isolated, ordinary, outside_inference

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Llama4(Llama4Model):
    """Llama 4, text and images, ready to generate.

    `from_pretrained` reads a checkpoint; `random` makes one up. Called, it is the forward pass of
    `Llama4Model`.
    """

    @isolated
    def prompt_logits(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Logits of every position.

        Args:
            input_ids: int64 or int32 `[B, S]`, no padding.
            pixel_values: `[tiles, 3, H, W]` of all images, in the order of the prompts.
            attention_mask: `[B, S]`, all ones: every token is meant. Without it a row must not
                begin with the pad token.

        Returns:
            float32 `[B, S, vocab_size]`; no gradient leads back to the weights.
        """
        sequences, _ = make_sequences(self, input_ids, pixel_values, 0, attention_mask)
        runner = Runner(self, sequences, scratch=True)
        hidden = runner.step([len(sequence.ids) for sequence in sequences])
        with outside_inference():
            return self.compute_logits(hidden).view(*input_ids.shape, -1)

    def generate(
        self,
        input_ids: Tensor,
        max_new_tokens: int = 32,
        temperature: float = 0.0,
        pixel_values: Tensor | None = None,
        *,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        seed: int | None = None,
        repetition_penalty: float = 1.0,
        logit_bias: Mapping[int, float] | None = None,
        stop_ids: int | Iterable[int] | Tensor | None = None,
        attention_mask: Tensor | None = None,
        streamer: Callable[[Tensor], None] | None = None,
    ) -> Tensor:
        """Continues every row of `input_ids` `[B, S]`; `[B, S + n]` with n <= `max_new_tokens`.

        A row that met an end token (`stop_ids`, by default the checkpoint's) is padded with the
        pad id; generation ends when all rows have. `streamer` gets the tokens `[B]` of each step.
        How tokens are chosen: see `Sampling`; the other arguments and the errors: see `Generation`.
        Greedy unless told otherwise: what the checkpoint asks for is `Sampling.from_pretrained`,
        for `stream`.
        """
        if streamer is not None and not callable(streamer):
            raise ValueError(f"expected streamer to be a function, got {shown(streamer)}")
        bias = {} if logit_bias is None else logit_bias
        sampling = Sampling(temperature, top_k, top_p, min_p, seed, repetition_penalty, bias)
        columns = [input_ids]
        for ids in self.stream(
            input_ids, max_new_tokens, pixel_values, sampling, stop_ids, attention_mask
        ):
            columns.append(ids[:, None].to(input_ids))
            if streamer is not None:
                streamer(ids)
        with outside_inference():
            return torch.cat(columns, 1)

    def stream(
        self,
        input_ids: Tensor,
        max_new_tokens: int = 32,
        pixel_values: Tensor | None = None,
        sampling: Sampling | None = None,
        stop_ids: int | Iterable[int] | Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Generation:
        """The tokens one step at a time, with timings and finish reasons: see `Generation`."""
        sampling = Sampling() if sampling is None else sampling
        return Generation(
            self, input_ids, max_new_tokens, pixel_values, sampling, stop_ids, attention_mask
        )

    @classmethod
    @ordinary
    def from_pretrained(
        cls,
        path: str | Path,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = torch.float32,
        weights: str | None = None,
        kv_dtype: str | torch.dtype | None = None,
        *,
        config: Llama4Config | None = None,
    ) -> "Llama4":
        """Reads a Hugging Face checkpoint folder (config.json and safetensors).

        Args:
            path: the folder.
            device: where the weights go.
            dtype: float32 or bfloat16, of the activations and of what is not quantised.
            weights: None or "bf16" (unquantised, in `dtype`), "fp8", or "int4" (groups of 128);
                quantised while loading, a slab at a time.
            kv_dtype: of the KV cache: None (`dtype`) or "fp8".
            config: what `Llama4Config.from_pretrained(path)` gave, if it was read already.
        """
        build, kv_dtype = _build(device, dtype, weights, kv_dtype)
        config = config or Llama4Config.from_pretrained(path)
        checkpoint = Checkpoint(path)
        slots = loading.layout(config, checkpoint.entries)
        checkpoint.check(loading.shapes(slots), functools.partial(loading.ignored, config))
        model = cls(config, build, kv_dtype=kv_dtype)
        # Closed at once, also by an error: its bar must not be wiped after the message is shown.
        with contextlib.closing(loading.with_progress(checkpoint, build.dtype)) as slabs:
            loading.fill(model, slots, slabs)
        return model.tied(slots)

    @classmethod
    @ordinary
    def random(
        cls,
        config: Llama4Config,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = torch.float32,
        weights: str | None = None,
        kv_dtype: str | torch.dtype | None = None,
        seed: int = 0,
    ) -> "Llama4":
        """Random weights of the config's shapes, for benchmarks and tests."""
        build, kv_dtype = _build(device, dtype, weights, kv_dtype)
        model = cls(config, build, kv_dtype=kv_dtype)
        slots = loading.layout(config)
        seed = whole_number("seed", seed, -(1 << 63), (1 << 63) - 1)
        loading.fill(model, slots, loading.random_slabs(slots, build.device, seed))
        return model.tied(slots)

    def tied(self, slots: dict[str, loading.Slot]) -> "Llama4":
        """Gives lm_head the embedding's weights where the config ties them; a head of its own that
        the checkpoint holds all the same stays, as it does in transformers."""
        own_head = any(slot.target == "lm_head" for slot in slots.values())
        if not self.config.tie_word_embeddings:
            return self
        if self.lm_head.weights != "bf16":
            if not own_head:
                self.lm_head.store(self.embedding)
        elif not own_head or torch.equal(self.lm_head.weight, self.embedding):
            self.lm_head.weight = self.embedding
        return self


def find_device(device: str | torch.device) -> torch.device:
    """`device`, if a model can run there and it is there."""
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        found = torch.device("meta")
    if found.type not in ("cpu", "cuda"):
        raise ValueError(f"expected device to be cpu, cuda or cuda:N, got {str(device)!r}")
    count = torch.cuda.device_count()
    if found.type == "cuda" and (found.index or 0) >= count:
        raise ValueError(
            f"device {found}: {count} CUDA devices are visible; `l4k env` says what is installed"
        )
    return found


def _build(
    device: str | torch.device,
    dtype: str | torch.dtype,
    weights: str | None,
    kv_dtype: str | torch.dtype | None,
) -> tuple[Build, torch.dtype]:
    device, weights = find_device(device), "bf16" if weights is None else weights
    if weights not in FORMATS:
        raise ValueError(f"expected weights to be one of {', '.join(FORMATS)}, got {weights!r}")
    compute: torch.dtype = _named(dtype, DTYPES)
    if compute not in DTYPES.values():
        raise ValueError(f"expected dtype to be float32 or bfloat16, got {compute}")
    kv: torch.dtype = compute if kv_dtype is None else _named(kv_dtype, {**DTYPES, "fp8": FP8})
    if kv not in (compute, FP8):
        raise ValueError(f'expected kv_dtype to be None, {compute} or "fp8", got {kv_dtype!r}')
    return Build(compute, device, weights), kv


def _named(dtype: str | torch.dtype, names: dict[str, torch.dtype]) -> Any:
    """The dtype of that name; what is no name comes back."""
    return names.get(dtype, dtype) if isinstance(dtype, str) else dtype
