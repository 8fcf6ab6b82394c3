"""Control tokens of a rendered prompt: only text that the template wrote can be one."""

import re
from collections.abc import Iterator
from itertools import chain

from l4kernels.model.chat_template import ChatError, Rendered
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
    """Finds the added tokens of a tokenizer in a prompt, as transformers does in its text.

    The search sees the prompt with `filler` in place of all text that the template did not write.
    The filler is in no token, so no token that is found has a character of another's text.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        used = set().union(*tokenizer.special)
        # First a character of one byte in JSON: there is as much filler as foreign text.
        candidates = chain([0x7F], range(0xE000, 0xF900), range(0x10000, 0x110000))
        self.filler = next(c for c in map(chr, candidates) if c not in used)
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
        for begin, end, token in self._found(rendered):
            self._check(rendered.view[at:begin])
            yield rendered.text[at:begin], token
            at = end
        self._check(rendered.view[at:])
        yield rendered.text[at:], None

    def _found(self, rendered: Rendered) -> Iterator[tuple[int, int, str]]:
        """Begin, end and token, with what the token's flags say of the text beside it."""
        text, last = rendered.text, 0
        for begin, end, token in self._tokenizer.find(rendered.view):
            flags = self._tokenizer.flags(token)
            beside = text[max(begin - 1, 0) : begin] + text[end : end + 1]
            if begin < last or (flags.single_word and re.search(r"\w", beside)):
                continue
            while flags.lstrip and begin > last and text[begin - 1].isspace():
                begin -= 1
            while flags.rstrip and end < len(text) and text[end].isspace():
                end += 1
            yield begin, end, token
            last = end

    def _check(self, written: str) -> None:
        lost = self._lost.search(written)
        if lost:
            raise ChatError(
                f"the chat template writes {lost[0]:.80}, but the tokenizer has no such token: "
                f"the model would read it as text; do the files belong together?"
            )
