"""Which tokens a checkpoint names: `bos_token` and its like, and the control tokens it declares.

The files disagree at times. The rules are those of transformers 5, which the checkpoints are
written for; where transformers finds no begin-of-text token, the ids of the configs count.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tokenizers

from l4kernels.inputs.files import read_object, shown
from l4kernels.prompt.tokenizer_file import (
    MAX_ADDED,
    MAX_ADDED_CHARS,
    TokenizerError,
    guarded,
    is_unicode,
    steps,
)

_STANDARD = (
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
)  # fmt: skip
"""Other names that end in `_token` may be settings; these are tokens or null, and come first: new
tokens get their ids in this order."""


class TokenNames:
    """`by_key`: names as chat templates know them (`bos_token`, ...) and the tokens they stand for.

    `special_tokens_map.json` overrides `tokenizer_config.json` unless the latter has
    `added_tokens_decoder`; a `null` is no name.

    Args:
        folder: the checkpoint's.
        data: the checked content of its `tokenizer.json`.
    """

    def __init__(self, folder: Path, data: Mapping[str, Any]):
        self._folder = folder
        self._processed = guarded(
            f"{folder / 'tokenizer.json'}: its post-processor is contradictory",
            lambda: _first_processed(data),
        )
        self.file = folder / "tokenizer_config.json"
        config = _object_in(self.file)
        if "added_tokens_decoder" not in config:
            config |= _object_in(folder / "special_tokens_map.json")
        self._adds_bos = config.get("add_bos_token")
        if self._adds_bos is not None and not isinstance(self._adds_bos, bool):
            raise self._wrong("add_bos_token to be true or false", self._adds_bos)
        extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
        if isinstance(extra, dict):
            config, extra = config | extra, list(extra.values())
        named = {key: value for key, value in config.items() if key.endswith("_token")}
        self._named = self._named_tokens(named)
        self._extra = self._extra_tokens(extra)
        self._by_id = self._tokens_by_id(config.get("added_tokens_decoder") or {})
        tokens = [*self._named.values(), *self._extra, *self._by_id.values()]
        chars = sum(len(token.content) for token in tokens)
        if len(tokens) > MAX_ADDED or chars > MAX_ADDED_CHARS:
            raise self._wrong(
                f"at most {MAX_ADDED:,} tokens of {MAX_ADDED_CHARS:,} characters",
                f"{len(tokens):,} of {chars:,}",
            )
        self.by_key = {key: token.content for key, token in self._named.items()}

    def declare(self, library: tokenizers.Tokenizer) -> None:
        """Adds the tokens that these files name and `tokenizer.json` lacks, as transformers does.

        They get the next ids of the vocabulary.
        """
        known = {token.content for token in library.get_added_tokens_decoder().values()}
        for id, token in self._by_id.items():
            if token.content not in known:
                library.add_tokens([token])
                known.add(token.content)
                got = library.token_to_id(token.content)
                if got != id:
                    raise TokenizerError(
                        f"{self.file}: {shown(token.content)} is declared with id {id}, but its "
                        f"place in the vocabulary gives it {got}"
                    )
        named = (*self._named.values(), *self._extra)
        library.add_special_tokens([token for token in named if token.content not in known])

    def find_bos(self, library: tokenizers.Tokenizer) -> int | None:
        """Id of the begin-of-text token, or None; `by_key["bos_token"]` then names the same.

        The first that is known: the name `bos_token`, the token that the post-processor of
        `tokenizer.json` puts before a text, and `bos_token_id` of `config.json` (first in its
        `text_config`) or `generation_config.json`, if the tokenizer has an added token of that id.
        """
        processed = self._processed
        named = self.by_key.get("bos_token")
        if named is not None:
            id: int | None = library.token_to_id(named)
            if processed not in (None, id):
                raise TokenizerError(
                    f"{self.file}: bos_token is {shown(named)}, but tokenizer.json begins a text "
                    f"with {shown(library.id_to_token(processed))}; make them agree"
                )
            return id
        added = library.get_added_tokens_decoder()
        for id in (processed, *self._configured()):
            if id in added:
                self.by_key["bos_token"] = added[id].content
                return id
        return None

    def begins_with_bos(self) -> bool:
        """Whether encoded text begins with the begin-of-text token, if there is one.

        The post-processor decides, as in transformers; without one that adds the token,
        `add_bos_token`; without that the token is added, since Llama models are trained with it.
        """
        return self._processed is not None or self._adds_bos is not False

    def _configured(self) -> Iterator[Any]:
        config = _object_in(self._folder / "config.json")
        text = config.get("text_config")
        generation = _object_in(self._folder / "generation_config.json")
        for part in (text, config, generation):
            id = part.get("bos_token_id") if isinstance(part, dict) else None
            if type(id) is int:
                yield id

    def _wrong(self, expected: str, got: Any) -> TokenizerError:
        return TokenizerError(f"{self.file}: expected {expected}, got {shown(got)}")

    def _named_tokens(self, named: dict[str, Any]) -> dict[str, tokenizers.AddedToken]:
        keys = dict.fromkeys((*_STANDARD, *named))
        tokens = {key: _token(named.get(key)) for key in keys}
        for key in _STANDARD:
            if named.get(key) is not None and tokens[key] is None:
                raise self._wrong(f"{key} to be a token", named[key])
        return {key: token for key, token in tokens.items() if token is not None}

    def _extra_tokens(self, values: Any) -> list[tokenizers.AddedToken]:
        tokens = [_token(value) for value in values] if isinstance(values, list) else [None]
        found = [token for token in tokens if token is not None]
        if len(found) < len(tokens):
            raise self._wrong("the extra special tokens to be a list of tokens", values)
        return found

    def _tokens_by_id(self, values: Any) -> dict[int, tokenizers.AddedToken]:
        what = "added_tokens_decoder to map ids to tokens"
        if not isinstance(values, dict):
            raise self._wrong(what, values)
        tokens = {}
        for key, value in values.items():
            token = _token(value)
            if not (key.isascii() and key.isdecimal()) or len(key) > 8 or token is None:
                raise self._wrong(what, {key: value})
            tokens[int(key)] = token
        return dict(sorted(tokens.items()))


def _token(value: Any) -> tokenizers.AddedToken | None:
    """A token written as text or as an object; None for anything else."""
    if isinstance(value, str):
        value = {"content": value, "special": True, "normalized": False}
    content = value.get("content") if isinstance(value, dict) else None
    if not isinstance(content, str) or not content or not is_unicode(content):
        return None
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    given = {flag: value[flag] for flag in flags if isinstance(value.get(flag), bool)}
    return tokenizers.AddedToken(content, **given)


def _first_processed(data: Mapping[str, Any]) -> int | None:
    """Id of the token that the post-processor puts before a text."""
    first = None
    for step in steps(data.get("post_processor"), "processors"):
        if step.get("type") in ("BertProcessing", "RobertaProcessing"):
            first = step["cls"][1]
        elif step.get("type") == "TemplateProcessing":
            special = step["single"][0].get("SpecialToken") if step["single"] else None
            first = step["special_tokens"][special["id"]]["ids"][0] if special else first
    return first


def _object_in(file: Path) -> dict[str, Any]:
    """The object in a file that a checkpoint may do without."""
    try:
        return read_object(file, TokenizerError)
    except FileNotFoundError:
        return {}
