"""`/v1/chat/completions`."""

from typing import Annotated, Any, Literal

from pydantic import Field

from l4kernels.server.protocol.common import AnyObject, Body, Message, Name, SampledRequest, Text

Url = Annotated[str, Field(max_length=64 << 20)]
FunctionName = Annotated[str, Field(pattern="^[A-Za-z0-9_.-]{1,64}$")]


class Marked(Message):
    cache_control: AnyObject | None = None
    """Accepted: beginnings that repeat are kept whether they are marked or not."""


class TextPart(Marked):
    type: Literal["text"]
    text: Text


class RefusalPart(Message):
    type: Literal["refusal"]
    refusal: Text


class ImageUrl(Message):
    url: Url
    detail: Literal["auto", "low", "high", "original"] | None = None
    """Accepted: the checkpoint's image processor decides."""


class ImagePart(Marked):
    type: Literal["image_url"]
    image_url: ImageUrl


class VideoUrl(Message):
    url: Url


class VideoPart(Marked):
    type: Literal["video_url"]
    video_url: VideoUrl
    frames: Annotated[int, Field(ge=1, le=32)] | None = None
    """How many frames to take, evenly; the server's default is 8."""


Part = Annotated[TextPart | ImagePart | VideoPart, Field(discriminator="type")]
Spoken = Annotated[TextPart | RefusalPart, Field(discriminator="type")]
Texts = Annotated[list[TextPart], Field(fail_fast=True, min_length=1, max_length=1024)]


class Turn(Marked):
    """What a message of any role may have."""

    name: Name | None = None
    type: Literal["text", "message"] | None = None
    """Accepted: the first is lm-eval's, the second of the newer protocol."""


class SystemMessage(Turn):
    role: Literal["system", "developer"]
    content: Text | Texts


class UserMessage(Turn):
    role: Literal["user"]
    content: Text | Annotated[list[Part], Field(fail_fast=True, min_length=1, max_length=1024)]


class FunctionCall(Message):
    name: FunctionName
    arguments: Text


class ToolCall(Message):
    id: str = Field(max_length=256)
    type: Literal["function"] = "function"
    function: FunctionCall
    index: Annotated[int, Field(ge=0)] | None = None
    """Accepted: clients that put chunks together leave it there."""


class AssistantMessage(Turn):
    role: Literal["assistant"]
    content: (
        Text | Annotated[list[Spoken], Field(fail_fast=True, min_length=1, max_length=1024)] | None
    ) = None
    refusal: Text | None = None
    tool_calls: Annotated[list[ToolCall], Field(fail_fast=True, max_length=128)] | None = None

    # Accepted: clients send answers back as they came, those of other models, too.
    annotations: list[Any] | None = None
    reasoning: Text | None = None
    reasoning_content: Text | None = None
    """Templates leave out the thoughts of turns that are over; Llama 4 has none."""


class ToolMessage(Turn):
    role: Literal["tool"]
    content: Text | Texts
    tool_call_id: str = Field(max_length=256)


AnyMessage = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")
]


class FunctionTool(Message):
    name: FunctionName
    description: Text | None = None
    parameters: AnyObject | None = None
    strict: bool | None = None
    """Accepted. The arguments of a call that is forced are always of the schema."""


class Tool(Marked):
    type: Literal["function"]
    function: FunctionTool


class NamedFunction(Message):
    name: FunctionName


class NamedChoice(Message):
    type: Literal["function"]
    function: NamedFunction


class TextFormat(Message):
    type: Literal["text"]


class JsonObject(Message):
    type: Literal["json_object"]


class Schema(Message):
    name: Annotated[str, Field(pattern="^[A-Za-z0-9_-]{1,64}$")]
    description: Text | None = None
    schema_: AnyObject = Field(default_factory=dict, alias="schema")
    strict: bool | None = None
    """Accepted: answers are always of the schema."""


class JsonSchema(Message):
    type: Literal["json_schema"]
    json_schema: Schema


ResponseFormat = Annotated[TextFormat | JsonObject | JsonSchema, Field(discriminator="type")]


class ChatRequest(SampledRequest):
    messages: Annotated[list[AnyMessage], Field(fail_fast=True, min_length=1, max_length=4096)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(fail_fast=True, max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | None = None
    parallel_tool_calls: bool | None = True
    modalities: list[Literal["text"]] | None = None

    # Accepted, because they change nothing of the answer.
    store: bool | None = None
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = None
    service_tier: str | None = Field(None, max_length=64)
    safety_identifier: str | None = Field(None, max_length=256)
    prompt_cache_key: str | None = Field(None, max_length=256)

    # vLLM's: end within the last message, for the model to go on there.
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False

    @property
    def limit(self) -> int | None:
        """The tokens of an answer that it asks for."""
        if self.max_completion_tokens is not None:
            return self.max_completion_tokens
        return self.max_tokens


class TokenizeRequest(Body):
    """`/tokenize`: of a text, or of a chat."""

    model: str | None = Field(None, max_length=4096)
    prompt: Text | None = None
    messages: (
        Annotated[list[AnyMessage], Field(fail_fast=True, min_length=1, max_length=4096)] | None
    ) = None
    tools: Annotated[list[Tool], Field(fail_fast=True, max_length=128)] | None = None
    add_special_tokens: bool = True
    """Whether a text begins with the begin-of-text token."""
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    return_token_strs: bool = False
