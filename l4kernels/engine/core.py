"""The engine without threads: sequences in, tokens out, a step at a time."""

from collections import deque
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from l4kernels.engine.graphs import Capture, cuda_graphs
from l4kernels.engine.images import encode
from l4kernels.engine.kv_cache import GLOBAL, KVCache, Pages
from l4kernels.engine.runner import Runner
from l4kernels.engine.scheduler import Scheduler
from l4kernels.engine.sequence import Sequence
from l4kernels.engine.state import StepKind, StepState
from l4kernels.model.llama4 import Llama4Model
from l4kernels.ops import tape
from l4kernels.ops.ambient import isolated
from l4kernels.ops.library import take_device_error
from l4kernels.ops.step import FAILED, IDLE, LENGTH, RUNNING, STOP
from l4kernels.planning.footprint import MAX_PREFILL_TOKENS

_REASONS = {RUNNING: None, STOP: "stop", LENGTH: "length", FAILED: "error"}


class NoNextToken(ValueError):
    """A sequence whose logits are NaN, or all -inf."""


class Event(NamedTuple):
    """A token of a sequence, and why it was the last one, if it was."""

    sequence: Sequence
    token: int
    """-1: there was none to choose, which ends the sequence."""
    finish_reason: str | None
    logprob: float | None = None
    top_logprobs: list[tuple[int, float]] | None = None
    error: BaseException | None = None


@dataclass(frozen=True, eq=False)
class _Launched:
    """A step whose results have not been read."""

    slots: list[tuple[int, Sequence]]
    kind: StepKind
    results: list[Tensor]
    done: Any  # an event of the device's stream, or None


