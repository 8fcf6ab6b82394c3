"""The server's process: it listens, and when it is asked to end it lets requests end first."""

import asyncio
import contextlib
import logging
import signal
from collections.abc import Iterator

import uvicorn
from fastapi import FastAPI

from l4kernels.server.options import ServerOptions
from l4kernels.server.service import Service

LOG = logging.getLogger("l4kernels.server")
MAX_CONNECTIONS = 4096
_WATCH_SECONDS = 0.25


class Server(uvicorn.Server):
    """uvicorn's, with another end: at SIGTERM or SIGINT `/health` says 503, requests that come are
    refused, those that run have `drain_seconds`, and then an error tells them why. A second
    signal ends them at once.

    Args:
        app: of `create_app`.
        options: the same as the app's.
        host, port: where to listen; port 0 is a free one.
    """

    def __init__(self, app: FastAPI, options: ServerOptions, host: str, port: int):
        self._app, self._options = app, options
        config = uvicorn.Config(
            app,
            host=host,
            port=port,
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
        """Where it listens, once it has `started`."""
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        return host, port

    async def startup(self, sockets: list | None = None) -> None:  # type: ignore[type-arg]
        await super().startup(sockets)
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
        await super().shutdown(sockets)

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
