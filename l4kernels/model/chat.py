"""Prompts: messages and images through the checkpoint's own template, to token ids and tiles.

The template may come from a stranger and the messages from another one. So the template runs in
jinja2's sandbox with a bounded output, and no text of a message can become a control token.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from l4kernels.model.config import Llama4Config
from l4kernels.model.extras import require
from l4kernels.model.image_processor import ImageProcessor, Tiles
from l4kernels.model.tokenizer import Tokenizer

MAX_RENDERED_CHARS = 64 << 20
IMAGE = "<|image|>"


class ChatError(ValueError):
    """A template that cannot be rendered, or messages that it refuses."""


class ChatTemplate:
    """A Hugging Face chat template.

    >>> ChatTemplate("{{ bos_token }}{{ messages[0].content }}").render(
    ...     [{"role": "user", "content": "Hi"}], bos_token="<s>")
    '<s>Hi'
    """

    def __init__(self, source: str, *, name: str = "chat template"):
        require("jinja2", "cli")
        import jinja2

        self.name, self.source = name, source
        try:
            self._template = _environment().from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise ChatError(f"{name}: not a valid template ({error})") from None

    @classmethod
    def from_pretrained(cls, path: str | Path) -> "ChatTemplate":
        """From `chat_template.jinja`, `chat_template.json` or `tokenizer_config.json`."""
        path = Path(path)
        plain = path / "chat_template.jinja"
        if plain.is_file():
            return cls(plain.read_text(encoding="utf-8"), name=str(plain))
        for file in (path / "chat_template.json", path / "tokenizer_config.json"):
            if file.is_file():
                source = _template_in(file)
                if source is not None:
                    return cls(source, name=str(file))
        raise ChatError(
            f"{path}: this checkpoint has no chat template (chat_template.jinja, "
            f"chat_template.json or tokenizer_config.json); use a raw prompt instead"
        )

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **names: str,
    ) -> str:
        """The prompt as text, special tokens spelled out. `names`: `bos_token` and its like."""
        import jinja2

        variables = {
            "messages": messages,
            "tools": tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        parts, length = [], 0
        try:
            for part in self._template.generate(names | variables):
                length += len(part)
                if length > MAX_RENDERED_CHARS:
                    raise ChatError(
                        f"{self.name}: the prompt exceeds {MAX_RENDERED_CHARS:,} characters"
                    )
                parts.append(part)
        except ChatError:
            raise
        except (jinja2.TemplateError, RecursionError) as error:
            raise ChatError(f"{self.name}: {error}") from None
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            raise ChatError(f"{self.name}: failed on these messages ({error})") from None
        return "".join(parts)


def _template_in(file: Path) -> str | None:
    try:
        source = json.loads(file.read_text(encoding="utf-8")).get("chat_template")
    except (ValueError, AttributeError) as error:
        raise ChatError(f"{file}: not a JSON object ({error})") from None
    if isinstance(source, list):  # several named templates
        named = {t.get("name"): t.get("template") for t in source if isinstance(t, dict)}
        source = named.get("default")
    if source is not None and not isinstance(source, str):
        raise ChatError(f"{file}: expected chat_template to be text, got {type(source).__name__}")
    return source


def _environment():
    """jinja2 as Hugging Face sets it up, in the immutable sandbox."""
    import jinja2
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks what the model wrote, for training; here it only passes by."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser):
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    class Sandbox(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(["*", "**"])

        def call_binop(self, context, operator, left, right):
            # "x" * 10**9 would fill the memory long before the output could be measured.
            sizes = [v if isinstance(v, int) else len(v) for v in (left, right) if _sized(v)]
            if operator == "**" or (len(sizes) == 2 and abs(sizes[0] * sizes[1]) > 1 << 24):
                raise jinja2.exceptions.SecurityError(f"{operator} is too large for a template")
            return super().call_binop(context, operator, left, right)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
        return json.dumps(
            x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    environment = Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _sized(value: Any) -> bool:
    return isinstance(value, (int, str, list, tuple))


def image_block(grid: tuple[int, int], tokens_per_tile: int) -> list[str]:
    """The special tokens that stand for one image of (rows, cols) tiles.

    >>> len(image_block((1, 1), 144)), len(image_block((3, 4), 144))
    (147, 1887)
    """
    rows, cols = grid
    patches = ["<|patch|>"] * tokens_per_tile
    block = ["<|image_start|>"]
    if rows * cols > 1:
        for _ in range(rows):
            for col in range(cols):
                block += patches if col == 0 else ["<|tile_x_separator|>", *patches]
            block.append("<|tile_y_separator|>")
    return [*block, IMAGE, *patches, "<|image_end|>"]


@dataclass(frozen=True)
class Prompt:
    """What the model reads: token ids, and the tiles of all images in prompt order."""

    ids: list[int]
    pixel_values: Tensor | None = None  # [tiles, 3, H, W] float32
    grids: list[tuple[int, int]] = field(default_factory=list)


class Prompter:
    """Builds prompts for one checkpoint."""

    def __init__(self, path: str | Path, config: Llama4Config | None = None):
        self.path = Path(path)
        self.config = config or Llama4Config.from_pretrained(path)
        self.tokenizer = Tokenizer(path)

    @cached_property
    def template(self) -> ChatTemplate:
        return ChatTemplate.from_pretrained(self.path)

    @cached_property
    def image_processor(self) -> ImageProcessor:
        return ImageProcessor.from_pretrained(self.path)

    def raw(self, text: str) -> Prompt:
        """The begin-of-text token and `text` as it is; the form of base models."""
        if not text:
            raise ChatError("the prompt is empty")
        limit = self.config.max_position_embeddings
        return Prompt(self._checked(self.tokenizer.encode(text, limit=limit)))

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        images: Sequence[Any] = (),
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> Prompt:
        """A conversation up to the model's next turn.

        Args:
            messages: `{"role", "content"}`; content is text or a list of `{"type": "text", "text"}`
                and `{"type": "image"}` parts.
            images: in the order of the image parts; each what `decode_image` takes.
        """
        mark = _unused_char([messages, tools])
        # A mark behind each first character of a special token keeps text from spelling one.
        guarded = {first: first + mark for first in {s[0] for s in self.tokenizer.special if s}}
        rendered = self.template.render(
            _guard(messages, guarded),
            tools=_guard(tools, guarded),
            **self.tokenizer.names,
        )
        tiles = self._tiles(images)
        grids = iter(tiles.grids if tiles else ())
        ids: list[int] = []
        seen = 0
        for text, token in self.tokenizer.split(rendered):
            ids += self.tokenizer.encode(text.replace(mark, ""), bos=False)
            if token == IMAGE:
                seen += 1
                if seen <= len(images):
                    block = image_block(next(grids), self.config.vision.tokens_per_tile)
                    ids += [self.tokenizer.id(t) for t in block]
            elif token is not None:
                ids.append(self.tokenizer.id(token))
        if seen != len(images):
            raise ChatError(
                f"{len(images)} images were given, but the prompt has room for {seen}: each image "
                f"needs one part of type image, and a template that renders it as {IMAGE}"
            )
        return Prompt(self._checked(ids), *(tiles or ()))

    def _tiles(self, images: Sequence[Any]) -> Tiles | None:
        if isinstance(images, (list, tuple)) and not images:
            return None
        vision = self.config.vision
        if vision is None:
            raise ChatError(
                f"{self.path}: this checkpoint has no vision tower; images cannot be used"
            )
        processor = self.image_processor
        if processor.tile_size != vision.image_size:
            raise ChatError(
                f"{self.path}: the image processor makes tiles of {processor.tile_size} pixels, "
                f"the vision tower expects {vision.image_size}"
            )
        patch = self.tokenizer.id("<|patch|>")
        if patch != self.config.image_token_index:
            raise ChatError(
                f"{self.path}: the tokenizer's <|patch|> is {patch}, but config.json's "
                f"image_token_index is {self.config.image_token_index}"
            )
        return processor(images)

    def _checked(self, ids: list[int]) -> list[int]:
        vocab = self.config.vocab_size
        if not ids:
            raise ChatError("the prompt is empty")
        if max(ids) >= vocab:
            raise ChatError(
                f"{self.path}: the tokenizer produced id {max(ids)}, the model has {vocab} tokens; "
                f"do tokenizer.json and config.json belong together?"
            )
        return ids


def user_message(text: str, num_images: int = 0) -> dict[str, Any]:
    """One user turn, images first."""
    if not num_images:
        return {"role": "user", "content": text}
    parts: list[dict[str, str]] = [{"type": "image"}] * num_images
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def _guard(value: Any, guarded: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        for first, replacement in guarded.items():
            value = value.replace(first, replacement)
        return value
    if isinstance(value, Mapping):
        return {_guard(k, guarded): _guard(v, guarded) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_guard(v, guarded) for v in value]
    return value


def _unused_char(value: Any) -> str:
    """A private-use character that no text of `value` contains."""
    used = set(json.dumps(value, ensure_ascii=False, default=str))
    return next(c for c in map(chr, range(0xE000, 0xF8FF)) if c not in used)
