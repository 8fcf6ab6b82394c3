"""Where each tensor of a checkpoint goes: names and shapes from the config.

Both published layouts are read: experts fused in one `[E, in, out]` tensor, or one `[out, in]`
tensor per expert.
"""

import re
from collections.abc import Container
from typing import NamedTuple

from l4kernels.model.config import Llama4Config, VisionConfig

Shape = tuple[int, ...]

_FF = "feed_forward."
_SPLITS = dict.fromkeys(("qkv_proj", "gate_up_proj", "embedding", "lm_head"), "n")
_SPLITS |= dict.fromkeys(("o_proj", "down_proj"), "k")
_BUFFERS = re.compile(r"(^|\.)((rotary_emb|rotary_embedding|rope)\.\w+|position_ids)$")


class Slot(NamedTuple):
    """A tensor of the checkpoint: its shape, and the parameter or `Linear` that it fills."""

    shape: Shape
    target: str
    rows: slice | str = "all"
    expert: int | None = None
    transposed: bool = False

    @property
    def rows_shape(self) -> Shape:
        """Of one expert, and rows first: as a product has it."""
        shape = self.shape[-2:]
        return shape[::-1] if self.transposed else shape

    @property
    def axes(self) -> str:
        """See `Piece`."""
        if self.transposed:
            return "ekg" if self.rows == "gate_up" else "ekn"
        return "nk" if len(self.shape) == 2 else "-"

    @property
    def split(self) -> str:
        """The axis along which ranks share the weight; empty: each has it whole."""
        return "" if self.target.startswith("vision.") else _SPLITS.get(self.kind, "")

    @property
    def of_keys(self) -> bool:
        """Whether it makes the text model's keys or values."""
        behind = isinstance(self.rows, slice) and self.rows.start > 0
        return behind and bool(self.split) and self.kind == "qkv_proj"

    @property
    def kind(self) -> str:
        return self.target.rpartition(".")[2]

    @property
    def block(self) -> str:
        """The block of `ModelOptions.blocks` that it belongs to; empty: it is never quantised."""
        if self.split == "" or self.target == "embedding":
            return ""
        return self.target.removesuffix(f".{self.kind}")


def layout(config: Llama4Config, names: Container[str] = ()) -> dict[str, Slot]:
    """Every tensor of the checkpoint by name. `names` (those in the files) decide the spelling:
    with or without `language_model.`, experts fused or one by one."""
    prefix = "language_model." if config.vision else ""
    if f"{prefix}model.norm.weight" not in names:
        other = "" if prefix else "language_model."
        prefix = other if f"{other}model.norm.weight" in names else prefix
    hidden, vocab = config.hidden_size, config.vocab_size
    embedding, head = f"{prefix}model.embed_tokens.weight", f"{prefix}lm_head.weight"
    # Of two that are tied a file may hold either, or both.
    tied = config.tie_word_embeddings
    only_head = tied and head in names and embedding not in names
    slots = {
        head if only_head else embedding: Slot((vocab, hidden), "embedding"),
        f"{prefix}model.norm.weight": Slot((hidden,), "norm.weight"),
    }
    if not tied or (head in names and not only_head):
        slots[head] = Slot((vocab, hidden), "lm_head")
    for layer in range(config.num_hidden_layers):
        source, target = f"{prefix}model.layers.{layer}.", f"layers.{layer}."
        block = _attention(config)
        if config.is_moe(layer):
            fused = f"{source}feed_forward.experts.0.gate_proj.weight" not in names
            block |= _moe(config, fused)
        else:
            block |= _mlp(_FF, _FF, hidden, config.intermediate_size_mlp)
        slots |= {source + n: s._replace(target=target + s.target) for n, s in block.items()}
    if config.vision:
        slots |= _vision(config.vision, hidden)
    return slots


def ignored(config: Llama4Config, name: str) -> bool:
    """Tensors of a file that no parameter needs: buffers that are computed from the config, and
    the vision model where `config` is that of the text model alone."""
    other = config.vision is None and name.startswith(("vision_model.", "multi_modal_projector."))
    return other or _BUFFERS.search(name) is not None


