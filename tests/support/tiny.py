"""A tiny checkpoint in a folder: tokenizer, template, processor settings, and random weights."""

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer

SPECIAL = [
    f"<|{name}|>"
    for name in (
        "begin_of_text",
        "end_of_text",
        "header_start",
        "header_end",
        "eom",
        "eot",
        "finetune_right_pad",
        "image_start",
        "image_end",
        "tile_x_separator",
        "tile_y_separator",
        "image",
        "patch",
        "python_start",
        "python_end",
    )
]
BPE_TOKENS = 290
VOCAB = 320
ID = {token: BPE_TOKENS + i for i, token in enumerate(SPECIAL)}
SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"

# The shape of the published template: trimmed system text, list contents, tools, JSON arguments.
TEMPLATE = """{{- bos_token }}
{%- if messages[0].role == 'system' %}
    {{- '<|header_start|>system<|header_end|>\\n\\n' }}
    {%- if tools %}{{ 'Tools:\\n' }}
        {%- for tool in tools %}{{ tool | tojson(indent=4) }}{{ '\\n' }}{%- endfor %}
    {%- endif %}
    {{- messages[0].content | trim + '<|eot|>' }}
    {%- set messages = messages[1:] %}
{%- endif %}
{%- for message in messages %}
    {%- if message.role not in ('user', 'assistant', 'ipython') %}
        {{- raise_exception('unknown role ' + message.role) }}
    {%- endif %}
    {{- '<|header_start|>' + message.role + '<|header_end|>\\n\\n' }}
    {%- if message.content is string %}{{ message.content }}
    {%- else %}
        {%- for part in message.content %}
            {%- if part.type == 'image' %}{{ '<|image|>' }}{%- else %}{{ part.text }}{%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|header_start|>assistant<|header_end|>\\n\\n' }}{%- endif %}
"""

TEXT = {
    "model_type": "llama4_text",
    "vocab_size": VOCAB,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 128,
    "intermediate_size": 128,
    "intermediate_size_mlp": 128,
    "num_local_experts": 2,
    "num_experts_per_tok": 1,
    "interleave_moe_layer_step": 2,
    "attention_chunk_size": 32,
    "use_qk_norm": True,
    "rope_theta": 10000.0,
    "max_position_embeddings": 512,
    "bos_token_id": ID["<|begin_of_text|>"],
    "eos_token_id": [ID["<|end_of_text|>"], ID["<|eom|>"], ID["<|eot|>"]],
    "pad_token_id": ID["<|finetune_right_pad|>"],
}
VISION = {
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 256,
    "image_size": 32,
    "patch_size": 8,
    "num_channels": 3,
    "rope_theta": 10000.0,
    "pixel_shuffle_ratio": 0.5,
    "projector_input_dim": 64,
    "projector_output_dim": 64,
    "vision_output_dim": 64,
}
CONFIG = {
    "model_type": "llama4",
    "boi_token_index": ID["<|image_start|>"],
    "eoi_token_index": ID["<|image_end|>"],
    "image_token_index": ID["<|patch|>"],
    "text_config": TEXT,
    "vision_config": VISION,
}


def write_json(file: Path, content: dict) -> None:
    file.write_text(json.dumps(content, indent=1))


def write_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = BpeTrainer(vocab_size=BPE_TOKENS, initial_alphabet=alphabet, show_progress=False)
    text = "the user said that the assistant is a system and the answer is there\n\n" * 20
    tokenizer.train_from_iterator([text], trainer)
    assert tokenizer.get_vocab_size() == BPE_TOKENS
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in SPECIAL])
    bos = SPECIAL[0]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, ID[bos])]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": bos,
            "eos_token": {"__type": "AddedToken", "content": "<|eot|>", "special": True},
            "chat_template": TEMPLATE,
        },
    )


def write_settings(folder: Path) -> None:
    """Everything but the weights."""
    write_tokenizer(folder)
    write_json(folder / "config.json", CONFIG)
    write_json(
        folder / "preprocessor_config.json",
        {"size": {"height": 32, "width": 32}, "max_patches": 4},
    )


def write_checkpoint(folder: Path) -> None:
    """Settings and random weights under the published tensor names."""
    import torch
    from safetensors.torch import save_file

    from l4kernels.checkpoint.files import layout as weights
    from l4kernels.model.config import Llama4Config

    write_settings(folder)
    slots = weights.layout(Llama4Config.from_dict(CONFIG))
    shapes = {name: slot.shape for name, slot in slots.items()}
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in shapes.items():
        scale = 1.0 if len(shape) == 1 else 2 / shape[-1] ** 0.5
        tensors[name] = torch.randn(shape, generator=generator).mul(scale).bfloat16()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
