"""A GGUF file's metadata as the files of a Hugging Face folder.

What llama.cpp does not write down for this architecture it has in its code, and so it is here: the
chunks of 8192 tokens, the four-layer pattern, the temperature, and which of the two published
models normalises q and k.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from l4kernels.checkpoint.convert.tokens import PATTERN, tokenizer_files
from l4kernels.checkpoint.convert.writing import to_json
from l4kernels.checkpoint.files.reader import CheckpointError
from l4kernels.inputs.fields import ConfigError, Fields
from l4kernels.inputs.files import shown

_ARCHITECTURE = "llama4"
_CHUNK, _PATTERN_LAYERS = 8192, 4
_SPLITS = ("llama4", "gpt-4o")
_NORMAL, _CONTROL, _OWN, _UNUSED = 1, 3, 4, 5
_MAVERICK_EXPERTS = 128
_ENDS = ("<|end_of_text|>", "<|eom|>", "<|eot|>")


def config_of(
    file: Path,
    metadata: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    rope_factors: Sequence[float] | None,
) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """The content of `config.json`, texts of other files, and what a user should know.

    Raises:
        CheckpointError: the metadata are not those of a Llama 4 text model.
    """
    kind = metadata.get("general.architecture")
    if kind == "clip":
        raise CheckpointError(
            f"{file}: holds what reads images (mmproj); of GGUF the text model is converted: name "
            f"its file"
        )
    if kind != _ARCHITECTURE:
        raise CheckpointError(f"{file}: expected the architecture llama4, got {shown(kind)}")
    prefix = f"{_ARCHITECTURE}."
    own = {n.removeprefix(prefix): v for n, v in metadata.items() if n.startswith(prefix)}
    try:
        config = _text_config(Fields(own, f"{file}: {_ARCHITECTURE}"), rope_factors)
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    config["tie_word_embeddings"] = "output.weight" not in shapes
    tokenizer = _Tokenizer(file, metadata)
    if (got := own.get("vocab_size", tokenizer.size)) != tokenizer.size:
        raise CheckpointError(
            f"{file}: expected llama4.vocab_size to be the number of tokens, {tokenizer.size:,}, "
            f"got {shown(got)}"
        )
    config |= {"vocab_size": tokenizer.size, **tokenizer.ids()}
    notes = [
        "GGUF keeps neither the vision tower nor sampling defaults: the folder answers text, and "
        "greedily where nothing else is asked for"
    ]
    texts = {**tokenizer.texts(), "generation_config.json": to_json(tokenizer.ids())}
    return config, texts, notes


def _text_config(f: Fields, factors: Sequence[float] | None) -> dict[str, Any]:
    layers = f.integer("block_count", 1, 512)
    hidden = f.integer("embedding_length", 1, 65_536)
    heads = f.integer("attention.head_count", 1, 1024)
    head = f.integer("rope.dimension_count", 2, 1024, default=max(2, hidden // heads))
    for name in ("attention.key_length", "attention.value_length"):
        f.equal(name, f.integer(name, 2, 1024, default=head), "rope.dimension_count", head)
    if f.integer("attention.sliding_window", 0, 1 << 28, default=_CHUNK) != _CHUNK:
        f.fail(f"expected attention.sliding_window to be {_CHUNK} or absent, as in Scout, Maverick")
    step = f.integer("interleave_moe_layer_step", 1, 512)
    experts = f.integer("expert_count", 1, 255)
    width = f.integer("expert_feed_forward_length", 1, 1 << 20)
    theta = f.number("rope.freq_base", 1.0, 1e12, default=500_000.0)
    for name in ("rope.scaling.type", "attention.sliding_window_pattern"):
        if f.data.get(name) not in (None, "none", _PATTERN_LAYERS):
            f.fail(f"{name} = {shown(f.data[name])} is not supported")
    return {
        "architectures": ["Llama4ForCausalLM"],
        "model_type": "llama4_text",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": f.integer("attention.head_count_kv", 1, heads, default=heads),
        "head_dim": head,
        "intermediate_size": width,
        "intermediate_size_mlp": f.integer("feed_forward_length", 1, 1 << 20, default=width),
        "num_local_experts": experts,
        "num_experts_per_tok": f.integer("expert_used_count", 1, 8, default=1),
        "interleave_moe_layer_step": step,
        "moe_layers": [layer for layer in range(layers) if (layer + 1) % step == 0],
        "no_rope_layers": [int((layer + 1) % _PATTERN_LAYERS != 0) for layer in range(layers)],
        "attention_chunk_size": _CHUNK,
        "attn_temperature_tuning": True,
        "floor_scale": 8192,
        "attn_scale": 0.1,
        "rope_parameters": {**_rope(f, factors, theta, head), "rope_theta": theta},
        "use_qk_norm": experts != _MAVERICK_EXPERTS,
        "rms_norm_eps": _single(f.number("attention.layer_norm_rms_epsilon", 0.0, 1.0)),
        "hidden_act": "silu",
        "attention_bias": False,
        "max_position_embeddings": f.integer("context_length", 1, 1 << 28),
        "dtype": "bfloat16",
    }


def _single(value: float) -> float:
    """The shortest decimal number that is `value` in single precision.

    >>> _single(9.999999747378752e-06)
    1e-05
    """
    return float(f"{value:.7g}")


def _rope(f: Fields, factors: Sequence[float] | None, theta: float, head: int) -> dict[str, Any]:
    """The scaling whose factors a file holds, frequency by frequency."""
    if factors is None or all(factor == 1 for factor in factors):
        return {"rope_type": "default"}
    f.equal("factors in rope_freqs.weight", len(factors), "rope.dimension_count / 2", head // 2)
    largest = max(factors)
    if not all(1 <= factor <= 1e6 for factor in factors):
        f.fail("expected rope_freqs.weight to hold factors in [1, 1000000]")
    lengths = [_CHUNK, *(1 << power for power in range(6, 21))]
    rates = [theta ** (-2 * pair / head) for pair in range(head // 2)]
    for length in lengths:
        for high in (1.0, 2.0, 4.0, 8.0):
            made = [_factor(rate, largest, high, length) for rate in rates]
            if all(abs(a - b) <= 1e-4 * b for a, b in zip(factors, made, strict=True)):
                return {
                    "rope_type": "llama3",
                    "factor": _single(largest),
                    "low_freq_factor": 1.0,
                    "high_freq_factor": high,
                    "original_max_position_embeddings": length,
                }
    return f.fail("rope_freqs.weight holds the factors of a scaling that is not llama3's")


def _factor(frequency: float, factor: float, high: float, length: int) -> float:
    wavelength = 2 * math.pi / frequency
    if wavelength < length / high:
        return 1.0
    if wavelength > length or high == 1:
        return factor
    smooth = (length / wavelength - 1) / (high - 1)
    return 1 / ((1 - smooth) / factor + smooth)


class _Tokenizer:
    """The tokenizer in the metadata."""

    def __init__(self, file: Path, metadata: Mapping[str, Any]):
        self._file = file
        self._fields = {
            name.removeprefix("tokenizer.ggml."): value
            for name, value in metadata.items()
            if name.startswith("tokenizer.ggml.")
        }
        self._template = metadata.get("tokenizer.chat_template")
        for name, known in (("model", ("gpt2",)), ("pre", _SPLITS)):
            if self._fields.get(name) not in known:
                got = shown(self._fields.get(name))
                self._fail(f"expected tokenizer.ggml.{name} to be {' or '.join(known)}, got {got}")
        self._tokens = self._texts("tokens")
        self.size = len(self._tokens)
        kinds = self._fields.get("token_type", [_NORMAL] * self.size)
        if not isinstance(kinds, list) or len(kinds) != self.size or not self.size:
            self._fail("expected a type for each of its tokens")
        if len({*self._tokens}) < self.size:
            self._fail("expected every token once")
        places = list(enumerate(zip(self._tokens, kinds, strict=True)))
        self._control = {token: id for id, (token, kind) in places if kind == _CONTROL}
        self._own = {token: id for id, (token, kind) in places if kind == _OWN}
        apart = (_CONTROL, _OWN, _UNUSED)
        self._vocab = {token: id for id, (token, kind) in places if kind not in apart}

    def _fail(self, why: str) -> NoReturn:
        raise CheckpointError(f"{self._file}: {why}")

    def _texts(self, name: str) -> list[str]:
        value = self._fields.get(name)
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            self._fail(f"expected tokenizer.ggml.{name} to be a list of texts")
        return value

    def _id(self, name: str) -> int | None:
        value = self._fields.get(f"{name}_token_id")
        if value is None:
            return None
        if type(value) is not int or not 0 <= value < self.size:
            self._fail(f"expected tokenizer.ggml.{name}_token_id to be a token, got {shown(value)}")
        return value

    def ids(self) -> dict[str, Any]:
        """As configs have them. A turn ends at each of the tokens that Llama 4 ends one with."""
        ends = {self._id(name) for name in ("eos", "eot", "eom")}
        ends |= {self._control.get(name) for name in _ENDS}
        found = sorted(id for id in ends if id is not None)
        return {
            "bos_token_id": self._id("bos"),
            "eos_token_id": found or None,
            "pad_token_id": self._id("padding"),
        }

    def texts(self) -> dict[str, str]:
        merges: list[tuple[str, str]] = []
        for merge in self._texts("merges"):
            left, _, right = merge.partition(" ")
            if not {left, right, left + right} <= self._vocab.keys():
                self._fail(f"expected merges of two tokens to a third, got {shown(merge)}")
            merges.append((left, right))
        added = sorted([*self._control.values(), *self._own.values()])
        if added != [*range(len(self._vocab), len(self._vocab) + len(added))]:
            # Only a token that is in the vocabulary keeps an id that is not the next one.
            self._vocab |= self._control | self._own
        names = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding"}
        ids = {key: self._id(name) for key, name in names.items()}
        named = {key: self._tokens[id] for key, id in ids.items() if id is not None}
        bos = named.get("bos_token")
        begins = self._fields.get("add_bos_token", True) is not False
        if bos is not None and bos not in self._control:
            self._fail(
                f"expected the token that begins a text, {shown(bos)}, to be a control token"
            )
        template = self._template if isinstance(self._template, str) else None
        return tokenizer_files(
            self._vocab,
            merges,
            self._control,
            pattern=PATTERN,
            named=named,
            bos=bos if begins else None,
            chat_template=template,
            plain=self._own,
        )
