"""A checkpoint's chat templates: where they are found, which one is used, and rendering it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from l4kernels.inputs.extras import require
from l4kernels.inputs.files import read_object, read_text, shown
from l4kernels.prompt.plain_data import Plain
from l4kernels.prompt.renderer import RENDERER, RenderError, WorkerError, one_line

MAX_SOURCE_CHARS = 1 << 20
MAX_RENDERED_CHARS = 64 << 20
OWN = ("messages", "tools", "documents", "add_generation_prompt")  # variables with a rule
REASONING = ("reasoning_content", "thinking", "reasoning")
CONTINUE = "CONTINUE_FINAL_MESSAGE_TAG "


class ChatError(ValueError):
    """A template that cannot be rendered, or messages that it refuses."""


class Rendered(NamedTuple):
    """A prompt as text, special tokens spelled out."""

    text: str
    view: str
    """The same length: what the template itself wrote; the filler stands for all other text."""

    def cut(self, stop: int) -> "Rendered":
        return Rendered(self.text[:stop], self.view[:stop])


class ChatTemplate:
    """A Hugging Face chat template.

    >>> ChatTemplate("{{ bos_token }}{{ messages[0].content }}").render(
    ...     [{"role": "user", "content": "Hi"}], bos_token="<s>")
    '<s>Hi'
    """

    def __init__(self, source: str, *, name: str = "chat template"):
        require("jinja2", "cli")
        self.name, self.source = name, source
        if len(source) > MAX_SOURCE_CHARS:
            raise ChatError(f"{name}: expected at most {MAX_SOURCE_CHARS:,} characters")
        try:
            reply = RENDERER.run({"source": source, "variables": None})
        except WorkerError as error:
            raise ChatError(f"{name}: {error}") from None
        except RenderError as error:
            raise ChatError(f"{name}: not a valid template ({error})") from None
        self.names = frozenset(reply["names"])
        """The variables that the template reads."""

    @classmethod
    def from_pretrained(
        cls, path: str | Path, name: str | None = None, *, tools: bool = False
    ) -> "ChatTemplate":
        """A checkpoint's template of that name, or the one for prompts with or without tools."""
        templates = read_templates(Path(path))
        wanted = [name] if name is not None else ["tool_use"] * tools + ["default"]
        for candidate in wanted:
            if candidate in templates:
                source, file = templates[candidate]
                return cls(source, name=str(file))
        raise ChatError(
            f"{path}: this checkpoint has no chat template named {wanted[-1]!r}; "
            f"chat_template can be one of {one_line(', '.join(sorted(templates)))}"
        )

    def render(self, messages: Sequence[Any], **arguments: Any) -> str:
        """The prompt as text, special tokens spelled out.

        Args:
            messages, arguments: as `mark` has them; all other names are variables of the template.
        """
        named = {k: arguments.pop(k) for k in [*arguments] if k in (*OWN, "continue_final_message")}
        special = {k: arguments.pop(k) for k in [*arguments] if k.endswith("_token")}
        return self.mark(messages, special=special, variables=arguments, **named).text

    def mark(
        self,
        messages: Sequence[Any],
        *,
        tools: Sequence[Any] | None = None,
        documents: Sequence[Any] | None = None,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool | str = False,
        variables: Mapping[str, Any] | None = None,
        special: Mapping[str, str] | None = None,
        roles: Sequence[str] = (),
        filler: str = "\0",
    ) -> Rendered:
        """The prompt of a conversation, and which of its text the template wrote.

        Args:
            messages: mappings, or objects with the same fields, with text, numbers, lists and
                mappings in them.
            tools, documents: mappings, where the template reads them.
            add_generation_prompt: end with the head of the model's turn; None: yes, unless
                `continue_final_message`.
            continue_final_message: end within the last message, after its content (or the field
                that is named), for the model to go on there.
            variables: other variables that the template reads.
            special: `bos_token` and its like: text that may become control tokens.
            roles: these may complete a control token that the template writes.
            filler: one character that is in no control token.

        Raises:
            ChatError: the template fails, exceeds its budget of time, memory or output, does not
                read a variable that is given, or the conversation has no plain form.
        """
        _check_end(add_generation_prompt, continue_final_message)
        if add_generation_prompt is None:
            add_generation_prompt = not continue_final_message
        given = self._plain(messages, tools, documents, dict(variables or {}), special or {})
        given["add_generation_prompt"] = add_generation_prompt
        final = given["messages"][-1]
        wanted = self._leave_open(final, continue_final_message) if continue_final_message else None
        job = {
            "source": self.source,
            "variables": given,
            "special": dict(special or {}),
            "roles": list(roles),
            "filler": filler,
            "longest": MAX_RENDERED_CHARS,
        }
        try:
            reply = RENDERER.run(job)
        except RenderError as error:
            raise ChatError(f"{self.name}: {error}") from None
        rendered = Rendered(reply["text"], reply["view"])
        return rendered if wanted is None else self._opened(rendered, wanted)

    def _plain(
        self,
        messages: Any,
        tools: Any,
        documents: Any,
        variables: dict[str, Any],
        special: Mapping[str, str],
    ) -> dict[str, Any]:
        taken = sorted({*OWN, *special} & variables.keys())
        if taken:
            raise ChatError(f"expected other template variables than {taken}: these are set here")
        for name, value in (("tools", tools), ("documents", documents)):
            if value is not None and (value or name in self.names):
                variables[name] = value
        unread = sorted(variables.keys() - self.names)
        if unread:
            raise ChatError(
                f"{self.name}: this template does not read {one_line(', '.join(unread))}; "
                f"it reads {one_line(', '.join(sorted(self.names))) or 'no variable'}"
            )
        plain = Plain()
        try:
            given = {name: plain.convert(value, name) for name, value in variables.items()}
            turns = plain.convert(messages, "messages")
        except ValueError as error:
            raise ChatError(one_line(str(error))) from None
        given = {"tools": None, "documents": None} | given | {"messages": turns}
        for name in ("messages", "tools", "documents"):
            items = [] if given[name] is None else given[name]
            if not isinstance(items, (list, tuple)) or not all(isinstance(i, dict) for i in items):
                raise ChatError(
                    f"expected {name} to be one list of mappings; of several conversations, each "
                    f"needs a call of its own"
                )
        if not turns:
            raise ChatError("expected at least one message, got none")
        given["messages"] = [_with_reasoning(turn) for turn in turns]
        return given

    def _leave_open(self, message: dict[str, Any], field: bool | str) -> str:
        """Marks the end of the message to be continued; returns the text before the mark."""
        field = field if isinstance(field, str) else "content"
        copies = [f for f in REASONING if message.get(f) == message.get(field)]
        names = copies if field in REASONING else [field]
        if not any(name in self.source for name in names):
            raise ChatError(f"{self.name}: this template does not read {field} of a message")
        holder, key = message, field
        if isinstance(message.get(field), (list, tuple)):
            parts = [p for p in message[field] if isinstance(p, dict) and "text" in p]
            holder, key = (parts or [{}])[-1], "text"
        text = holder.get(key)
        if not isinstance(text, str):
            raise ChatError(f"continue_final_message: the last message has no {field} to continue")
        for name in names if holder is message else [key]:
            holder[name] = text + CONTINUE
        return text

    def _opened(self, rendered: Rendered, wanted: str) -> Rendered:
        """The prompt up to the mark; without white space there if the template trims it."""
        mark = CONTINUE.strip()
        at = rendered.text.rfind(mark)
        if at < 0 or wanted.strip() not in rendered.text:
            raise ChatError(
                f"{self.name}: continue_final_message: the template changes or leaves out the "
                f"end of the last message"
            )
        trimmed = not rendered.text.startswith(CONTINUE, at)
        return rendered.cut(len(rendered.text[:at].rstrip()) if trimmed else at)


