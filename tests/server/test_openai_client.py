"""Everything that the server offers, through the official client."""

import base64
import json
import re

import httpx
import openai
import pytest
import torch
from pydantic import BaseModel

from l4kernels.cli import generate as cli_generate
from l4kernels.demo import CHECKPOINT, QUESTION
from tests.support.videos import numbered

SAID = [{"role": "user", "content": "And it came to pass"}]


def chat(client, messages=SAID, **fields):
    settings = {"temperature": 0, "max_tokens": 12} | fields
    return client.chat.completions.create(model="demo", messages=messages, **settings)


def streamed(client, messages=SAID, **fields):
    """Text, chunks and usage of a stream."""
    chunks = [
        *chat(client, messages, stream=True, stream_options={"include_usage": True}, **fields)
    ]
    *chunks, last = chunks
    assert not last.choices and last.usage is not None
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    return text, chunks, last.usage


def test_models(client):
    (only,) = client.models.list().data
    assert only.id == "demo" and client.models.retrieve("demo").id == "demo"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")


def test_an_answer(client):
    answer = chat(client)
    (choice,) = answer.choices
    assert choice.message.role == "assistant" and choice.message.content
    assert choice.finish_reason == "length"
    assert answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12
    assert answer.object == "chat.completion" and answer.model == "demo"


def test_a_stream_says_the_same(client):
    text, chunks, usage = streamed(client)
    assert text == chat(client).choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "length"
    assert all(chunk.usage is None for chunk in chunks) and usage.completion_tokens == 12
    assert len({chunk.id for chunk in chunks}) == 1


def test_the_text_is_that_of_python_and_of_the_command_line(client, model, prompter, capsys):
    text = chat(client, max_tokens=24).choices[0].message.content
    ids = torch.tensor([prompter.chat(SAID).ids])
    new = model.generate(ids, 24)[0, ids.shape[1] :]
    assert prompter.tokenizer.decode(new) == text
    request = cli_generate.Request(
        model=CHECKPOINT, prompt=SAID[0]["content"], chat=True, max_new_tokens=24, temperature=0.0
    )
    cli_generate.run(request, as_json=True)
    assert json.loads(capsys.readouterr().out)["text"] == text
    raw = client.completions.create(model="demo", prompt="In the", max_tokens=24, temperature=0)
    ids = torch.tensor([prompter.raw("In the").ids])
    assert raw.choices[0].text == prompter.tokenizer.decode(
        model.generate(ids, 24)[0, len(ids[0]) :]
    )


def test_several_samples_and_seeds(client):
    first, second = (chat(client, n=3, temperature=1.0, seed=5) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in second.choices]
    assert len(set(texts)) == 3 and [c.index for c in first.choices] == [0, 1, 2]
    other = chat(client, n=3, temperature=1.0, seed=6)
    assert texts != [choice.message.content for choice in other.choices]
    assert 3 < first.usage.completion_tokens <= 36
    stream = chat(client, n=3, temperature=1.0, seed=5, stream=True)
    parts = ["", "", ""]
    for chunk in stream:
        parts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert parts == texts


def test_stop_strings(client):
    whole = chat(client, max_tokens=40).choices[0].message.content
    assert "," in whole
    for stop in (",", [",", "LORD of"]):
        (choice,) = chat(client, max_tokens=40, stop=stop).choices
        assert choice.message.content == whole[: whole.index(",")]
        assert choice.finish_reason == "stop"
    text, chunks, _ = streamed(client, max_tokens=40, stop=",")
    assert text == whole[: whole.index(",")] and chunks[-1].choices[0].finish_reason == "stop"


def test_biases_and_penalties(client, prompter):
    usual = chat(client).choices[0].message.content
    first = prompter.tokenizer.encode(usual, bos=False)[0]
    assert chat(client, logit_bias={str(first): -100}).choices[0].message.content != usual
    wanted = prompter.tokenizer.encode("x", bos=False)[0]
    only = chat(client, logit_bias={str(wanted): 100}).choices[0].message.content
    assert only == "x" * 12
    varied = chat(client, presence_penalty=2.0, frequency_penalty=2.0, max_tokens=40)
    assert (
        varied.choices[0].message.content != chat(client, max_tokens=40).choices[0].message.content
    )


def test_log_probabilities(client, model, prompter):
    (choice,) = chat(client, logprobs=True, top_logprobs=3).choices
    listed = choice.logprobs.content
    assert len(listed) == 12
    assert "".join(token.token for token in listed) == choice.message.content
    ids = prompter.chat(SAID).ids
    expected = model.prompt_logits(torch.tensor([ids]))[0, -1].log_softmax(-1)
    top = listed[0].top_logprobs
    assert [entry.logprob for entry in top] == pytest.approx(
        expected.topk(3).values.tolist(), abs=1e-3
    )
    assert all(token.top_logprobs[0].logprob == token.logprob for token in listed)
    assert top[0].token == listed[0].token and bytes(listed[0].bytes).decode() == listed[0].token
    _, chunks, _ = streamed(client, logprobs=True, top_logprobs=3)
    again = [t for chunk in chunks for t in (chunk.choices[0].logprobs or _None).content]
    assert [t.token for t in again] == [t.token for t in listed]


