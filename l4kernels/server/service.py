"""A model behind an API: what of a request becomes requests of the engine."""

import asyncio
import hashlib
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any, TypeVar

from l4kernels import __version__
from l4kernels.engine.engine import Engine, EngineClosed
from l4kernels.engine.logprobs import TokenLogprob, prompt_logprobs
from l4kernels.engine.request import Request
from l4kernels.engine.sampling import Sampling
from l4kernels.prompt.chat import Prompt, Prompter
from l4kernels.prompt.tokenizer_file import ContextError, TokenizerError
from l4kernels.server.constraints import Grammar, Grammars
from l4kernels.server.errors import ApiError, context_exceeded, server_error, shutting_down
from l4kernels.server.generation import Generation, Outbox
from l4kernels.server.media import Media
from l4kernels.server.metrics import Metrics
from l4kernels.server.options import ServerOptions
from l4kernels.server.prompts import Conversation
from l4kernels.server.protocol.chat import (
    AnyMessage,
    ChatRequest,
    JsonObject,
    JsonSchema,
    NamedChoice,
    Tool,
)
from l4kernels.server.protocol.common import SampledRequest
from l4kernels.server.protocol.completions import CompletionRequest
from l4kernels.server.schemas import GrammarError

_Result = TypeVar("_Result")
_WORKERS = {"text": 4, "image": 2, "video": 1}
"""Prompts that are made at once, by the slowest part of them: 32 images take seconds, and no text
waits for them. An image of 20 megapixels takes 140 MB while it is decoded."""

_COMPLETION_TOKENS = 16
"""Of a completion that asks for none, as at OpenAI."""


