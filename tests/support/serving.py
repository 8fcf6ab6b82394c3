"""A server of a test's own, in this process, at a free port of the loopback interface."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from l4kernels import Engine, Prompter
from l4kernels.server.app import create_app
from l4kernels.server.options import ServerOptions
from l4kernels.server.serve import Server, taken

OPTIONS = ServerOptions("demo", drain_seconds=5)


@dataclass
class Serving:
    """A server that listens."""

    server: Server
    engine: Engine
    thread: threading.Thread

    @property
    def url(self) -> str:
        host, port = self.server.address
        return f"http://{host}:{port}"

    @property
    def service(self) -> Any:
        return self.server._service

    def end(self) -> None:
        self.server.should_exit = True
        self.thread.join(30)
        assert not self.thread.is_alive(), "the server does not end"

    def settled(self, seconds: float = 5.0) -> bool:
        """Whether nothing runs any more, and no page is held, within so many seconds."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            stats = self.engine.stats()
            if not (self.service.busy or stats.running or stats.waiting or stats.kv_tokens_in_use):
                return True
            time.sleep(0.01)
        return False


@contextmanager
def serving(engine: Engine, prompter: Prompter, **changes: Any) -> Iterator[Serving]:
    """A server over an engine; `changes` are fields of `ServerOptions`."""
    options = replace(OPTIONS, **changes)
    server = Server(create_app(engine, prompter, options), options, taken("127.0.0.1", 0))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), name="server")
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server does not start"
        time.sleep(0.01)
    one = Serving(server, engine, thread)
    try:
        yield one
    finally:
        one.end()