class _None:
    content = ()


def test_the_length_under_both_names(client):
    assert chat(client, max_tokens=3).usage.completion_tokens == 3
    both = chat(client, max_tokens=openai.NOT_GIVEN, max_completion_tokens=4)
    assert both.usage.completion_tokens == 4


def test_roles(client, prompter):
    system = [{"role": "system", "content": "Speak."}, *SAID]
    developer = [{"role": "developer", "content": [{"type": "text", "text": "Speak."}]}, *SAID]
    said = [chat(client, m) for m in (system, developer)]
    assert said[0].choices[0].message.content == said[1].choices[0].message.content
    assert said[0].usage.prompt_tokens == len(prompter.chat(system).ids)
    turns = [*SAID, {"role": "assistant", "content": "Yes."}, {"role": "user", "content": "And?"}]
    assert chat(client, turns).usage.prompt_tokens == len(prompter.chat(turns).ids)


def ask(*urls):
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [*images, {"type": "text", "text": QUESTION}]}]


def test_images(client, digits):
    right = 0
    for url, label in digits:
        right += chat(client, ask(url)).choices[0].message.content.startswith(label)
    assert right >= 7
    one, two = (chat(client, ask(*[digits[0][0]] * n)) for n in (1, 2))
    assert two.usage.prompt_tokens > one.usage.prompt_tokens + 4


def test_json(client):
    settings = {"temperature": 1.0, "seed": 3, "max_tokens": 400}
    (choice,) = chat(client, response_format={"type": "json_object"}, **settings).choices
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content), dict)

    class Verse(BaseModel):
        book: str
        chapter: int
        holy: bool

    schema = Verse.model_json_schema()
    schema["additionalProperties"] = False
    schema["properties"]["book"]["maxLength"] = 12
    schema["properties"]["chapter"] |= {"minimum": 1, "maximum": 150}
    form = {"type": "json_schema", "json_schema": {"name": "verse", "schema": schema}}
    for n in (1, 3):
        answer = chat(client, response_format=form, n=n, **settings)
        for choice in answer.choices:
            assert choice.finish_reason == "stop"
            assert 1 <= Verse.model_validate_json(choice.message.content).chapter <= 150
    text, _, _ = streamed(client, response_format=form, **settings)
    Verse.model_validate_json(text)

    class Answer(BaseModel):
        yes: bool

    parsed = client.chat.completions.parse(
        model="demo", messages=SAID, response_format=Answer, max_tokens=100
    )
    assert isinstance(parsed.choices[0].message.parsed, Answer)


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Of a town.",
        "parameters": {
            "type": "object",
            "properties": {
                "town": {"type": "string", "maxLength": 10},
                "unit": {"enum": ["C", "F"]},
            },
            "required": ["town", "unit"],
            "additionalProperties": False,
        },
    },
}
TIME = {"type": "function", "function": {"name": "time", "parameters": {"type": "object",
        "properties": {}, "additionalProperties": False}}}  # fmt: skip


def say(text):
    return [{"role": "user", "content": text}]


SPOKEN = [
    '[get_weather(town="Bonn", unit="C"), time()]',
    '{"name": "get_weather", "parameters": {"town": "Bonn", "unit": "C"}}; '
    '{"name": "time", "parameters": {}}',
]


@pytest.mark.parametrize("text", SPOKEN, ids=["pythonic", "json"])
def test_calls_that_a_model_makes(parrot_client, text):
    tools = [WEATHER, TIME]
    (choice,) = chat(parrot_client, say(text), tools=tools, max_tokens=200).choices
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    first, second = choice.message.tool_calls
    assert (first.function.name, second.function.name) == ("get_weather", "time")
    assert json.loads(first.function.arguments) == {"town": "Bonn", "unit": "C"}
    assert json.loads(second.function.arguments) == {} and first.id != second.id

    with parrot_client.chat.completions.stream(
        model="demo", messages=say(text), tools=tools, max_tokens=200
    ) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert kinds.count("tool_calls.function.arguments.done") == 2 and "content.done" not in kinds
    calls = [call.function for call in final.choices[0].message.tool_calls]
    assert [call.name for call in calls] == ["get_weather", "time"]
    assert json.loads(calls[0].arguments) == {"town": "Bonn", "unit": "C"}