class EngineCore:
    """Runs sequences together, each as if it were alone.

    A call of `step` computes the next pieces of prompts, launches one token of every sequence that
    has its prompt behind it, and reads the results of the step that was launched `lag` calls
    before, so that a GPU is never waited for. Not thread-safe.

    Args:
        slots: sequences at once.
        context: the most tokens of one of them.
        pages: of global and of chunked layers.
        reuse: whether what sequences leave in the cache may serve others.
        prefill_tokens: of prompts in one step while others wait for their next token.
        capture: how steps are repeated; default: CUDA graphs on a GPU, else `tape.capture`.
        lag: steps by which results are read late; default 1 on a GPU, else 0.
    """

    def __init__(
        self,
        model: Llama4Model,
        *,
        slots: int,
        context: int,
        pages: Pages,
        reuse: bool = True,
        prefill_tokens: int = 2048,
        capture: Capture | None = None,
        lag: int | None = None,
    ):
        on_gpu = model.device.type == "cuda"
        self.model, self.context = model, context
        self.lag = int(on_gpu) if lag is None else lag
        model.rotate_up_to(context)
        with torch.inference_mode():
            device: dict[str, Any] = {"device": model.device}
            self.cache = KVCache(
                model.config, pages, dtype=model.kv_dtype, scales=model.kv_scales, **device
            )
            self.state = StepState(
                model.config, self.cache.shape, slots, context, dtype=model.options.dtype, **device
            )
        # A step that is captured for good is worth rows without a sequence; a CPU computes them.
        buckets = on_gpu or capture is not None
        if capture is None:
            capture = cuda_graphs() if on_gpu else tape.capture
        self.runner = Runner(model, self.cache, self.state, capture, buckets=buckets)
        self.scheduler = Scheduler(self.cache, slots, prefill_tokens, MAX_PREFILL_TOKENS, reuse)
        self.image_s = 0.0
        self.steps = 0
        self._launched: deque[_Launched] = deque()
        self._events: list[Event] = []
        self._processed: set[Sequence] = set()
        self._listed: set[Sequence] = set()
        self._masked: set[Sequence] = set()

    @property
    def idle(self) -> bool:
        """Nothing waits, runs or is to be read."""
        return self.scheduler.idle and not self._launched

    def why_never(self, prompt: int, new_tokens: int) -> str | None:
        """Why a sequence of that many tokens can never run, or None."""
        capacity = prompt + new_tokens - 1
        if prompt + new_tokens > self.context:
            return (
                f"the prompt of {prompt} tokens and {new_tokens} new ones do not fit the engine's "
                f"context of {self.context} tokens; shorten the prompt or ask for fewer"
            )
        needed = self.cache.shape.needed(capacity)
        for kind, name in ((GLOBAL, "global"), (1 - GLOBAL, "chunked")):
            has = self.cache.pools[kind].num_pages
            if needed[kind] > has:
                return (
                    f"{prompt + new_tokens} tokens need {needed[kind]} pages of {name} layers, and "
                    f"the engine's KV cache has {has}; shorten the prompt, ask for fewer new "
                    f"tokens, or give the engine more memory"
                )
        return None

    def add(self, sequence: Sequence) -> None:
        """Raises `ValueError` for one that could never run."""
        if why := self.why_never(sequence.prompt_length, sequence.choice.max_new_tokens):
            raise ValueError(why)
        self.scheduler.add(sequence)

    @isolated
    def cancel(self, sequence: Sequence, reason: str = "cancelled") -> None:
        """Ends a sequence now, whatever it is at; one that has ended stays as it is."""
        if sequence.finish_reason is None:
            self._finish(sequence, reason, stopped=False)

    @isolated
    def step(self) -> list[Event]:
        """Goes on by one step; tokens that became known, in the order of steps."""
        self._close_gaps()
        for sequence in self.scheduler.admit():
            assert sequence.slot is not None
            for kind, pages in enumerate(sequence.pages):  # those that it found in the cache
                self.state.set_pages(kind, sequence.slot, 0, pages)
        if self.scheduler.prefilling:
            left = self.scheduler.budget
            while left and (computed := self._prefill(left)):
                left -= computed
            self._begin_decoding()
        slots = self._ready_slots()
        if slots:
            self._launch(slots)
        self._read(self.lag if slots else 0)
        events, self._events = self._events, []
        return events

    @isolated
    def fail(self, error: Exception) -> list[Event]:
        """After a step that raised: every sequence ends, and nothing is kept."""
        self._launched.clear()
        for sequence in self.scheduler.everyone():
            self._finish(sequence, "error", stopped=False)
            self._events.append(Event(sequence, -1, "error", error=error))
        for pool in self.cache.pools:
            pool.forget()
        events, self._events = self._events, []
        return events

    def _prefill(self, most: int) -> int:
        """Runs the next pieces of prompts together; how many tokens that was."""
        pieces = [
            piece
            for piece in self.scheduler.pieces(most)
            if self._has_pages(piece.sequence, piece.start, piece.end)
        ]
        pieces = [piece for piece in pieces if piece.sequence.slot == piece.slot]  # not preempted
        if not pieces:
            return 0
        shown = [
            piece.sequence.images
            for piece in pieces
            if piece.sequence.images and piece.sequence.images.shown(piece.start, piece.end)
        ]
        self.image_s += encode(self.model, shown)
        self.state.flush()
        self.runner.prefill(pieces)
        for piece in pieces:
            piece.sequence.computed = piece.end
            if self.scheduler.reuse:
                self.cache.remember(piece.sequence, piece.end)
        return sum(piece.end - piece.start for piece in pieces)

    def _begin_decoding(self) -> None:
        for sequence in list(self.scheduler.prefilling):
            last, slot = len(sequence.tokens) - 1, sequence.slot
            if sequence.computed < last:
                continue
            end = min(last + 2, sequence.capacity)
            if slot is None or not self._has_pages(sequence, last, end):
                continue
            images = sequence.images
            if images is not None and images.shown(last, last + 1):
                self.image_s += encode(self.model, [images])
            self.scheduler.begin_decoding(sequence)
            self.state.start(slot, sequence)
            sampling, choice = sequence.choice.sampling, sequence.choice
            if sampling.processes or choice.token_mask is not None:
                self._processed.add(sequence)
            if choice.logprobs is not None:
                self._listed.add(sequence)
            if choice.token_mask is not None:
                self._masked.add(sequence)

    def _has_pages(self, sequence: Sequence, start: int, end: int) -> bool:
        """Pages for tokens up to `end`. If there are too few, the youngest sequence has to wait and
        be computed again; False if it is this one."""
        if sequence.slot is None:  # preempted a moment ago
            return False
        held = [len(pages) for pages in sequence.pages]
        while not self.cache.extend(sequence, start, end):
            self._read(0)  # some may have ended, and a preempted one's tokens must be known
            if sequence.slot is None:
                return False
            if self.cache.extend(sequence, start, end):
                break
            youngest = self.scheduler.youngest()
            if youngest is not sequence or sequence.decoding:
                self._preempt(youngest)
            if youngest is sequence:
                return False
        for kind, pages in enumerate(sequence.pages):
            self.state.set_pages(kind, sequence.slot, held[kind], pages[held[kind] :])
        return True

    def _preempt(self, sequence: Sequence) -> None:
        if sequence.decoding:
            assert sequence.slot is not None
            self.state.stop(sequence.slot)
        self._forget(sequence)
        self.scheduler.preempt(sequence)

    def _ready_slots(self) -> list[tuple[int, Sequence]]:
        """Sequences that have a next token to compute, and a page for the one after it."""
        if self._masked:
            self._read(0)  # a mask is made from all tokens so far
            self._apply_masks()
        size, running = self.cache.shape.page_size, self.scheduler.running
        for sequence in sorted(
            (
                s
                for s in running.values()
                if not (s.computed + 1) % size and s.computed + 1 < s.capacity
            ),
            key=lambda s: s.order,
        ):
            self._has_pages(sequence, sequence.computed, sequence.computed + 2)
        return [(slot, s) for slot, s in running.items() if s.computed < s.capacity]

    def _apply_masks(self) -> None:
        for sequence in list(self._masked):
            assert sequence.slot is not None and sequence.choice.token_mask is not None
            try:
                mask = sequence.choice.token_mask(sequence.new_tokens)
                self.state.allow(sequence.slot, self._checked_mask(mask))
            except BaseException as error:  # of the caller's function, and its own affair
                self._finish(sequence, "error", stopped=False)
                self._events.append(Event(sequence, -1, "error", error=error))

    def _checked_mask(self, mask: Any) -> Tensor | None:
        words = self.state.words
        if mask is None:
            return None
        if not isinstance(mask, Tensor) or mask.shape != (words,) or mask.dtype != torch.int32:
            got = f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, Tensor) else type(mask)
            raise ValueError(f"expected token_mask to return int32 [{words}] or None, got {got}")
        return mask

    def _launch(self, slots: list[tuple[int, Sequence]]) -> None:
        self.state.flush()
        kind = StepKind(bool(self._processed), bool(self._listed))
        count = self.runner.step(self.scheduler.used_slots, kind)
        for _, sequence in slots:
            sequence.computed += 1
        results = [self.state.results[:, :count]]
        if kind.logprobs:
            results += self.state.rows(count).listed()
        self._launched.append(_Launched(slots, kind, *self._on_their_way(results)))
        self.steps += 1

    def _on_their_way(self, results: list[Tensor]) -> tuple[list[Tensor], Any]:
        """Copies for the host, and the event after which they can be read."""
        if self.model.device.type != "cuda":
            return [t.clone() for t in results] if self.lag else results, None
        copies = [torch.empty_like(t, device="cpu", pin_memory=True) for t in results]
        for copy, t in zip(copies, results, strict=True):
            copy.copy_(t, non_blocking=True)
        done = torch.cuda.Event()
        done.record()
        return copies, done

    def _read(self, lag: int) -> None:
        """Takes the results of all steps but the last `lag`."""
        while len(self._launched) > lag:
            step = self._launched.popleft()
            error = self._wait(step)
            tokens, codes = step.results[0].tolist()
            listed = [t.tolist() for t in step.results[1:]]
            for slot, sequence in step.slots:
                code = codes[slot]
                if sequence.finish_reason is None and code != IDLE:
                    self._take(sequence, tokens[slot], code, [t[slot] for t in listed], error)

    def _wait(self, step: _Launched) -> IndexError | None:
        if step.done is None:
            return None
        step.done.synchronize()
        try:
            take_device_error()
        except IndexError as error:
            return error
        return None

    def _take(
        self,
        sequence: Sequence,
        token: int,
        code: int,
        listed: list[Any],
        error: Exception | None,
    ) -> None:
        """A token of a sequence is known."""
        if error is not None or code == FAILED:
            why = "its logits are NaN, or all of them are -inf"
            at = len(sequence.tokens) - sequence.prompt_length
            cause = error or NoNextToken(f"no next token at step {at}: {why}")
            self._finish(sequence, "error", stopped=code != RUNNING)
            self._events.append(Event(sequence, -1, "error", error=cause))
            return
        sequence.tokens.append(token)
        known = len(sequence.tokens) - 1
        if self.scheduler.reuse and not known % self.cache.shape.page_size:
            self.cache.remember(sequence, known)
        logprob, top = None, None
        if sequence.choice.logprobs is not None:
            logprob, ids, values = listed
            top = [*zip(ids, values, strict=True)]
            logprob = dict(top).get(token, logprob)  # they differ by rounding
            top = top[: sequence.choice.logprobs]
        reason = _REASONS[code]
        if reason is not None:
            self._finish(sequence, reason, stopped=True)
        self._events.append(Event(sequence, token, reason, logprob, top))

    def _finish(self, sequence: Sequence, reason: str, *, stopped: bool) -> None:
        """`stopped`: the step has seen to it that the slot is idle."""
        if sequence.decoding and not stopped:
            assert sequence.slot is not None
            self.state.stop(sequence.slot)
        self._forget(sequence)
        self.scheduler.finish(sequence, reason)

    def _forget(self, sequence: Sequence) -> None:
        for group in (self._processed, self._listed, self._masked):
            group.discard(sequence)

    def _close_gaps(self) -> None:
        """Moves sequences to lower slots where a step of fewer rows would then do."""
        scheduler, state = self.scheduler, self.state
        while len(scheduler.running) < scheduler.used_slots:
            rows = self.runner.rows_for(scheduler.used_slots)
            if self.runner.rows_for(len(scheduler.running)) == rows:
                return
            moved = scheduler.move_to_lower_slot()
            if moved is None:
                return
            state.move(*moved, processed=bool(self._processed))
