"""What answers of all routes have in common: their room in the engine, their head, their usage."""

import time
import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Generic, Protocol, TypeVar

from l4kernels.server.errors import ApiError
from l4kernels.server.generation import Generation
from l4kernels.server.service import Service
from l4kernels.server.streams import event


class Counted(Protocol):
    """One of the choices of an answer."""

    tokens: int


_Choice = TypeVar("_Choice", bound=Counted)


class EngineAnswer(Generic[_Choice]):
    """The answer to one request, from the moment when there is room for it until it is closed.

    Args:
        prefix: of its id.
        choices: as many as are asked for.
    """

    generation: Generation

    def __init__(self, service: Service, prefix: str, choices: Sequence[_Choice]):
        self._service, self.choices = service, choices
        self._stack = ExitStack()
        self._id, self._created = f"{prefix}-{uuid.uuid4().hex}", int(time.time())
        self.prompt_tokens = 0

    def admit(self) -> None:
        """Takes room for all choices; raises `ApiError` if there is none."""
        self.generation = self._stack.enter_context(self._service.admitted(len(self.choices)))

    def close(self) -> None:
        """Ends what still runs, and gives the room back."""
        self._stack.close()

    def usage(self) -> dict[str, Any]:
        new = sum(choice.tokens for choice in self.choices)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": new,
            "total_tokens": self.prompt_tokens + new,
            "prompt_tokens_details": {"cached_tokens": self.generation.cached_tokens},
        }

    def failed(self, error: ApiError) -> bytes:
        """The last event of a stream that failed."""
        return event(error.body())

    def head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._service.options.model_name,
            "system_fingerprint": self._service.fingerprint,
        }
