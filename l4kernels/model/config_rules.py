"""What the fields of `config.json` mean where one of them alone does not say it.

The rules are those of transformers 5; what this package cannot do is refused by name.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l4kernels.inputs.fields import MAX_TOKEN_ID, Fields
from l4kernels.inputs.files import shown

ABSENT = {
    "attention_chunk_size": 8192,
    "head_dim": 128,
    "intermediate_size_mlp": 16_384,
    "num_key_value_heads": 8,
    "num_local_experts": 16,
    "use_qk_norm": True,
}
"""What transformers takes for a text field that is absent; null is a value of its own."""


@dataclass(frozen=True)
class RopeScaling:
    """llama3 frequency scaling: long wavelengths are stretched by `factor`."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


def check_kind(top: Fields, text: Fields) -> None:
    """What no field of `Llama4Config` can say is refused by name."""
    for part in (top, text):
        kind = part.data.get("model_type", "llama4")
        if kind not in ("llama4_text", "llama4"):
            part.fail(f"expected model_type llama4 or llama4_text, got {shown(kind)}")
    text.expect("hidden_act", "silu", default="silu")
    text.expect("attention_bias", False, default=False)
    if text is top:
        return
    for name in ("rope_scaling", "rope_parameters", "rope_theta"):
        if top.data.get(name) and top.data[name] != text.data.get(name):
            message = f"{name} stands beside text_config, but counts inside it only"
            if name != "rope_theta":
                top.fail(message)
            warnings.warn(f"{message}: ignored, as transformers does", stacklevel=4)


def special_ids(f: Fields) -> dict[str, Any]:
    """The end, pad and begin tokens that `f` names.

    The rule of transformers: generation_config.json before config.json, and there the top before
    `text_config`; each token is the first one's that names it.
    """
    found = {
        "eos_token_ids": f.id_list("eos_token_id") or None,
        "bos_token_id": f.integer("bos_token_id", 0, MAX_TOKEN_ID, default=None),
        "pad_token_id": f.integer("pad_token_id", -1, MAX_TOKEN_ID, default=None),
    }
    return {name: value for name, value in found.items() if value is not None}


def warn_of_end(eos_token_ids: tuple[int, ...], vocab_size: int, file: Path) -> None:
    """Of end tokens that no logit stands for: a reply would just never end."""
    beyond = [token for token in eos_token_ids if token >= vocab_size]
    if beyond:
        warnings.warn(
            f"{file}: eos_token_id {shown(beyond)} is beyond the vocabulary of {vocab_size}: no "
            f"reply ends there",
            stacklevel=3,
        )


def image_ids(top: Fields) -> dict[str, Any]:
    """By both names that transformers reads, `image_token_index` and `image_token_id`."""

    def either(kind: str) -> int | None:
        second = top.integer(f"{kind}_token_id", 0, MAX_TOKEN_ID, default=None)
        first: int | None = top.integer(f"{kind}_token_index", 0, MAX_TOKEN_ID, default=second)
        return first

    return {f"{kind}_token_index": either(kind) for kind in ("image", "boi", "eoi")}


def temperature_tuning(f: Fields) -> bool:
    # One release wrote the integer 4 here; any number but zero means on.
    value = f.data.get("attn_temperature_tuning")
    if isinstance(value, bool):
        return value
    return bool(f.integer("attn_temperature_tuning", 0, 99, default=1))


def moe_layers(f: Fields, layers: int) -> tuple[int, ...]:
    explicit = f.data.get("moe_layers")
    if explicit is not None:
        return tuple(sorted(set(f.integers("moe_layers", explicit, 0, layers - 1))))
    step = f.integer("interleave_moe_layer_step", 0, 512, default=1)
    return tuple(range(step - 1, layers, step)) if step else ()


def rope_layers(f: Fields, layers: int) -> tuple[bool, ...]:
    explicit = f.data.get("no_rope_layers")
    if explicit not in (None, []):
        flags = f.integers("no_rope_layers", explicit, 0, 1)
        if len(flags) < layers:
            f.fail(f"expected no_rope_layers to have {layers} entries, got {len(flags)}")
        return tuple(bool(flag) for flag in flags[:layers])
    interval = f.integer("no_rope_layer_interval", 0, 512, default=4)
    return tuple(not interval or (layer + 1) % interval != 0 for layer in range(layers))


def chunked_layers(f: Fields, rope_layers: tuple[bool, ...]) -> tuple[bool, ...]:
    types = f.data.get("layer_types")
    if types in (None, []):
        return rope_layers
    known = ("chunked_attention", "full_attention")
    if not isinstance(types, list) or any(t not in known for t in types):
        f.fail(f"expected layer_types to be a list of {' and '.join(known)}, got {shown(types)}")
    if len(types) < len(rope_layers):
        f.fail(f"expected layer_types to have {len(rope_layers)} entries, got {len(types)}")
    return tuple(t == "chunked_attention" for t in types[: len(rope_layers)])


def rope_parameters(f: Fields) -> Fields:
    """What decides the rotation, by the rule of transformers 5: `rope_scaling` if it says anything,
    else `rope_parameters`; and in either the fields beside it that it lacks."""
    name = "rope_scaling" if f.data.get("rope_scaling") else "rope_parameters"
    found = f.part(name) or Fields({}, name)
    for key, value in found.data.items():
        if isinstance(value, Mapping):
            f.fail(f"{name} by layer type is not supported, got {shown(key)}: {shown(value)}")
    beside = {key: f.data.get(key) for key in ("rope_theta", "partial_rotary_factor")}
    inside = {key: value for key, value in found.data.items() if value is not None}
    kind = inside.get("type", "default")
    rope = Fields({**beside, "rope_type": kind, **inside}, f.where)
    rope.expect("partial_rotary_factor", 1, default=1)
    return rope


def rope(f: Fields, positions: int) -> tuple[float, RopeScaling | None]:
    s = rope_parameters(f)
    theta = s.number("rope_theta", 1.0, 1e12, default=500_000.0)
    if s.data["rope_type"] == "default":
        return theta, None
    if s.data["rope_type"] != "llama3":
        s.fail(f"expected rope_type default or llama3, got {shown(s.data['rope_type'])}")
    low, high = (s.number(f"{end}_freq_factor", 1e-6, 1e6) for end in ("low", "high"))
    if low > high:
        s.fail(f"expected low_freq_factor <= high_freq_factor, got {low:g} and {high:g}")
    return theta, RopeScaling(
        factor=s.number("factor", 1.0, 1e6),
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_position_embeddings=s.integer(
            "original_max_position_embeddings", 1, 1 << 28, default=positions
        ),
    )


def fixed_scaling(scaling: RopeScaling | None, experts: int) -> RopeScaling | None:
    if experts == 16 and scaling == RopeScaling(8.0, 1.0, 4.0, 8192):
        warnings.warn(
            "this 16-expert config has Scout's first, wrong RoPE scaling (factor 8, "
            "high_freq_factor 4); using the corrected factor 16, high_freq_factor 1",
            stacklevel=4,
        )
        return RopeScaling(16.0, 1.0, 1.0, 8192)
    return scaling
