"""The engine as a service: requests from any thread, their tokens as streams."""

import contextlib
import contextvars
import queue
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch

from l4kernels.engine.core import EngineCore, Event
from l4kernels.engine.graphs import Capture
from l4kernels.engine.kv_cache import GLOBAL, CacheShape, Pages
from l4kernels.engine.request import Output, Request
from l4kernels.engine.sequence import Sequence
from l4kernels.inputs.arguments import whole_number
from l4kernels.inputs.files import shown
from l4kernels.model.llama4 import Llama4Model
from l4kernels.planning.footprint import MAX_PREFILL_TOKENS, activation_bytes
from l4kernels.prompt.tokenizer import Detokenizer, Tokenizer

_Result = TypeVar("_Result")

_CPU_KV_BYTES = 1 << 30
_GPU_SPARE = 1_000_000_000
"""Bytes for captured graphs, workspaces and the step's tensors."""


class EngineClosed(RuntimeError):
    """The engine was closed before the request was done."""


@dataclass(frozen=True)
class Stats:
    """What an engine is doing, and has done since it was made."""

    waiting: int
    running: int
    """Samples that are begun: their prompts are computed, or they are at a token."""
    slots: int
    kv_tokens: int
    """Room of the KV cache, in tokens of global layers (of chunked ones where there are none)."""
    kv_tokens_in_use: int
    kv_tokens_cached: int
    """Of nobody, and kept for whom has the same prefix."""
    steps: int
    new_tokens: int
    prompt_tokens: int
    """Of prompts that were begun, without the last of each, which is always computed."""
    reused_tokens: int
    """Of those, found in the cache."""
    preemptions: int
    finished: int
    """Samples, those that were cancelled or failed among them."""


class Stream:
    """The outputs of a request, in the order in which they come, of several samples mixed.

    Iterate over it, from any thread. A request that fails raises its error here.
    """

    def __init__(self, request: Request, sequences: list[Sequence], texts: list[Detokenizer]):
        self.request = request
        self._sequences, self._texts = sequences, texts
        self._left = len(sequences)
        self._outputs: queue.SimpleQueue[Output | BaseException | None] = queue.SimpleQueue()
        self._over = False

    def __iter__(self) -> Iterator[Output]:
        return self

    def __next__(self) -> Output:
        output = self._outputs.get()
        if isinstance(output, Output):
            return output
        self._outputs.put(output)  # for whoever asks again, or waits in another thread
        if output is None:
            raise StopIteration
        if isinstance(output, StopIteration):
            raise RuntimeError("a function of the request raised StopIteration") from output
        raise output

    def _finish(self, error: BaseException | None) -> None:
        if self._over:
            return
        self._over = True
        self._outputs.put(error)
        if self.request.on_end is not None:
            self.request.on_end(error)

    @property
    def cached_tokens(self) -> int:
        """Of the prompt, found in the cache by the first sample, once an output has come."""
        return self._sequences[0].reused

    def result(self) -> list[list[int]]:
        """Waits for the end; the tokens of each sample."""
        samples: list[list[int]] = [[] for _ in self._sequences]
        for output in self:
            if output.token_id is not None:
                samples[output.sample].append(output.token_id)
        return samples


class _Letter(NamedTuple):
    """What the engine's thread is to do, or, where it cannot any more, whom it tells."""

    act: Callable[[], None]
    fail: Callable[[BaseException], None]


class _Mailbox:
    """What the thread of an engine is to do. It knows no engine, so that a thread that waits keeps
    none in memory."""

    def __init__(self) -> None:
        self._wake = threading.Condition()
        self._letters: deque[_Letter] = deque()
        self._why: str | None = None
        self._drain = False

    def put(self, act: Callable[[], None], fail: Callable[[BaseException], None]) -> None:
        with self._wake:
            if self._why is not None:
                raise EngineClosed(f"{self._why}: it takes no more requests")
            self._letters.append(_Letter(act, fail))
            self._wake.notify()

    def close(self, why: str, *, drain: bool) -> None:
        with self._wake:
            if self._why is None:
                self._why, self._drain = why, drain
            self._wake.notify()

    def wait(self, *, idle: bool) -> bool:
        """Until there is something to do; False: never again."""
        with self._wake:
            while idle and not self._letters and self._why is None:
                self._wake.wait()
            return not idle or bool(self._letters)

    def take(self) -> _Letter | None:
        with self._wake:
            return self._letters.popleft() if self._letters else None

    @property
    def closed(self) -> str | None:
        """Why nothing more is taken, if it is."""
        with self._wake:
            return self._why

    @property
    def ends(self) -> str | None:
        """Why what is being done is to end now, if it is."""
        with self._wake:
            return None if self._drain else self._why


