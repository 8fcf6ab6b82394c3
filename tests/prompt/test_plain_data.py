"""What a conversation may be made of: data, and objects that only hold data."""

from collections import UserDict, UserList, namedtuple
from dataclasses import dataclass
from enum import Enum
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from l4kernels.prompt import plain_data
from l4kernels.prompt.chat_template import ChatError, ChatTemplate


def render(source, messages):
    return ChatTemplate(source).render(messages)


Point = namedtuple("Point", "role content")


@dataclass
class Message:
    role: str
    content: object


class Role(str, Enum):
    USER = "user"


class Own:
    def __init__(self):
        self.role, self.content = "user", "hi"


class Attributes(dict):
    __getattr__ = dict.__getitem__


class Model:
    def model_dump(self):
        return {"role": "user", "content": "hi"}


PLAIN = {
    "mapping": lambda: {"role": "user", "content": "hi"},
    "keys as attributes": lambda: Attributes(role="user", content="hi"),
    "UserDict": lambda: UserDict(role="user", content="hi"),
    "namespace": lambda: SimpleNamespace(role="user", content="hi"),
    "dataclass": lambda: Message("user", "hi"),
    "enum of text": lambda: Message(Role.USER, "hi"),
    "named tuple": lambda: Point("user", "hi"),
    "object": Own,
    "pydantic": Model,
    "generator": lambda: {"role": "user", "content": (c for c in ["h", "i"])},
    "UserList": lambda: {"role": "user", "content": UserList(["h", "i"])},
    "tuple": lambda: {"role": "user", "content": ("h", "i")},
    "numbers": lambda: {
        "role": "user",
        "content": [
            "hi",
            np.float32(1),
            np.int64(2),
            torch.tensor(3),
            np.bool_(True),
            None,
            4,
            5.5,
        ],
    },
}


@pytest.mark.parametrize("name", PLAIN)
def test_messages_are_mappings_or_objects_that_hold_data(name):
    source = "{% for m in messages %}{{ m.role ~ m['content'] | join }}{% endfor %}"
    want = "userhi" + "1.023TrueNone45.5" * (name == "numbers")
    assert render(source, [PLAIN[name]()]) == want
    assert render(source, (m for m in [PLAIN[name]()])) == want


@pytest.mark.parametrize(
    "value, name",
    [
        (b"hi", "bytes"),
        (bytearray(b"hi"), "bytearray"),
        ({"h", "i"}, "set"),
        (object(), "object"),
        (len, "builtin_function_or_method"),
        (Own, "type"),
        (np.zeros(3), "ndarray"),
        (torch.zeros(3), "Tensor"),
        (Image.new("RGB", (2, 2)), "Image"),
        (1j, "complex"),
        ({b"k": 1}, "keys to be text, got bytes"),
    ],
)
def test_what_has_no_plain_form_is_refused_by_name(value, name):
    message = {"role": "user", "content": [{"type": "text", "text": value}]}
    with pytest.raises(ChatError, match=rf"messages\[0\]\.content\[0\]\.text: .*{name}"):
        render("{{ messages[0].content }}", [message])


def test_endless_and_deep_conversations_are_refused(monkeypatch):
    monkeypatch.setattr(plain_data, "MAX_VALUES", 10_000)
    circle = {"role": "user"}
    circle["content"] = circle
    endless = iter(lambda: "x", None)
    for content, why in (
        (circle, "levels deep"),
        (endless, "values"),
        ("x" * (65 << 20), "characters"),
    ):
        with pytest.raises(ChatError, match=why):
            render("{{ messages[0].content }}", [{"role": "user", "content": content}])
