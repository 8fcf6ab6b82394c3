"""Requests in the engine, as asynchronous streams of what they give."""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from l4kernels.engine.core import NoNextToken
from l4kernels.engine.engine import Engine, EngineClosed, Stream
from l4kernels.engine.request import Output, Request
from l4kernels.server.errors import ApiError, server_error, shutting_down
from l4kernels.server.metrics import Metrics
from l4kernels.server.schemas import GrammarError

LOG = logging.getLogger("l4kernels.server")


class Outbox:
    """Brings what the engine's thread has to say to the event loop, all of a step at one waking."""

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self._loop = loop
        self._lock = threading.Lock()
        self._waiting: deque[tuple[Callable[[Any], None], Any]] = deque()

    def post(self, deliver: Callable[[Any], None], item: Any) -> None:
        """Has the loop call `deliver(item)`; from any thread, and without waiting."""
        with self._lock:
            first = not self._waiting
            self._waiting.append((deliver, item))
        if first:
            try:
                self._loop.call_soon_threadsafe(self._deliver)
            except RuntimeError:  # the loop is closed: nobody listens any more
                self._waiting.clear()

    def _deliver(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, deque()
        for deliver, item in waiting:
            deliver(item)


class Piece(NamedTuple):
    """An output of one of the requests that are made together."""

    request: int
    output: Output


class Nudge:
    """Comes between outputs when there has been none for a while."""


class Generation:
    """Requests that are made together, and their outputs in the order in which they come.

    Iterate over it, in the event loop: pieces, and a `Nudge` after each `nudge`. It raises
    `ApiError` where a request fails or takes too long. In any case it has to be closed, which ends
    what is still running.
    """

    def __init__(self, engine: Engine, outbox: Outbox, metrics: Metrics, seconds: float):
        self._engine, self._outbox, self._metrics = engine, outbox, metrics
        self._queue: asyncio.Queue[Piece | BaseException | Nudge | None] = asyncio.Queue()
        self._lock = threading.Lock()
        self._streams: list[Stream] = []
        self._left = 0
        self._closed = False
        self._failure: ApiError | None = None
        self._started = time.monotonic()
        self._last: dict[tuple[int, int], float] = {}
        self.loop = asyncio.get_running_loop()
        self._expiry = self.loop.call_later(seconds, self._expire, seconds)

    def start(self, requests: Sequence[Request]) -> None:
        """Hands the requests to the engine; from any thread, since it reads their prompts.

        Raises:
            ValueError: a request that the engine refuses.
            ApiError: the engine takes no more.
        """
        self._left = len(requests)
        for index, request in enumerate(requests):
            own = replace(
                request,
                on_output=partial(self._post, index),
                on_end=lambda error: self._outbox.post(self._end, error),
            )
            try:
                stream = self._engine.add(own)
            except EngineClosed:
                raise shutting_down() from None
            with self._lock:
                self._streams.append(stream)
                closed = self._closed
            if closed:  # while this thread was at it
                self._engine.cancel(stream)
                return

    def _post(self, index: int, output: Output) -> None:
        self._outbox.post(self._take, Piece(index, output))

    def _take(self, piece: Piece) -> None:
        if piece.output.token_id is not None:
            key, now = (piece.request, piece.output.sample), time.monotonic()
            before = self._last.get(key)
            self._last[key] = now
            if before is None:
                self._metrics.first_token.observe(now - self._started)
            else:
                self._metrics.between_tokens.observe(now - before)
        self._queue.put_nowait(piece)

    def _end(self, error: BaseException | None) -> None:
        self._left -= 1
        if error is not None:
            self._queue.put_nowait(error)
        elif not self._left:
            self._queue.put_nowait(None)

    def _expire(self, seconds: float) -> None:
        self.fail(
            ApiError(
                408,
                f"the request took longer than the {seconds:g} seconds that this server allows; "
                f"ask for fewer tokens",
                code="request_timeout",
                type="server_error",
                headers={"x-should-retry": "false"},
            )
        )

    @property
    def cached_tokens(self) -> int:
        """Of all prompts together, found in the cache, once outputs have come."""
        return sum(stream.cached_tokens for stream in self._streams)

    def nudge(self) -> None:
        self._queue.put_nowait(Nudge())

    def fail(self, error: ApiError) -> None:
        """Ends the iteration with an error."""
        self._failure = error
        self._queue.put_nowait(error)

    def check_wanted(self) -> None:
        """Raises the error with which it ended, before it began; from any thread, between parts of
        work that takes long."""
        if self._failure is not None:
            raise self._failure
        if self._closed:
            raise shutting_down()  # which nobody reads: the client left

    def __aiter__(self) -> AsyncIterator[Piece | Nudge]:
        return self

    async def __anext__(self) -> Piece | Nudge:
        item = await self._queue.get()
        if item is None:
            raise StopAsyncIteration
        if isinstance(item, (Piece, Nudge)):
            return item
        raise _for_client(item)

    def close(self) -> None:
        """Ends what is running: the pages of its tokens are free before the engine's next step."""
        self._expiry.cancel()
        with self._lock:
            self._closed = True
            streams = [*self._streams]
        for stream in streams:
            self._engine.cancel(stream)
        self._metrics.duration.observe(time.monotonic() - self._started)


def _for_client(error: BaseException) -> ApiError:
    if isinstance(error, ApiError):
        return error
    if isinstance(error, EngineClosed):
        return shutting_down()
    if isinstance(error, GrammarError):
        return ApiError(400, str(error), param="response_format")
    if isinstance(error, NoNextToken):
        return server_error("the model gave no next token: its logits are not numbers")
    LOG.error("the engine failed at a request", exc_info=error)
    return server_error("the engine failed at this request")
