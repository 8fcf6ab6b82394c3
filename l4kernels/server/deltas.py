"""What each output adds to an answer: text, pieces of tool calls, log-probabilities, its end."""

import uuid
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from l4kernels.engine.request import Output
from l4kernels.prompt.tokenizer import Tokenizer
from l4kernels.server.tool_calls import CallArguments, CallStart, Text, ToolCallParser

LEAST_LOGPROB = -9999.0
"""What OpenAI writes for a token that is all but impossible; JSON has no minus infinity."""


@dataclass
class Delta:
    """What is new. `finish_reason` comes with the last one of a choice."""

    text: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    finish_reason: str | None = None

    def __bool__(self) -> bool:
        return bool(self.text or self.calls or self.logprobs or self.finish_reason)


class Choice:
    """One answer of a request, as it grows.

    Args:
        tools: names of functions; calls of them are taken out of the text.
        parallel: whether there may be more than one call; without it those after the first are
            dropped.
        logprobs: whether the client asked for them.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        end_ids: Collection[int],
        *,
        tools: Collection[str] = (),
        parallel: bool = True,
        logprobs: bool = False,
    ):
        self._tokenizer, self._end_ids = tokenizer, end_ids
        self._parser = ToolCallParser(tools) if tools else None
        self._parallel, self._logprobs = parallel, logprobs
        self.tokens = 0
        self.called = False

    def push(self, output: Output) -> Delta:
        delta = Delta()
        if output.token_id is not None:
            self.tokens += 1
            ends = output.finish_reason == "stop" and output.token_id in self._end_ids
            if self._logprobs and output.logprob is not None and not ends:
                delta.logprobs.append(logprob_of(self._tokenizer, output))
        if self._parser is None:
            delta.text = output.text
        else:
            self._put(delta, self._parser.push(output.text))
            if output.finish_reason is not None:
                self._put(delta, self._parser.finish())
        reason = output.finish_reason
        delta.finish_reason = "tool_calls" if reason == "stop" and self.called else reason
        return delta

    def _put(self, delta: Delta, parts: Iterable[Text | CallStart | CallArguments]) -> None:
        for part in parts:
            if isinstance(part, Text):
                delta.text += part.text
            elif part.index and not self._parallel:
                continue
            elif isinstance(part, CallStart):
                self.called = True
                function = {"name": part.name, "arguments": ""}
                delta.calls.append(
                    {
                        "index": part.index,
                        "id": f"call_{uuid.uuid4().hex[:24]}",
                        "type": "function",
                        "function": function,
                    }
                )
            else:
                delta.calls.append({"index": part.index, "function": {"arguments": part.fragment}})


def joined_calls(pieces: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Whole calls out of their pieces.

    >>> start = {"index": 0, "id": "a", "function": {"name": "f", "arguments": ""}}
    >>> joined_calls([start, {"index": 0, "function": {"arguments": "{}"}}])
    [{'id': 'a', 'type': 'function', 'function': {'name': 'f', 'arguments': '{}'}}]
    """
    calls: dict[int, dict[str, Any]] = {}
    for piece in pieces:
        if "id" in piece:
            calls[piece["index"]] = {
                "id": piece["id"],
                "type": "function",
                "function": dict(piece["function"]),
            }
        else:
            calls[piece["index"]]["function"]["arguments"] += piece["function"]["arguments"]
    return [*calls.values()]


def logprob_of(tokenizer: Tokenizer, output: Output) -> dict[str, Any]:
    """In the form of chats: text, bytes and log-probability of a token and of the likeliest."""
    assert output.token_id is not None and output.logprob is not None
    top = [_entry(tokenizer, token, value) for token, value in output.top_logprobs or ()]
    return {**_entry(tokenizer, output.token_id, output.logprob), "top_logprobs": top}


def _entry(tokenizer: Tokenizer, token: int, logprob: float) -> dict[str, Any]:
    content = tokenizer.token_bytes(token, skip_special=False)
    return {
        "token": content.decode("utf-8", "replace"),
        "logprob": bounded(logprob),
        "bytes": [*content],
    }


def bounded(logprob: float) -> float:
    """As JSON can hold it."""
    return max(logprob, LEAST_LOGPROB)
