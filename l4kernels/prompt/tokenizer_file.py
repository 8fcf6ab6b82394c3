"""An untrusted `tokenizer.json`: checked, then given to the `tokenizers` library.

Supported is what Llama 4 is published with: byte-level BPE, that is a BPE model over the printable
spelling of bytes, a `ByteLevel` pre-tokenizer as the last one and a `ByteLevel` decoder.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import tokenizers

from l4kernels.inputs.files import read_object, shown

MAX_FILE_BYTES = 64 << 20  # Llama 4 has 28 MB
MAX_IDS = 1 << 20
MAX_ADDED = 1 << 14  # Llama 4 has 1,135
MAX_ADDED_CHARS = 1 << 20
MAX_PATTERN_CHARS = 4096  # the published pattern has 391; much longer ones take seconds to compile
_NORMALIZERS = ("NFC", "NFD", "Lowercase", "Strip", "StripAccents")
"""Others run patterns of the file's own, or make long texts of short ones: NFKC up to 18 times."""

_Result = TypeVar("_Result")


class TokenizerError(ValueError):
    """A tokenizer that cannot be used, or text or ids that it cannot take."""


class ContextError(TokenizerError):
    """More tokens than the model's context."""


def guarded(what: str, call: Callable[[], _Result]) -> _Result:
    """`call()`; whatever the library fails with becomes a `TokenizerError`.

    It raises bare `Exception`, and its panics are no `Exception` at all.
    """
    try:
        return call()
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:
        raise TokenizerError(f"{what} ({str(error)[:200]})") from None


def read_tokenizer(file: Path) -> tuple[dict[str, Any], tokenizers.Tokenizer]:
    """The checked content of `tokenizer.json` and the library's tokenizer of it."""
    try:
        data = read_object(file, TokenizerError, MAX_FILE_BYTES)
    except FileNotFoundError:
        raise TokenizerError(f"{file}: no such file; the checkpoint needs its tokenizer") from None
    # Prompts are never cut or filled up, whatever the file says.
    data |= {"truncation": None, "padding": None}
    try:
        _check_model(data)
        _check_pipeline(data)
        added = _added_tokens(data)
        # From the checked content: the library must not see another reading of the text.
        text = json.dumps(data)
    except (TokenizerError, RecursionError) as error:
        raise TokenizerError(f"{file}: not a readable tokenizer ({error})") from None
    library = guarded(
        f"{file}: not a readable tokenizer", lambda: tokenizers.Tokenizer.from_str(text)
    )
    for id, token in library.get_added_tokens_decoder().items():
        if added.pop(id, None) != token.content:
            raise TokenizerError(
                f"{file}: the added token {shown(token.content)} has another id than {id}, which "
                f"its place in the vocabulary gives it"
            )
    if added:
        id, content = added.popitem()
        raise TokenizerError(f"{file}: {shown(content)} cannot be an added token with id {id}")
    return data, library


def is_unicode(text: str) -> bool:
    """Whether `text` has no lone surrogates, which nothing but Python takes for text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def steps(part: Any, inner: str) -> Iterator[dict[str, Any]]:
    """The normalizers, pre-tokenizers or decoders in order, those of sequences one by one."""
    if isinstance(part, dict) and part.get("type") == "Sequence":
        for step in _list(part.get(inner), inner):
            yield from steps(step, inner)
    elif part is not None:
        yield _object(part, inner)


def _check_model(data: dict[str, Any]) -> None:
    model = _object(data.get("model"), "model")
    kind = model.get("type", "BPE")
    if kind != "BPE":
        raise TokenizerError(f"only byte-level BPE is supported, got a model of type {shown(kind)}")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise TokenizerError(
                f"only byte-level BPE is supported, got {name} = {shown(model[name])}"
            )
    vocab = _object(model.get("vocab"), "the vocabulary")
    for token, id in vocab.items():
        _check_id(id, token)
    if len(set(vocab.values())) < len(vocab):
        raise TokenizerError("expected every token to have an id of its own")


def _check_pipeline(data: dict[str, Any]) -> None:
    normalizers = list(steps(data.get("normalizer"), "normalizers"))
    splits = list(steps(data.get("pre_tokenizer"), "pretokenizers"))
    decoders = list(steps(data.get("decoder"), "decoders"))
    if any(step.get("type") not in _NORMALIZERS for step in normalizers):
        raise TokenizerError(
            f"expected normalizers out of {', '.join(_NORMALIZERS)}, got {_kinds(normalizers)}"
        )
    byte_level = [step.get("type") == "ByteLevel" for step in splits]
    if byte_level[-1:] != [True] or sum(byte_level) != 1:
        raise TokenizerError(
            f"expected a byte-level tokenizer: one pre-tokenizer ByteLevel, the last one; "
            f"got {_kinds(splits)}"
        )
    if [step.get("type") for step in decoders] != ["ByteLevel"]:
        raise TokenizerError(
            f"expected a byte-level tokenizer: the decoder ByteLevel, got {_kinds(decoders)}"
        )
    for pattern in (step.get("pattern") for step in splits):
        pattern = pattern.get("Regex") if isinstance(pattern, dict) else None
        if isinstance(pattern, str) and len(pattern) > MAX_PATTERN_CHARS:
            raise TokenizerError(
                f"expected patterns of at most {MAX_PATTERN_CHARS} characters, got {len(pattern):,}"
            )


def _added_tokens(data: dict[str, Any]) -> dict[int, str]:
    added: dict[int, str] = {}
    tokens = data.get("added_tokens")
    tokens = _list([] if tokens is None else tokens, "added_tokens")
    if len(tokens) > MAX_ADDED:
        raise TokenizerError(f"expected at most {MAX_ADDED:,} added tokens, got {len(tokens):,}")
    for token in tokens:
        id: Any = _object(token, "an added token").get("id")
        content = token.get("content")
        _check_id(id, content)
        if not isinstance(content, str) or not content:
            raise TokenizerError(f"expected an added token to have text, got {shown(content)}")
        if id in added:
            raise TokenizerError(f"two added tokens have id {id}")
        added[id] = content
    if sum(map(len, added.values())) > MAX_ADDED_CHARS:
        raise TokenizerError(f"expected added tokens of at most {MAX_ADDED_CHARS:,} characters")
    return added


def _check_id(id: Any, token: Any) -> None:
    if type(id) is not int or not 0 <= id < MAX_IDS:
        raise TokenizerError(
            f"expected the id of {shown(token)} to be a whole number in [0, {MAX_IDS:,}), "
            f"got {shown(id)}"
        )


def _kinds(steps: list[dict[str, Any]]) -> str:
    return ", ".join(f"{step.get('type')!s:.40}" for step in steps[:8]) or "none"


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TokenizerError(f"expected {what} to be an object, got {shown(value)}")
    return value


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise TokenizerError(f"expected {what} to be a list, got {shown(value)}")
    return value