class Service:
    """What the routes share. Made in the event loop in which they run.

    Args:
        engine: with the prompter's tokenizer.
        prompter: of the checkpoint.
        options: limits and settings.
    """

    def __init__(self, engine: Engine, prompter: Prompter, options: ServerOptions):
        self.engine, self.prompter, self.options = engine, prompter, options
        self.tokenizer, self.context = prompter.tokenizer, engine.context
        self.created, self.fingerprint = int(time.time()), f"l4kernels-{__version__}"
        self.metrics = Metrics(engine)
        self.media = Media(
            allowed_hosts=options.media_hosts,
            max_bytes=options.max_body_bytes,
            max_pixels=options.max_image_pixels,
        )
        self.defaults = Sampling.from_pretrained(prompter.path)
        self.end_ids = engine.model.config.eos_token_ids
        self._outbox = Outbox(asyncio.get_running_loop())
        self._pools = {
            kind: ThreadPoolExecutor(workers, f"l4k-{kind}") for kind, workers in _WORKERS.items()
        }
        self._making_grammars = threading.Lock()
        self._samples = 0
        self._running: set[Generation] = set()
        self.draining = False

    # Coming and going

    def check(self, model: str | None) -> None:
        """Refuses a request for another model, and any while the server ends."""
        if self.draining:
            raise shutting_down()
        if self.engine.closed is not None:
            raise server_error("the engine does not run any more", 503, "engine_dead")
        if model is not None and model != self.options.model_name:
            raise ApiError(
                404,
                f"The model {model[:200]!r} does not exist; this server has "
                f"{self.options.model_name!r}",
                param="model",
                code="model_not_found",
            )

    @contextmanager
    def admitted(self, samples: int) -> Iterator[Generation]:
        """Room for so many samples, and what they give."""
        most = self.engine.stats().slots + self.options.max_waiting
        if self._samples + samples > most:
            raise ApiError(
                429,
                "too many requests are waiting; try again later",
                code="rate_limit_exceeded",
                type="rate_limit_error",
                headers={"Retry-After": f"{self._seconds_ahead()}"},
            )
        self._samples += samples
        seconds = self.options.request_seconds
        generation = Generation(self.engine, self._outbox, self.metrics, seconds)
        self._running.add(generation)
        try:
            yield generation
        finally:
            generation.close()
            self._running.discard(generation)
            self._samples -= samples

    def _seconds_ahead(self) -> int:
        """A guess at when the queue will have moved: the mean request, for each turn of slots."""
        count = self.metrics.finished_requests()
        mean = self.metrics.seconds_spent() / count if count else 1.0
        turns = self.options.max_waiting / self.engine.stats().slots
        return max(1, min(60, math.ceil(mean * max(turns, 1))))

    def abort(self) -> None:
        """Ends all that runs, with an error that says why."""
        for generation in [*self._running]:
            generation.fail(shutting_down())

    @property
    def busy(self) -> bool:
        return bool(self._running)

    async def in_thread(
        self, function: Callable[..., _Result], *args: Any, kind: str = "text"
    ) -> _Result:
        """What takes processor time: it must not hold up other clients' streams, nor images and
        videos, which take seconds, other prompts."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pools[kind], function, *args)

    def close(self) -> None:
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)

    # Requests of the engine; all of this runs in threads

    def chat(self, body: ChatRequest, key: str, check_wanted: Callable[[], None]) -> Request:
        prompt = self.chat_prompt(
            body.messages,
            _shown_tools(body),
            body.add_generation_prompt,
            body.continue_final_message,
            check_wanted,
        )
        grammar = self._grammar(body)
        param = "max_completion_tokens" if body.max_completion_tokens else "max_tokens"
        logprobs = body.top_logprobs or 0 if body.logprobs else None
        request = self._request(body, key, prompt, body.limit, (param, "messages"), logprobs)
        if grammar is not None:
            masks = [grammar.mask() for _ in range(request.n)]
            request = replace(request, token_mask=masks)
        return request

    def chat_prompt(
        self,
        messages: Sequence[AnyMessage],
        tools: Sequence[Tool] | None,
        add_generation_prompt: bool | None,
        continue_final_message: bool,
        check_wanted: Callable[[], None],
    ) -> Prompt:
        """`check_wanted` is called between images; it raises an error when nobody waits."""
        conversation = Conversation(self.prompter, self.media, self.options, check_wanted)
        for index, message in enumerate(messages):
            conversation.add(message, f"messages.{index}")
        return conversation.prompt(
            tools,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
        )

    def completions(self, body: CompletionRequest, key: str) -> list[Request]:
        asked = body.max_tokens or min(_COMPLETION_TOKENS, self.options.max_output_tokens)
        names = "max_tokens", "prompt"
        return [
            self._request(body, key, self.text_prompt(given), asked, names, body.logprobs)
            for given in body.prompts()
        ]

    def text_prompt(self, given: str | list[int], *, bos: bool = True) -> Prompt:
        """Of a text, which begins with the begin-of-text token, or of token ids as they are."""
        config = self.engine.model.config
        try:
            if isinstance(given, str):
                limit = config.max_position_embeddings
                given = self.tokenizer.encode(given, bos=bos, limit=limit) if given else []
        except ContextError:
            raise context_exceeded(self.context, None, 0, "prompt") from None
        except TokenizerError as error:
            raise ApiError(400, str(error), param="prompt") from None
        if not given:
            raise ApiError(400, "the prompt is empty: expected at least one token", param="prompt")
        self._check_ids(given, "prompt")
        return Prompt(given)

    def _check_ids(self, ids: Iterable[int], param: str) -> None:
        most, largest = self.engine.model.config.vocab_size, max(ids, default=0)
        if largest >= most:
            raise ApiError(400, f"expected token ids below {most}, got {largest}", param=param)

    def _request(
        self,
        body: SampledRequest,
        key: str,
        prompt: Prompt,
        asked: int | None,
        names: tuple[str, str],
        logprobs: int | None,
    ) -> Request:
        """`names` are the fields of the answer's length and of the prompt, for errors."""
        room, most = self.context - len(prompt.ids), self.options.max_output_tokens
        if asked is not None and asked > most:
            raise ApiError(
                400,
                f"expected at most {most} tokens of an answer, the limit of this server, got "
                f"{asked}",
                param=names[0],
            )
        if room < (asked or 1):
            raise context_exceeded(self.context, len(prompt.ids), asked or 1, names[1])
        sampling, more_ids = body.sampling(), body.stop_token_ids or ()
        self._check_ids(sampling["logit_bias"], "logit_bias")
        self._check_ids(more_ids, "stop_token_ids")
        stop_ids = {*(() if body.ignore_eos else self.end_ids), *more_ids}
        try:
            return Request(
                prompt.ids,
                max_new_tokens=min(room, most) if asked is None else asked,
                sampling=replace(self.defaults, **sampling),
                pixel_values=prompt.pixel_values,
                stop_ids=sorted(stop_ids),
                stop=body.stop_strings(),
                n=body.n or 1,
                logprobs=logprobs,
                cache_salt=_salt(key, body.cache_salt),
            )
        except ValueError as error:
            raise ApiError(400, str(error)) from None

    def start(self, generation: Generation, requests: Sequence[Request]) -> None:
        try:
            generation.start(requests)
        except ValueError as error:  # of the engine's own bounds
            raise ApiError(400, str(error)) from None

    @cached_property
    def _grammars(self) -> Grammars:
        return Grammars(self.tokenizer, self.engine.model.config.vocab_size, self.end_ids)

    def _grammar(self, body: ChatRequest) -> Grammar | None:
        """What the answer has to be, if it has to be something."""
        form, forced = body.response_format, _forced_tools(body)
        constrained = isinstance(form, (JsonObject, JsonSchema))
        if constrained and _parsed_tools(body):
            raise ApiError(
                400,
                "response_format and tools cannot both decide what the answer is; with "
                "response_format, tool_choice has to be 'none'",
                param="response_format",
            )
        if not (constrained or forced):
            return None
        if body.ignore_eos or body.min_tokens:
            raise ApiError(
                400,
                "an answer of a form ends where the form does: min_tokens and ignore_eos cannot "
                "be given with it",
                param="min_tokens" if body.min_tokens else "ignore_eos",
            )
        try:
            with self._making_grammars:
                grammars = self._grammars
            if forced:
                functions = [tool.function for tool in forced]
                return grammars.tool_calls(
                    functions, parallel=body.parallel_tool_calls is not False
                )
            if isinstance(form, JsonSchema):
                return grammars.json_schema(form.json_schema.schema_)
            return grammars.json_object()
        except GrammarError as error:
            raise ApiError(
                400, str(error), param="tools" if forced else "response_format"
            ) from None

    async def prompt_logprobs(self, ids: Sequence[int], top: int) -> list[TokenLogprob]:
        """Of the tokens of a prompt but the first; no step runs beside it."""
        model = self.engine.model
        try:
            future = self.engine.between_steps(lambda: prompt_logprobs(model, ids, top))
            return await asyncio.wrap_future(future)
        except EngineClosed:
            raise shutting_down() from None
        except ValueError as error:
            raise ApiError(400, str(error), param="prompt") from None