class Engine:
    """Runs requests together as they come and go, in a thread of its own.

    Requests are independent: what one gets does not depend on which others run, up to the rounding
    of products of another size. First come, first served; prompts are computed in pieces beside
    sequences that are at a token. Pages of the KV cache are shared by requests with a common
    prefix; when they run out, the youngest sequence waits and is computed again. An engine that
    nobody holds any more ends when its requests have.

    Args:
        model: stays usable, also by other threads.
        slots: samples at once; on a GPU steps are captured for 1, 2, 4, ... of them.
        context: the most tokens of one sample, prompt and answer; None: the model's, or what the
            KV cache holds.
        kv_tokens: room of the KV cache in tokens, of all samples together; None: on a GPU what
            is free, but for what steps need by `l4k plan`; on a CPU at most 1 GiB.
        prefill_tokens: of prompts in one step while other samples wait for their next token.
        prefix_cache: whether the pages of finished samples are kept for prompts that begin alike.
        tokenizer: turns tokens into text and finds stop strings; None: outputs have no text.
        capture: how steps are repeated; None: CUDA graphs on a GPU, else `ops.tape.capture`.

    Raises:
        ValueError: an argument, named with what was expected and what came.

    >>> from l4kernels import Llama4, demo
    >>> from l4kernels.engine.engine import Engine
    >>> from l4kernels.engine.request import Request
    >>> with Engine(Llama4.from_pretrained(demo.CHECKPOINT)) as engine:
    ...     stream = engine.add(Request([1, 2, 100], max_new_tokens=3))
    ...     [output.finish_reason for output in stream][-1]
    'length'
    """

    def __init__(
        self,
        model: Llama4Model,
        *,
        slots: int = 64,
        context: int | None = None,
        kv_tokens: int | None = None,
        prefill_tokens: int = 2048,
        prefix_cache: bool = True,
        tokenizer: Tokenizer | None = None,
        capture: Capture | None = None,
    ):
        if not isinstance(model, Llama4Model):
            raise ValueError(f"expected model to be a Llama4, got {shown(model)}")
        of_prompter = tokenizer is None or isinstance(tokenizer, Tokenizer)
        for name, given, good, expected in (
            ("prefix_cache", prefix_cache, isinstance(prefix_cache, bool), "True or False"),
            ("tokenizer", tokenizer, of_prompter, "a Prompter's tokenizer or None"),
            ("capture", capture, capture is None or callable(capture), "a function or None"),
        ):
            if not good:
                raise ValueError(f"expected {name} to be {expected}, got {shown(given)}")
        slots = whole_number("slots", slots, 1, 1 << 12)
        prefill_tokens = whole_number("prefill_tokens", prefill_tokens, 1, 1 << 30)
        pages, context = _room(model, slots, context, kv_tokens)
        self.model, self.tokenizer, self.context = model, tokenizer, context
        self._core = EngineCore(
            model,
            slots=slots,
            context=context,
            pages=pages,
            reuse=prefix_cache,
            prefill_tokens=prefill_tokens,
            capture=capture,
        )
        self._streams: dict[Sequence, tuple[Stream, int]] = {}
        self._new_tokens = self._finished = 0
        self._mail = _Mailbox()
        # Where ops go, and on how many threads, is what it is where the engine is made.
        run, arguments = contextvars.copy_context().run, (self._mail, torch.get_num_threads())
        self._thread = threading.Thread(
            target=run, args=(_serve, weakref.ref(self), *arguments), name="l4kernels", daemon=True
        )
        self._thread.start()
        weakref.finalize(self, _close, self._mail, self._thread)

    def add(self, request: Request) -> Stream:
        """Hands in a request; its outputs come as they are made.

        Raises:
            ValueError: an argument of the request, or that it could never run: its prompt and
                answer are longer than the engine's context, or than its KV cache.
            EngineClosed: the engine is closed, or was made before this process was forked.
        """
        if not isinstance(request, Request):
            raise ValueError(f"expected a Request, got {shown(request)}")
        texts = self._texts(request)
        sequences = request.sequences(self.model)
        one = sequences[0]
        if why := self._core.why_never(one.prompt_length, one.choice.max_new_tokens):
            raise ValueError(why)
        stream = Stream(request, sequences, texts)
        self._send(partial(self._begin, stream), stream._finish)
        return stream

    def cancel(self, stream: Stream) -> None:
        """Ends a request: its samples that have not ended do, as "cancelled"; none is left to be
        cancelled the second time."""
        if not isinstance(stream, Stream):
            raise ValueError(f"expected the Stream of a request, got {shown(stream)}")
        with contextlib.suppress(EngineClosed):  # which has ended all requests
            self._mail.put(partial(self._cancel, stream), stream._finish)

    def between_steps(self, function: Callable[[], _Result]) -> "Future[_Result]":
        """Has the engine's thread call a function, so that no step runs beside it: what else is to
        be computed with the model. All requests wait for it.

        Raises:
            EngineClosed: as `add` does.
        """
        if not callable(function):
            raise ValueError(f"expected a function, got {shown(function)}")
        future: Future[_Result] = Future()
        self._send(partial(_answer, future, function), future.set_exception)
        return future

    @property
    def closed(self) -> str | None:
        """Why the engine takes no more requests: it was closed, or it failed; None while it does.

        >>> from l4kernels import Llama4, demo
        >>> engine = Engine(Llama4.from_pretrained(demo.CHECKPOINT))
        >>> engine.closed is None
        True
        >>> engine.close()
        >>> engine.closed
        'the engine was closed'
        """
        return self._mail.closed

    def stats(self) -> Stats:
        core = self._core
        scheduler, shape = core.scheduler, core.cache.shape
        pool = core.cache.pools[GLOBAL if GLOBAL in shape.kinds else 1 - GLOBAL]
        return Stats(
            waiting=scheduler.waiting,
            running=len(scheduler.running) + len(scheduler.prefilling),
            slots=scheduler.slots,
            kv_tokens=pool.num_pages * shape.page_size,
            kv_tokens_in_use=pool.in_use * shape.page_size,
            kv_tokens_cached=pool.cached * shape.page_size,
            steps=core.steps,
            new_tokens=self._new_tokens,
            prompt_tokens=scheduler.counts.prompt_tokens,
            reused_tokens=scheduler.counts.reused_tokens,
            preemptions=scheduler.counts.preemptions,
            finished=self._finished,
        )

    def close(self, *, drain: bool = False) -> None:
        """Ends the engine's thread; with `drain` after the requests that it has, which else end
        with `EngineClosed`. A second call changes nothing."""
        _close(self._mail, self._thread, drain=drain)

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, act: Callable[[], None], fail: Callable[[BaseException], None]) -> None:
        alive = self._thread.is_alive()
        self._mail.put(act, fail)
        if not alive:  # and not closed
            raise EngineClosed(
                "the engine's thread does not run in this process, which was forked from the one "
                "that made the engine: make one here"
            )

    def _texts(self, request: Request) -> list[Detokenizer]:
        if self.tokenizer is not None:
            return [Detokenizer(self.tokenizer, request.stop) for _ in range(request.n)]
        if request.stop:
            raise ValueError(
                "expected an engine with a tokenizer for stop strings: Engine(model, tokenizer=...)"
            )
        return []

    def _turn(self) -> bool:
        """Does what came, and a step; whether there is more to do."""
        while (letter := self._mail.take()) is not None:
            letter.act()
        if (closed := self._mail.ends) is not None:
            why = EngineClosed(f"{closed} before the request was done")
            for stream in {stream for stream, _ in self._streams.values()}:
                self._fail(stream, why)
            return False
        if self._core.idle:
            return False
        try:
            events = self._core.step()
        except Exception as error:
            # The requests at hand end with it; those to come find an engine that is empty.
            events = self._core.fail(error)
        for event in events:
            self._deliver(event)
        return not self._core.idle

    def _begin(self, stream: Stream) -> None:
        for index, sequence in enumerate(stream._sequences):
            self._streams[sequence] = stream, index
            self._core.add(sequence)

    def _cancel(self, stream: Stream) -> None:
        for sequence in stream._sequences:
            if sequence in self._streams:
                self._core.cancel(sequence)
                self._pass_on(sequence, None, "", "cancelled")

    def _deliver(self, event: Event) -> None:
        sequence, reason = event.sequence, event.finish_reason
        if sequence not in self._streams:  # ended by a stop string, or by its function
            return
        stream, index = self._streams[sequence]
        if event.error is not None:
            self._fail(stream, event.error)
            return
        self._new_tokens += 1
        text = ""
        if stream._texts:
            spoken = stream._texts[index]
            text = spoken.push(event.token)
            if spoken.stopped and reason is None:
                self._core.cancel(sequence, "stop")
            reason = "stop" if spoken.stopped else reason
            if reason is not None:
                text += spoken.finish()
        self._pass_on(sequence, event.token, text, reason, event.logprob, event.top_logprobs)

    def _pass_on(self, sequence: Sequence, token: int | None, text: str, *rest: Any) -> None:
        stream, index = self._streams[sequence]
        output = Output(index, token, text, *rest)
        if output.finish_reason is not None:
            del self._streams[sequence]
            self._finished += 1
            stream._left -= 1
        stream._outputs.put(output)
        if stream.request.on_output is not None:
            try:
                stream.request.on_output(output)
            except BaseException as error:
                self._fail(stream, error)
                return
        if not stream._left:
            stream._finish(None)

    def _fail(self, stream: Stream, error: BaseException) -> None:
        """A request fails: all of its samples end."""
        for sequence in stream._sequences:
            if self._streams.pop(sequence, None) is not None:
                self._core.cancel(sequence, "error")
                self._finished += 1
        stream._finish(error)

    def _give_up(self, error: BaseException) -> None:
        """Nothing can be done any more, and nobody is to wait for it."""
        why = f"the engine failed ({shown(error)})"
        self._mail.close(why, drain=False)
        for stream in {stream for stream, _ in self._streams.values()}:
            stream._finish(EngineClosed(why))
        while (letter := self._mail.take()) is not None:
            letter.fail(EngineClosed(why))
        self._streams.clear()


