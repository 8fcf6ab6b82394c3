"""`/v1/completions`."""

from typing import Annotated

from pydantic import Field

from l4kernels.server.protocol.common import Body, SampledRequest, Text, TokenId

Tokens = Annotated[list[TokenId], Field(fail_fast=True, min_length=1, max_length=16 << 20)]
"""The first that is wrong is reported: an error for each of millions takes gigabytes."""


class CompletionRequest(SampledRequest):
    prompt: (
        Text
        | Tokens
        | Annotated[list[Text], Field(fail_fast=True, min_length=1, max_length=64)]
        | Annotated[list[Tokens], Field(fail_fast=True, min_length=1, max_length=64)]
    )
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    """16 unless given, as at OpenAI; 0 with `echo`: only the prompt."""
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = False
    best_of: Annotated[int, Field(ge=1, le=8)] | None = None
    """Only as many as `n`."""
    suffix: str | None = None
    """Refused unless it is empty: the models are not trained to fill in."""

    def prompts(self) -> list[str] | list[list[int]]:
        given = self.prompt
        if isinstance(given, str):
            return [given]
        if isinstance(given[0], int):
            return [given]
        return given


class DetokenizeRequest(Body):
    model: str | None = Field(None, max_length=4096)
    tokens: Annotated[list[TokenId], Field(fail_fast=True, max_length=16 << 20)]
