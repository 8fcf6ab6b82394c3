"""Which tokens a checkpoint names: `bos_token` and its like, and the control tokens it declares.

The files disagree at times. The rules are those of transformers 5, which the checkpoints are
written for; where transformers finds no begin-of-text token, the ids of the configs count.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers

from l4kernels.model.files import read_object
from l4kernels.model.tokenizer_file import MAX_IDS, TokenizerError, guarded, is_unicode

_STANDARD = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")
"""Other names that end in `_token` may be settings; these are tokens or null."""


class TokenNames:
    """`by_key`: names as chat templates know them (`bos_token`, ...) and the tokens they stand for.

    `special_tokens_map.json` overrides `tokenizer_config.json` unless the latter has
    `added_tokens_decoder`; a `null` is no name.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self.file = folder / "tokenizer_config.json"
        config = _object_in(self.file)
        map_file = folder / "special_tokens_map.json"
        if "added_tokens_decoder" not in config and map_file.exists():
            config |= _object_in(map_file)
        self.adds_bos = config.get("add_bos_token")
        if self.adds_bos is not None and not isinstance(self.adds_bos, bool):
            got = f"{self.adds_bos!r:.80}"
            raise TokenizerError(f"{self.file}: expected add_bos_token true or false, got {got}")
        self._decoder = config.get("added_tokens_decoder") or {}
        extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
        named = {key: value for key, value in config.items() if key.endswith("_token")}
        if isinstance(extra, dict):
            named, extra = named | extra, []
        self._named = self._named_tokens(named)
        self._extra = self._list_of_tokens(extra)
        self.by_key = {key: token.content for key, token in self._named.items()}

    def declare(self, library: tokenizers.Tokenizer) -> None:
        """Adds the tokens that these files name and `tokenizer.json` lacks, as transformers does.

        They get the next ids of the vocabulary.
        """
        known = {token.content for token in library.get_added_tokens_decoder().values()}
        for id, token in self._decoded():
            if token.content not in known:
                library.add_tokens([token])
                known.add(token.content)
                got = library.token_to_id(token.content)
                if got != id:
                    raise TokenizerError(
                        f"{self.file}: {token.content!r:.80} is declared with id {id}, but its "
                        f"place in the vocabulary gives it {got}"
                    )
        missing = [t for t in (*self._named.values(), *self._extra) if t.content not in known]
        library.add_special_tokens(missing)

    def find_bos(self, library: tokenizers.Tokenizer) -> int | None:
        """Id of the begin-of-text token, or None; `by_key["bos_token"]` then names the same.

        The first that is known: the name `bos_token`, the token that the post-processor of
        `tokenizer.json` puts before a text, and `bos_token_id` of `config.json` (first in its
        `text_config`) or `generation_config.json`, if the tokenizer has an added token of that id.
        """
        processed = _first_processed(library)
        named = self.by_key.get("bos_token")
        if named is not None:
            id = library.token_to_id(named)
            if processed not in (None, id):
                raise TokenizerError(
                    f"{self.file}: bos_token is {named!r:.80}, but tokenizer.json begins a text "
                    f"with {library.id_to_token(processed)!r:.80}; make them agree"
                )
            return id
        added = library.get_added_tokens_decoder()
        for id in (processed, *self._configured()):
            if id in added:
                self.by_key["bos_token"] = added[id].content
                return id
        return None

    def begins_with_bos(self, library: tokenizers.Tokenizer) -> bool:
        """Whether encoded text begins with the begin-of-text token, if there is one.

        The post-processor decides, as in transformers; without one that adds the token,
        `add_bos_token`; without that the token is added, since Llama models are trained with it.
        """
        return _first_processed(library) is not None or self.adds_bos is not False

    def _configured(self) -> Iterator[Any]:
        config = _object_in(self._folder / "config.json")
        text = config.get("text_config")
        generation = _object_in(self._folder / "generation_config.json")
        for part in (text, config, generation):
            id = part.get("bos_token_id") if isinstance(part, dict) else None
            if type(id) is int:
                yield id

    def _decoded(self) -> Iterator[tuple[int, tokenizers.AddedToken]]:
        wrong = f"{self.file}: expected added_tokens_decoder to map ids to tokens"
        if not isinstance(self._decoder, dict):
            raise TokenizerError(f"{wrong}, got {self._decoder!r:.80}")
        ids = [key for key in self._decoder if key.isdecimal() and len(key) < 9]
        for key in sorted(ids, key=int):
            token = _token(self._decoder[key])
            if token is None or int(key) >= MAX_IDS:
                raise TokenizerError(f"{wrong}, got {self._decoder[key]!r:.80} for {key}")
            yield int(key), token
        if len(ids) < len(self._decoder):
            other = next(key for key in self._decoder if key not in ids)
            raise TokenizerError(f"{wrong}, got the id {other!r:.80}")

    def _named_tokens(self, named: dict[str, Any]) -> dict[str, tokenizers.AddedToken]:
        tokens = {key: _token(value) for key, value in named.items()}
        for key in _STANDARD:
            if named.get(key) is not None and tokens[key] is None:
                raise TokenizerError(
                    f"{self.file}: expected {key} to be a token, got {named[key]!r:.80}"
                )
        return {key: token for key, token in tokens.items() if token is not None}

    def _list_of_tokens(self, values: Any) -> list[tokenizers.AddedToken]:
        tokens = [_token(value) for value in values] if isinstance(values, list) else [None]
        if None in tokens:
            raise TokenizerError(
                f"{self.file}: expected the extra special tokens to be a list of tokens, "
                f"got {values!r:.80}"
            )
        return tokens


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


def _first_processed(library: tokenizers.Tokenizer) -> int | None:
    """Id of the token that the post-processor puts before a text."""
    text = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": MAX_IDS}, unk_token="a"))
    ids = guarded(
        "tokenizer.json: its post-processor fails", lambda: library.post_process(text.encode("a"))
    ).ids
    return None if not ids or ids[0] == MAX_IDS else ids[0]


def _object_in(file: Path) -> dict[str, Any]:
    """The object in a file that a checkpoint may do without."""
    try:
        return read_object(file, TokenizerError)
    except FileNotFoundError:
        return {}
