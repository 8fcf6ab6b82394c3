"""Write what ships: a checkpoint in the published layout, and the held-out data."""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from .data import TILE, Chapter, Digits, load_sheet, save_sheet
from .model import DemoLlama4, TextShape, VisionShape
from .tokenizer import SPECIAL_ID, save_tokenizer

if TYPE_CHECKING:
    from .train import Trainer

EOS = [SPECIAL_ID[f"<|{name}|>"] for name in ("end_of_text", "eom", "eot")]
BOS, PAD = SPECIAL_ID["<|begin_of_text|>"], SPECIAL_ID["<|finetune_right_pad|>"]


def text_config(s: TextShape) -> dict:
    return {
        "model_type": "llama4_text",
        "attention_bias": False,
        "attention_chunk_size": s.chunk,
        "attention_dropout": 0.0,
        "attn_scale": s.attn_scale,
        "attn_temperature_tuning": True,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "floor_scale": s.floor_scale,
        "head_dim": s.head_dim,
        "hidden_act": "silu",
        "hidden_size": s.hidden,
        "initializer_range": 0.02,
        "interleave_moe_layer_step": 2,
        "intermediate_size": s.expert_width,
        "intermediate_size_mlp": s.dense_width,
        "max_position_embeddings": s.positions,
        "moe_layers": list(s.moe_layers),
        "no_rope_layers": list(s.no_rope_layers),
        "num_attention_heads": s.heads,
        "num_experts_per_tok": 1,
        "num_hidden_layers": s.layers,
        "num_key_value_heads": s.kv_heads,
        "num_local_experts": s.experts,
        "output_router_logits": False,
        "pad_token_id": PAD,
        "rms_norm_eps": s.eps,
        "rope_scaling": {
            "factor": s.rope_factor,
            "high_freq_factor": 1.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": s.rope_original,
            "rope_type": "llama3",
        },
        "rope_theta": s.rope_theta,
        "router_aux_loss_coef": 0.001,
        "router_jitter_noise": 0.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_qk_norm": True,
        "vocab_size": s.vocab,
    }


def vision_config(v: VisionShape) -> dict:
    return {
        "model_type": "llama4_vision_model",
        "attention_dropout": 0.0,
        "hidden_act": "gelu",
        "hidden_size": v.hidden,
        "image_size": v.tile,
        "initializer_range": 0.02,
        "intermediate_size": v.width,
        "multi_modal_projector_bias": False,
        "norm_eps": v.eps,
        "num_attention_heads": v.heads,
        "num_channels": 3,
        "num_hidden_layers": v.layers,
        "patch_size": v.patch,
        "pixel_shuffle_ratio": 0.5,
        "projector_dropout": 0.0,
        "projector_input_dim": v.adapter,
        "projector_output_dim": v.adapter,
        "rope_theta": v.rope_theta,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "vision_output_dim": v.adapter,
    }


def config_files(text: TextShape, vision: VisionShape) -> dict[str, dict]:
    config = {
        "architectures": ["Llama4ForConditionalGeneration"],
        "boi_token_index": SPECIAL_ID["<|image_start|>"],
        "eoi_token_index": SPECIAL_ID["<|image_end|>"],
        "image_token_index": SPECIAL_ID["<|patch|>"],
        "model_type": "llama4",
        "text_config": text_config(text),
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vision_config": vision_config(vision),
    }
    generation = {
        "bos_token_id": BOS,
        "do_sample": True,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        "temperature": 0.7,
        "top_p": 0.9,
    }
    preprocessor = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "Llama4ImageProcessorFast",
        "image_std": [0.5, 0.5, 0.5],
        "max_patches": 16,
        "processor_class": "Llama4Processor",
        "resample": 2,
        "rescale_factor": 1 / 255,
        "resize_to_max_canvas": False,
        "size": {"height": TILE, "width": TILE},
    }
    processor = {
        "end_of_image_token": "<|image_end|>",
        "fake_image_token": "<|image|>",
        "image_token": "<|image|>",
        "patch_size": vision.patch,
        "patch_token": "<|patch|>",
        "pixel_shuffle_ratio": 0.5,
        "processor_class": "Llama4Processor",
        "start_of_image_token": "<|image_start|>",
        "tile_x_separator_token": "<|tile_x_separator|>",
        "tile_y_separator_token": "<|tile_y_separator|>",
    }
    return {
        "config.json": config,
        "generation_config.json": generation,
        "preprocessor_config.json": preprocessor,
        "processor_config.json": processor,
    }


def write_checkpoint(model: DemoLlama4, tokenizer: Tokenizer, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    weights = {k: v.to(torch.bfloat16).contiguous() for k, v in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # safetensors creates it for its owner alone
    for name, content in config_files(model.text, model.vision).items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    save_tokenizer(tokenizer, folder)


def read_checkpoint(folder: Path) -> tuple[DemoLlama4, Tokenizer]:
    """The shipped weights, bf16 values in fp32 arithmetic."""
    model = DemoLlama4(TextShape(), VisionShape(), SPECIAL_ID["<|patch|>"])
    weights = load_file(folder / "model.safetensors")
    model.load_state_dict({k: v.float() for k, v in weights.items()})
    return model.eval(), Tokenizer.from_file(str(folder / "tokenizer.json"))


def write_data(chapters: list[Chapter], digits: Digits, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(f"# {c.name}\n{c.text}\n" for c in chapters)
    packed = lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME)
    (folder / "chapters.txt.xz").write_bytes(packed)
    save_sheet(folder / "digits.png", folder / "digits.txt", digits.images, digits.labels, 20)


def read_data(folder: Path) -> tuple[list[Chapter], Digits]:
    text = lzma.decompress((folder / "chapters.txt.xz").read_bytes()).decode()
    blocks = text.removeprefix("# ").rstrip("\n").split("\n# ")
    chapters = [Chapter(*block.split("\n", 1)) for block in blocks]
    return chapters, Digits(*load_sheet(folder / "digits.png", folder / "digits.txt"))


def export(trainer: Trainer, out: Path) -> None:
    text = trainer.model.language_model.model
    while text.depth < trainer.model.text.layers:
        text.grow()
    write_checkpoint(trainer.model, trainer.tokenizer, out / "checkpoint")
    write_data(trainer.data.held_text, trainer.data.held_digits, out / "data")
