"""Control tokens of a rendered prompt: only text that the template wrote can be one."""

import re
from collections.abc import Iterator
from itertools import chain

import tokenizers
from tokenizers import AddedToken, models

from l4kernels.model.chat_template import ChatError
from l4kernels.model.tokenizer import Tokenizer

# Who speaks is the caller's choice, as in `'<|' + message.role + '|>'`; another role is just text.
ROLES = ["system", "developer", "user", "assistant", "tool", "function", "ipython", "observation"]
LLAMA_4 = [
    f"<|{name}|>"
    for name in (
        "begin_of_text", "end_of_text", "header_start", "header_end", "eom", "eot", "step",
        "image_start", "image_end", "tile_x_separator", "tile_y_separator", "image", "patch",
        "python_start", "python_end",
    )
]  # fmt: skip


class ControlTokens:
    """Finds the added tokens of a tokenizer as Hugging Face does: leftmost, then longest.

    Hugging Face's own matcher searches `view`, the prompt with `filler` in place of all text that
    the template did not write. The filler is in no token, so no match has foreign text in it.
    """

    def __init__(self, tokenizer: Tokenizer):
        added = tokenizer._tokenizer.get_added_tokens_decoder()
        self._tokens = {token.content: token for _, token in sorted(added.items())}
        # Without a model and a pre-tokenizer: what it finds are the added tokens and nothing else.
        self._matcher = tokenizers.Tokenizer(models.BPE())
        self._matcher.add_tokens(
            [AddedToken(t.content, normalized=t.normalized) for t in self._tokens.values()]
        )
        used = set().union(*self._tokens)
        candidates = chain(range(0xE000, 0xF900), range(0x10000, 0x110000))
        self.filler = next(c for c in map(chr, candidates) if c not in used)
        self.roles = [role for role in ROLES if not self._matcher.encode(role).tokens]
        named = [name for name in tokenizer.names.values() if len(name) > 2]
        lost = [t for t in (*LLAMA_4, *named) if t not in self._tokens]
        # Without any token, whatever is written as one was meant to be one.
        self._lost = re.compile("|".join(map(re.escape, lost)) if self._tokens else r"<\|[^<>]+\|>")
        self._any_lost = bool(lost)

    def split(self, text: str, view: str) -> Iterator[tuple[str, str | None]]:
        """Pairs of (plain text, the control token after it); the last token is None.

        Raises:
            ChatError: the template writes a control token that the tokenizer does not have.
        """
        at = 0
        for token, start, stop in self._matches(text, view):
            if start < at:
                continue
            self._check(view[at:start])
            yield text[at:start], token
            at = stop
        self._check(view[at:])
        yield text[at:], None

    def _matches(self, text: str, view: str) -> Iterator[tuple[str, int, int]]:
        """Tokens with the white space that belongs to them, as the flags of each say."""
        found, last = self._matcher.encode(view, add_special_tokens=False), 0
        for content, (start, stop) in zip(found.tokens, found.offsets, strict=True):
            token = self._tokens[content]
            around = text[max(start - 1, 0) : start] + text[stop : stop + 1]
            if token.single_word and re.search(r"\w", around):
                continue
            while token.lstrip and start > last and text[start - 1].isspace():
                start -= 1
            while token.rstrip and stop < len(text) and text[stop].isspace():
                stop += 1
            yield content, start, stop
            last = stop

    def _check(self, written: str) -> None:
        lost = self._lost.search(written) if self._any_lost else None
        if lost:
            raise ChatError(
                f"the chat template writes {lost[0]:.80}, but tokenizer.json has no such added "
                f"token: the model would read it as text; do the files belong together?"
            )
