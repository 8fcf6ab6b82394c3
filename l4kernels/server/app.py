"""The routes of the server."""

import logging
import re
import threading
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException

from l4kernels import __version__
from l4kernels.engine.engine import Engine
from l4kernels.prompt.chat import Prompter
from l4kernels.prompt.chat_template import ChatError
from l4kernels.prompt.images import ImageError
from l4kernels.prompt.tokenizer_file import TokenizerError
from l4kernels.server.chat import ChatAnswer
from l4kernels.server.completions import CompletionAnswer
from l4kernels.server.errors import ApiError, server_error, shutting_down, unusable
from l4kernels.server.gate import Gate
from l4kernels.server.generation import Generation
from l4kernels.server.options import ServerOptions
from l4kernels.server.page import HEADERS, PAGE
from l4kernels.server.prompts import slowest
from l4kernels.server.protocol.chat import ChatRequest, TokenizeRequest
from l4kernels.server.protocol.common import ErrorAnswer
from l4kernels.server.protocol.completions import CompletionRequest, DetokenizeRequest
from l4kernels.server.protocol.responses import ResponseRequest
from l4kernels.server.responses import ResponseAnswer
from l4kernels.server.service import Service
from l4kernels.server.streams import ClientLeft, EventStream, while_connected

LOG = logging.getLogger("l4kernels.server")


class Answer(Protocol):
    """What a route begins, and then sends whole or as events."""

    async def begin(self) -> None: ...
    def close(self) -> None: ...
    async def whole(self) -> dict[str, Any]: ...
    def events(self) -> AsyncIterator[bytes]: ...
    def failed(self, error: ApiError) -> bytes: ...
    @property
    def generation(self) -> Generation: ...


def create_app(engine: Engine, prompter: Prompter, options: ServerOptions) -> FastAPI:
    """An ASGI application over an engine, which it does not close.

    Args:
        engine: made with `tokenizer=prompter.tokenizer`.
        prompter: of the checkpoint.
        options: its name, keys and limits.

    >>> from l4kernels import Llama4, demo
    >>> prompter = Prompter(demo.CHECKPOINT)
    >>> engine = Engine(Llama4.from_pretrained(demo.CHECKPOINT), tokenizer=prompter.tokenizer)
    >>> app = create_app(engine, prompter, ServerOptions("demo"))
    >>> "/v1/chat/completions" in app.openapi()["paths"]
    True
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.service = service = Service(engine, prompter, options)
        try:
            yield
        finally:
            service.close()

    app = FastAPI(
        title="l4kernels",
        version=__version__,
        summary="Llama 4, in OpenAI's protocol.",
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.add_middleware(Gate, options=options)
    _handle_errors(app)
    _add_answers(app, options)
    _add_tokens(app)
    _add_state(app, options)
    return app


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _add_answers(app: FastAPI, options: ServerOptions) -> None:
    async def answer(
        request: Request, kind: Callable[[Service, Any, str], Answer], body: Any
    ) -> Response:
        service = _service(request)
        service.check(body.model)
        made = kind(service, body, request.scope["l4k_key"])
        try:
            await while_connected(request, made.begin())
            if body.stream:
                events = _kept_alive(made, options.heartbeat_seconds)
                return EventStream(events, made.close, options.stall_seconds)
            whole = await while_connected(request, made.whole())
        except BaseException:
            made.close()
            raise
        made.close()
        return JSONResponse(whole)

    @app.post("/v1/chat/completions", tags=["chat"], responses=_responses())
    async def chat_completions(request: Request, body: ChatRequest) -> Response:
        """Answers a conversation."""
        return await answer(request, ChatAnswer, body)

    @app.post("/v1/completions", tags=["completions"], responses=_responses())
    async def completions(request: Request, body: CompletionRequest) -> Response:
        """Continues texts."""
        return await answer(request, CompletionAnswer, body)

    @app.post("/v1/responses", tags=["responses"], responses=_responses())
    async def responses(request: Request, body: ResponseRequest) -> Response:
        """Answers a conversation, in OpenAI's newer protocol; nothing of it is stored."""
        return await answer(request, ResponseAnswer, body)


