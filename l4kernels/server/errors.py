"""What a client is told when a request fails: OpenAI's error objects."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class ApiError(Exception):
    """An answer with an error object.

    Args:
        status: of HTTP.
        message: for people; it holds nothing of the server's own, such as paths.
        param: the field of the request that is wrong.
        code: for programs.
        type: of the error, as OpenAI names them.
        headers: of the answer.

    >>> ApiError(400, "expected a number", param="top_p").body()["error"]["param"]
    'top_p'
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        type: str = "invalid_request_error",
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message = status, message
        self.param, self.code, self.type = param, code, type
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }


def context_exceeded(context: int, prompt: int | None, answer: int, param: str) -> ApiError:
    """The prompt, of so many tokens if they were counted, and the answer do not fit."""
    asked = (
        f"the prompt has {prompt} tokens and {answer} new ones were asked for"
        if prompt is not None
        else "the prompt has more"
    )
    return ApiError(
        400,
        f"This model's maximum context length is {context} tokens, and {asked}; shorten the "
        f"messages or ask for fewer",
        param=param,
        code="context_length_exceeded",
    )


def unusable(error: Exception, folder: Path, param: str | None = None) -> ApiError:
    """What came with a request cannot be used; errors of a checkpoint's files name its folder,
    which is nobody's business."""
    return ApiError(400, str(error).replace(str(folder), "the model"), param=param)


def server_error(message: str, status: int = 500, code: str | None = None) -> ApiError:
    """Not the client's fault. Clients that try again by themselves are told not to."""
    return ApiError(
        status, message, code=code, type="server_error", headers={"x-should-retry": "false"}
    )


def shutting_down() -> ApiError:
    return ApiError(
        503,
        "the server is shutting down",
        type="server_error",
        code="shutting_down",
        headers={"Retry-After": "10", "Connection": "close"},
    )
