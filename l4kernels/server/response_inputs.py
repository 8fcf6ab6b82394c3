"""Requests for `/v1/responses` as requests for chats."""

from typing import Any

from l4kernels.server.errors import ApiError
from l4kernels.server.protocol.chat import ChatRequest
from l4kernels.server.protocol.responses import (
    AssistantInput,
    FunctionCallInput,
    FunctionCallOutput,
    JsonSchemaFormat,
    NamedFunctionChoice,
    ResponseRequest,
    SystemInput,
    UserInput,
)

MAX_CALLS = 128
"""Of one message of a chat."""


class ChatOfResponse:
    """A request as that for a chat, whose errors it gives the names of this API."""

    def __init__(self, body: ResponseRequest):
        self._body = body
        self._messages: list[dict[str, Any]] = []
        self._names = {
            "messages": "input",
            "max_completion_tokens": "max_output_tokens",
            "max_tokens": "max_output_tokens",
            "response_format": "text.format",
        }
        if body.instructions is not None:
            self._add("instructions", {"role": "system", "content": body.instructions})
        if isinstance(body.input, str):
            self._add("input", {"role": "user", "content": body.input})
            return
        calling = False
        for index, item in enumerate(body.input):
            if isinstance(item, FunctionCallInput):
                self._add_call(f"input.{index}", item, calling)
            else:
                self._add(f"input.{index}", _message(item))
            calling = isinstance(item, (AssistantInput, FunctionCallInput))

    def _add(self, name: str, message: dict[str, Any]) -> None:
        self._names[f"messages.{len(self._messages)}"] = name
        self._messages.append(message)

    def _add_call(self, name: str, item: FunctionCallInput, calling: bool) -> None:
        """A turn of the assistant is one message of a chat, of its text and all its calls."""
        if not calling:
            self._add(name, {"role": "assistant"})
        calls = self._messages[-1].setdefault("tool_calls", [])
        if len(calls) == MAX_CALLS:
            raise ApiError(400, f"expected at most {MAX_CALLS} calls in one turn", param=name)
        place = f"messages.{len(self._messages) - 1}.tool_calls.{len(calls)}"
        self._names[place] = self._names[f"{place}.function"] = name
        function = {"name": item.name, "arguments": item.arguments}
        calls.append({"id": item.call_id, "type": "function", "function": function})

    def chat(self) -> ChatRequest:
        body = self._body
        asked: dict[str, Any] = {
            "model": body.model,
            "messages": self._messages,
            "max_completion_tokens": body.max_output_tokens,
            "temperature": body.temperature,
            "top_p": body.top_p,
            "tool_choice": body.tool_choice,
            "parallel_tool_calls": body.parallel_tool_calls,
        }
        if isinstance(body.tool_choice, NamedFunctionChoice):
            asked["tool_choice"] = {
                "type": "function",
                "function": {"name": body.tool_choice.name},
            }
        if body.tools is not None:
            asked["tools"] = [
                {"type": "function", "function": tool.model_dump(exclude={"type"})}
                for tool in body.tools
            ]
        form = body.text.format if body.text is not None else None
        if isinstance(form, JsonSchemaFormat):
            schema = form.model_dump(by_alias=True, exclude={"type"})
            asked["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif form is not None:
            asked["response_format"] = form.model_dump()
        return ChatRequest.model_validate(asked)

    def renamed(self, error: ApiError) -> ApiError:
        error.message = error.message.replace("response_format", "text.format")
        head, rest = error.param or "", ""
        while head:
            if head in self._names:
                error.param = self._names[head] + rest
                break
            head, _, last = head.rpartition(".")
            rest = f".{last}{rest}"
        return error


def _message(item: UserInput | AssistantInput | SystemInput | FunctionCallOutput) -> dict[str, Any]:
    if isinstance(item, FunctionCallOutput):
        return {"role": "tool", "tool_call_id": item.call_id, "content": _content(item.output)}
    return {"role": item.role, "content": _content(item.content)}


def _content(content: Any) -> Any:
    if isinstance(content, str):
        return content
    parts: list[dict[str, Any]] = []
    for part in content:
        if part.type == "input_image":
            parts.append({"type": "image_url", "image_url": {"url": part.image_url}})
        elif part.type == "refusal":
            parts.append({"type": "refusal", "refusal": part.refusal})
        else:
            parts.append({"type": "text", "text": part.text})
    return parts