def _serve(engine_of: Callable[[], Engine | None], mail: _Mailbox, threads: int) -> None:
    torch.set_num_threads(threads)
    engine: Engine | None = None
    while mail.wait(idle=engine is None):
        engine = engine or engine_of()
        assert engine is not None  # held by a letter, or here
        if engine.model.device.type == "cuda":
            torch.cuda.set_device(engine.model.device)
        try:
            going_on = engine._turn()
        except BaseException as error:
            engine._give_up(error)
            raise
        if not going_on:
            engine = None


def _answer(future: "Future[_Result]", function: Callable[[], _Result]) -> None:
    if future.set_running_or_notify_cancel():
        try:
            result = function()
        except BaseException as error:  # of the caller's function, and its own affair
            future.set_exception(error)
        else:
            future.set_result(result)


def _close(mail: _Mailbox, thread: threading.Thread, *, drain: bool = False) -> None:
    mail.close("the engine was closed", drain=drain)
    if threading.current_thread() is not thread:
        thread.join()


def _room(
    model: Llama4Model, slots: int, context: int | None, kv_tokens: int | None
) -> tuple[Pages, int]:
    """Pages of the KV cache, and the most tokens of a sequence."""
    limit = model.config.max_position_embeddings
    shape = CacheShape.of(model.config, model.kv_dtype)
    most = limit if context is None else whole_number("context", context, 2, limit)
    if kv_tokens is None:
        pages = shape.within(_free_bytes(model, slots), slots, most)
    else:
        count = shape.pages(whole_number("kv_tokens", kv_tokens, 1, 1 << 40))
        needed = shape.needed(count * shape.page_size)
        pages = Pages(needed.of_global, min(count, slots * needed.of_chunked))
    if not any(pages):
        raise ValueError(
            f"the KV cache has no room for one page of {shape.page_size} tokens: "
            f"{sum(shape.page_bytes):,} bytes; free memory, or load weights in a smaller format"
        )
    if pages.of_global:
        most = min(most, pages.of_global * shape.page_size)
    return pages, most


def _free_bytes(model: Llama4Model, slots: int) -> int:
    """Memory that a KV cache may have."""
    if model.device.type != "cuda":
        return _CPU_KV_BYTES
    free, _ = torch.cuda.mem_get_info(model.device)
    needed = activation_bytes(model.config, MAX_PREFILL_TOKENS, slots) + _GPU_SPARE
    return max(0, free - int(needed))
