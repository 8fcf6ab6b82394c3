"""Requests as well-known clients write them, beyond what OpenAI's own client does."""

import httpx
import pytest

from l4kernels.server.protocol.chat import ChatRequest
from l4kernels.server.protocol.completions import CompletionRequest
from l4kernels.server.protocol.responses import ResponseRequest

HTTP = httpx.Client(timeout=60)
USER = {"role": "user", "content": "And it came to pass"}
TOOL = {"type": "function", "function": {"name": "time"}}
CALL = {"id": "c", "type": "function", "function": {"name": "time", "arguments": "{}"}}
CALLED = {"role": "assistant", "content": "", "tool_calls": [CALL]}
SAID = {"role": "tool", "tool_call_id": "c", "content": "noon"}
MARK = {"cache_control": {"type": "ephemeral"}}
PART = {"type": "text", "text": "a"}


def post(one, route, **body):
    answer = HTTP.post(f"{one.url}/v1/{route}", json=body)
    return answer.status_code, answer.json()


NEEDED = {
    "chat/completions": (ChatRequest, {"messages": [USER], "max_tokens": 1}),
    "completions": (CompletionRequest, {"prompt": "In the", "max_tokens": 1}),
    "responses": (ResponseRequest, {"input": "a", "max_output_tokens": 1}),
}


@pytest.mark.parametrize("route", NEEDED)
def test_null_asks_for_nothing(demo, route):
    kind, needed = NEEDED[route]
    fields = {*kind.model_fields} - {*needed}
    fields |= {"audio", "prediction", "reasoning_effort", "functions", "guided_json", "include"}
    status, answer = post(demo, route, **needed, **dict.fromkeys(fields))
    assert status == 200, answer
    for name in {*needed} - {"max_tokens", "max_output_tokens"}:
        status, answer = post(demo, route, **{**needed, name: None})
        assert status == 400 and answer["error"]["param"] == name


ACCEPTED = {
    "an empty list of tools": {"tools": [], "tool_choice": "auto"},
    "an empty list of stops": {"stop": []},
    "no biases": {"logit_bias": {}},
    "no top log-probabilities": {"logprobs": False, "top_logprobs": 0},
    "usage that nobody asked for": {"stream_options": {"include_usage": None}},
    "marks of a cache": {
        "messages": [
            {"role": "system", "content": [{**PART, **MARK}]},
            {**USER, "content": [{**PART, **MARK}], **MARK},
        ],
        "tools": [{**TOOL, **MARK}],
    },
    "lm-eval's type": {"messages": [{**USER, "type": "text"}]},
    "chunks put together": {
        "messages": [USER, {**CALLED, "tool_calls": [{**CALL, "index": 0}]}, SAID]
    },
    "the name of a tool": {"messages": [USER, CALLED, {**SAID, "name": "time"}]},
    "an answer of a tool in parts": {"messages": [USER, CALLED, {**SAID, "content": [PART]}]},
    "what other models thought": {
        "messages": [
            USER,
            {"role": "assistant", "content": "b", "reasoning_content": "c", "tool_calls": None},
            {"role": "assistant", "content": "b", "reasoning": "c", "function_call": None},
            USER,
        ]
    },
}


@pytest.mark.parametrize("fields", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_what_clients_send_beside(demo, fields):
    status, answer = post(
        demo, "chat/completions", **{"messages": [USER], "max_tokens": 1} | fields
    )
    assert status == 200, answer


def test_marks_are_not_shown_to_the_model(demo):
    plain, marked = (
        post(demo, "chat/completions", messages=[USER], tools=[tool], max_tokens=1)[1]
        for tool in (TOOL, {**TOOL, **MARK})
    )
    assert plain["usage"] == marked["usage"]


@pytest.mark.parametrize("route", ["chat/completions", "completions"])
def test_usage_with_every_chunk(client, route):
    asked = {"model": "demo", "max_tokens": 6, "temperature": 0, "stream": True}
    asked["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
    if route == "completions":
        chunks = [*client.completions.create(prompt="In the", **asked)]
    else:
        chunks = [*client.chat.completions.create(messages=[USER], **asked)][1:]
    counts = [chunk.usage.completion_tokens for chunk in chunks]
    assert counts == sorted(counts) and counts[0] < counts[-1] == 6


def test_lm_eval_counts_on_a_log_probability_for_the_new_token(demo, prompter):
    """It takes those after the context's, but the last: that of the token it did not ask for."""
    (end, *_) = demo.engine.model.config.eos_token_ids
    prompts = [prompter.raw(text).ids for text in ("In the beginning", "And it")]
    for bias in ({}, {f"{end}": 100}):
        status, answer = post(
            demo, "completions", prompt=prompts, temperature=0, max_tokens=1, logprobs=1,
            seed=1234, echo=True, logit_bias=bias,
        )  # fmt: skip
        assert status == 200, answer
        for ids, choice in zip(prompts, answer["choices"], strict=True):
            assert choice["finish_reason"] == ("stop" if bias else "length")
            found = choice["logprobs"]
            assert len({len(found[name]) for name in found}) == 1
            assert len(found["token_logprobs"]) == len(ids) + 1
            ours = zip(found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True)
            assert all(top[token] >= value for token, value, top in [*ours][1:])
