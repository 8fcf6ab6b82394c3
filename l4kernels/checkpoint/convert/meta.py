"""Meta's native checkpoints: `consolidated.NN.pth` of each rank, `params.json`, `tokenizer.model`.

The `.pth` files are mapped, and nothing in them is run (`objects`). Of a tensor that ranks share
each holds its slice; a tensor of the layout is put together when it is written.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from l4kernels.checkpoint.convert.meta_config import config_of
from l4kernels.checkpoint.convert.ranks import Part, Ranks
from l4kernels.checkpoint.convert.tokens import (
    TIKTOKEN_FILE,
    read_ranks,
    special_ids,
    tokenizer_texts,
)
from l4kernels.checkpoint.convert.writing import Parts, Source, checked_config
from l4kernels.checkpoint.files.layout import layout
from l4kernels.checkpoint.files.reader import CheckpointError
from l4kernels.model.config import Llama4Config

_RANK = re.compile(r"consolidated(?:\.(\d\d))?\.pth")
_MAX_RANKS = 64


def is_native(folder: Path) -> bool:
    """Whether a folder holds a checkpoint in Meta's form."""
    return any(_RANK.fullmatch(file.name) for file in folder.glob("consolidated*.pth"))


def open_native(folder: Path) -> Source:
    """The checkpoint in a folder, checked: names and shapes of all ranks against `params.json`.

    Raises:
        CheckpointError: something is missing, does not agree, or is no plain tensor.
    """
    scales = sorted(file.name for file in folder.glob("fp8_scales_*"))
    if scales:
        raise CheckpointError(
            f"{folder}: weights that are quantised in Meta's native form ({scales[0]}) cannot be "
            f"read; supported: bfloat16. Take the bfloat16 files, or the FP8 model in the Hugging "
            f"Face form, which is read as it is"
        )
    files = _rank_files(folder)
    tokens = read_ranks(folder / TIKTOKEN_FILE)
    ranks = Ranks(folder, files)
    data, texts, notes = config_of(folder, special_ids(tokens))
    config = checked_config(data, folder / "params.json")
    tensors = _Mapping(config, ranks).tensors()
    ranks.check_all_used()
    return Source(
        folder,
        f"Meta's native form, {len(files)} rank{'s'[: len(files) > 1]}",
        data,
        tensors,
        texts | tokenizer_texts(tokens),
        notes,
    )


def _rank_files(folder: Path) -> list[Path]:
    found = {file.name: file for file in folder.glob("consolidated*.pth")}
    if {*found} == {"consolidated.pth"}:
        return list(found.values())
    wanted = [f"consolidated.{rank:02}.pth" for rank in range(len(found))]
    if {*found} != {*wanted} or len(found) > _MAX_RANKS:
        missing = [name for name in wanted if name not in found]
        raise CheckpointError(
            f"{folder}: expected consolidated.00.pth and so on, one file per rank; "
            + (f"{missing[0]} is missing" if missing else f"got {len(found)} files")
        )
    return [found[name] for name in wanted]


