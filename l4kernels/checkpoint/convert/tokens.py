"""Tokenizers of other forms as `tokenizer.json`: byte-level BPE, the tokens spelled in printable
characters."""

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from l4kernels.checkpoint.files.reader import CheckpointError
from l4kernels.inputs.files import read_text, shown

TIKTOKEN_FILE = "tokenizer.model"
_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_HIGH, _LOW = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
PATTERN = (
    f"{_BEFORE}{_HIGH}*{_LOW}+{_ENDING}|{_BEFORE}{_HIGH}+{_LOW}*{_ENDING}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Llama 4 splits a text before it merges."""
_SPECIAL = 2048
_MAX_TOKENS = 900_000
_MAX_TOKEN_BYTES = 512  # Llama 4's longest have 128


def special_tokens() -> list[str]:
    """Llama 4's control tokens in the order of their ids.

    >>> names = special_tokens()
    >>> len(names), names[0], names[92], names[-1]
    (2048, '<|begin_of_text|>', '<|patch|>', '<|reserved_special_token_903|>')
    """

    def some(kind: str, numbers: Iterable[int]) -> list[str]:
        return [f"{kind}_{number}" for number in numbers]

    text, vision = "text_post_train_reserved_special_token", "vision_reserved_special_token"
    names = ["begin_of_text", "end_of_text", "fim_prefix", "fim_middle", "fim_suffix"]
    names += ["header_start", "header_end", "eom", "eot", "step", *some(text, range(6))]
    names += ["python_start", "python_end", "finetune_right_pad", *some(text, range(8, 69))]
    names += ["image_start", "image_end", *some(vision, range(2))]
    names += ["tile_x_separator", "tile_y_separator", *some(vision, range(2, 6))]
    names += ["image", *some(vision, (6,)), "patch", *some(vision, range(7, 1048))]
    names += some("reasoning_reserved_special_token", range(8))
    names += ["reasoning_thinking_start", "reasoning_thinking_end"]
    names += some("reserved_special_token", range(_SPECIAL - len(names)))
    return [f"<|{name}|>" for name in names]


def special_ids(ranks: Mapping[bytes, int]) -> dict[str, int]:
    """The ids of the control tokens, which follow those of the others."""
    return {name: len(ranks) + number for number, name in enumerate(special_tokens())}


def tokenizer_texts(ranks: Mapping[bytes, int]) -> dict[str, str]:
    """The files of a tokenizer in Meta's form: tokens by their ranks, which are their ids, too."""
    spelled = {token: _spelled(token) for token in ranks}
    vocab = {spelled[token]: rank for token, rank in ranks.items()}
    merges = [
        (spelled[token[:at]], spelled[token[at:]])
        for token in sorted(ranks, key=ranks.__getitem__)
        for at in _splits(token, ranks)
    ]
    bos, end = "<|begin_of_text|>", "<|end_of_text|>"
    return tokenizer_files(
        vocab,
        merges,
        special_ids(ranks),
        pattern=PATTERN,
        named={"bos_token": bos, "eos_token": end, "pad_token": "<|finetune_right_pad|>"},
        bos=bos,
    )


def tokenizer_files(
    vocab: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    special: Mapping[str, int],
    *,
    pattern: str,
    named: Mapping[str, str],
    bos: str | None,
    chat_template: str | None = None,
    plain: Mapping[str, int] | None = None,
) -> dict[str, str]:
    """`tokenizer.json` and `tokenizer_config.json`.

    Args:
        vocab, merges: in printable spelling.
        special: control tokens and their ids.
        pattern: where a text is split.
        named: `bos_token` and its like.
        bos: the token that a text begins with.
        plain: further tokens that a text is searched for, which are no control tokens.
    """
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    kinds = [*((n, i, True) for n, i in special.items())]
    kinds += [(n, i, False) for n, i in (plain or {}).items()]
    added = [
        {"id": id, "content": name, **flags, "special": is_special}
        for name, id, is_special in sorted(kinds, key=lambda kind: kind[1])
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
    steps: list[dict[str, Any]] = [byte_level | {"use_regex": True}]
    if bos is not None:
        first = {"SpecialToken": {"id": bos, "type_id": 0}}
        text = [{"Sequence": {"id": part, "type_id": at}} for at, part in enumerate("AB")]
        steps.append(
            {
                "type": "TemplateProcessing",
                "single": [first, text[0]],
                "pair": [first, text[0], {"SpecialToken": {"id": bos, "type_id": 1}}, text[1]],
                "special_tokens": {bos: {"id": bos, "ids": [special[bos]], "tokens": [bos]}},
            }
        )
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [split | {"invert": False}, byte_level | {"use_regex": False}],
        },
        "post_processor": {"type": "Sequence", "processors": steps},
        "decoder": byte_level | {"use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": vocab,
            "merges": merges,
        },
    }
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", **named}
    config["clean_up_tokenization_spaces"] = False
    if chat_template is not None:
        config["chat_template"] = chat_template
    return {
        "tokenizer.json": json.dumps(content, ensure_ascii=False),
        "tokenizer_config.json": json.dumps(config, indent=2, ensure_ascii=False) + "\n",
    }


def _splits(token: bytes, ranks: Mapping[bytes, int]) -> list[int]:
    """Where a token can be put together of two others, in the order in which that is tried."""
    places = [at for at in range(1, len(token)) if token[:at] in ranks and token[at:] in ranks]
    return sorted(places, key=lambda at: (ranks[token[:at]], ranks[token[at:]]))


def read_ranks(file: Path) -> dict[bytes, int]:
    """The tokens of a `tokenizer.model` and their ranks.

    Raises:
        CheckpointError: it is missing, or no list of tokens with their ranks.
    """
    ranks: dict[bytes, int] = {}
    try:
        lines = read_text(file, CheckpointError).splitlines()
    except FileNotFoundError:
        raise CheckpointError(f"{file}: not found; a native checkpoint has its tokenizer") from None
    for number, line in enumerate(lines, 1):
        try:
            code, rank = line.split()
            token = base64.b64decode(code, validate=True)
            if token in ranks or not 0 < len(token) <= _MAX_TOKEN_BYTES or not rank.isdecimal():
                raise ValueError
            ranks[token] = int(rank[:10])
        except ValueError:
            if not line.strip():
                continue
            raise CheckpointError(
                f"{file}: expected a token in base64 and its rank in line {number}, each token "
                f"once, got {shown(line)}"
            ) from None
    if not 256 <= len(ranks) <= _MAX_TOKENS or {*ranks.values()} != {*range(len(ranks))}:
        raise CheckpointError(
            f"{file}: expected ranks from 0 on without a gap, of 256 to {_MAX_TOKENS:,} tokens, "
            f"got {len(ranks):,} tokens"
        )
    if any(bytes([byte]) not in ranks for byte in range(256)):
        raise CheckpointError(f"{file}: expected every byte to be a token")
    return ranks


def _printable() -> dict[int, str]:
    """The characters that stand for bytes: their own where that can be seen, others from 256 on."""
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in seen]
    return {byte: chr(byte) for byte in seen} | {
        byte: chr(256 + n) for n, byte in enumerate(hidden)
    }


_CHARACTERS = _printable()


def _spelled(token: bytes) -> str:
    return "".join(map(_CHARACTERS.__getitem__, token))
