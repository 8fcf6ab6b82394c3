"""Text to token ids and back: the checkpoint's own tokenizer, and streaming text."""

import codecs
import operator
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from l4kernels.inputs.files import shown
from l4kernels.prompt.plain_encoder import PlainEncoder, token_bytes, too_long
from l4kernels.prompt.stop_strings import StopStrings
from l4kernels.prompt.token_names import TokenNames
from l4kernels.prompt.tokenizer_file import (
    MAX_IDS,
    TokenizerError,
    guarded,
    is_unicode,
    read_tokenizer,
)


class Tokenizer:
    """A byte-level BPE and its added tokens, read from a checkpoint's folder.

    The strings of added tokens, special or not, are text inside text: only
    `encode(..., special=True)` and the chat template can produce their ids.

    Raises:
        TokenizerError: files that are missing, damaged, contradictory or of another kind.

    >>> from l4kernels.demo import CHECKPOINT
    >>> tokenizer = Tokenizer(CHECKPOINT)
    >>> tokenizer.encode("the <|eot|>")
    [1024, 256, 68, 220, 27, 91, 68, 542, 91, 29]
    >>> tokenizer.encode("the <|eot|>", special=True)
    [1024, 256, 68, 220, 1032]
    >>> tokenizer.decode([256, 68])
    'the'
    """

    special: dict[str, int]
    """Ids of all added tokens by their strings."""
    names: dict[str, str]
    """`bos_token`, `eos_token` and its like, as chat templates know them."""
    bos_id: int | None
    """The begin-of-text token; `names["bos_token"]` is the same one."""

    minds_neighbours: bool
    """Whether an added token is only found as a word, or takes the white space beside it."""

    def __init__(self, path: str | Path):
        folder = Path(path)
        data, self._tokenizer = read_tokenizer(folder / "tokenizer.json")
        names = TokenNames(folder, data)
        names.declare(self._tokenizer)
        self.bos_id = names.find_bos(self._tokenizer)
        self._begins_with_bos = names.begins_with_bos()
        self.names = names.by_key
        self._added = self._tokenizer.get_added_tokens_decoder()
        self.special = {token.content: id for id, token in self._added.items()}
        try:
            self._plain = PlainEncoder(data, self._tokenizer, self.special)
        except TokenizerError as error:
            raise TokenizerError(f"{folder / 'tokenizer.json'}: {error}") from None
        # The library's own search, with all its flags; the ids here count the added tokens.
        self._finder = tokenizers.Tokenizer(tokenizers.models.BPE())
        if self._tokenizer.normalizer is not None:
            self._finder.normalizer = self._tokenizer.normalizer
        self._finder.add_tokens(list(self._added.values()))
        self._contents = list(self.special)
        # Tokens that take the white space beside them have no longest text.
        endless = any(token.lstrip or token.rstrip for token in self._added.values())
        self.minds_neighbours = endless or any(t.single_word for t in self._added.values())
        self._longest = (
            1 << 40 if endless else max(map(len, map(str.encode, self.special)), default=0)
        )

    @property
    def largest_id(self) -> int:
        """Of all tokens."""
        return max(self._tokenizer.get_vocab().values())

    def id(self, token: str) -> int:
        """Id of an added token, e.g. `<|patch|>`."""
        if token not in self.special:
            raise TokenizerError(f"the tokenizer has no token {token}")
        return self.special[token]

    def encode(
        self, text: str, *, bos: bool = True, special: bool = False, limit: int | None = None
    ) -> list[int]:
        """Token ids of `text`.

        Args:
            bos: start with the begin-of-text token if there is one and the checkpoint's raw texts
                start with it (once, even if `text` spells it).
            special: read the strings of added tokens as control tokens; never for text of a user.
            limit: the context: the most ids that there is room for.

        Raises:
            TokenizerError: no text, or more ids than `limit`. A text that is too long for certain
                is refused before it is encoded.
        """
        self._check_text(text)
        if limit is not None and special:
            self.check_fits(text, limit)
        ids: list[int] = []
        for part, token in self.split(text) if special else ((text, None),):
            self._plain.extend(ids, part, limit)
            if token is not None:
                ids.append(self.special[token])
        first = self.bos_id if bos and self._begins_with_bos else None
        if first is not None and ids[:1] != [first]:
            ids.insert(0, first)
        if limit is not None and len(ids) > limit:
            raise too_long(limit)
        return ids

    def check_fits(self, text: str, limit: int) -> None:
        """Refuses at once a text with its control tokens that has more than `limit` for certain."""
        self._check_text(text)
        if self._plain.least(text, self._longest) > limit:
            raise too_long(limit)

    def split(self, text: str) -> Iterator[tuple[str, str | None]]:
        """Pairs of (plain text, the added token after it); the last token is None."""
        start = 0
        for begin, end, token in self.find(text):
            yield text[start:begin], token
            start = end
        yield text[start:], None

    def find(self, text: str) -> Iterator[tuple[int, int, str]]:
        """Where `text` spells added tokens: (begin, end, token).

        As in transformers: a token may have to be a word of its own (`single_word`), and may take
        the white space beside it (`lstrip`, `rstrip`), which then is in begin ... end.
        """
        self._check_text(text)
        found = guarded("the tokenizer's library fails", lambda: self._finder.encode(text))
        for index, (begin, end) in zip(found.ids, found.offsets, strict=True):
            yield begin, end, self._contents[index]

    def token_bytes(self, id: int, *, skip_special: bool = True) -> bytes:
        """Bytes of one token; ids that only pad the model's vocabulary have none."""
        id = _checked_id(id)
        if id in self._added:
            token = self._added[id]
            return b"" if token.special and skip_special else token.content.encode()
        piece = self._tokenizer.id_to_token(id)
        return b"" if piece is None else token_bytes(piece)

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Text of a list of ids or of an integer tensor `[n]`; bytes that are no text: U+FFFD."""
        if isinstance(ids, (str, bytes)) or not isinstance(ids, Iterable):
            raise TokenizerError(f"expected a list of token ids, got {shown(ids)}")
        ids = ids.tolist() if hasattr(ids, "tolist") else ids
        if isinstance(ids, int):
            raise TokenizerError("expected a list of token ids, got one id")
        parts = (self.token_bytes(id, skip_special=skip_special) for id in ids)
        return b"".join(parts).decode("utf-8", errors="replace")

    def _check_text(self, text: str) -> None:
        if not isinstance(text, str):
            raise TokenizerError(f"expected text (str), got {type(text).__name__}")
        if len(text) > self._plain.max_chars:
            raise TokenizerError(
                f"expected a text of at most {self._plain.max_chars:,} characters, the limit of "
                f"this tokenizer's kind, got {len(text):,}"
            )
        if not is_unicode(text):
            at = next(i for i, c in enumerate(text) if not is_unicode(c))
            raise TokenizerError(f"the text is not valid Unicode at character {at}")


class Detokenizer:
    """Text of a growing token sequence: characters appear when all their bytes have.

    A `stop` string, or the first to begin of several, ends the text before it begins; text that
    may still become one is held back.

    >>> from l4kernels.demo import CHECKPOINT
    >>> tokenizer = Tokenizer(CHECKPOINT)
    >>> stream = Detokenizer(tokenizer, stop="end")
    >>> [stream.push(id) for id in tokenizer.encode("the end of it", bos=False)]
    ['th', '', 'e ', '', '']
    >>> stream.stopped
    True
    """

    def __init__(self, tokenizer: Tokenizer, stop: str | Sequence[str] = ()):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._search = StopStrings(stop)
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
        begin = self._search.feed(new)
        text = self._held + new
        if begin is not None:
            self.stopped = True
            ready, self._held = text[: len(self._held) + begin], ""
        else:
            if final:
                self._search.reset()
            ready = text[: len(text) - self._search.held]
            self._held = text[len(ready) :]
        self.text += ready
        return ready


def _checked_id(id: Any) -> int:
    try:
        number = operator.index(id)
    except TypeError:
        number = None
    if number is None or isinstance(id, bool) or not 0 <= number < MAX_IDS:
        raise TokenizerError(
            f"expected a token id, a whole number in [0, {MAX_IDS:,}), got {shown(id)}"
        )
    return number
