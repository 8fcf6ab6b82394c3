"""`params.json` of a native checkpoint as the files of a Hugging Face folder."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from l4kernels.checkpoint.convert.writing import to_json
from l4kernels.checkpoint.files.reader import CheckpointError
from l4kernels.inputs.fields import ConfigError, Fields

_PADDING = "<|finetune_right_pad|>"
_ENDS = ("<|end_of_text|>", "<|eom|>", "<|eot|>")


def config_of(
    folder: Path, special: Mapping[str, int]
) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """The content of `config.json`, texts of other files, and what a user should know.

    Args:
        folder: the checkpoint's.
        special: ids of the control tokens.

    Raises:
        CheckpointError: `params.json` is missing, lacks a field, or has one that is absurd.
    """
    try:
        top = Fields.of_file(folder / "params.json")
        params = Fields((top.part("model") or top).data, str(folder / "params.json"))
        return _config_of(params, special)
    except ConfigError as error:
        raise CheckpointError(str(error)) from None


def _config_of(
    params: Fields, special: Mapping[str, int]
) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    for key in ("quantization_args", "lora_args"):
        if params.data.get(key):
            params.fail(f"a checkpoint with {key} cannot be read; take the bfloat16 one")
    text = _text_config(params, special)
    context = text["max_position_embeddings"]
    notes = [
        "the native form has no chat template; --chat needs chat_template.jinja of the published "
        "Hugging Face folder",
        f"the native form does not say how long a context the model was trained for; took that of "
        f"the instruct models, {context:,} tokens",
    ]
    generation = {
        "bos_token_id": text["bos_token_id"],
        "eos_token_id": text["eos_token_id"],
        "pad_token_id": text["pad_token_id"],
        "do_sample": True,
        "temperature": 0.6,
        "top_p": 0.9,
    }
    texts = {"generation_config.json": to_json(generation)}
    vision = params.part("vision_args")
    common = {"dtype": "bfloat16", "tie_word_embeddings": False}
    if vision is None:
        text |= {"architectures": ["Llama4ForCausalLM"], **common}
        return text, texts, notes
    record = _vision_config(vision)
    side, patch = record["image_size"], record["patch_size"]
    texts["preprocessor_config.json"] = to_json(_processor(side))
    texts["processor_config.json"] = to_json(
        {
            "processor_class": "Llama4Processor",
            "patch_size": patch,
            "pixel_shuffle_ratio": record["pixel_shuffle_ratio"],
        }
    )
    config = {
        "architectures": ["Llama4ForConditionalGeneration"],
        "model_type": "llama4",
        "boi_token_index": special["<|image_start|>"],
        "eoi_token_index": special["<|image_end|>"],
        "image_token_index": special["<|patch|>"],
        "text_config": text,
        "vision_config": record,
        **common,
    }
    return config, texts, notes


def _text_config(params: Fields, special: Mapping[str, int]) -> dict[str, Any]:
    dim, layers = params.integer("dim", 1, 65_536), params.integer("n_layers", 1, 512)
    heads = params.integer("n_heads", 1, 1024)
    params.divides("n_heads", heads, dim)
    head_dim = params.integer("head_dim", 2, 1024, default=dim // heads)
    params.equal("head_dim", head_dim, "dim / n_heads", dim // heads)
    tokens = max(special.values()) + 1
    vocab = params.integer("vocab_size", -1, 1_000_000, default=-1)
    if vocab > 0:
        params.equal("vocab_size", vocab, "the tokens of tokenizer.model", tokens)
    interval = params.integer("nope_layer_interval", 1, 1024, default=None)
    moe = params.part("moe_args")
    moe_step = moe.integer("interleave_moe_layer_step", 1, 512, default=1) if moe else 0
    experts = moe.integer("num_experts", 1, 255) if moe else 0
    dense, expert = _widths(params, moe, dim)
    rope: dict[str, Any] = {"rope_type": "default"}
    if params.boolean("use_scaled_rope", default=False):
        # Left out of the published file; the reference fills in these two.
        rope = {
            "rope_type": "llama3",
            "factor": params.number("rope_scaling_factor", 1.0, 1e6, default=16.0),
            "low_freq_factor": 1.0,
            "high_freq_factor": params.number("rope_high_freq_factor", 1.0, 1e6, default=1.0),
            "original_max_position_embeddings": 8192,
        }
    rope["rope_theta"] = params.number("rope_theta", 1.0, 1e12, default=500_000.0)
    return {
        "model_type": "llama4_text",
        "vocab_size": tokens,
        "hidden_size": dim,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": params.integer("n_kv_heads", 1, heads, default=heads),
        "head_dim": head_dim,
        "intermediate_size": expert,
        "intermediate_size_mlp": dense,
        "num_local_experts": experts,
        "num_experts_per_tok": moe.integer("top_k", 1, 8, default=1) if moe else 1,
        "interleave_moe_layer_step": moe_step or 1,
        "moe_layers": [n for n in range(layers) if moe and (n + 1) % moe_step == 0],
        "no_rope_layers": [int(not interval or (n + 1) % interval != 0) for n in range(layers)],
        "attention_chunk_size": params.integer("attention_chunk_size", 1, 1 << 28, default=None),
        # The reference has it off, because it cannot run it in bfloat16; the published configs on.
        "attn_temperature_tuning": params.boolean("attn_temperature_tuning", default=True),
        "floor_scale": params.integer("floor_scale", 1, 1 << 30, default=8192),
        "attn_scale": params.number("attn_scale", 0.0, 100.0, default=0.1),
        "rope_parameters": rope,
        "use_qk_norm": params.boolean("use_qk_norm", default=False),
        "rms_norm_eps": params.number("norm_eps", 0.0, 1.0, default=1e-5),
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": False,
        "max_position_embeddings": {0: 131_072, 16: 10_485_760}.get(experts, 1_048_576),
        "bos_token_id": special["<|begin_of_text|>"],
        "eos_token_id": [special[name] for name in _ENDS],
        "pad_token_id": special[_PADDING],
    }


def _widths(params: Fields, moe: Fields | None, dim: int) -> tuple[int, int]:
    """Of a dense layer and of an expert, rounded as the reference does."""
    multiple: int = params.integer("multiple_of", 1, 1 << 20, default=256)
    scale = params.number("ffn_dim_multiplier", 1e-3, 1e3, default=1.0)

    def rounded(width: int) -> int:
        return math.ceil(width / multiple) * multiple

    dense = rounded(int(scale * int(2 * int(4 * dim) / 3)))
    if moe is None:
        return dense, dense
    expert = int(scale * int(2 * int(params.number("ffn_exp", 1e-3, 1e3) * dim) / 3))
    if moe.boolean("auto_scale_F", default=True):
        expert = int(expert / (moe.number("capacity_factor", 0.0, 1e3, default=1.0) + 1))
    return dense, rounded(expert)


def _vision_config(vision: Fields) -> dict[str, Any]:
    def side(name: str) -> int:
        size = vision.part(name)
        if size is None:
            vision.fail(f"{name} is missing")
        height: int = size.integer("height", 1, 4096)
        vision.equal(f"height of {name}", height, "its width", size.integer("width", 1, 4096))
        return height

    dim, out = vision.integer("dim", 1, 65_536), vision.integer("output_dim", 1, 65_536)
    return {
        "model_type": "llama4_vision_model",
        "hidden_size": dim,
        "num_hidden_layers": vision.integer("n_layers", 1, 512),
        "num_attention_heads": vision.integer("n_heads", 1, 1024),
        "intermediate_size": int(vision.number("mlp_ratio", 1e-3, 1e3) * dim),
        "image_size": side("image_size"),
        "patch_size": side("patch_size"),
        "num_channels": 3,
        "hidden_act": "gelu",
        "norm_eps": 1e-5,
        "pixel_shuffle_ratio": vision.number("pixel_shuffle_ratio", 1 / 16, 1.0),
        "projector_input_dim": out,
        "projector_output_dim": out,
        "vision_output_dim": out,
        "multi_modal_projector_bias": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    }


def _processor(side: int) -> dict[str, Any]:
    return {
        "image_processor_type": "Llama4ImageProcessorFast",
        "processor_class": "Llama4Processor",
        "size": {"height": side, "width": side},
        "max_patches": 16,
        "resize_to_max_canvas": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
