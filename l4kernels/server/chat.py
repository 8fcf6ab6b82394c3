"""`/v1/chat/completions`: one answer, or a stream of its pieces."""

from collections.abc import AsyncIterator
from typing import Any

from l4kernels.engine.request import Request
from l4kernels.server.answers import EngineAnswer
from l4kernels.server.deltas import Choice, Delta, joined_calls
from l4kernels.server.errors import ApiError
from l4kernels.server.generation import Nudge
from l4kernels.server.prompts import slowest
from l4kernels.server.protocol.chat import ChatRequest
from l4kernels.server.service import Service, tool_names
from l4kernels.server.streams import DONE, HEARTBEAT, event


class ChatAnswer(EngineAnswer[Choice]):
    """The answer to one request: `begin` it, then ask for it `whole`, or for its `events`."""

    def __init__(self, service: Service, body: ChatRequest, key: str):
        names, parallel = tool_names(body), body.parallel_tool_calls is not False
        choices = [
            Choice(
                service.tokenizer,
                service.end_ids,
                tools=names,
                parallel=parallel,
                logprobs=bool(body.logprobs),
            )
            for _ in range(body.n or 1)
        ]
        super().__init__(service, "chatcmpl", choices)
        self._body, self._key = body, key

    async def begin(self) -> None:
        """Everything that can be refused is refused here, before an answer has begun."""
        body, service = self._body, self._service
        if body.top_logprobs and not body.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs = true", param="top_logprobs")
        self.admit()
        check, kind = self.generation.check_wanted, slowest(body.messages)
        request: Request = await service.in_thread(service.chat, body, self._key, check, kind=kind)
        self.prompt_tokens = len(request.prompt)
        await service.in_thread(service.start, self.generation, [request])

    async def deltas(self) -> AsyncIterator[tuple[int, Delta] | Nudge]:
        async for piece in self.generation:
            if isinstance(piece, Nudge):
                yield piece
                continue
            index = piece.output.sample
            yield index, self.choices[index].push(piece.output)

    async def whole(self) -> dict[str, Any]:
        """A `chat.completion`."""
        found = [Delta() for _ in self.choices]
        async for item in self.deltas():
            if isinstance(item, Nudge):
                continue
            index, delta = item
            found[index].text += delta.text
            found[index].calls += delta.calls
            found[index].logprobs += delta.logprobs
            found[index].finish_reason = delta.finish_reason or found[index].finish_reason
        return {
            **self.head("chat.completion"),
            "choices": [self._choice(index, delta) for index, delta in enumerate(found)],
            "usage": self.usage(),
        }

    def _choice(self, index: int, delta: Delta) -> dict[str, Any]:
        calls = joined_calls(delta.calls)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": delta.text if delta.text or not calls else None,
            "refusal": None,
        }
        if calls:
            message["tool_calls"] = calls
        return {
            "index": index,
            "message": message,
            "logprobs": self._logprobs(delta),
            "finish_reason": delta.finish_reason,
        }

    async def events(self) -> AsyncIterator[bytes]:
        """`chat.completion.chunk`s."""
        counted = self._body.usage_of_stream
        rest: dict[str, Any] = {"usage": None} if counted else {}
        head = self.head("chat.completion.chunk")
        first = {"role": "assistant", "content": "", "refusal": None}
        for index in range(len(self.choices)):
            yield event({**head, "choices": [_chunk(index, first)], **rest})
        async for item in self.deltas():
            if isinstance(item, Nudge):
                yield HEARTBEAT
                continue
            index, delta = item
            if not delta:
                continue
            new: dict[str, Any] = {}
            if delta.text:
                new["content"] = delta.text
            if delta.calls:
                new["tool_calls"] = delta.calls
            chunk = _chunk(index, new, self._logprobs(delta), delta.finish_reason)
            if counted == "each":
                rest = {"usage": self.usage()}
            yield event({**head, "choices": [chunk], **rest})
        if counted:
            yield event({**head, "choices": [], "usage": self.usage()})
        yield DONE

    def _logprobs(self, delta: Delta) -> dict[str, Any] | None:
        return {"content": delta.logprobs, "refusal": None} if self._body.logprobs else None


def _chunk(
    index: int,
    delta: dict[str, Any],
    logprobs: dict[str, Any] | None = None,
    finish_reason: str | None = None,
) -> dict[str, Any]:
    return {
        "index": index,
        "delta": delta,
        "logprobs": logprobs,
        "finish_reason": finish_reason,
    }
