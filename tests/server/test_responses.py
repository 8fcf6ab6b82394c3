"""OpenAI's Responses API, as its own client reads it."""

import json

import httpx
import pydantic
import pytest
from openai.types.responses import Response, ResponseStreamEvent

from l4kernels.server import deltas
from l4kernels.server.protocol.chat import ChatRequest
from l4kernels.server.protocol.responses import ResponseRequest
from l4kernels.server.response_inputs import ChatOfResponse
from l4kernels.server.tool_calls import CallArguments, CallStart, Text
from tests.support.serving import serving

EVENT = pydantic.TypeAdapter(ResponseStreamEvent)
ASKED = {"input": "Who was Moses?", "temperature": 0, "max_output_tokens": 8}
LONG = {"type": "array", "items": {"type": "integer"}, "minItems": 200}
TOOL = {
    "type": "function",
    "name": "find",
    "parameters": {"type": "object", "properties": {"verse": {"type": "string"}}},
    "strict": True,
}
PIXEL = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUg=="


class Verdict(pydantic.BaseModel):
    holy: bool


def ask(one, **body):
    return httpx.post(f"{one.url}/v1/responses", json=body, timeout=30)


def events(one, **body):
    """Of a stream: their data, which the official types hold; and how many signs of life."""
    answer = ask(one, **body, stream=True)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text.endswith("\n\n")
    found, beats = [], 0
    for block in answer.text[:-2].split("\n\n"):
        if block.startswith(":"):
            beats += 1
            continue
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
        EVENT.validate_python(found[-1], strict=False)
    assert [one["sequence_number"] for one in found] == [*range(len(found))]
    return found, beats


def kinds(found):
    """Types of events, those that repeat once."""
    names = [one["type"].removeprefix("response.") for one in found]
    return [name for name, last in zip(names, [None, *names], strict=False) if name != last]


def without_names(response):
    """What two answers to the same request have in common."""
    text = json.dumps({**response, "id": 0, "created_at": 0, "completed_at": 0})
    for item in response["output"]:
        text = text.replace(item["id"], "item")
    return json.loads(text)


def test_an_answer_is_that_of_a_chat(demo):
    got = ask(demo, **ASKED, instructions="Be brief.", metadata={"a": "b"}, store=True).json()
    Response.model_validate(got, strict=False)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": ASKED["input"]},
    ]
    body = {"messages": messages, "temperature": 0, "max_tokens": 8}
    chat = httpx.post(f"{demo.url}/v1/chat/completions", json=body).json()
    (item,) = got["output"]
    assert item["content"][0]["text"] == chat["choices"][0]["message"]["content"]
    assert got["usage"]["input_tokens"] == chat["usage"]["prompt_tokens"]
    assert got["usage"]["output_tokens"] == chat["usage"]["completion_tokens"] == 8
    assert (got["status"], item["status"]) == ("incomplete", "incomplete")
    assert got["incomplete_details"] == {"reason": "max_output_tokens"}
    assert got["store"] is False
    assert (got["metadata"], got["instructions"]) == ({"a": "b"}, "Be brief.")


def test_a_stream_has_its_events_in_order(demo):
    found, _ = events(demo, **ASKED)
    assert kinds(found) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "incomplete",
    ]
    whole = ask(demo, **ASKED).json()
    assert without_names(found[-1]["response"]) == without_names(whole)
    assert found[0]["response"]["output"] == []
    text = "".join(one["delta"] for one in found if one["type"].endswith("text.delta"))
    assert text == whole["output"][0]["content"][0]["text"] == found[-4]["text"]
    assert found[2]["item"]["id"] == found[-2]["item"]["id"]


def test_an_answer_that_ends_by_itself_is_complete(demo):
    schema = {**Verdict.model_json_schema(), "additionalProperties": False}
    form = {"type": "json_schema", "name": "v", "schema": schema}
    found, _ = events(demo, input="Holy?", text={"format": form})
    last = found[-1]["response"]
    assert (found[-1]["type"], last["status"]) == ("response.completed", "completed")
    assert last["output"][0]["status"] == "completed"
    assert last["completed_at"] >= last["created_at"]
    assert last["text"]["format"]["schema"] == form["schema"]


def test_the_official_client_reads_it(client):
    made = client.responses.create(model="demo", **ASKED)
    assert made.output_text
    with client.responses.stream(model="demo", **ASKED) as stream:
        text = [one.delta for one in stream if one.type == "response.output_text.delta"]
    assert "".join(text) == made.output_text
    again = [
        {"role": "user", "content": ASKED["input"]},
        *made.output,
        {"role": "user", "content": "And then?"},
    ]
    more = client.responses.create(model="demo", **{**ASKED, "input": again})
    assert more.usage.input_tokens > made.usage.input_tokens


def test_the_official_client_parses_it(client):
    made = client.responses.parse(model="demo", input="Holy?", text_format=Verdict)
    assert isinstance(made.output_parsed, Verdict)
    with client.responses.stream(model="demo", input="Holy?", text_format=Verdict) as stream:
        assert isinstance(stream.get_final_response().output_parsed, Verdict)


