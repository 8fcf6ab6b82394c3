"""Messages of a request as a prompt of the checkpoint's."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from l4kernels.prompt.chat import Prompt, Prompter
from l4kernels.prompt.chat_template import ChatError
from l4kernels.prompt.images import ImageError
from l4kernels.prompt.tokenizer_file import ContextError, TokenizerError
from l4kernels.prompt.video import VideoError, sample_frames, video_parts
from l4kernels.server.errors import ApiError, context_exceeded, unusable
from l4kernels.server.media import Media, MediaError
from l4kernels.server.options import ServerOptions
from l4kernels.server.protocol.chat import (
    AnyMessage,
    AssistantMessage,
    ImagePart,
    RefusalPart,
    TextPart,
    Tool,
    ToolMessage,
    UserMessage,
    VideoPart,
)

VIDEO_SECONDS = 10
"""Of processor time for a video's frames."""


def slowest(messages: Iterable[AnyMessage]) -> str:
    """The kind of part that takes the longest: `text`, `image` or `video`."""
    kinds = {
        part.type
        for message in messages
        if isinstance(message, UserMessage) and not isinstance(message.content, str)
        for part in message.content
    }
    if "video_url" in kinds:
        return "video"
    return "image" if "image_url" in kinds else "text"


class _Images(list[Any]):
    """Images that are no longer given once nobody waits for them: many take long to decode."""

    def __init__(self, images: Iterable[Any], check_wanted: Callable[[], None]):
        super().__init__(images)
        self._check_wanted = check_wanted

    def __iter__(self) -> Iterator[Any]:
        for image in super().__iter__():
            self._check_wanted()
            yield image


class Conversation:
    """Messages as chat templates want them, and their images in order.

    Args:
        media: turns URLs into bytes.
        options: how many images a request may have.
        check_wanted: called between images; raises an error when nobody waits any more.
    """

    def __init__(
        self,
        prompter: Prompter,
        media: Media,
        options: ServerOptions,
        check_wanted: Callable[[], None],
    ):
        self._prompter, self._media, self._options = prompter, media, options
        self._check_wanted = check_wanted
        self.messages: list[dict[str, Any]] = []
        self.images: list[Any] = []

    def add(self, message: AnyMessage, where: str) -> None:
        """`where` names the message in errors: `messages.0`."""
        if isinstance(message, UserMessage):
            parts = self._user_content(message.content, where)
            self.messages.append({"role": "user", "content": parts})
        elif isinstance(message, AssistantMessage):
            self.messages.append(_assistant(message, where))
        elif isinstance(message, ToolMessage):
            content = _texts(message.content)
            self.messages.append(
                {"role": "tool", "content": content, "tool_call_id": message.tool_call_id}
            )
        else:  # OpenAI's newer name for system
            self.messages.append({"role": "system", "content": _texts(message.content)})

    def _user_content(self, content: Any, where: str) -> Any:
        if isinstance(content, str):
            return content
        parts: list[dict[str, Any]] = []
        for index, part in enumerate(content):
            at = f"{where}.content.{index}"
            if isinstance(part, TextPart):
                parts.append({"type": "text", "text": part.text})
                continue
            try:
                parts += self._pictures(part)
            except (MediaError, ImageError, VideoError) as error:
                code = "invalid_image" if isinstance(part, ImagePart) else "invalid_video"
                raise ApiError(400, str(error), param=at, code=code) from None
            if len(self.images) > self._options.max_images:
                raise ApiError(
                    400,
                    f"expected at most {self._options.max_images} images and frames in a request",
                    param=at,
                )
        return parts

    def _pictures(self, part: ImagePart | VideoPart) -> list[dict[str, Any]]:
        if isinstance(part, ImagePart):
            self.images.append(self._media.image(part.image_url.url))
            return [{"type": "image"}]
        frames = part.frames or self._options.video_frames
        side = self._prompter.tile_size
        content = self._media.video(part.video_url.url)
        video = sample_frames(content, frames, max_side=side, max_seconds=VIDEO_SECONDS)
        parts, images = video_parts(video)
        self.images += images
        return parts

    def prompt(self, tools: Sequence[Tool] | None, **ending: Any) -> Prompt:
        """Of all messages.

        Raises:
            ApiError: the template refuses them, or they do not fit the model's context.
        """
        given = None
        if tools:
            given = [
                tool.model_dump(exclude_none=True, exclude={"cache_control"}) for tool in tools
            ]
            for tool in given:
                tool["function"].pop("strict", None)
        try:
            images = _Images(self.images, self._check_wanted)
            return self._prompter.chat(self.messages, images, tools=given, **ending)
        except ContextError:
            limit = self._prompter.config.max_position_embeddings
            raise context_exceeded(limit, None, 0, "messages") from None
        except (ChatError, TokenizerError, ImageError) as error:
            raise unusable(error, self._prompter.path, "messages") from None


def _texts(content: str | Iterable[TextPart | RefusalPart]) -> Any:
    """Text, or text parts, in the template's form. Templates read texts of system messages in one
    piece."""
    if isinstance(content, str):
        return content
    return "".join(part.text if isinstance(part, TextPart) else part.refusal for part in content)


def _assistant(message: AssistantMessage, where: str) -> dict[str, Any]:
    if message.content is None and message.refusal is None and not message.tool_calls:
        raise ApiError(
            400,
            "expected content or tool_calls in a message of the assistant",
            param=f"{where}.content",
        )
    content = _texts(message.content if message.content is not None else message.refusal or "")
    turn: dict[str, Any] = {"role": "assistant", "content": content}
    if message.tool_calls:
        turn["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {
                    "name": call.function.name,
                    "arguments": _arguments(call.function.arguments, f"{where}.tool_calls.{n}"),
                },
            }
            for n, call in enumerate(message.tool_calls)
        ]
    return turn


def _arguments(text: str, where: str) -> Any:
    """Templates write the object as JSON again; a client sends it as text."""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ApiError(
            400,
            "expected the arguments of a tool call to be a JSON object, as text",
            param=f"{where}.function.arguments",
        )
    return value