def test_text_beside_tools_stays_text(parrot_client):
    for text in ("It is warm.", "[1] see there", '{"name": "nobody", "parameters": {}}'):
        (choice,) = chat(parrot_client, say(text), tools=[WEATHER], max_tokens=200).choices
        assert choice.message.content == text and not choice.message.tool_calls
        assert choice.finish_reason == "stop"
    (choice,) = chat(
        parrot_client, say(SPOKEN[0]), tools=[WEATHER], tool_choice="none", max_tokens=200
    ).choices
    assert choice.message.content == SPOKEN[0]


def test_one_call_at_a_time(parrot_client):
    (choice,) = chat(
        parrot_client, say(SPOKEN[0]), tools=[WEATHER, TIME], parallel_tool_calls=False,
        max_tokens=200,
    ).choices  # fmt: skip
    assert [call.function.name for call in choice.message.tool_calls] == ["get_weather"]


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "get_weather"}}],
    ids=["required", "named"],
)  # fmt: skip
def test_calls_that_are_forced(client, choice):
    settings = {"temperature": 1.0, "seed": 1, "max_tokens": 300, "parallel_tool_calls": False}
    (answer,) = chat(client, tools=[WEATHER], tool_choice=choice, **settings).choices
    (call,) = answer.message.tool_calls
    assert answer.finish_reason == "tool_calls" and call.function.name == "get_weather"
    arguments = json.loads(call.function.arguments)
    assert arguments.keys() == {"town", "unit"} and arguments["unit"] in ("C", "F")
    pieces = chat(client, tools=[WEATHER], tool_choice=choice, stream=True, **settings)
    deltas = [piece.choices[0].delta for piece in pieces if piece.choices]
    spoken = "".join(
        call.function.arguments or "" for delta in deltas for call in delta.tool_calls or ()
    )
    assert json.loads(spoken) == arguments


def test_answers_of_tools_are_read(client, prompter):
    call = {"id": "c", "type": "function", "function": {"name": "time", "arguments": '{"a": 1}'}}
    turns = [
        *SAID,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "noon"},
    ]
    answer = chat(client, turns, tools=[TIME])
    read = {**call, "function": {"name": "time", "arguments": {"a": 1}}}
    turns[1] = {**turns[1], "content": "", "tool_calls": [read]}
    assert answer.usage.prompt_tokens == len(prompter.chat(turns, tools=[TIME]).ids)


def test_prefixes_that_are_found_again_are_told(client):
    words = [{"role": "user", "content": "Selah " * 90}]
    found = [chat(client, words).usage.prompt_tokens_details.cached_tokens for _ in range(2)]
    assert found[0] == 0 and found[1] >= 64
    assert streamed(client, words)[2].prompt_tokens_details.cached_tokens == found[1]
    prompt = [5] * 200
    pair = [complete(client, prompt=[prompt, prompt]).usage for _ in range(2)]
    assert pair[1].prompt_tokens_details.cached_tokens >= 2 * 128
    answers = [client.responses.create(model="demo", input="Amen " * 90) for _ in range(2)]
    assert answers[1].usage.input_tokens_details.cached_tokens >= 64


def complete(client, **fields):
    settings = {"max_tokens": 6, "temperature": 0} | fields
    return client.completions.create(model="demo", **settings)


def test_completions(client, prompter):
    ids = prompter.raw("In the").ids
    texts = [complete(client, prompt=p).choices[0].text for p in ("In the", ids)]
    assert texts[0] == texts[1]
    several = complete(client, prompt=["In the", "And it"], n=2, temperature=1, seed=1)
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    assert several.usage.completion_tokens == 24
    stream = complete(client, prompt="In the", stream=True, stream_options={"include_usage": True})
    *chunks, last = stream
    assert "".join(chunk.choices[0].text for chunk in chunks) == texts[0]
    assert last.usage.completion_tokens == 6 and chunks[-1].choices[0].finish_reason == "length"


def test_echo_and_log_probabilities(client, model, prompter):
    ids = prompter.raw("In the beginning").ids
    (choice,) = complete(client, prompt=ids, echo=True, logprobs=2, max_tokens=3).choices
    assert choice.text.startswith("In the beginning")
    listed = choice.logprobs
    assert len(listed.tokens) == len(ids) + 3 and listed.token_logprobs[0] is None
    logits = model.prompt_logits(torch.tensor([ids]))[0].log_softmax(-1)
    expected = [logits[i, token].item() for i, token in enumerate(ids[1:])]
    assert listed.token_logprobs[1 : len(ids)] == pytest.approx(expected, abs=1e-3)
    for token, offset in [*zip(listed.tokens, listed.text_offset, strict=True)][1:]:
        assert choice.text[offset:].startswith(token)
    (alone,) = complete(client, prompt=ids, echo=True, logprobs=1, max_tokens=0).choices
    assert alone.text == "In the beginning" and alone.finish_reason == "length"
    assert len(alone.logprobs.tokens) == len(ids)
    streamed = [*complete(client, prompt=ids, echo=True, stream=True)]
    assert streamed[0].choices[0].text == "In the beginning"