CALL = {"type": "function_call", "call_id": "c1", "name": "find", "arguments": "{}"}
CHAT_CALL = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": "{}"}}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "none"}
SAID = {"type": "output_text", "text": "Yes", "annotations": [], "logprobs": []}
SHOWN = [{"type": "input_text", "text": "See"}, {"type": "input_image", "image_url": PIXEL}]
CHAT_SHOWN = [{"type": "text", "text": "See"}, {"type": "image_url", "image_url": {"url": PIXEL}}]
INPUTS = {
    "roles": (
        [{"role": role, "content": "a"} for role in ("system", "developer", "user", "assistant")],
        [{"role": role, "content": "a"} for role in ("system", "developer", "user", "assistant")],
    ),
    "parts": (
        [{"type": "message", "role": "user", "content": SHOWN}],
        [{"role": "user", "content": CHAT_SHOWN}],
    ),
    "an answer": (
        [{"type": "message", "id": "m", "role": "assistant", "status": "completed",
          "content": [SAID, {"type": "refusal", "refusal": "No"}]}],
        [{"role": "assistant", "content": [{"type": "text", "text": "Yes"},
                                           {"type": "refusal", "refusal": "No"}]}],
    ),
    "calls": (
        [{"role": "user", "content": "a"}, CALL, {**CALL, "call_id": "c2"}, OUTPUT, CALL],
        [{"role": "user", "content": "a"},
         {"role": "assistant", "tool_calls": [CHAT_CALL, {**CHAT_CALL, "id": "c2"}]},
         {"role": "tool", "tool_call_id": "c1", "content": "none"},
         {"role": "assistant", "tool_calls": [CHAT_CALL]}],
    ),
    "words before a call": (
        [{"role": "assistant", "content": "Wait"}, CALL,
         {**OUTPUT, "output": [{"type": "input_text", "text": "none"}]}],
        [{"role": "assistant", "content": "Wait", "tool_calls": [CHAT_CALL]},
         {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "none"}]}],
    ),
}  # fmt: skip


@pytest.mark.parametrize("items, messages", INPUTS.values(), ids=INPUTS.keys())
def test_items_are_messages_of_a_chat(items, messages):
    body = ResponseRequest.model_validate({"input": items})
    expected = ChatRequest.model_validate({"messages": messages})
    assert ChatOfResponse(body).chat().messages == expected.messages


class Scripted:
    """Finds what a test says in the first piece of text."""

    parts: list

    def __init__(self, names):
        assert names == ["find"]
        self._left = self.parts

    def push(self, text):
        found, self._left = self._left, []
        return found

    def finish(self):
        return []


@pytest.fixture
def scripted(monkeypatch):
    def script(*parts):
        monkeypatch.setattr(Scripted, "parts", [*parts], raising=False)
        monkeypatch.setattr(deltas, "ToolCallParser", Scripted)

    return script


CALLS = (
    Text("Wait"),
    CallStart(0, "find"),
    CallArguments(0, '{"verse":'),
    CallArguments(0, '"a"}'),
    CallStart(1, "find"),
    CallArguments(1, "{}"),
)
GROWTH = ["output_item.added", "function_call_arguments.delta", "function_call_arguments.done",
          "output_item.done"]  # fmt: skip


def test_calls_are_items_of_their_own(demo, scripted):
    scripted(*CALLS)
    found, _ = events(demo, **ASKED, tools=[TOOL])
    assert kinds(found)[8:-1] == GROWTH * 2
    places = [one["output_index"] for one in found if "output_index" in one]
    assert places == sorted(places) and {*places} == {0, 1, 2}
    said, first, second = found[-1]["response"]["output"]
    assert said["content"][0]["text"] == "Wait"
    assert (first["name"], first["arguments"]) == ("find", '{"verse":"a"}')
    assert second["arguments"] == "{}"
    assert first["call_id"] != second["call_id"]
    assert [one["status"] for one in (said, first, second)] == ["completed"] * 2 + ["incomplete"]
    scripted(*CALLS)
    whole = ask(demo, **ASKED, tools=[TOOL], parallel_tool_calls=False).json()
    Response.model_validate(whole, strict=False)
    assert [one["type"] for one in whole["output"]] == ["message", "function_call"]


def test_the_official_client_reads_calls(client, scripted):
    scripted(*CALLS)
    made = client.responses.parse(model="demo", **ASKED, tools=[TOOL])
    assert made.output[1].parsed_arguments == {"verse": "a"}
    results = [
        {"type": "function_call_output", "call_id": one.call_id, "output": "none"}
        for one in made.output
        if one.type == "function_call"
    ]
    scripted(Text("Good"))
    again = [{"role": "user", "content": "a"}, *made.output, *results]
    more = client.responses.create(model="demo", **{**ASKED, "input": again}, tools=[TOOL])
    assert more.output_text == "Good"


def test_an_answer_without_a_word_is_a_message(demo, scripted):
    scripted()
    (item,) = ask(demo, **ASKED, tools=[TOOL]).json()["output"]
    assert item["content"][0]["text"] == ""


