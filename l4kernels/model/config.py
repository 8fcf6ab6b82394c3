"""`Llama4Config`: one frozen record for every published Llama 4 `config.json`.

Absurd values are refused here, before anything is allocated.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from l4kernels.inputs.fields import ConfigError, Fields
from l4kernels.inputs.files import shown
from l4kernels.inputs.forms import convert_hint
from l4kernels.model import config_rules as rules
from l4kernels.model.config_rules import RopeScaling
from l4kernels.model.presets import PRESETS


@dataclass(frozen=True)
class VisionConfig:
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    image_size: int
    patch_size: int
    num_channels: int
    rope_theta: float
    pixel_shuffle_ratio: float
    projector_input_dim: int
    projector_output_dim: int
    vision_output_dim: int

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def grid(self) -> int:
        """Patches along one side of a tile."""
        return self.image_size // self.patch_size

    @property
    def patch_row(self) -> int:
        """Values in one patch."""
        return self.num_channels * self.patch_size**2

    @property
    def shuffle(self) -> int:
        """Patches along one side of the square that becomes one token."""
        return round(1 / self.pixel_shuffle_ratio)

    @property
    def tokens_per_tile(self) -> int:
        return (self.grid // self.shuffle) ** 2

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "VisionConfig":
        # No defaults: the defaults of the code that writes these files differ from every
        # published model, so a filled-in value would be a wrong one.
        f = Fields(data, "vision_config")
        f.expect("hidden_act", "gelu", default="gelu")
        f.expect("multi_modal_projector_bias", False, default=False)
        rope = rules.rope_parameters(f)
        rope.expect("rope_type", "default", default="default")
        vision = cls(
            hidden_size=f.integer("hidden_size", 1, 65_536),
            num_hidden_layers=f.integer("num_hidden_layers", 1, 512),
            num_attention_heads=f.integer("num_attention_heads", 1, 1024),
            intermediate_size=f.integer("intermediate_size", 1, 1 << 20),
            image_size=f.square("image_size", 4096),
            patch_size=f.square("patch_size", 512),
            num_channels=f.integer("num_channels", 1, 16),
            rope_theta=rope.number("rope_theta", 1.0, 1e12),
            pixel_shuffle_ratio=f.number("pixel_shuffle_ratio", 1 / 16, 1.0),
            projector_input_dim=f.integer("projector_input_dim", 1, 65_536),
            projector_output_dim=f.integer("projector_output_dim", 1, 65_536),
            vision_output_dim=f.integer("vision_output_dim", 1, 65_536),
        )
        f.divides("num_attention_heads", vision.num_attention_heads, vision.hidden_size)
        f.divides("4 (rotated pairs of two axes)", 4, vision.head_dim)
        f.divides("patch_size", vision.patch_size, vision.image_size)
        f.divides("the pixel shuffle", vision.shuffle, vision.grid)
        f.equal(
            "hidden_size / pixel_shuffle_ratio^2",
            vision.hidden_size * vision.shuffle**2,
            "intermediate_size",
            vision.intermediate_size,
        )
        for name in ("projector_output_dim", "vision_output_dim"):
            f.equal(name, getattr(vision, name), "projector_input_dim", vision.projector_input_dim)
        return vision


@dataclass(frozen=True)
class Llama4Config:
    """The text model's fields by their names in `config.json`, and the vision tower's record."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    intermediate_size_mlp: int
    num_local_experts: int
    num_experts_per_tok: int
    moe_layers: tuple[int, ...]
    rope_layers: tuple[bool, ...]
    """Which layers rotate q and k (`no_rope_layers` of the file, whose 1 means "with RoPE")."""
    chunked_layers: tuple[bool, ...]
    """Which layers attend inside their chunk only; published models: exactly the RoPE layers."""
    attention_chunk_size: int
    """0: no chunks."""
    attn_temperature_tuning: bool
    floor_scale: int
    attn_scale: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    use_qk_norm: bool
    rms_norm_eps: float
    max_position_embeddings: int
    tie_word_embeddings: bool = False
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None
    image_token_index: int | None = None
    boi_token_index: int | None = None
    eoi_token_index: int | None = None
    vision: VisionConfig | None = None
    name: str = ""
    estimate: bool = False
    """The shape was never published."""

    def is_moe(self, layer: int) -> bool:
        return layer in self.moe_layers

    def chunk(self, layer: int) -> int:
        """Chunk size of a layer's attention, 0 for global attention."""
        return self.attention_chunk_size if self.chunked_layers[layer] else 0

    @classmethod
    def from_pretrained(cls, path: str | Path) -> "Llama4Config":
        """Reads `config.json` in the folder `path` (or that file itself)."""
        file = Path(path)
        if hint := "" if os.path.isdir(file) else convert_hint(file):
            raise ConfigError(f"{file}: not a checkpoint folder{hint}")
        file = file / "config.json" if os.path.isdir(file) else file  # of any name, unlike is_dir
        data = Fields.of_file(file).data
        try:
            config = replace(cls.from_dict(data), name=file.parent.name)
        except ConfigError as error:
            raise ConfigError(f"{file}: {error}") from None
        # Chat models list more end tokens here than in config.json.
        generation = Fields.of_file(file.with_name("generation_config.json"), optional=True)
        config = replace(config, **rules.special_ids(generation))
        rules.warn_of_end(config.eos_token_ids, config.vocab_size, file)
        return config

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Llama4Config":
        """From the parsed `config.json`, with or without a `text_config` inside."""
        top = Fields(data, "config")
        text = top.part("text_config") or top
        f = Fields({**rules.ABSENT, **text.data}, text.where)
        rules.check_kind(top, text)
        layers = f.integer("num_hidden_layers", 1, 512)
        heads = f.integer("num_attention_heads", 1, 1024)
        hidden = f.integer("hidden_size", 1, 65_536)
        experts = f.integer("num_local_experts", 0, 255, default=0)  # the shared one is the 256th
        moe_layers = rules.moe_layers(f, layers) if experts else ()
        rope_layers = rules.rope_layers(f, layers)
        chunk = f.integer("attention_chunk_size", 0, 1 << 28, default=0)
        positions = f.integer("max_position_embeddings", 1, 1 << 28)
        theta, scaling = rules.rope(f, positions)
        vision = top.part("vision_config") if text is not top else None
        expert_size = f.integer("intermediate_size", 1, 1 << 20)
        config = cls(
            vocab_size=f.integer("vocab_size", 1, 1_000_000),
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=f.integer("num_key_value_heads", 1, heads, default=heads),
            head_dim=f.integer("head_dim", 2, 1024, default=max(2, hidden // heads)),
            intermediate_size=expert_size,
            intermediate_size_mlp=f.integer(
                "intermediate_size_mlp", 1, 1 << 20, default=expert_size
            ),
            num_local_experts=experts if moe_layers else 0,
            num_experts_per_tok=f.integer("num_experts_per_tok", 1, 8, default=1),
            moe_layers=moe_layers,
            rope_layers=rope_layers,
            chunked_layers=rules.chunked_layers(f, rope_layers) if chunk else (False,) * layers,
            attention_chunk_size=chunk,
            attn_temperature_tuning=rules.temperature_tuning(f),
            floor_scale=f.integer("floor_scale", 1, 1 << 30, default=8192),
            attn_scale=f.number("attn_scale", 0.0, 100.0, default=0.1),
            rope_theta=theta,
            rope_scaling=rules.fixed_scaling(scaling, experts),
            use_qk_norm=f.boolean("use_qk_norm", default=False),
            rms_norm_eps=f.number("rms_norm_eps", 0.0, 1.0, default=1e-5),
            max_position_embeddings=positions,
            tie_word_embeddings=f.boolean(
                "tie_word_embeddings", default=top.boolean("tie_word_embeddings", default=False)
            ),
            vision=VisionConfig.from_dict(vision.data) if vision else None,
            **rules.image_ids(top),
            **{**rules.special_ids(f), **rules.special_ids(top)},
        )
        f.divides("num_key_value_heads", config.num_key_value_heads, heads)
        f.divides("2 (rotated pairs)", 2, config.head_dim)
        if config.moe_layers and config.num_experts_per_tok > experts:
            f.fail(f"expected num_experts_per_tok <= {experts} experts")
        if config.vision and config.image_token_index is None:
            top.fail("image_token_index is missing, but vision_config is present")
        return config

    @classmethod
    def preset(cls, name: str) -> "Llama4Config":
        """A shape by name: scout, maverick, behemoth (an estimate: never published) or demo."""
        if name not in tuple(PRESETS):
            raise ConfigError(f"expected a preset out of {', '.join(PRESETS)}, got {shown(name)}")
        fields = PRESETS[name]
        return cls(**{**fields, "vision": VisionConfig(**fields["vision"])})