def _attention(config: Llama4Config) -> dict[str, Slot]:
    hidden, head_dim = config.hidden_size, config.head_dim
    q, kv = config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim
    qkv = "attention.qkv_proj"
    return {
        "input_layernorm.weight": Slot((hidden,), "input_layernorm.weight"),
        "post_attention_layernorm.weight": Slot((hidden,), "post_attention_layernorm.weight"),
        "self_attn.q_proj.weight": Slot((q, hidden), qkv, slice(0, q)),
        "self_attn.k_proj.weight": Slot((kv, hidden), qkv, slice(q, q + kv)),
        "self_attn.v_proj.weight": Slot((kv, hidden), qkv, slice(q + kv, q + 2 * kv)),
        "self_attn.o_proj.weight": Slot((hidden, q), "attention.o_proj"),
    }


def _mlp(
    source: str, target: str, hidden: int, width: int, expert: int | None = None
) -> dict[str, Slot]:
    into, out_of, gate_up = (width, hidden), (hidden, width), f"{target}gate_up_proj"
    return {
        f"{source}gate_proj.weight": Slot(into, gate_up, "gate", expert),
        f"{source}up_proj.weight": Slot(into, gate_up, "up", expert),
        f"{source}down_proj.weight": Slot(out_of, f"{target}down_proj", expert=expert),
    }


def _moe(config: Llama4Config, fused: bool) -> dict[str, Slot]:
    hidden, width, experts = (
        config.hidden_size,
        config.intermediate_size,
        config.num_local_experts,
    )
    slots = {f"{_FF}router.weight": Slot((experts, hidden), f"{_FF}router")}
    # The model has the shared expert as one more of the others.
    slots |= _mlp(f"{_FF}shared_expert.", _FF, hidden, width, experts)
    if fused:
        gate_up, down = (experts, hidden, 2 * width), (experts, width, hidden)
        return slots | {
            f"{_FF}experts.gate_up_proj": Slot(
                gate_up, f"{_FF}gate_up_proj", "gate_up", transposed=True
            ),
            f"{_FF}experts.down_proj": Slot(down, f"{_FF}down_proj", transposed=True),
        }
    for expert in range(experts):
        slots |= _mlp(f"{_FF}experts.{expert}.", _FF, hidden, width, expert)
    return slots


def _vision(v: VisionConfig, text_hidden: int) -> dict[str, Slot]:
    def pair(source: str, target: str, rows: int, columns: int | None = None) -> dict[str, Slot]:
        weight = (rows,) if columns is None else (rows, columns)
        return {
            f"{source}.weight": Slot(weight, target if columns else f"{target}.weight"),
            f"{source}.bias": Slot((rows,), f"{target}.bias"),
        }

    size, width, head = v.hidden_size, v.intermediate_size, "vision_model."
    slots = {
        f"{head}class_embedding": Slot((size,), "vision.class_embedding"),
        f"{head}positional_embedding_vlm": Slot(
            (v.grid**2 + 1, size), "vision.positional_embedding"
        ),
        f"{head}patch_embedding.linear.weight": Slot((size, v.patch_row), "vision.patch_embedding"),
        f"{head}vision_adapter.mlp.fc1.weight": Slot(
            (v.projector_input_dim, width), "vision.adapter_fc1"
        ),
        f"{head}vision_adapter.mlp.fc2.weight": Slot(
            (v.projector_output_dim, v.projector_output_dim), "vision.adapter_fc2"
        ),
        "multi_modal_projector.linear_1.weight": Slot(
            (text_hidden, v.vision_output_dim), "vision.projector"
        ),
        **pair(f"{head}layernorm_pre", "vision.layernorm_pre", size),
        **pair(f"{head}layernorm_post", "vision.layernorm_post", size),
    }
    for layer in range(v.num_hidden_layers):
        source, target = f"{head}model.layers.{layer}.", f"vision.blocks.{layer}."
        for part, name in enumerate(("q_proj", "k_proj", "v_proj")):
            rows = slice(part * size, (part + 1) * size)
            for kind, slot in pair("", f"{target}qkv_proj", size, size).items():
                slots[f"{source}self_attn.{name}{kind}"] = slot._replace(rows=rows)
        slots |= pair(f"{source}self_attn.o_proj", f"{target}o_proj", size, size)
        slots |= pair(f"{source}mlp.fc1", f"{target}fc1", width, size)
        slots |= pair(f"{source}mlp.fc2", f"{target}fc2", size, width)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            slots |= pair(f"{source}{norm}", f"{target}{norm}", size)
    return slots