def test_signs_of_life_come_between_events(demo, prompter):
    with serving(demo.engine, prompter, heartbeat_seconds=0.0005) as one:
        assert events(one, **ASKED)[1]


def test_a_stream_that_fails_says_so(demo, prompter):
    with serving(demo.engine, prompter, request_seconds=0.1) as one:
        form = {"type": "json_schema", "name": "l", "schema": LONG}
        found, _ = events(one, input="Count.", text={"format": form})
        last = found[-1]
        assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
        assert "0.1 seconds" in last["response"]["error"]["message"]
        assert one.settled()


MESSAGE = {"role": "user", "content": "a"}
REFUSED = {
    "background": ({"background": True}, "background"),
    "earlier responses": ({"previous_response_id": "resp_1"}, "previous_response_id"),
    "conversations": ({"conversation": "conv_1"}, "conversation"),
    "reasoning": ({"reasoning": {"effort": "low"}}, "reasoning"),
    "more to include": ({"include": ["reasoning.encrypted_content"]}, "include"),
    "prompt templates": ({"prompt": {"id": "p"}}, "prompt"),
    "truncation": ({"truncation": "auto"}, "truncation"),
    "logprobs": ({"top_logprobs": 2}, "top_logprobs"),
    "verbosity": ({"text": {"verbosity": "low"}}, "text.verbosity"),
    "a field of nobody": ({"x": 1}, "x"),
    "a number as text": ({"max_output_tokens": "8"}, "max_output_tokens"),
    "built-in tools": ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
    "built-in choices": ({"tool_choice": {"type": "file_search"}}, "tool_choice.type"),
    "a choice of no tool": ({"tool_choice": "required"}, "tools"),
    "an unknown choice": (
        {"tools": [TOOL], "tool_choice": {"type": "function", "name": "lose"}},
        "tool_choice",
    ),
    "a form and tools": (
        {"text": {"format": {"type": "json_object"}}, "tools": [TOOL]},
        "text.format",
    ),
    "no input": ({"input": []}, "input"),
    "reasoning items": ({"input": [{"type": "reasoning", "summary": []}]}, "input.0"),
    "references": ({"input": [{"type": "item_reference", "id": "m"}]}, "input.0"),
    "an item that is none": ({"input": [MESSAGE, 5]}, "input.1"),
    "a role of nobody": ({"input": [{**MESSAGE, "role": "judge"}]}, "input.0"),
    "files": (
        {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
        "input.0.content.0.file_id",
    ),
    "audio": (
        {"input": [{"role": "user", "content": [{"type": "input_audio"}]}]},
        "input.0.content.0",
    ),
    "remote images": (
        {"instructions": "Look.", "input": [MESSAGE, {"role": "user", "content": [
            {"type": "input_text", "text": "a"},
            {"type": "input_image", "image_url": "http://127.0.0.1:1/a.png"}]}]},
        "input.1.content.1",
    ),
    "arguments that are no object": (
        {"input": [MESSAGE, CALL, {**CALL, "arguments": "[]"}]},
        "input.2.arguments",
    ),
    "calls without end": ({"input": [CALL] * 129}, "input.128"),
    "more than the context": ({"input": "a " * 5000}, "input"),
    "too long an answer": ({"max_output_tokens": 1 << 20}, "max_output_tokens"),
}  # fmt: skip


@pytest.mark.parametrize("change, param", REFUSED.values(), ids=REFUSED.keys())
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_refusals_name_the_field(demo, change, param, stream):
    answer = ask(demo, **{"input": "a", **change}, stream=stream)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param, error
    assert error["type"] == "invalid_request_error"
    assert "response_format" not in error["message"]
    assert demo.settled()


def test_other_models_are_not_served(demo):
    assert ask(demo, **ASKED, model="other").json()["error"]["code"] == "model_not_found"
    assert httpx.get(f"{demo.url}/v1/responses/resp_1").status_code == 404


def test_what_changes_nothing_is_accepted(demo):
    none = dict.fromkeys(
        ("previous_response_id", "conversation", "prompt", "include", "reasoning", "tools"),
    )
    more = {"user": "u", "service_tier": "auto", "safety_identifier": "s", "prompt_cache_key": "k"}
    settings = {"background": False, "truncation": "disabled", "text": {"format": None}}
    got = ask(demo, **ASKED, **none, **more, **settings)
    assert got.status_code == 200, got.text


def test_an_answer_can_echo_whatever_was_accepted(demo):
    """Tools and schemas come back with an answer, though with tool_choice 'none' no model sees
    them."""
    nested: dict = {}
    for _ in range(80):
        nested = {"a": nested}
    for parameters in ({"x": float("nan")}, {"x": "\ud800"}, nested):
        body = {**ASKED, "tools": [{**TOOL, "parameters": parameters}], "tool_choice": "none"}
        answer = httpx.post(
            f"{demo.url}/v1/responses",
            content=json.dumps(body),
            headers={"Content-Type": "application/json"},
        )
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["param"] == "tools.0.parameters"
