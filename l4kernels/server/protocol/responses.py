"""`/v1/responses`."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from l4kernels.server.protocol.chat import (
    FunctionName,
    JsonObject,
    RefusalPart,
    Schema,
    TextFormat,
    Url,
)
from l4kernels.server.protocol.common import AnyObject, Body, Message, Text

Id = Annotated[str, Field(max_length=256)]
MetadataKey = Annotated[str, Field(max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]


class InputText(Message):
    type: Literal["input_text"]
    text: Text


class InputImage(Message):
    type: Literal["input_image"]
    image_url: Url
    detail: Literal["auto", "low", "high", "original"] | None = None
    """Accepted: the checkpoint's image processor decides."""


class OutputText(Message):
    type: Literal["output_text"]
    text: Text
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None
    """Accepted, as annotations are: clients send answers back as they came."""


InputTexts = Annotated[list[InputText], Field(fail_fast=True, min_length=1, max_length=1024)]
InputPart = Annotated[InputText | InputImage, Field(discriminator="type")]
OutputPart = Annotated[OutputText | RefusalPart, Field(discriminator="type")]


class Item(Message):
    id: Id | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None


class SystemInput(Item):
    type: Literal["message"] = "message"
    role: Literal["system", "developer"]
    content: Text | InputTexts


class UserInput(Item):
    type: Literal["message"] = "message"
    role: Literal["user"]
    content: Text | Annotated[list[InputPart], Field(fail_fast=True, min_length=1, max_length=1024)]


class AssistantInput(Item):
    type: Literal["message"] = "message"
    role: Literal["assistant"]
    content: (
        Text | Annotated[list[OutputPart], Field(fail_fast=True, min_length=1, max_length=1024)]
    )
    phase: Literal["commentary", "final_answer"] | None = None


class FunctionCallInput(Item):
    type: Literal["function_call"]
    call_id: Id
    name: FunctionName
    arguments: Text


class FunctionCallOutput(Item):
    type: Literal["function_call_output"]
    call_id: Id
    output: Text | InputTexts


def _kind(item: Any) -> str | None:
    """Messages need not name their type."""
    if not isinstance(item, dict):
        return None
    kind = item.get("type", "message")
    kind = item.get("role") if kind == "message" else kind
    return kind if isinstance(kind, str) else None


InputItem = Annotated[
    Annotated[UserInput, Tag("user")]
    | Annotated[AssistantInput, Tag("assistant")]
    | Annotated[SystemInput, Tag("system")]
    | Annotated[SystemInput, Tag("developer")]
    | Annotated[FunctionCallInput, Tag("function_call")]
    | Annotated[FunctionCallOutput, Tag("function_call_output")],
    Discriminator(
        _kind,
        custom_error_type="unsupported",
        custom_error_message="expected a message with the role user, assistant, system or "
        "developer, a function_call or a function_call_output; this server supports no other items",
    ),
]


class FunctionTool(Message):
    type: Literal["function"]
    name: FunctionName
    description: Text | None = None
    parameters: AnyObject | None = None
    strict: bool | None = None
    """Accepted. The arguments of a call that is forced are always of the schema."""


class NamedFunctionChoice(Message):
    type: Literal["function"]
    name: FunctionName


class JsonSchemaFormat(Schema):
    type: Literal["json_schema"]


class TextConfig(Message):
    format: (
        Annotated[TextFormat | JsonObject | JsonSchemaFormat, Field(discriminator="type")] | None
    ) = None


class ResponseStreamOptions(Message):
    include_obfuscation: bool = False
    """Accepted; nothing is obfuscated."""


class ResponseRequest(Body):
    """What is left out of how tokens are chosen, the checkpoint's `generation_config.json` says."""

    model: str | None = Field(None, max_length=4096)
    input: Text | Annotated[list[InputItem], Field(fail_fast=True, min_length=1, max_length=4095)]
    instructions: Text | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    text: TextConfig | None = None
    tools: Annotated[list[FunctionTool], Field(fail_fast=True, max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedFunctionChoice | None = None
    parallel_tool_calls: bool | None = True
    stream: bool | None = False
    stream_options: ResponseStreamOptions | None = None
    truncation: Literal["disabled"] | None = None

    # Accepted, because they change nothing of the answer.
    store: bool | None = None
    """Nothing is stored, and the answer says so."""
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)] | None = None
    user: str | None = Field(None, max_length=4096)
    service_tier: str | None = Field(None, max_length=64)
    safety_identifier: str | None = Field(None, max_length=256)
    prompt_cache_key: str | None = Field(None, max_length=256)
    background: Literal[False] | None = None
