"""`/v1/responses`: the text of OpenAI's newer API, whose tokens are a chat's."""

import time
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

from l4kernels.server.chat import ChatAnswer
from l4kernels.server.deltas import Delta
from l4kernels.server.errors import ApiError
from l4kernels.server.generation import Generation, Nudge
from l4kernels.server.protocol.responses import NamedFunctionChoice, ResponseRequest
from l4kernels.server.response_inputs import ChatOfResponse
from l4kernels.server.service import Service
from l4kernels.server.streams import HEARTBEAT, event


class ResponseAnswer:
    """The answer to one request: `begin` it, then ask for it `whole`, or for its `events`."""

    def __init__(self, service: Service, body: ResponseRequest, key: str):
        self._service, self._body = service, body
        self._asked = ChatOfResponse(body)
        try:
            self._chat = ChatAnswer(service, self._asked.chat(), key)
        except ApiError as error:
            raise self._asked.renamed(error) from None
        self._created = int(time.time())
        self._id = f"resp_{uuid.uuid4().hex}"
        self._output = _Output()
        self._sent = 0

    async def begin(self) -> None:
        try:
            await self._chat.begin()
        except ApiError as error:
            raise self._asked.renamed(error) from None

    def close(self) -> None:
        self._chat.close()

    @property
    def generation(self) -> Generation:
        return self._chat.generation

    async def whole(self) -> dict[str, Any]:
        """A `response`."""
        async for _ in self._changes():
            pass
        return self._ended()

    async def events(self) -> AsyncIterator[bytes]:
        for kind in ("response.created", "response.in_progress"):
            yield self._event({"type": kind, "response": self._response("in_progress")})
        async for change in self._changes():
            yield HEARTBEAT if isinstance(change, Nudge) else self._event(change)
        ended = self._ended()
        yield self._event({"type": f"response.{ended['status']}", "response": ended})

    def failed(self, error: ApiError) -> bytes:
        """The last event of a stream that failed."""
        why = {"code": "server_error", "message": error.message}
        response = self._response("failed", error=why)
        return self._event({"type": "response.failed", "response": response})

    async def _changes(self) -> AsyncIterator[dict[str, Any] | Nudge]:
        """Events of the output, without their numbers."""
        async for item in self._chat.deltas():
            if isinstance(item, Nudge):
                yield item
                continue
            for change in self._output.push(item[1]):
                yield change

    def _event(self, value: dict[str, Any]) -> bytes:
        numbered = {**value, "sequence_number": self._sent}
        self._sent += 1
        return event(numbered, value["type"])

    def _ended(self) -> dict[str, Any]:
        used = self._chat.usage()
        cached = used["prompt_tokens_details"]["cached_tokens"]
        usage = {
            "input_tokens": used["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
            "output_tokens": used["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": used["total_tokens"],
        }
        if self._output.cut:
            why = {"reason": "max_output_tokens"}
            return self._response("incomplete", usage=usage, incomplete_details=why)
        return self._response("completed", usage=usage, completed_at=int(time.time()))

    def _response(self, status: str, **more: Any) -> dict[str, Any]:
        body, defaults = self._body, self._service.defaults
        text, choice = body.text, body.tool_choice
        form = {"type": "text"}
        if text is not None and text.format is not None:
            form = text.format.model_dump(by_alias=True)
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "background": False,
            "completed_at": None,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": self._service.options.model_name,
            "output": [*self._output.items],
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "store": False,
            "temperature": defaults.temperature if body.temperature is None else body.temperature,
            "text": {"format": form},
            "tool_choice": choice.model_dump()
            if isinstance(choice, NamedFunctionChoice)
            else choice or "auto",
            "tools": [tool.model_dump() for tool in body.tools or ()],
            "top_p": defaults.top_p if body.top_p is None else body.top_p,
            "truncation": "disabled",
            "usage": None,
            "user": body.user,
            **more,
        }


class _Output:
    """The items of an answer, one after the other, and the events of their growing.

    `items` are those that are done; `cut`, at the end, whether it came for the answer's length.
    """

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        self.cut = False
        self._open: dict[str, Any] | None = None
        self._pieces: list[str] = []

    def push(self, delta: Delta) -> Iterator[dict[str, Any]]:
        if delta.text:
            if self._open is None or self._open["type"] != "message":
                yield from self._begin(_new_message())
            yield from self._grow(delta.text)
        for piece in delta.calls:
            if "id" in piece:
                yield from self._begin(_new_call(piece))
            yield from self._grow(piece["function"]["arguments"])
        if delta.finish_reason is not None:
            if self._open is None and not self.items:  # not a word
                yield from self._begin(_new_message())
            self.cut = delta.finish_reason == "length"
            yield from self._finish("incomplete" if self.cut else "completed")

    def _begin(self, item: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield from self._finish("completed")
        self._open, self._pieces = item, []
        yield self._event("response.output_item.added", item=item)
        if item["type"] == "message":
            yield self._event("response.content_part.added", part=_text(""))

    def _grow(self, piece: str) -> Iterator[dict[str, Any]]:
        if not piece:
            return
        assert self._open is not None
        self._pieces.append(piece)
        if self._open["type"] == "message":
            yield self._event("response.output_text.delta", delta=piece, logprobs=[])
        else:
            yield self._event("response.function_call_arguments.delta", delta=piece)

    def _finish(self, status: str) -> Iterator[dict[str, Any]]:
        if self._open is None:
            return
        whole, item = "".join(self._pieces), {**self._open, "status": status}
        if item["type"] == "message":
            item["content"] = [_text(whole)]
            yield self._event("response.output_text.done", text=whole, logprobs=[])
            yield self._event("response.content_part.done", part=_text(whole))
        else:
            item["arguments"] = whole
            kind = "response.function_call_arguments.done"
            yield self._event(kind, name=item["name"], arguments=whole)
        yield self._event("response.output_item.done", item=item)
        self.items.append(item)
        self._open = None

    def _event(self, kind: str, **more: Any) -> dict[str, Any]:
        """Of the item that is open."""
        assert self._open is not None
        place: dict[str, Any] = {"output_index": len(self.items)}
        if "item" not in more:
            place["item_id"] = self._open["id"]
            if self._open["type"] == "message":
                place["content_index"] = 0
        return {"type": kind, **place, **more}


def _new_message() -> dict[str, Any]:
    own = f"msg_{uuid.uuid4().hex}"
    return {
        "type": "message",
        "id": own,
        "status": "in_progress",
        "role": "assistant",
        "content": [],
    }


def _new_call(piece: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "function_call",
        "id": f"fc_{uuid.uuid4().hex}",
        "status": "in_progress",
        "call_id": piece["id"],
        "name": piece["function"]["name"],
        "arguments": "",
    }


def _text(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
