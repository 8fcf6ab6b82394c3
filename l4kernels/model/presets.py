"""Published shapes by name. Figures: `docs/decisions.md` and the model cards."""

from dataclasses import replace
from typing import Any

from l4kernels.model.config import Llama4Config, VisionConfig
from l4kernels.model.config_rules import RopeScaling

_VISION = VisionConfig(
    hidden_size=1408,
    num_hidden_layers=34,
    num_attention_heads=16,
    intermediate_size=5632,
    image_size=336,
    patch_size=14,
    num_channels=3,
    rope_theta=10_000.0,
    pixel_shuffle_ratio=0.5,
    projector_input_dim=4096,
    projector_output_dim=4096,
    vision_output_dim=4096,
)


def _pattern(layers: int, chunk: int) -> dict[str, Any]:
    """Every fourth layer is global and without RoPE; the others rotate and stay in their chunk."""
    rope_layers = tuple((layer + 1) % 4 != 0 for layer in range(layers))
    return {
        "num_hidden_layers": layers,
        "rope_layers": rope_layers,
        "chunked_layers": rope_layers,
        "attention_chunk_size": chunk,
    }


_SCOUT = Llama4Config(
    name="scout",
    vocab_size=202_048,
    hidden_size=5120,
    num_attention_heads=40,
    num_key_value_heads=8,
    head_dim=128,
    intermediate_size=8192,
    intermediate_size_mlp=16_384,
    num_local_experts=16,
    num_experts_per_tok=1,
    moe_layers=tuple(range(48)),
    attn_temperature_tuning=True,
    floor_scale=8192,
    attn_scale=0.1,
    rope_theta=500_000.0,
    rope_scaling=RopeScaling(16.0, 1.0, 1.0, 8192),
    use_qk_norm=True,
    rms_norm_eps=1e-5,
    max_position_embeddings=10_485_760,
    bos_token_id=200_000,
    eos_token_ids=(200_001, 200_007, 200_008),
    pad_token_id=200_018,
    image_token_index=200_092,
    boi_token_index=200_080,
    eoi_token_index=200_081,
    vision=_VISION,
    **_pattern(48, 8192),
)

_MAVERICK = replace(
    _SCOUT,
    name="maverick",
    num_local_experts=128,
    moe_layers=tuple(range(1, 48, 2)),
    rope_scaling=None,
    use_qk_norm=False,
    max_position_embeddings=1_048_576,
)

# Never published. 288 B active of about 2 T, 16 experts: this shape reproduces both.
_BEHEMOTH = replace(
    _SCOUT,
    name="behemoth",
    estimate=True,
    hidden_size=16_384,
    num_attention_heads=128,
    intermediate_size=26_624,
    intermediate_size_mlp=53_248,
    moe_layers=tuple(range(88)),
    **_pattern(88, 8192),
)

_DEMO = replace(
    _SCOUT,
    name="demo",
    vocab_size=1056,
    hidden_size=128,
    num_attention_heads=5,
    num_key_value_heads=1,
    intermediate_size=128,
    intermediate_size_mlp=256,
    num_local_experts=4,
    moe_layers=(1, 3, 5, 7),
    floor_scale=64,
    max_position_embeddings=4096,
    rope_theta=10_000.0,
    rope_scaling=RopeScaling(16.0, 1.0, 1.0, 64),
    bos_token_id=1024,
    eos_token_ids=(1025, 1031, 1032),
    pad_token_id=1036,
    image_token_index=1042,
    boi_token_index=1037,
    eoi_token_index=1038,
    vision=replace(
        _VISION,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=512,
        image_size=32,
        patch_size=8,
        projector_input_dim=128,
        projector_output_dim=128,
        vision_output_dim=128,
    ),
    **_pattern(8, 64),
)

PRESETS = {config.name: config for config in (_SCOUT, _MAVERICK, _BEHEMOTH, _DEMO)}
