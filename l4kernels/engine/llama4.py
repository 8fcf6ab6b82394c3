"""`Llama4`: a model that is loaded from a checkpoint and generates."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from l4kernels.checkpoint.choice import as_stored, said
from l4kernels.checkpoint.formats import open_checkpoint
from l4kernels.checkpoint.formats.unquantised import Unquantised
from l4kernels.checkpoint.load import load_random, load_weights
from l4kernels.checkpoint.lora import merge
from l4kernels.checkpoint.progress import Progress
from l4kernels.engine.generate import Generation
from l4kernels.engine.images import encode
from l4kernels.engine.prompts import prompts_of_batch
from l4kernels.engine.runner import run_whole
from l4kernels.engine.sampling import Sampling
from l4kernels.inputs.files import shown
from l4kernels.layers.options import ModelOptions, find_kv_dtype
from l4kernels.model.config import Llama4Config
from l4kernels.model.llama4 import Llama4Model
from l4kernels.ops.ambient import isolated, ordinary, outside_inference


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
            input_ids: int64 or int32 `[B, S]`.
            pixel_values: `[tiles, 3, H, W]` of all images, in the order of the prompts.
            attention_mask: `[B, S]`, zeros where there is padding. Without it a row must not begin
                with the pad token.

        Returns:
            float32 `[B, S, vocab_size]`, zeros where there is padding; no gradient leads back to
            the weights.
        """
        prompts = prompts_of_batch(self, input_ids, pixel_values, 0, attention_mask)
        encode(self, [prompt.images for prompt in prompts if prompt.images is not None])
        hidden = run_whole(self, prompts)
        with outside_inference():
            logits = self.compute_logits(hidden)
            if len(logits) == input_ids.numel():
                return logits.view(*input_ids.shape, -1)
            assert attention_mask is not None
            whole = logits.new_zeros(*input_ids.shape, logits.shape[-1])
            whole[attention_mask.to(logits.device) == 1] = logits
            return whole

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
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        min_tokens: int = 0,
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
        sampling = Sampling(
            temperature,
            top_k,
            top_p,
            min_p,
            seed,
            repetition_penalty,
            bias,
            frequency_penalty,
            presence_penalty,
            min_tokens,
        )
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
        progress: Progress | None = None,
        *,
        config: Llama4Config | None = None,
        lora: str | Path | Sequence[str | Path] = (),
    ) -> "Llama4":
        """Reads a checkpoint folder (config.json and safetensors) in any format that is published.

        Args:
            path: the folder.
            device: where the weights go.
            dtype: float32 or bfloat16, of the activations and of what is not quantised.
            weights: None (as the checkpoint has them: codes stay as they are), "bf16" (unquantised,
                in `dtype`), "fp8", "int4" (groups of 128), or "int4+fp8attn" (attention in fp8);
                quantised while loading, a tensor at a time.
            kv_dtype: of the KV cache: None (`dtype`) or "fp8".
            progress: called with the bytes that were read and those of all files, after each
                tensor; by default a terminal's standard error shows them.
            config: the result of `Llama4Config.from_pretrained(path)`, if it was read already.
            lora: folders of PEFT adapters that are merged into the weights, in this order.
        """
        options = ModelOptions.parse(device, dtype, weights)  # before anything is read
        find_kv_dtype(kv_dtype, options.dtype)
        if config is None:
            config = Llama4Config.from_pretrained(path)
        _require_config(config)
        source = open_checkpoint(path, config)
        return cls._load(source, device, dtype, weights, kv_dtype, progress, lora)

    @classmethod
    @ordinary
    def from_checkpoint(
        cls,
        source: Unquantised,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = torch.float32,
        weights: str | None = None,
        kv_dtype: str | torch.dtype | None = None,
        progress: Progress | None = None,
        *,
        lora: str | Path | Sequence[str | Path] = (),
    ) -> "Llama4":
        """Of a checkpoint that `open_checkpoint` opened; the other arguments are
        `from_pretrained`'s."""
        return cls._load(source, device, dtype, weights, kv_dtype, progress, lora)

    @classmethod
    def _load(
        cls,
        source: Unquantised,
        device: str | torch.device,
        dtype: str | torch.dtype,
        weights: str | None,
        kv_dtype: str | torch.dtype | None,
        progress: Progress | None,
        lora: str | Path | Sequence[str | Path],
    ) -> "Llama4":
        options = ModelOptions.parse(device, dtype, weights)
        kv = find_kv_dtype(kv_dtype, options.dtype)
        for adapter in [lora] if isinstance(lora, str | Path) else lora:
            merge(source, adapter)
        options = as_stored(options, source, asked=weights is not None)
        for line in said(options, source):
            # Of whoever called the public method, behind its decorator.
            warnings.warn(f"{source.checkpoint.folder}: {line}", stacklevel=4)
        model = cls(source.config, options, kv_dtype=kv)
        load_weights(model, source, progress)
        return model

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
        _require_config(config)
        options = ModelOptions.parse(device, dtype, weights)
        model = cls(config, options, kv_dtype=find_kv_dtype(kv_dtype, options.dtype))
        load_random(model, seed)
        return model


def _require_config(config: object) -> None:
    if not isinstance(config, Llama4Config):
        raise ValueError(f"expected config to be a Llama4Config, got {shown(config)}")
