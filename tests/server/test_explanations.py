"""What a client is told about a body that is wrong: which field, whatever alternatives it has."""

import json

import httpx
import pytest

from l4kernels.server import app
from tests.support.deadlines import cheaply

JSON = {"Content-Type": "application/json"}
MESSAGE = {"role": "user", "content": "a"}
CHAT = {"messages": [MESSAGE]}
FUNCTION = {"name": "find", "parameters": {"x": float("nan")}}
SCHEMA = {"name": "s", "schema": {"enum": ["\ud800"]}}
FORM = {"type": "json_schema", "json_schema": SCHEMA}

WRONG = {
    "a part that is none": (
        {"messages": [{**MESSAGE, "content": [{"type": "text", "text": "a"}, {"type": "smell"}]}]},
        "messages.0.content.1",
    ),
    "a part's text": (
        {"messages": [{**MESSAGE, "content": [{"type": "text", "text": 5}]}]},
        "messages.0.content.0.text",
    ),
    "a field that lacks": ({"messages": [MESSAGE, {"role": "user"}]}, "messages.1.content"),
    "a field too many": ({"messages": [{**MESSAGE, "user": 1}]}, "messages.0.user"),
    "a field too many beside one of its alternative's name": (
        {"messages": [{**MESSAGE, "content": [{"type": "text", "text": "a", "smell": 1}]}]},
        "messages.0.content.0.smell",
    ),
    "a choice that is none": ({**CHAT, "tool_choice": {"type": "search"}}, "tool_choice.type"),
    "one of a list": ({**CHAT, "stop": ["a", 1]}, "stop.1"),
    "a key": ({**CHAT, "logit_bias": {"a": 1}}, "logit_bias.a"),
    "NaN for the model": (
        {**CHAT, "tools": [{"type": "function", "function": FUNCTION}]},
        "tools.0.function.parameters",
    ),
    "half a character": (
        {**CHAT, "response_format": FORM},
        "response_format.json_schema.schema",
    ),
}


def post(one, content, kind="application/json"):
    url, headers = f"{one.url}/v1/chat/completions", {"Content-Type": kind}
    answer = httpx.post(url, content=content, headers=headers)
    assert answer.status_code == 400, answer.text
    return answer.json()["error"]


@pytest.mark.parametrize("body, param", WRONG.values(), ids=WRONG.keys())
def test_an_error_names_the_field(demo, body, param):
    assert post(demo, json.dumps(body))["param"] == param


def test_an_empty_list_is_told_that_it_is_empty(demo):
    error = post(demo, json.dumps({"messages": [{**MESSAGE, "content": []}]}))
    assert "at least 1 item" in error["message"] and error["param"] == "messages.0.content"


def test_what_should_be_an_object_is_told_so(demo):
    part = {"type": "image_url", "image_url": "data:image/png;base64,AAAA"}
    error = post(demo, json.dumps({"messages": [{**MESSAGE, "content": [part]}]}))
    assert error["message"] == "messages.0.content.0.image_url: Input should be an object"


def test_a_base_url_without_v1(demo):
    answer = httpx.post(f"{demo.url}/chat/completions", json=CHAT)
    assert answer.status_code == 404 and "ends in /v1" in answer.json()["error"]["message"]


def test_a_body_of_another_kind(demo):
    error = post(demo, json.dumps(CHAT), "application/x-www-form-urlencoded")
    assert "Content-Type: application/json" in error["message"]


@pytest.mark.parametrize("body", [None, 5, "text", [], b"{}"], ids=repr)
def test_places_in_what_is_no_object(body):
    assert app._field(("messages", 0, "user"), body, missing=False) == ""


@pytest.mark.parametrize(
    "route, start, entry, end",
    [
        ("chat/completions", '{"messages":[{"role":"user","content":[', "{}", "]}]}"),
        ("chat/completions", '{"messages":[],"logit_bias":{', '"%d":"a"', "}}"),
        ("chat/completions", '{"messages":[]', ',"f%d":1', "}"),
        ("completions", '{"prompt":[', "{}", "]}"),
        ("completions", '{"prompt":[["a"],', '["a"]', "]}"),
    ],
)
def test_many_wrong_entries_hold_up_nobody(demo, monkeypatch, route, start, entry, end):
    """Explained one by one they would take the event loop seconds."""
    many, found = 100_000, []
    monkeypatch.setattr(app, "_closeness", lambda error: found.append(error) or (1,))
    entries = [entry % one if "%" in entry else entry for one in range(many)]
    body = start + ("" if entry[0] == "," else ",").join(entries) + end
    url = f"{demo.url}/v1/{route}"
    answer = cheaply(0.5, lambda: httpx.post(url, content=body, timeout=60, headers=JSON))
    assert answer.status_code == 400 and answer.json()["error"]["message"]
    assert len(found) < 100