class _Mapping:
    """What each tensor of the layout is made of."""

    def __init__(self, config: Llama4Config, ranks: Ranks):
        self._config, self._ranks = config, ranks
        self._made: dict[str, Parts] = {}
        self._text = "language_model." if config.vision else ""
        self._slots = layout(config)

    def tensors(self) -> dict[str, Parts]:
        c, text = self._config, self._text
        shared = {
            "num_key_value_heads": c.num_key_value_heads,
            "vocab_size": c.vocab_size,
            "intermediate_size": c.intermediate_size,
            "intermediate_size_mlp": c.intermediate_size_mlp,
        }
        for name, size in shared.items():
            if size % self._ranks.count:
                raise CheckpointError(
                    f"{self._ranks.folder}: {name} = {size} cannot be shared by "
                    f"{self._ranks.count} ranks; is a file missing, or one too many?"
                )
        self._plain(f"{text}model.embed_tokens.weight", "tok_embeddings.weight", 0)
        self._plain(f"{text}model.norm.weight", "norm.weight", None)
        self._plain(f"{text}lm_head.weight", "output.weight", 0)
        for layer in range(c.num_hidden_layers):
            at, to = f"layers.{layer}.", f"{text}model.layers.{layer}."
            self._attention(f"{at}attention.", to, at)
            moe = c.is_moe(layer)
            norm = f"{at}feed_forward.norm.weight"
            norms = (f"{at}feed_forward.mlp.layer_norm_weight", norm, f"{at}ffn_norm.weight")
            norm = self._ranks.first(*norms[moe:])
            self._plain(f"{to}post_attention_layernorm.weight", norm, None)
            (self._moe if moe else self._mlp)(f"{at}feed_forward.", f"{to}feed_forward.")
        if c.vision:
            self._vision()
        return self._made

    def _add(self, name: str, part: Part, view: Callable[[Tensor], Tensor] = lambda t: t) -> None:
        self._ranks.expect(part)
        self._made[name] = lambda: (self._ranks.read(part, view),)

    def _shape(self, name: str, dim: int | None) -> tuple[int, ...]:
        """Of one rank, of a tensor of the layout."""
        shape = list(self._slots[name].shape)
        if dim is not None:
            shape[dim] //= self._ranks.count
        return tuple(shape)

    def _plain(self, name: str, stored: str, dim: int | None) -> None:
        """A tensor that is stored as the layout has it."""
        self._add(name, Part(stored, dim, self._shape(name, dim)))

    def _attention(self, at: str, to: str, block: str) -> None:
        norm = self._ranks.first(f"{at}wqkv.layer_norm_weight", f"{block}attention_norm.weight")
        self._plain(f"{to}input_layernorm.weight", norm, None)
        self._plain(f"{to}self_attn.o_proj.weight", f"{at}wo.weight", 1)
        names = [f"{to}self_attn.{kind}_proj.weight" for kind in "qkv"]
        fused = self._ranks.first(f"{at}wqkv.weight", f"{at}wq.weight")
        if fused.endswith("wq.weight"):
            for kind, name in zip("qkv", names, strict=True):
                self._plain(name, f"{at}w{kind}.weight", 0)
            return
        self._rows(fused, names)

    def _rows(self, stored: str, names: list[str]) -> None:
        """Tensors that each rank has below each other in one."""
        heights = [self._shape(name, 0)[0] for name in names]
        shape = (sum(heights), self._config.hidden_size)
        for index, name in enumerate(names):
            start = sum(heights[:index])
            rows = slice(start, start + heights[index])
            self._add(name, Part(stored, 0, shape, rows))

    def _mlp(self, at: str, to: str) -> None:
        names = [f"{to}{kind}_proj.weight" for kind in ("gate", "up")]
        if self._ranks.first(f"{at}mlp.fc1_weight", f"{at}w1.weight").endswith("fc1_weight"):
            self._rows(f"{at}mlp.fc1_weight", names)
            self._plain(f"{to}down_proj.weight", f"{at}mlp.fc2_weight", 1)
            return
        for name, kind in zip(names, "13", strict=True):
            self._plain(name, f"{at}w{kind}.weight", 0)
        self._plain(f"{to}down_proj.weight", f"{at}w2.weight", 1)

    def _moe(self, at: str, to: str) -> None:
        c, ranks = self._config, self._ranks
        experts, hidden, width = c.num_local_experts, c.hidden_size, c.intermediate_size
        router = Part(f"{at}router_DE", None, (hidden, experts))
        self._add(f"{to}router.weight", router, lambda t: t.t())
        for kind, own, short, dim in (
            ("gate", "w_in_shared_FD", "w1", 0),
            ("up", "w_swiglu_FD", "w3", 0),
            ("down", "w_out_shared_DF", "w2", 1),
        ):
            stored = ranks.first(f"{at}{own}.weight", f"{at}shared_expert.{short}.weight")
            self._plain(f"{to}shared_expert.{kind}_proj.weight", stored, dim)
        own_width = width // ranks.count
        into, out_of = (experts, hidden, own_width), (experts, own_width, hidden)

        def stack(name: str, short: str, dim: int, shape: tuple[int, ...]) -> Part:
            name = ranks.first(f"{at}experts.{name}", f"{at}experts.{short}")
            flat = (shape[0] * shape[1], shape[2]) if not name.endswith(short) else shape
            return ranks.expect(Part(name, dim, flat))

        gate = stack("moe_w_in_eD_F", "w1", 1, into)
        up = stack("moe_w_swiglu_eD_F", "w3", 1, into)
        down = stack("moe_w_out_eF_D", "w2", 0, out_of)

        def expert(part: Part, shape: tuple[int, ...], index: int) -> Tensor:
            return ranks.read(part, lambda t: t.reshape(shape)[index])

        def gate_up() -> Iterator[Tensor]:
            for index in range(experts):
                yield torch.cat([expert(part, into, index) for part in (gate, up)], 1)

        self._made[f"{to}experts.gate_up_proj"] = gate_up
        self._made[f"{to}experts.down_proj"] = lambda: (
            expert(down, out_of, index) for index in range(experts)
        )

    def _vision(self) -> None:
        at, to = "vision_embeddings.vision_encoder.", "vision_model."
        assert self._config.vision
        self._plain("multi_modal_projector.linear_1.weight", "vision_projection.weight", 0)
        self._plain(f"{to}patch_embedding.linear.weight", f"{at}conv1._linear.weight", 0)
        for name in ("class_embedding", "positional_embedding_vlm"):
            self._plain(f"{to}{name}", f"{at}{name}", None)
        adapter = "vision_embeddings.vision_adapter.mlp."
        self._plain(f"{to}vision_adapter.mlp.fc1.weight", f"{adapter}c_fc.weight", 0)
        self._plain(f"{to}vision_adapter.mlp.fc2.weight", f"{adapter}c_proj.weight", 1)
        for mine, theirs in (("layernorm_pre", "ln_pre"), ("layernorm_post", "ln_post")):
            self._pair(f"{to}{mine}", f"{at}{theirs}", None)
        for layer in range(self._config.vision.num_hidden_layers):
            block, mine = f"{at}transformer.resblocks.{layer}.", f"{to}model.layers.{layer}."
            for kind in "qkv":
                self._pair(f"{mine}self_attn.{kind}_proj", f"{block}attn.w{kind}", 0)
            self._pair(f"{mine}self_attn.o_proj", f"{block}attn.wo", 1)
            self._pair(f"{mine}mlp.fc1", f"{block}mlp.c_fc", 0)
            self._pair(f"{mine}mlp.fc2", f"{block}mlp.c_proj", 1)
            self._pair(f"{mine}input_layernorm", f"{block}ln_1", None)
            self._pair(f"{mine}post_attention_layernorm", f"{block}ln_2", None)

    def _pair(self, name: str, stored: str, dim: int | None) -> None:
        """Weight and bias; each rank has the whole bias of a product whose inputs are shared."""
        self._plain(f"{name}.weight", f"{stored}.weight", dim)
        self._plain(f"{name}.bias", f"{stored}.bias", 0 if dim == 0 else None)
