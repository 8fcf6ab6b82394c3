"""Llama 4 on one page."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from l4kernels import ops
from l4kernels.checkpoint.load import load_random, load_weights, open_checkpoint
from l4kernels.checkpoint.progress import Progress
from l4kernels.engine.generate import Generation
from l4kernels.engine.kv_cache import KVCache
from l4kernels.engine.prompt import Prompt
from l4kernels.engine.sampling import Sampling
from l4kernels.inputs.files import shown
from l4kernels.layers.attention import Attention, AttentionShape, LayerCache, Tokens
from l4kernels.layers.mlp import MLP
from l4kernels.layers.moe import MoE
from l4kernels.layers.norm import RMSNorm
from l4kernels.layers.options import ModelOptions, find_kv_dtype
from l4kernels.model.config import Llama4Config
from l4kernels.model.vision import VisionModel
from l4kernels.ops.ambient import isolated, ordinary, outside_inference


class DecoderLayer(nn.Module):
    def __init__(self, config: Llama4Config, layer: int, options: ModelOptions):
        super().__init__()
        moe, rope = config.is_moe(layer), config.rope_layers[layer]
        size, eps = config.hidden_size, config.rms_norm_eps
        shape = AttentionShape(
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            chunk=config.chunk(layer),
            rope=rope,
            qk_norm_eps=eps if rope and config.use_qk_norm else None,
            attn_scale=0.0 if rope or not config.attn_temperature_tuning else config.attn_scale,
            floor_scale=config.floor_scale,
        )
        self.input_layernorm = RMSNorm(size, eps, options)
        self.attention = Attention(size, shape, options)
        self.post_attention_layernorm = RMSNorm(size, eps, options, keep=moe)
        self.feed_forward: MoE | MLP
        if moe:
            experts, top_k = config.num_local_experts, config.num_experts_per_tok
            self.feed_forward = MoE(size, config.intermediate_size, experts, top_k, options)
        else:
            self.feed_forward = MLP(size, config.intermediate_size_mlp, options)

    def forward(self, x: Tensor, tokens: Tokens, cache: LayerCache) -> Tensor:
        x = self.attention(self.input_layernorm(x), x, tokens, cache)
        return self.feed_forward(self.post_attention_layernorm(x), x)


class Llama4(nn.Module):
    """The text model, and the vision model if the checkpoint has one.

    `from_pretrained` reads a checkpoint; `random` makes one up. Every computation is an op of
    `l4kernels.ops` and runs where the weights are.
    """

    def __init__(
        self, config: Llama4Config, options: ModelOptions, *, kv_dtype: torch.dtype | None = None
    ):
        super().__init__()
        self.config, self.options, self.kv_dtype = config, options, kv_dtype or options.dtype
        size = config.hidden_size
        self.embedding = options.empty(config.vocab_size, size)
        self.layers = nn.ModuleList(
            DecoderLayer(config, layer, options) for layer in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(size, config.rms_norm_eps, options)
        self.lm_head = options.linear(size, config.vocab_size, weights=options.format.head)
        plain = replace(options, weights="bf16")
        self.vision = VisionModel(config.vision, size, plain) if config.vision else None

    @property
    def device(self) -> torch.device:
        return self.options.device

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Llama4":
        """`.to()`, `.cuda()`, `.bfloat16()` and their like: formats were chosen at loading."""
        if any(fn(parameter) is not parameter for parameter in self.parameters()):
            raise RuntimeError(
                f"this Llama4 was loaded to {self.device} in {self.options.dtype} and stays there; "
                f"load it with from_pretrained(..., device=..., dtype=...) instead"
            )
        return self

    @isolated
    def forward(
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
        prompt = Prompt(self, input_ids, pixel_values, attention_mask=attention_mask)
        cache = self.new_cache(prompt.batch, prompt.length, scratch=True)
        hidden = self.hidden(prompt.embeddings(self.embedding, 0, prompt.length), cache)
        with outside_inference():
            return self.logits(hidden).view(prompt.batch, prompt.length, -1)

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

    @isolated
    def prefill(self, prompt: Prompt, cache: KVCache) -> Tensor:
        """Runs a prompt after what is in the cache; logits `[B, vocab_size]` of its last token."""
        if prompt.batch != cache.batch:
            raise ValueError(f"expected a KV cache of {prompt.batch} sequences, got {cache.batch}")
        at = 0
        for piece in cache.pieces(prompt.length):
            hidden = self.hidden(prompt.embeddings(self.embedding, at, at + piece), cache)
            at += piece
        return self.logits(hidden.view(prompt.batch, piece, -1)[:, -1])

    @isolated
    def decode(self, ids: Tensor, cache: KVCache) -> Tensor:
        """Logits `[B, vocab_size]` after the newest token of every sequence, `ids` `[B, 1]`."""
        if ids.shape != (cache.batch, 1):
            raise ValueError(f"expected ids to be [{cache.batch}, 1], got {list(ids.shape)}")
        return self.logits(self.hidden(ops.embed(ids.flatten(), self.embedding), cache))

    def hidden(self, x: Tensor, cache: KVCache) -> Tensor:
        """One step of all layers over embeddings `[B * S, D]`; a step crosses no chunk boundary."""
        tokens, layer_caches = cache.step(x.shape[0] // cache.batch)
        for layer, layer_cache in zip(self.layers, layer_caches, strict=True):
            x = layer(x, tokens, layer_cache)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        return self.lm_head(self.norm(hidden), out_dtype=torch.float32)

    def new_cache(self, batch: int, capacity: int, *, scratch: bool = False) -> KVCache:
        return KVCache(
            self.config,
            batch,
            capacity,
            dtype=self.kv_dtype,
            device=self.device,
            scratch=scratch,
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
    ) -> "Llama4":
        """Reads a Hugging Face checkpoint folder (config.json and safetensors).

        Args:
            path: the folder.
            device: where the weights go.
            dtype: float32 or bfloat16, of the activations and of what is not quantised.
            weights: None or "bf16" (unquantised, in `dtype`), "fp8", or "int4" (groups of 128);
                quantised while loading, a tensor at a time.
            kv_dtype: of the KV cache: None (`dtype`) or "fp8".
            progress: called with the bytes that were read and those of all files, after each
                tensor; by default a terminal's standard error shows them.
        """
        options = ModelOptions.parse(device, dtype, weights)
        kv = find_kv_dtype(kv_dtype, options.dtype)
        config = Llama4Config.from_pretrained(path)
        source = open_checkpoint(path, config)
        model = cls(config, options, kv_dtype=kv)
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
        options = ModelOptions.parse(device, dtype, weights)
        model = cls(config, options, kv_dtype=find_kv_dtype(kv_dtype, options.dtype))
        load_random(model, config, seed)
        return model