REFUSED = [
    ({"model": "gpt-4"}, 404, "model", "model_not_found"),
    ({"temperature": 3}, 400, "temperature", None),
    ({"top_p": 0}, 400, "top_p", None),
    ({"n": 9}, 400, "n", None),
    ({"messages": []}, 400, "messages", None),
    ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, 400, None, None),
    ({"guided_json": {}}, 400, "guided_json", None),
    ({"top_logprobs": 2}, 400, "top_logprobs", None),
    ({"max_tokens": 20_000}, 400, "max_tokens", None),
    ({"max_tokens": 4096}, 400, "messages", "context_length_exceeded"),
    ({"messages": [{"role": "user", "content": "word " * 20_000}]}, 400, "messages",
     "context_length_exceeded"),
    ({"tool_choice": "required"}, 400, "tools", None),
    ({"tools": [TIME], "tool_choice": {"type": "function", "function": {"name": "other"}}}, 400,
     "tool_choice", None),
    ({"tools": [TIME], "response_format": {"type": "json_object"}}, 400, "response_format", None),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema":
      {"type": "nothing"}}}}, 400, "response_format", None),
    ({"logit_bias": {"5000": 1.0}}, 400, "logit_bias", None),
    ({"stop_token_ids": [1056]}, 400, "stop_token_ids", None),
    ({"messages": [{"role": "assistant", "content": None}]}, 400, "messages.0.content", None),
]  # fmt: skip


@pytest.mark.parametrize("fields, status, param, code", REFUSED, ids=range(len(REFUSED)))
def test_what_is_refused(demo, fields, status, param, code):
    body = {"model": "demo", "messages": SAID, "max_tokens": 4} | fields
    for stream in (False, True):
        answer = httpx.post(f"{demo.url}/v1/chat/completions", json=body | {"stream": stream})
        error = answer.json()["error"]
        assert answer.status_code == status, error
        assert error.keys() == {"message", "type", "param", "code"} and error["message"]
        assert (param is None or error["param"] == param) and error["code"] == code, error
        assert not re.search(r"(^|[\s'\"(])/\w", error["message"]), "a path?"


@pytest.mark.parametrize(
    "fields",
    [{"suffix": "x"}, {"best_of": 4}, {"max_tokens": 0}, {"prompt": ""}, {"prompt": [[]]}],
    ids=str,
)
def test_completions_that_are_refused(client, fields):
    with pytest.raises(openai.BadRequestError) as error:
        complete(client, **{"prompt": "In the"} | fields)
    assert error.value.param.startswith(next(iter(fields)))


def test_tokens(demo, prompter):
    def post(route, **body):
        return httpx.post(f"{demo.url}/{route}", json=body).json()

    found = post("tokenize", prompt="In the <|eot|>", return_token_strs=True)
    assert found["tokens"] == prompter.raw("In the <|eot|>").ids
    assert found["count"] == len(found["token_strs"]) and found["max_model_len"] == 4096
    assert post("detokenize", tokens=found["tokens"])["prompt"].endswith("In the <|eot|>")
    assert post("tokenize", messages=SAID)["tokens"] == prompter.chat(SAID).ids
    assert "error" in post("tokenize") and "error" in post("detokenize", tokens=[-1])


def test_an_image_that_is_none(demo, client):
    for url in ("data:image/png;base64,AAAA", "https://example.com/a.png", "file:///etc/passwd"):
        with pytest.raises(openai.BadRequestError) as error:
            chat(client, ask(url))
        assert (
            error.value.param.startswith("messages.0.content")
            and "passwd" not in error.value.message
        )
    many = [{"type": "image_url", "image_url": {"url": "data:,"}}] * 2000
    with pytest.raises(openai.BadRequestError):
        chat(client, [{"role": "user", "content": many}])
    assert demo.settled()


def test_videos(client, demo):
    def ask_of(url, **more):
        part = {"type": "video_url", "video_url": {"url": url}, **more}
        return chat(client, [{"role": "user", "content": [part, {"type": "text", "text": "Why?"}]}])

    url = "data:video/mp4;base64," + base64.b64encode(numbered("mp4 mpeg4", 12)).decode()
    few, many = ask_of(url, frames=2), ask_of(url, frames=6)
    assert many.usage.prompt_tokens > few.usage.prompt_tokens + 4 * 4
    with pytest.raises(openai.BadRequestError) as error:
        ask_of("data:video/mp4;base64,AAAA")
    assert error.value.code == "invalid_video" and error.value.param == "messages.0.content.0"
    assert demo.settled()
