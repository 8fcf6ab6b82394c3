"""Control tokens of a rendered prompt: only text that the template wrote can be one."""

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from itertools import chain

from l4kernels.prompt.chat_template import ChatError, Rendered
from l4kernels.prompt.tokenizer import Tokenizer

# Who speaks is the caller's choice, as in `'<|' + message.role + '|>'`; another role is just text.
ROLES = ["system", "developer", "user", "assistant", "tool", "function", "ipython", "observation"]
HAN = range(0x4E00, 0xA000)  # letters that no normalizer changes
LLAMA_4 = [
    f"<|{name}|>"
    for name in (
        "begin_of_text", "end_of_text", "header_start", "header_end", "eom", "eot", "step",
        "image_start", "image_end", "tile_x_separator", "tile_y_separator", "image", "patch",
        "python_start", "python_end",
    )
]  # fmt: skip


class ControlTokens:
    """Finds the added tokens of a tokenizer in a prompt, as transformers does in its text.

    The search sees the prompt with `filler` in place of all text that the template did not write.
    A filler is in no token, so no token that is found has a character of another's text, except
    white space beside it that it takes.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        tokens = "".join(tokenizer.special)
        used = set(tokens) | set(unicodedata.normalize("NFKC", tokens).lower())
        # First a character of one byte in JSON: there is as much filler as foreign text.
        others = chain([0x7F], range(0xE000, 0xF900), range(0x10000, 0x110000))
        self.filler = next(c for c in map(chr, others) if c not in used)
        self._fillers = {}
        if tokenizer.minds_neighbours:
            for kind, chars in ("space", "\v\f\x85\u1680\u2028"), ("word", map(chr, HAN)):
                self._fillers[kind] = next((c for c in chars if c not in used), self.filler)
            self._fillers["other"] = self.filler
        # A role that spells a token by itself is text like any other.
        self.roles = [role for role in ROLES if not any(tokenizer.find(role))]
        lost = [re.escape(token) for token in LLAMA_4 if token not in tokenizer.special]
        if tokenizer.special.keys() <= set(tokenizer.names.values()):
            lost = [r"<\|[^<>]+\|>"]  # the tokenizer has lost them all
        self._lost = re.compile("|".join(lost) or "(?!)")

    def split(self, rendered: Rendered) -> Iterator[tuple[str, str | None]]:
        """Pairs of (plain text, the control token after it); the last token is None.

        Raises:
            ChatError: the template writes a control token that the tokenizer does not have.
        """
        at = 0
        for begin, end, token in self._tokenizer.find(self._view(rendered)):
            self._check(rendered.view[at:begin])
            yield rendered.text[at:begin], token
            at = end
        self._check(rendered.view[at:])
        yield rendered.text[at:], None

    def _view(self, rendered: Rendered) -> str:
        """The view for the search; where tokens depend on what is beside them, a filler has the
        kind of its character."""
        if not self._fillers:
            return rendered.view
        pairs = zip(rendered.text, rendered.view, strict=True)
        return "".join(self._fillers[_kind(t)] if v == self.filler else v for t, v in pairs)

    def _check(self, written: str) -> None:
        lost = self._lost.search(written)
        if lost:
            raise ChatError(
                f"the chat template writes {lost[0]:.80}, but the tokenizer has no such token: "
                f"the model would read it as text; do the files belong together?"
            )


@lru_cache(1 << 16)
def _kind(char: str) -> str:
    """What the library takes `char` for; Python's `\\w` and `isspace` differ in some."""
    category = unicodedata.category(char)
    if char.isspace() and not "\x1c" <= char <= "\x1f":
        return "space"
    letter = category[0] in "LM" or category in ("Nd", "Nl", "Pc") or char in "\u200c\u200d"
    return "word" if letter else "other"
