"""Answers that take their time: event streams, and what becomes of them when the client leaves."""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

_Result = TypeVar("_Result")
DONE = b"data: [DONE]\n\n"
HEARTBEAT = b": still there\n\n"


def event(value: Any, name: str | None = None) -> bytes:
    """One event of a stream.

    >>> event({"a": 1})
    b'data: {"a":1}\\n\\n'
    """
    data = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {data}\n\n".encode("utf-8", "replace")


class ClientLeft(Exception):
    """Nobody waits for the answer any more."""


async def while_connected(request: Request, work: Coroutine[Any, Any, _Result]) -> _Result:
    """What `work` gives; it is cancelled when the client leaves.

    Raises:
        ClientLeft: it has.
    """
    task = asyncio.ensure_future(work)
    left = asyncio.ensure_future(_left(request.receive))
    try:
        await asyncio.wait({task, left}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientLeft
        return task.result()
    finally:
        await _cancel(task, left)


class EventStream(Response):
    """Events as they come, until the client leaves, or reads nothing for `stall_seconds` while the
    connection's buffer is full.

    Args:
        events: gives bytes.
        end: called when no more events are wanted, also if none ever was.
        stall_seconds: how long one write may wait for the client.
    """

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncGenerator[bytes, None], end: Callable[[], None], stall_seconds: float
    ):
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events, self._end, self._stall_seconds = events, end, stall_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sender = asyncio.ensure_future(self._send(send))
        left = asyncio.ensure_future(_left(receive))
        try:
            await asyncio.wait({sender, left}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _cancel(sender, left)
            await self._events.aclose()  # which runs nothing of a generator that has not begun
            self._end()
        failed = sender.done() and not sender.cancelled()
        error = sender.exception() if failed else None
        if error is not None and not isinstance(error, OSError):  # of a connection that broke
            raise error

    async def _send(self, send: Send) -> None:
        async def write(kind: str, **rest: Any) -> None:
            await self._in_time(send({"type": f"http.response.{kind}", **rest}))

        await write("start", status=self.status_code, headers=self.raw_headers)
        async for part in self._events:
            await write("body", body=part, more_body=True)
        await write("body", body=b"", more_body=False)

    async def _in_time(self, write: Awaitable[None]) -> None:
        """A write that waits for the client too long ends the stream. Most do not wait at all, so
        the clock is a plain callback."""
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()
        clock = loop.call_later(self._stall_seconds, task.cancel)
        try:
            await write
        finally:
            clock.cancel()


async def _left(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancel(*tasks: "asyncio.Future[Any]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
