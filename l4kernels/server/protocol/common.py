"""What requests for chats and for completions share."""

import json
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError
from typing_extensions import Self

MAX_TEXT = 16 << 20
Text = Annotated[str, Field(max_length=MAX_TEXT)]
Name = Annotated[str, Field(min_length=1, max_length=64)]
Seed = Annotated[int, Field(ge=-(1 << 63), le=(1 << 63) - 1)]
TokenId = Annotated[int, Field(ge=0, le=1 << 31)]
StopString = Annotated[str, Field(min_length=1, max_length=256)]
Bias = Annotated[float, Field(ge=-100, le=100)]
TokenKey = Annotated[str, Field(max_length=12, pattern="^[0-9]+$")]
MAX_LEVELS = 64
MAX_VALUES = 1 << 16
MAX_ERRORS = 1024


def _checked(value: dict[str, Any]) -> dict[str, Any]:
    level: list[Any] = [value]
    count = 0
    for _ in range(MAX_LEVELS):
        count += sum(map(len, level))
        if count > MAX_VALUES:  # before a walk that would hold up the event loop
            limit = {"values": MAX_VALUES}
            raise PydanticCustomError("json", "expected at most {values} values in JSON", limit)
        inner = (one.values() if isinstance(one, dict) else one for one in level)
        level = [one for values in inner for one in values if isinstance(one, (dict, list))]
    if level:
        limit = {"levels": MAX_LEVELS}
        raise PydanticCustomError("json", "expected at most {levels} levels of JSON", limit)
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except ValueError:
        message = "expected JSON, without NaN, Infinity or halves of Unicode characters"
        raise PydanticCustomError("json", message) from None
    return value


AnyObject = Annotated[dict[str, Any], AfterValidator(_checked)]
"""JSON that nothing here looks into, but that can be written again for model and client."""


class Message(BaseModel):
    """A part of a request. A field that is not known is refused, so that none is ignored in
    silence; one that is null asks for nothing, known or not; numbers are numbers, and not NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        return {name: value for name, value in fields.items() if value is not None}


class Body(Message):
    """All of a request. Millions of wrong entries are one error: to explain each takes the event
    loop half a minute."""

    @model_validator(mode="wrap")
    @classmethod
    def _explainable(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(value)
        except ValidationError as error:
            if error.error_count() <= MAX_ERRORS:
                raise
        limit = {"errors": MAX_ERRORS}
        raise PydanticCustomError("errors", "more than {errors} values are wrong", limit)


class StreamOptions(Message):
    include_usage: bool = False
    continuous_usage_stats: bool = False
    """vLLM's: with every chunk, of what came by then."""
    include_obfuscation: bool = False
    """Accepted; nothing is obfuscated."""


class SampledRequest(Body):
    """How tokens are chosen. What is left out, the checkpoint's `generation_config.json` says."""

    model: str | None = Field(None, max_length=4096)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=8)] | None = 1
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Seed | None = None
    stop: StopString | Annotated[list[StopString], Field(max_length=16)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = 0.0
    logit_bias: Annotated[dict[TokenKey, Bias], Field(max_length=1024)] | None = None
    user: str | None = Field(None, max_length=4096)
    """Accepted, and used for nothing."""

    # vLLM's names for what OpenAI's interface lacks.
    top_k: Annotated[int, Field(ge=-1, le=1 << 30)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.001, le=1000)] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=1 << 30)] = 0
    stop_token_ids: Annotated[list[TokenId], Field(max_length=64)] | None = None
    ignore_eos: bool = False
    cache_salt: Annotated[str, Field(max_length=256)] | None = None

    @property
    def usage_of_stream(self) -> Literal["end", "each"] | None:
        """Where a stream says how many tokens there were: at its end, or with each chunk, too."""
        asked = self.stream_options
        if asked is None or not asked.include_usage:
            return None
        return "each" if asked.continuous_usage_stats else "end"

    def stop_strings(self) -> list[str]:
        if self.stop is None:
            return []
        return [self.stop] if isinstance(self.stop, str) else self.stop

    def sampling(self) -> dict[str, Any]:
        """Fields of `Sampling` that the request sets."""
        given: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("temperature", "top_p", "min_p", "seed", "repetition_penalty")
            if getattr(self, name) is not None
        }
        if self.top_k is not None:
            given["top_k"] = max(self.top_k, 0)
        if self.min_tokens:
            given["min_tokens"] = self.min_tokens
        given["presence_penalty"] = self.presence_penalty or 0.0
        given["frequency_penalty"] = self.frequency_penalty or 0.0
        given["logit_bias"] = {int(key): bias for key, bias in (self.logit_bias or {}).items()}
        return given


class ErrorObject(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """What comes with every status but 200."""

    error: ErrorObject