async def _kept_alive(made: Answer, seconds: float) -> AsyncGenerator[bytes, None]:
    """The events of an answer, signs of life between them, and at the end of one that failed its
    error."""
    generation, loop = made.generation, made.generation.loop
    clock = loop.call_later(seconds, generation.nudge)
    try:
        async for part in made.events():
            clock.cancel()
            yield part
            clock = loop.call_later(seconds, generation.nudge)
    except ApiError as error:
        yield made.failed(error)
    except Exception:
        yield made.failed(_unexpected())
    finally:
        clock.cancel()


def _add_tokens(app: FastAPI) -> None:
    @app.post("/tokenize", tags=["tokens"], responses=_responses())
    async def tokenize(request: Request, body: TokenizeRequest) -> Response:
        """The tokens of a text, or of a chat."""
        service = _service(request)
        service.check(body.model)
        if (body.prompt is None) == (body.messages is None):
            raise ApiError(400, "expected either prompt or messages", param="prompt")

        left = threading.Event()

        def check_wanted() -> None:
            if left.is_set():
                raise shutting_down()  # which nobody reads

        def ids() -> list[int]:
            if body.messages is None:
                assert body.prompt is not None
                return service.text_prompt(body.prompt, bos=body.add_special_tokens).ids
            ending = body.add_generation_prompt, body.continue_final_message
            return service.chat_prompt(body.messages, body.tools, *ending, check_wanted).ids

        def tokenized() -> tuple[list[int], list[str] | None]:
            tokens, decode = ids(), service.tokenizer.decode
            if not body.return_token_strs:
                return tokens, None
            return tokens, [decode([token], skip_special=False) for token in tokens]

        work = service.in_thread(tokenized, kind=slowest(body.messages or ()))
        try:
            tokens, named = await while_connected(request, work)
        finally:
            left.set()
        return JSONResponse(
            {
                "count": len(tokens),
                "max_model_len": service.context,
                "tokens": tokens,
                "token_strs": named,
            }
        )

    @app.post("/detokenize", tags=["tokens"], responses=_responses())
    async def detokenize(request: Request, body: DetokenizeRequest) -> Response:
        """The text of tokens, special ones spelled out."""
        service = _service(request)
        service.check(body.model)
        if len(body.tokens) > service.context:
            raise ApiError(
                400,
                f"expected at most {service.context} tokens, the context of this server, got "
                f"{len(body.tokens)}",
                param="tokens",
                code="context_length_exceeded",
            )
        decode = service.tokenizer.decode
        work = service.in_thread(lambda: decode(body.tokens, skip_special=False))
        return JSONResponse({"prompt": await while_connected(request, work)})


def _add_state(app: FastAPI, options: ServerOptions) -> None:
    @app.get("/v1/models", tags=["models"])
    async def models(request: Request) -> Response:
        """The one model that is served."""
        return JSONResponse({"object": "list", "data": [_model(_service(request))]})

    @app.get("/v1/models/{model:path}", tags=["models"], responses=_responses())
    async def model(request: Request, model: str) -> Response:
        """The model of this name."""
        service = _service(request)
        service.check(model)
        return JSONResponse(_model(service))

    @app.get("/health", tags=["state"])
    async def health(request: Request) -> Response:
        """200 while requests are taken, 503 when the server ends or its engine has failed."""
        service = _service(request)
        if service.draining or service.engine.closed is not None:
            state = "draining" if service.draining else "failed"
            return JSONResponse({"status": state}, status_code=503)
        return JSONResponse({"status": "ok"})

    @app.get("/version", tags=["state"])
    async def version() -> Response:
        """Of the package."""
        return JSONResponse({"version": __version__})

    @app.get("/metrics", tags=["state"])
    async def metrics(request: Request) -> Response:
        """What the server counts, for Prometheus."""
        text = _service(request).metrics.text()
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        """The chat page."""
        return Response(PAGE, headers=HEADERS)


