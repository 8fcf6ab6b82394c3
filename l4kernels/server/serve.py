"""The server's process: it listens, and when it is asked to end it lets requests end first."""

import asyncio
import contextlib
import errno
import logging
import signal
import socket
from collections.abc import Iterator, Sequence

import uvicorn
from fastapi import FastAPI

from l4kernels.server.options import ServerOptions
from l4kernels.server.service import Service

LOG = logging.getLogger("l4kernels.server")
MAX_CONNECTIONS = 4096
_WATCH_SECONDS = 0.25


def taken(host: str, port: int) -> list[socket.socket]:
    """An address of this machine, to listen at later: nobody else has it from now on.

    Args:
        host: a name may have an address of each family.
        port: 0 is a free one.

    Raises:
        OSError: there is no such address here, or another program has it.
    """
    found: list[socket.socket] = []
    problem: OSError | None = None
    try:
        known = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, _, _, _, address in known:
            try:
                found.append(_bound(family, (address[0], port, *address[2:])))
                port = found[-1].getsockname()[1]
            except OSError as error:
                # A machine without IPv6 may still have names for its addresses.
                if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                    raise
                problem = error
        if problem is not None and not found:
            raise problem
    except OSError as error:
        for one in found:
            one.close()
        raise OSError(f"cannot listen at {host}, port {port}: {error.strerror}") from None
    return found


def _bound(family: int, address: tuple[str | int, ...]) -> socket.socket:
    one = socket.socket(family, socket.SOCK_STREAM)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind(address)
    except OSError:
        one.close()
        raise
    return one


class Server(uvicorn.Server):
    """uvicorn's, with another end: at SIGTERM or SIGINT `/health` says 503, requests that come are
    refused, those that run have `drain_seconds`, and then an error tells them why. A second
    signal ends them at once.

    Args:
        app: of `create_app`.
        options: the same as the app's.
        listeners: sockets of one port, as `taken` gives them.
    """

    def __init__(self, app: FastAPI, options: ServerOptions, listeners: Sequence[socket.socket]):
        self._app, self._options, self._listeners = app, options, [*listeners]
        config = uvicorn.Config(
            app,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_graceful_shutdown=5,
            server_header=False,
            ws="none",
            log_config=None,
            access_log=False,
        )
        super().__init__(config)
        self.failed = False
        """Whether the engine ended before the server did."""

    @property
    def _service(self) -> Service:
        service: Service = self._app.state.service
        return service

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        host, port = self._listeners[0].getsockname()[:2]
        return host, port

    async def startup(self, sockets: list | None = None) -> None:  # type: ignore[type-arg]
        await super().startup(sockets or self._listeners)
        if self.started:
            self._watch = asyncio.ensure_future(self._watch_engine())

    async def _watch_engine(self) -> None:
        """A server whose engine has failed ends, so that whatever started it can start another."""
        while not self.should_exit:
            await asyncio.sleep(_WATCH_SECONDS)
            if self._service.engine.closed is not None and not self.should_exit:
                LOG.error("the engine ended: %s", self._service.engine.closed)
                self.failed = self.should_exit = True

    async def shutdown(self, sockets: list | None = None) -> None:  # type: ignore[type-arg]
        if self.started:
            self._watch.cancel()
            await self._drain()
        await super().shutdown(sockets or self._listeners)
        if self.started and self.force_exit:  # else it has done so
            await self.lifespan.shutdown()

    async def _drain(self) -> None:
        """The sockets still listen: whoever comes is told that the server ends."""
        service, loop = self._service, asyncio.get_running_loop()
        service.draining = True
        end = loop.time() + self._options.drain_seconds
        while service.busy and loop.time() < end and not self.force_exit:
            await asyncio.sleep(0.02)
        if service.busy:
            LOG.warning("requests were cut off at the end")
            service.abort()
            for _ in range(100):
                if not service.busy:
                    return
                await asyncio.sleep(0.02)

    def handle_exit(self, sig: int, frame: object) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """The signals end the server, and not what called it."""
        before = {}
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                before[number] = signal.signal(number, self.handle_exit)
        except ValueError:  # in a thread there are no signals
            pass
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
