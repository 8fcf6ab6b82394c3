"""Answers of the real engine, sampled at temperature 1 from a model that knows no JSON."""

import json

import jsonschema
import pytest

from l4kernels import Engine, Llama4, Request, Sampling
from l4kernels.demo import CHECKPOINT
from l4kernels.prompt.tokenizer import Tokenizer
from l4kernels.server.constraints import Grammars
from l4kernels.server.tool_calls import CallArguments, CallStart, ToolCallParser
from tests.support.json_schemas import schemas

FORMATS = jsonschema.FormatChecker(["ipv4", "uuid"])  # those that ask for no other package


@pytest.fixture(scope="module")
def model():
    return Llama4.from_pretrained(CHECKPOINT)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(CHECKPOINT)


@pytest.fixture(scope="module")
def grammars(model, tokenizer):
    return Grammars(tokenizer, model.config.vocab_size, model.config.eos_token_ids)


def answers(model, tokenizer, grammars, tokens=120):
    """(text, finish reason) of each grammar's answer."""
    prompt = tokenizer.encode("And he said,")
    with Engine(model, tokenizer=tokenizer, slots=32) as engine:
        streams = [
            engine.add(Request(prompt, tokens, Sampling(1.0, seed=seed), token_mask=grammar.mask()))
            for seed, grammar in enumerate(grammars)
        ]
        for outputs in map(list, streams):
            yield "".join(output.text for output in outputs), outputs[-1].finish_reason


def check(model, tokenizer, grammars, wanted):
    compiled = [grammars.json_schema(schema) for schema in wanted]
    ended = 0
    for schema, (text, reason) in zip(wanted, answers(model, tokenizer, compiled), strict=True):
        if reason == "length":
            continue
        assert reason == "stop"
        ended += 1
        kind = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
        kind(schema, format_checker=FORMATS).validate(json.loads(text))
    assert ended > 0.6 * len(wanted), "the schemas were to be short ones"


def test_answers_are_valid_for_their_schemas(model, tokenizer, grammars):
    check(model, tokenizer, grammars, schemas(25))


@pytest.mark.soak
def test_answers_are_valid_for_200_schemas(model, tokenizer, grammars):
    check(model, tokenizer, grammars, schemas(200))


class Tool:
    def __init__(self, name, parameters):
        self.name, self.parameters = name, parameters


DAY = {"type": "object", "properties": {"day": {"enum": ["today", "tomorrow"]}},
       "required": ["day"], "additionalProperties": False}  # fmt: skip


def test_forced_calls_are_calls(model, tokenizer, grammars):
    tools = [Tool("get_weather", DAY), Tool("look-up", None)]
    compiled = [grammars.tool_calls(tools, parallel=index % 2 == 1) for index in range(8)]
    counts = []
    for index, (text, reason) in enumerate(answers(model, tokenizer, compiled, 120)):
        parser = ToolCallParser([tool.name for tool in tools])
        deltas = parser.push(text) + parser.finish()
        starts = [delta for delta in deltas if isinstance(delta, CallStart)]
        fragments = [delta.fragment for delta in deltas if isinstance(delta, CallArguments)]
        counts.append(len(starts))
        if index % 2 == 0:
            assert reason == "stop" and len(starts) == 1
        if reason == "length":  # the last call is cut off
            starts, fragments = starts[:-1], fragments[: len(starts) - 1]
        else:
            assert len(starts) + len(fragments) == len(deltas), "there is text beside the calls"
        for start, fragment in zip(starts, fragments, strict=True):
            schema = DAY if start.name == "get_weather" else {"const": {}}
            jsonschema.validate(json.loads(fragment), schema)
    assert max(counts) > 1, "no answer had parallel calls"


def test_any_json_object(model, tokenizer, grammars):
    compiled = [grammars.json_object()] * 4
    for text, reason in answers(model, tokenizer, compiled, 40):
        assert text.startswith("{") and (reason == "length" or isinstance(json.loads(text), dict))
