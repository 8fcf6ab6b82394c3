"""`l4k serve`."""

import asyncio
import contextlib
import logging
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from l4kernels.cli.loading import Loader, ModelOptions, warm_up
from l4kernels.engine.engine import Engine
from l4kernels.inputs.arguments import number, whole_number
from l4kernels.inputs.extras import require
from l4kernels.model.config import Llama4Config
from l4kernels.prompt.chat import Prompter


@dataclass(frozen=True, kw_only=True)
class Settings(ModelOptions):
    """Of the command line; None: the default of `ServerOptions` or of the engine."""

    host: str = "127.0.0.1"
    port: int = 8000
    name: str | None = None
    api_keys: tuple[str, ...] = ()
    context: int | None = None
    kv_tokens: int | None = None
    slots: int = 64
    prefix_cache: bool = True
    max_waiting: int = 256
    max_output_tokens: int = 16_384
    request_seconds: float = 600.0
    drain_seconds: float = 30.0
    media_hosts: tuple[str, ...] = ()


def run(settings: Settings) -> int:
    """Loads the model, tries it out, and listens until a signal comes; the exit code."""
    for module in ("fastapi", "uvicorn", "pydantic", "prometheus_client", "llguidance"):
        require(module, "serve")
    from l4kernels.server.serve import taken

    config = settings.config()
    _check(settings, config)
    prompter = Prompter(settings.model, config)
    loader = Loader(settings, config)
    with contextlib.ExitStack() as stack:
        # Before weights are read, which may take minutes.
        listeners = [stack.enter_context(one) for one in taken(settings.host, settings.port)]
        return _run(listeners, loader, prompter, settings)


def _run(
    listeners: Sequence[socket.socket], loader: Loader, prompter: Prompter, settings: Settings
) -> int:
    with (
        loader.loaded() as model,
        Engine(
            model,
            slots=settings.slots,
            context=settings.context,
            kv_tokens=settings.kv_tokens,
            prefix_cache=settings.prefix_cache,
            tokenizer=prompter.tokenizer,
        ) as engine,
    ):
        warm_up(engine)
        return _listen(listeners, engine, prompter, settings)


def _check(settings: Settings, config: Llama4Config) -> None:
    whole_number("--port", settings.port, 0, 65_535)
    whole_number("--slots", settings.slots, 1, 1 << 12)
    if settings.context is not None:
        whole_number("--context", settings.context, 2, config.max_position_embeddings)
    whole_number("--max-waiting", settings.max_waiting, 0, 1 << 20)
    whole_number("--max-output-tokens", settings.max_output_tokens, 1, 1 << 30)
    number("--request-seconds", settings.request_seconds, 1, 1e7)
    number("--drain-seconds", settings.drain_seconds, 0, 1e7)
    for key in settings.api_keys:
        if not key.isascii() or not key.isprintable() or not key.strip():
            raise ValueError("expected --api-key to be printable ASCII")


def _listen(
    listeners: Sequence[socket.socket], engine: Engine, prompter: Prompter, settings: Settings
) -> int:
    from l4kernels.server.app import create_app
    from l4kernels.server.options import ServerOptions
    from l4kernels.server.serve import Server

    logging.basicConfig(level=logging.WARNING, format="l4k: %(message)s", stream=sys.stderr)
    options = ServerOptions(
        settings.name or settings.model.resolve().name,
        api_keys=settings.api_keys,
        media_hosts=settings.media_hosts,
        max_waiting=settings.max_waiting,
        max_output_tokens=settings.max_output_tokens,
        request_seconds=settings.request_seconds,
        drain_seconds=settings.drain_seconds,
    )
    app = create_app(engine, prompter, options)
    server = Server(app, options, listeners)
    asyncio.run(_serve(server, options.model_name))
    return 1 if server.failed else 0


async def _serve(server: "Server", name: str) -> None:  # type: ignore[name-defined]  # noqa: F821
    serving = asyncio.ensure_future(server.serve())
    while not (server.started or serving.done()):
        await asyncio.sleep(0.01)
    if server.started:
        host, port = server.address
        shown = f"[{host}]" if ":" in host else host
        print(f"l4k: {name} at http://{shown}:{port}/ (API: /v1); Ctrl-C ends", file=sys.stderr)
    await serving
