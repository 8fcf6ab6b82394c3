"""A conversation as `l4k chat` keeps it: messages with the files of their images."""

import base64
import contextlib
import json
import os
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from l4kernels.inputs.files import open_regular
from l4kernels.prompt.chat import Prompt, Prompter, user_message
from l4kernels.prompt.image_files import strip
from l4kernels.prompt.images import MAX_FILE_BYTES, ImageError, decode_image


@dataclass(frozen=True)
class ImageFile:
    """The content of a file: what becomes of the file later does not change the conversation."""

    name: str
    content: bytes

    @property
    def url(self) -> str:
        """As the `image_url` of the API."""
        file = strip(self.content)
        assert file is not None  # or it would not have been decoded
        data = base64.b64encode(self.content).decode()
        return f"data:image/{file.format.lower()};base64,{data}"


def read_image(text: str) -> ImageFile:
    """An image that can be decoded.

    Args:
        text: as `path_of` takes it.

    Raises:
        ImageError: there is no such file, or no image in it.
        MissingExtra: Pillow is not installed.
    """
    path = path_of(text)
    try:
        with open_regular(path, ImageError) as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file") from None
    decode_image(content, name=str(path))
    return ImageFile(str(path), content)


def path_of(text: str) -> Path:
    """A path, or one as a shell or a terminal's drag and drop spells it: `~/`, in quotes, with
    backslashes."""
    path = Path(text)
    with contextlib.suppress(OSError, RuntimeError, ValueError):  # then it is taken literally
        if not path.exists():
            words = shlex.split(text)
            if len(words) == 1:
                path = Path(words[0]).expanduser()
    return path


@dataclass(frozen=True)
class Message:
    role: str
    text: str
    images: tuple[ImageFile, ...] = ()


@dataclass
class Conversation:
    """Turns of the user and the model, after a system message if there is one.

    >>> talk = Conversation("Be brief.", [Message("user", "Hi")])
    >>> talk.as_api()
    [{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': 'Hi'}]
    """

    system: str | None = None
    messages: list[Message] = field(default_factory=list)

    def prompt(self, prompter: Prompter) -> Prompt:
        """Up to the model's next turn; raises as `Prompter.chat` does."""
        head = [] if self.system is None else [{"role": "system", "content": self.system}]
        turns = [
            {**user_message(message.text, len(message.images)), "role": message.role}
            for message in self.messages
        ]
        images = [image.content for message in self.messages for image in message.images]
        return prompter.chat([*head, *turns], images)

    def as_api(self) -> list[dict[str, Any]]:
        """As `messages` of the chat completions API; images are in it as data URLs."""
        head = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*head, *({"role": m.role, "content": _content(m)} for m in self.messages)]

    def save(self, file: Path, *, replace: bool = False) -> None:
        """Writes `as_api` whole or not at all.

        Raises:
            ValueError: the file is there, and `replace` does not allow for that; or it cannot be
                written.
        """
        if not replace and os.path.lexists(file):
            raise ValueError(f"{file}: exists already; name a file that does not")
        new = file.with_name(f".{file.name}.{os.getpid()}.partial")
        try:
            try:
                with open(new, "x", encoding="utf-8") as stream:
                    json.dump(self.as_api(), stream, indent=1)
                    stream.write("\n")
                os.replace(new, file)
            finally:
                new.unlink(missing_ok=True)
        except OSError as error:
            raise ValueError(f"{file}: cannot be written ({error.strerror or error})") from None


def _content(message: Message) -> str | list[dict[str, Any]]:
    if not message.images:
        return message.text
    images = [{"type": "image_url", "image_url": {"url": i.url}} for i in message.images]
    return [*images, {"type": "text", "text": message.text}]
