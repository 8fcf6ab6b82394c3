"""What every request passes before it is looked at: its key, and the size of its body."""

import asyncio
import hmac
import json
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from l4kernels.server.errors import ApiError
from l4kernels.server.options import ServerOptions

OPEN = ("/", "/health")
"""Asked without a key: what supervisors ask, and the page in which one types the key."""

MAX_MARKS = 1 << 19
"""Objects, lists and fields of a body, at the most, by their brackets and colons: millions take
the event loop seconds to parse. Those in texts count, which a pass over the bytes cannot tell
apart."""


class Gate:
    """An ASGI middleware.

    It reads bodies whole, within their limits of size and time, so that what lies behind it never
    waits for a slow client; answers beyond them are 413 and 408, without a key 401.
    """

    def __init__(self, app: ASGIApp, options: ServerOptions):
        self._app, self._options = app, options
        self._keys = [key.encode() for key in options.api_keys]
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "HEAD":  # as GET; the server leaves the body out
            scope = {**scope, "method": "GET"}
        share, send = _Share(self), _counted(scope, send)
        try:
            body = await self._let_in(scope, receive, share)
        except ApiError as error:
            share.release()
            error.headers["Connection"] = "close"  # what is left of the body is in the way
            await refuse(send, error)
            return
        except ConnectionError:  # the client left
            share.release()
            return
        try:
            await self._app(scope, _replay(body, receive), send)
        finally:
            share.release()

    async def _let_in(self, scope: Scope, receive: Receive, share: "_Share") -> bytes:
        """The body of a request that is welcome."""
        headers = dict(scope["headers"])
        if scope["path"] not in OPEN:
            scope["l4k_key"] = self._check_key(headers)
        self._check_length(headers)
        try:
            reading = self._read(receive, share)
            body = await asyncio.wait_for(reading, self._options.body_seconds)
        except asyncio.TimeoutError:
            late = "the body of the request did not arrive in time"
            raise ApiError(408, late, code="request_timeout") from None
        if sum(map(body.count, (b"{", b"[", b":"))) > MAX_MARKS:
            raise ApiError(400, f"expected a body of at most {MAX_MARKS:,} brackets and colons")
        return body

    def _check_key(self, headers: dict[bytes, bytes]) -> str:
        """The key that came, where one is asked for."""
        if not self._keys:
            return ""
        kind, _, key = headers.get(b"authorization", b"").partition(b" ")
        given = key.strip() if kind.lower() == b"bearer" else b""
        # All are compared, so that the time says nothing.
        matches = [hmac.compare_digest(given, known) for known in self._keys]
        if not any(matches):
            raise ApiError(
                401,
                "expected an API key of this server as 'Authorization: Bearer KEY'",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return given.decode()

    def _check_length(self, headers: dict[bytes, bytes]) -> None:
        if b"content-length" in headers and b"transfer-encoding" in headers:
            # A proxy may go by the one and this server by the other: what follows this request
            # would be another client's for one of them.
            raise ApiError(400, "expected Content-Length or Transfer-Encoding, got both")
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 18:
            raise ApiError(400, "expected a Content-Length that is a number")
        if int(length) > self._options.max_body_bytes:
            raise self._too_large()

    def _too_large(self) -> ApiError:
        most = self._options.max_body_bytes
        return ApiError(
            413,
            f"expected a body of at most {most >> 20} MiB; scale images down",
            code="request_too_large",
        )

    async def _read(self, receive: Receive, share: "_Share") -> bytes:
        parts: list[bytes] = []
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ConnectionError
            parts.append(message.get("body", b""))
            share.take(len(parts[-1]))
            if share.size > self._options.max_body_bytes:
                raise self._too_large()
            if not message.get("more_body"):
                return b"".join(parts)

    def hold(self, size: int) -> None:
        if self._held + size > self._options.max_bodies_bytes:
            raise ApiError(
                429,
                "the server is reading as many large requests as it can; try again",
                code="rate_limit_exceeded",
                type="rate_limit_error",
                headers={"Retry-After": "2"},
            )
        self._held += size


class _Share:
    """Of the memory for bodies, what one request holds."""

    def __init__(self, gate: Gate):
        self._gate, self.size = gate, 0

    def take(self, size: int) -> None:
        self._gate.hold(size)
        self.size += size

    def release(self) -> None:
        self._gate.hold(-self.size)
        self.size = 0


def _counted(scope: Scope, send: Send) -> Send:
    """Counts the answer by its route, which is known once it has been looked for, and status."""

    async def counted(message: Message) -> None:
        if message["type"] == "http.response.start":
            route = getattr(scope.get("route"), "path", "none")
            answers = scope["app"].state.service.metrics.answers
            answers.labels(route, message["status"]).inc()
        await send(message)

    return counted


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body in one piece, then what the client does next."""
    whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return whole.pop() if whole else await receive()

    return replayed


async def refuse(send: Send, error: ApiError) -> None:
    """An error object as a whole answer."""
    content = json.dumps(error.body()).encode()
    headers: dict[str, Any] = {
        "content-type": "application/json",
        "content-length": str(len(content)),
        **error.headers,
    }
    await send(
        {
            "type": "http.response.start",
            "status": error.status,
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        }
    )
    await send({"type": "http.response.body", "body": content})