def _check_end(new_turn: Any, go_on: Any) -> None:
    if new_turn is not None and not isinstance(new_turn, bool):
        raise ChatError(f"expected add_generation_prompt to be a bool, got {shown(new_turn)}")
    if not isinstance(go_on, bool) and not (isinstance(go_on, str) and go_on):
        raise ChatError(
            f"expected continue_final_message to be a bool or a field's name, got {shown(go_on)}"
        )
    if new_turn and go_on:
        raise ChatError(
            "expected one of add_generation_prompt and continue_final_message: a new turn begins "
            "or the last one goes on"
        )


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """The names under which templates look for reasoning text."""
    found = next((message[name] for name in REASONING if message.get(name) is not None), None)
    if found is None:
        return message
    return {"thinking": found, **message, "reasoning_content": found}


def read_templates(path: Path) -> dict[str, tuple[str, Path]]:
    """Text and file of each named template of a checkpoint; a single one is the `default`.

    As in transformers, `chat_template.jinja` and `additional_chat_templates/*.jinja` come before
    `chat_template.json` and `tokenizer_config.json`.
    """
    files = {f.stem: f for f in sorted((path / "additional_chat_templates").glob("*.jinja"))}
    if (path / "chat_template.jinja").exists():
        files["default"] = path / "chat_template.jinja"
    if files:
        return {name: (read_text(file, ChatError), file) for name, file in files.items()}
    for file in (path / "chat_template.json", path / "tokenizer_config.json"):
        if file.exists():
            source = read_object(file, ChatError).get("chat_template")
            if source is not None:
                return {name: (text, file) for name, text in _named(source, file).items()}
    raise ChatError(
        f"{path}: this checkpoint has no chat template (chat_template.jinja, chat_template.json "
        f"or tokenizer_config.json); use a raw prompt instead"
    )


def _named(source: Any, file: Path) -> dict[str, str]:
    if isinstance(source, str):
        return {"default": source}
    named = source
    if isinstance(source, list) and all(isinstance(t, dict) for t in source):
        named = {t.get("name"): t.get("template") for t in source}
    texts = [t for item in named.items() for t in item] if isinstance(named, dict) else []
    if texts and all(isinstance(text, str) for text in texts):
        templates: dict[str, str] = named
        return templates
    raise ChatError(
        f"{file}: expected chat_template to be text or a list of templates with name and template"
    )