def _model(service: Service) -> dict[str, Any]:
    return {
        "id": service.options.model_name,
        "object": "model",
        "created": service.created,
        "owned_by": "l4kernels",
        "max_model_len": service.context,
    }


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> Response:
        return _error(error)

    async def of_the_request(request: Request, error: Exception) -> Response:
        return _error(unusable(error, _service(request).prompter.path))

    # Of what came with the request, wherever it is found out.
    for kind in (ChatError, ImageError, TokenizerError):
        app.add_exception_handler(kind, of_the_request)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return _error(_explained(error))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        known: dict[int, Callable[[], str]] = {
            # What Python's parser fails with, other than a misplaced character.
            400: lambda: (
                "expected JSON in UTF-8, not nested deeply, its numbers below thousands of digits"
            ),
            404: lambda: (
                f"there is no {request.method} {request.url.path[:200]}; a base URL of "
                f"OpenAI's clients ends in /v1"
            ),
            405: lambda: f"{request.url.path[:200]} does not take {request.method}",
        }
        text = known.get(error.status_code, lambda: str(error.detail))()
        return _error(ApiError(error.status_code, text, headers=error.headers))

    @app.exception_handler(ClientLeft)
    async def left(request: Request, error: ClientLeft) -> Response:
        return Response(status_code=499)  # nobody reads it

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        return _error(_unexpected())


def _unexpected() -> ApiError:
    """Of an error that nobody thought of: the log has it, the client its number."""
    number = uuid.uuid4().hex[:12]
    LOG.exception("error %s", number)
    return server_error(f"the server failed at this request; its log has it as error {number}")


def _error(error: ApiError) -> Response:
    return JSONResponse(error.body(), error.status, error.headers)


def _explained(error: RequestValidationError) -> ApiError:
    """What is wrong, and where. What came is not repeated."""
    if isinstance(error.body, bytes):
        return ApiError(400, "expected JSON, with the header 'Content-Type: application/json'")
    worst = max(error.errors(), key=_closeness)
    if worst["type"] == "json_invalid":
        return ApiError(400, f"the body is not valid JSON (at character {worst['loc'][-1]})")
    param = _field(worst["loc"][1:], error.body, missing=worst["type"] == "missing")
    if worst["type"] == "extra_forbidden":
        name = f"{worst['loc'][-1]}"[:64]
        message = f"unknown field {name!r}: this server does not support it"
    else:
        of_python = worst["type"].startswith("model_")
        text = "Input should be an object" if of_python else worst["msg"][:500]
        message = f"{param or 'the body'}: {text}"
    return ApiError(400, message, param=param or None, code=None)


def _closeness(error: dict[str, Any]) -> tuple[int, bool, bool]:
    """To what was meant: each alternative of a union has its errors. The one that was meant got
    furthest, is not of another type, and what a client asks for tells it more than what lacks."""
    kind = error["type"]
    return len(error["loc"]), not kind.endswith("_type"), kind == "extra_forbidden"


def _field(place: Sequence[str | int], body: Any, *, missing: bool) -> str:
    """The path of a field of a body. Names of a union's alternatives, which pydantic has in its
    places, are no fields.

    >>> _field(("messages", 0, "user", "name"), {"messages": [{"name": 1}]}, missing=False)
    'messages.0.name'
    """
    names = _fields(place, body, missing)
    return ".".join(name for name in names if re.fullmatch(r"[A-Za-z0-9_]{1,64}", name))


def _fields(place: Sequence[str | int], value: Any, missing: bool) -> list[str]:
    """An alternative may have the name of a field beside it (`text`): of the ways through the body
    the longest is meant, and of those the one that comes to the end of the place."""
    if not place:
        return []
    part, rest = place[0], place[1:]
    skipped = _fields(rest, value, missing)
    listed = isinstance(value, list) and isinstance(part, int) and part < len(value)
    if listed or (isinstance(value, dict) and part in value):
        found = [f"{part}", *_fields(rest, value[part], missing)]
    else:
        found = [f"{part}"] if missing and not rest else []
    return max(skipped, found, key=len)


def _responses() -> dict[int | str, dict[str, Any]]:
    """Answers other than 200, for the description of the API."""
    about = {400: "A field is wrong.", 401: "No key of this server.", 404: "No such model.",
             408: "Out of time.", 413: "Too large.", 429: "Too busy.", 503: "Ending."}  # fmt: skip
    return {status: {"description": text, "model": ErrorAnswer} for status, text in about.items()}
