"""Text to ids of ordinary tokens: whatever a text spells, no added token comes out of it."""

import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import tokenizers

from l4kernels.prompt.tokenizer_file import ContextError, TokenizerError, guarded, steps

PIECE_CHARS = 1 << 16
"""Longer texts of published split patterns are encoded in pieces of about this length."""
MAX_PIECE_CHARS = 1 << 21
"""No longer text is encoded at once: 1 GB of memory, and below the library's retry limit."""
MAX_TEXT_CHARS = 64 << 20
SECONDS, SECONDS_PER_CHAR = 1.5, 1e-5
"""What a split pattern that was never published may take: about ten times the published ones."""

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_WORDS = (
    r" ?\p{L}+",
    r"[^\r\n\p{L}\p{N}]?\p{L}+",
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTION}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTION}?",
)
_OTHERS = (
    *("'s", "'t", "'re", "'ve", "'m", "'ll", "'d", _CONTRACTION),
    *(r"\p{N}", r"\p{N}{1,3}", r" ?\p{N}+"),
    *(r" ?[^\s\p{L}\p{N}]+", r" ?[^\s\p{L}\p{N}]+[\r\n]*", r" ?[^\s\p{L}\p{N}]+[\r\n/]*"),
    *(r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"),
)


def _any(alternatives: tuple[str, ...]) -> str:
    return f"(?:{'|'.join(map(re.escape, alternatives))})"


_PUBLISHED = re.compile(
    rf"(?:{_any(_WORDS + _OTHERS)}\|)*{_any(_WORDS)}\|(?:{_any(_WORDS + _OTHERS)}\|)*\\s\+"
)
"""The split patterns of GPT-2, Llama 3, Llama 4, Qwen and all that consist of their parts.

Each takes time linear in the text. And with each a text may be cut where a word ends: every letter
is in a match, no match goes on from a letter to white space or a full stop, and none looks further
ahead than the first character after the white space that it is in.
"""
_CUT = re.compile(
    r"(?<=[A-Za-zÀ-ÖØ-öø-ɏΑ-ΡΣ-Ωα-ωА-яぁ-ゖァ-ヺ一-鿕가-힣])(?=[\s,.;:!?、。，！？；：])"
)
"""Ends of words, of some scripts; without a letter class as `regex` has, they are spelled out."""


def _bytes_of_chars() -> dict[str, int]:
    """Byte-level BPE spells each byte as a printable character; this is the way back."""
    kept = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [b for b in range(256) if b not in set(kept)]
    chars = {chr(b): b for b in kept}
    return chars | {chr(256 + i): b for i, b in enumerate(moved)}


BYTE_OF_CHAR = _bytes_of_chars()


def token_bytes(token: str) -> bytes:
    """The bytes that a token of the vocabulary stands for.

    A token with a character that spells no byte is its own text, as in the library.
    """
    try:
        return bytes([BYTE_OF_CHAR[c] for c in token])
    except KeyError:
        return token.encode()


class PlainEncoder:
    """The tokenizer without its added tokens.

    Args:
        data: the checked content of `tokenizer.json`.
        library: the library's tokenizer of it.
        added: ids by the text of the added tokens, special or not.

    `max_chars` is the longest text, control tokens included, that may be given: what cannot be cut
    is encoded, and searched for control tokens, at once.
    """

    def __init__(
        self, data: Mapping[str, Any], library: tokenizers.Tokenizer, added: Mapping[str, int]
    ):
        self._library = tokenizers.Tokenizer(library.model)
        self._normalizer = library.normalizer
        if self._normalizer is not None:
            self._library.normalizer = self._normalizer
        self._library.pre_tokenizer = library.pre_tokenizer
        self._published = _is_published(data)
        self.max_chars = MAX_TEXT_CHARS if self._published else MAX_PIECE_CHARS
        vocab = data["model"]["vocab"]
        self._added = set(added.values())
        byte_ids = {c: vocab[c] for c in BYTE_OF_CHAR if c in vocab and c not in added}
        if not byte_ids:
            raise TokenizerError("expected a byte-level vocabulary, got none of the 256 bytes")
        self._missing = {BYTE_OF_CHAR[c] for c in BYTE_OF_CHAR.keys() - byte_ids.keys()}
        # An added token that merges lead to, too, is spelled byte by byte instead.
        self._spelled = {
            id: [byte_ids[c] for c in content]
            for content, id in added.items()
            if content in vocab and byte_ids.keys() >= set(content)
        }
        self._longest = max(len(token) for token, id in vocab.items() if id not in self._added)

    def extend(self, ids: list[int], text: str, limit: int | None = None) -> None:
        """Appends the ids of `text`; more than `limit` in all are refused, if possible at once."""
        if limit is not None and len(ids) + self.least(text) > limit:
            raise too_long(limit)
        self._check_bytes(text)
        for piece in self._pieces(text):
            ids += self._encode(piece)
            if limit is not None and len(ids) > limit:
                raise too_long(limit)

    def least(self, text: str, longest: int = 0) -> int:
        """A number of tokens that `text` has for certain; added tokens have <= `longest` bytes."""
        # Patterns that are not published may drop text, and normalizers may shorten it.
        return -(-len(text.encode()) // max(self._longest, longest)) if self._published else 0

    def _check_bytes(self, text: str) -> None:
        """The library drops what the vocabulary has no byte for, or makes `unk` of it."""
        if not self._missing:
            return
        if self._normalizer is not None:
            text = guarded("the normalizer fails", lambda: self._normalizer.normalize_str(text))
        lost = set(text.encode()) & self._missing
        if lost:
            raise TokenizerError(
                f"the vocabulary has no ordinary token for the byte 0x{min(lost):02x} of this text"
            )

    def _pieces(self, text: str) -> Iterator[str]:
        start = 0
        while start < len(text):
            cut = None
            if self._published and len(text) - start > PIECE_CHARS:
                cut = _CUT.search(text, start + PIECE_CHARS)
            end = cut.start() if cut else len(text)
            if end - start > MAX_PIECE_CHARS:
                raise TokenizerError(
                    f"expected the end of a word within {MAX_PIECE_CHARS:,} characters"
                )
            yield text[start:end]
            start = end

    def _encode(self, text: str) -> list[int]:
        if self._published:
            encode = self._library.encode
            ids = guarded(_FAILED, lambda: encode(text, add_special_tokens=False).ids)
        else:
            ids = self._encode_in_time(text)
        return ids if self._added.isdisjoint(ids) else list(self._spell(ids))

    def _encode_in_time(self, text: str) -> list[int]:
        """For split patterns that may take for ever; only the thread of one that does goes on."""
        seconds = SECONDS + SECONDS_PER_CHAR * len(text)
        results: list[Any] = []

        def encode() -> None:
            try:
                # Unlike encode, this lets other threads run meanwhile.
                results.append(self._library.encode_batch_fast([text], add_special_tokens=False))
            except BaseException as error:
                results.append(error)

        thread = threading.Thread(target=encode, daemon=True)
        thread.start()
        thread.join(seconds)
        if not results:
            raise TokenizerError(
                f"the tokenizer's own split pattern took more than {seconds:.1f} s on "
                f"{len(text):,} characters"
            )
        if isinstance(results[0], BaseException):
            raise TokenizerError(f"{_FAILED} ({str(results[0])[:200]})")
        ids: list[int] = results[0][0].ids
        return ids

    def _spell(self, ids: Iterable[int]) -> Iterator[int]:
        for id in ids:
            if id in self._added and id not in self._spelled:
                raise TokenizerError(f"this text can only be spelled with the added token {id}")
            yield from self._spelled.get(id, [id])


_FAILED = "the tokenizer's library fails on this text"


def too_long(limit: int) -> ContextError:
    return ContextError(f"the text does not fit the context of {limit} tokens; shorten it")


def _is_published(data: Mapping[str, Any]) -> bool:
    splits = list(steps(data["pre_tokenizer"], "pretokenizers"))
    if list(steps(data.get("normalizer"), "normalizers")) or len(splits) > 2:
        return False
    if splits[-1].get("add_prefix_space", True):  # each piece would get one
        return False
    own_pattern: bool = splits[-1].get("use_regex", True)  # that of GPT-2
    if len(splits) == 1:
        return own_pattern
    split, pattern = splits[0], splits[0].get("pattern")
    return (
        not own_pattern
        and (split.get("type"), split.get("behavior")) == ("Split", "Isolated")
        and not split.get("invert")
        and isinstance(pattern, dict)
        and _PUBLISHED.fullmatch(str(pattern.get("Regex"))) is not None
    )
