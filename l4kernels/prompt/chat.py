"""Prompts: messages and images through the checkpoint's own template, to token ids and tiles.

The template may come from a stranger and the messages from another one. So the template runs in a
process of its own, and no text of a message can become a control token.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from l4kernels.inputs.files import shown
from l4kernels.model.config import Llama4Config
from l4kernels.prompt.chat_template import ChatError, ChatTemplate
from l4kernels.prompt.control_tokens import ControlTokens
from l4kernels.prompt.image_processor import ImageProcessor, Tiles
from l4kernels.prompt.tokenizer import Tokenizer
from l4kernels.prompt.tokenizer_file import ContextError

IMAGE = "<|image|>"


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
        self._templates: dict[tuple[str | None, bool], ChatTemplate] = {}

    @cached_property
    def _control(self) -> ControlTokens:
        return ControlTokens(self.tokenizer)

    @property
    def template(self) -> ChatTemplate:
        """The template of chats without tools."""
        return self._template(None, tools=False)

    def _template(self, name: str | None, *, tools: bool) -> ChatTemplate:
        key = name, tools
        if key not in self._templates:
            self._templates[key] = ChatTemplate.from_pretrained(self.path, name, tools=tools)
        return self._templates[key]

    @cached_property
    def image_processor(self) -> ImageProcessor:
        return ImageProcessor.from_pretrained(self.path)

    def raw(self, text: str) -> Prompt:
        """The begin-of-text token and `text` as it is; the form of base models."""
        if isinstance(text, str) and not text:
            raise ChatError("the prompt is empty")
        limit = self.config.max_position_embeddings
        return Prompt(self._checked(self.tokenizer.encode(text, limit=limit)))

    def chat(
        self,
        messages: Sequence[Any],
        images: Sequence[Any] = (),
        *,
        tools: Sequence[Any] | None = None,
        documents: Sequence[Any] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool | str = False,
        **variables: Any,
    ) -> Prompt:
        """A conversation, up to the model's next turn unless the arguments say otherwise.

        The ids are those of transformers' `apply_chat_template`, except that text of the caller
        never becomes a control token.

        Args:
            messages: `{"role", "content"}`, or objects with these fields; content is text or a
                list of `{"type": "text", "text"}` and `{"type": "image"}` parts.
            images: in the order of the image parts; each what `decode_image` takes.
            chat_template: name of one of the checkpoint's templates; without it `tool_use` if
                there are tools and such a template, else `default`.
            tools, documents, add_generation_prompt, continue_final_message, variables: as
                `ChatTemplate.mark` has them; a variable that the template does not read is an
                error.

        Raises:
            ChatError: the template, its budget, the messages or the images do not allow it.
            ContextError: more tokens than the model's context.
            TokenizerError: text that is not Unicode.

        >>> from l4kernels.demo import CHECKPOINT
        >>> prompter = Prompter(CHECKPOINT)
        >>> prompt = prompter.chat([{"role": "user", "content": "What is <|eot|>?"}])
        >>> "What is <|eot|>?" in prompter.tokenizer.decode(prompt.ids)
        True
        """
        if chat_template is not None and not isinstance(chat_template, str):
            raise ChatError(f"expected chat_template to be a name, got {shown(chat_template)}")
        template = self._template(chat_template, tools=tools is not None)
        control = self._control
        rendered = template.mark(
            messages,
            tools=tools,
            documents=documents,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            variables=variables,
            special=self.tokenizer.names,
            roles=control.roles,
            filler=control.filler,
        )
        limit = self.config.max_position_embeddings
        self.tokenizer.check_fits(rendered.text, limit)
        tiles, vision = self._tiles(images), self.config.vision
        grids = list(tiles.grids) if tiles and vision else []
        tokens_per_tile = vision.tokens_per_tile if vision else 0
        ids: list[int] = []
        seen = 0
        for text, token in control.split(rendered):
            ids += self.tokenizer.encode(text, bos=False, limit=limit)
            if token == IMAGE:
                seen += 1
                if seen <= len(grids):
                    block = image_block(grids[seen - 1], tokens_per_tile)
                    ids += [self.tokenizer.id(t) for t in block]
            elif token is not None:
                ids.append(self.tokenizer.id(token))
            if len(ids) > limit:
                raise ContextError(
                    f"the prompt does not fit the model's context of {limit} tokens; shorten it"
                )
        if seen != len(grids):
            raise ChatError(
                f"{len(grids)} images were given, but the prompt has room for {seen}: each image "
                f"needs one part of type image, and a template that renders it as {IMAGE}"
            )
        return Prompt(self._checked(ids), *(tiles or ()))

    @property
    def tile_size(self) -> int:
        """Side in pixels of the tiles that images are cut into. An image no larger is one tile,
        unless the checkpoint enlarges all images (`resize_to_max_canvas`).

        Raises:
            ChatError: the checkpoint cannot be given images.
        """
        return self._usable_processor().tile_size

    def _usable_processor(self) -> ImageProcessor:
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
        return processor

    def _tiles(self, images: Sequence[Any]) -> Tiles | None:
        if isinstance(images, (list, tuple)) and not images:
            return None
        processor = self._usable_processor()
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


def user_message(
    text: str, num_images: int = 0, video: Sequence[Mapping[str, str]] = ()
) -> dict[str, Any]:
    """One user turn: images, then the parts of a video (`video_parts`), then the text."""
    parts = [*[{"type": "image"}] * num_images, *video]
    content = [*parts, {"type": "text", "text": text}] if parts else text
    return {"role": "user", "content": content}
