"""Text to token ids and back: the checkpoint's own `tokenizer.json`, and streaming text."""

import codecs
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import tokenizers

MAX_TEXT_CHARS = 64 << 20


class TokenizerError(ValueError):
    """A tokenizer that cannot be used, or text that it cannot encode."""


def _byte_of_char() -> dict[str, int]:
    """Byte-level BPE spells each byte as a printable character; this is the way back."""
    kept = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [b for b in range(256) if b not in set(kept)]
    chars = {chr(b): b for b in kept}
    return chars | {chr(256 + i): b for i, b in enumerate(moved)}


_BYTE_OF_CHAR = _byte_of_char()


class Tokenizer:
    """A byte-level BPE with special tokens.

    Special-token strings inside text are text: only `encode(..., special=True)` and the chat
    template can produce control tokens.
    """

    def __init__(self, path: str | Path):
        file = Path(path) / "tokenizer.json"
        if not file.is_file():
            raise TokenizerError(f"{file}: no such file; the checkpoint needs its tokenizer")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception
            raise TokenizerError(f"{file}: not a readable tokenizer ({error})") from None
        if not isinstance(self._tokenizer.decoder, tokenizers.decoders.ByteLevel):
            kind = type(self._tokenizer.decoder).__name__
            raise TokenizerError(f"{file}: expected a byte-level tokenizer, got decoder {kind}")
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        added = self._tokenizer.get_added_tokens_decoder()
        self.special = {token.content: id for id, token in added.items()}
        self._special_ids = {id for id, token in added.items() if token.special}
        self._content = {id: token.content for id, token in added.items()}
        longest_first = sorted(self.special, key=len, reverse=True)
        self._split = re.compile("|".join(re.escape(s) for s in longest_first) or r"(?!)")
        self.names = _token_names(Path(path) / "tokenizer_config.json")
        self.bos_id = self._named_id("bos_token")

    def _named_id(self, name: str) -> int | None:
        content = self.names.get(name)
        return None if content is None else self.special.get(content)

    def id(self, token: str) -> int:
        """Id of a special token, e.g. `<|patch|>`."""
        if token not in self.special:
            raise TokenizerError(f"the tokenizer has no token {token}")
        return self.special[token]

    def encode(self, text: str, *, bos: bool = True, special: bool = False) -> list[int]:
        """Token ids of `text`.

        Args:
            bos: start with the begin-of-text token (once, even if `text` spells it).
            special: read special-token strings as control tokens; never for text of a user.
        """
        _check_text(text)
        ids = self._encode_special(text) if special else self._encode_plain(text)
        if bos and self.bos_id is not None and ids[:1] != [self.bos_id]:
            ids.insert(0, self.bos_id)
        return ids

    def _encode_plain(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids if text else []

    def _encode_special(self, text: str) -> list[int]:
        ids: list[int] = []
        for part, token in self.split(text):
            ids += self._encode_plain(part)
            if token is not None:
                ids.append(self.special[token])
        return ids

    def split(self, text: str) -> Iterable[tuple[str, str | None]]:
        """Pairs of (plain text, the special token after it); the last token is None."""
        start = 0
        for match in self._split.finditer(text):
            yield text[start : match.start()], match.group()
            start = match.end()
        yield text[start:], None

    def token_bytes(self, id: int, *, skip_special: bool = True) -> bytes:
        """Bytes of one token; ids that only pad the model's vocabulary have none."""
        if id in self._special_ids and skip_special:
            return b""
        if id in self._content:
            return self._content[id].encode()
        token = self._tokenizer.id_to_token(id)
        return b"" if token is None else bytes(_BYTE_OF_CHAR[c] for c in token)

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        # int: the elements of a tensor equal ids, but are found in no set of them.
        parts = (self.token_bytes(int(id), skip_special=skip_special) for id in ids)
        return b"".join(parts).decode("utf-8", errors="replace")


class Detokenizer:
    """Text of a growing token sequence: characters appear when all their bytes have.

    `stop` strings end the text before they begin; text that may still become one is held back.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        if any(not s for s in stop):
            raise ValueError("expected every stop string to have a character, got an empty one")
        self._stop = tuple(stop)
        self._held = ""
        self.stopped = False
        self.text = ""

    def push(self, id: int) -> str:
        """The text that token `id` completes (possibly none)."""
        return self._release(self._decoder.decode(self._tokenizer.token_bytes(id)), final=False)

    def finish(self) -> str:
        """What was held back: incomplete characters become U+FFFD."""
        return self._release(self._decoder.decode(b"", final=True), final=True)

    def _release(self, new: str, *, final: bool) -> str:
        if self.stopped:
            return ""
        text = self._held + new
        found = [at for at in (text.find(s) for s in self._stop) if at >= 0]
        if found:
            self.stopped = True
            ready, self._held = text[: min(found)], ""
        else:
            keep = 0 if final else max((_overlap(text, s) for s in self._stop), default=0)
            ready, self._held = text[: len(text) - keep], text[len(text) - keep :]
        self.text += ready
        return ready


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


def _check_text(text: str) -> None:
    if len(text) > MAX_TEXT_CHARS:
        raise TokenizerError(f"the text has {len(text):,} characters; {MAX_TEXT_CHARS:,} allowed")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TokenizerError(f"the text is not valid Unicode at character {error.start}") from None


def _token_names(file: Path) -> dict[str, str]:
    """`bos_token` and its like of `tokenizer_config.json`; each a string or an object."""
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        items = content.items()
    except (ValueError, AttributeError) as error:
        raise TokenizerError(f"{file}: not a JSON object ({error})") from None
    names = {}
    for key, value in items:
        if key.endswith("_token"):
            value = value.get("content") if isinstance(value, dict) else value
            if isinstance(value, str):
                names[key] = value
    return names