def tool_names(body: ChatRequest) -> list[str]:
    """Functions of which calls are looked for in the answer."""
    return [tool.function.name for tool in _parsed_tools(body)]


def _shown_tools(body: ChatRequest) -> list[Tool] | None:
    """Those that the model is told of."""
    return None if body.tool_choice == "none" else body.tools or None


def _parsed_tools(body: ChatRequest) -> list[Tool]:
    named = isinstance(body.tool_choice, NamedChoice) or body.tool_choice == "required"
    if named and not body.tools:
        raise ApiError(400, "tool_choice asks for a call, and there are no tools", param="tools")
    return _forced_tools(body) or ([] if body.tool_choice == "none" else body.tools or [])


def _forced_tools(body: ChatRequest) -> list[Tool]:
    """Those of which one has to be called."""
    choice, tools = body.tool_choice, body.tools or []
    if choice == "required":
        return tools
    if not isinstance(choice, NamedChoice):
        return []
    found = [tool for tool in tools if tool.function.name == choice.function.name]
    if not found:
        raise ApiError(
            400,
            f"tool_choice names {choice.function.name!r}, which is not among the tools",
            param="tool_choice",
        )
    return found


def _salt(key: str, own: str | None) -> str:
    """Requests of different keys never share a prefix, whose time to the first token would tell of
    it; nor do those with different salts of their own."""
    if not key and not own:
        return ""
    return hashlib.sha256(f"{key}\0{own or ''}".encode()).hexdigest()
