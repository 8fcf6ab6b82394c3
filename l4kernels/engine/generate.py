"""Generation for the rows of a batch: an engine of their own, and their tokens step by step."""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from l4kernels.engine.core import EngineCore, Event
from l4kernels.engine.kv_cache import CacheShape, Pages
from l4kernels.engine.prompts import prompts_of_batch
from l4kernels.engine.sampling import Sampling
from l4kernels.engine.sequence import Choice, Sequence
from l4kernels.inputs.arguments import token_ids, whole_number
from l4kernels.inputs.files import shown
from l4kernels.model.llama4 import Llama4Model
from l4kernels.ops.philox import stream_seed


@dataclass
class Timings:
    """Seconds by phase; `decode_s` covers `decode_steps` steps after the first new token."""

    image_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    decode_steps: int = 0

    @property
    def tokens_per_second(self) -> float:
        """Decode steps per second: new tokens per second of each sequence."""
        return self.decode_steps / self.decode_s if self.decode_s else 0.0


@dataclass(eq=False)
class Generation:
    """Iterate over it: each item is the next token of every row, int64 `[B]` on the CPU.

    A row that met an end token gives the pad id from then on; iteration stops when every row has,
    or after `max_new_tokens`. `finish_reasons` ("stop", "length") and `timings` are then complete.

    Raises:
        ValueError: an argument, named with what was expected and what came; or, at a step, a row
            that has no next token because its logits are NaN, or all -inf.
    """

    model: Llama4Model
    input_ids: Tensor
    max_new_tokens: int = 32
    pixel_values: Tensor | None = None
    sampling: Sampling = field(default_factory=Sampling)
    stop_ids: int | Iterable[int] | Tensor | None = None
    """Ends a row: one id or several; None: the end tokens of the checkpoint."""
    attention_mask: Tensor | None = None
    """`[B, S]`, zeros where there is padding: see `prompts_of_batch`."""
    timings: Timings = field(default_factory=Timings)
    finish_reasons: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.max_new_tokens = whole_number("max_new_tokens", self.max_new_tokens, 1, 1 << 62)
        if not isinstance(self.sampling, Sampling):
            raise ValueError(f"expected sampling to be a Sampling, got {shown(self.sampling)}")
        self._stop = frozenset(stop_ids_of(self.model, self.stop_ids))
        check_biases(self.model, self.sampling)
        self._prompts = prompts_of_batch(
            self.model, self.input_ids, self.pixel_values, self.max_new_tokens, self.attention_mask
        )

    @property
    def pad_id(self) -> int:
        """What a finished row is filled with: the pad id, or else an end token."""
        pad, eos = self.model.config.pad_token_id, self.model.config.eos_token_ids
        if pad is not None and pad >= 0:
            return pad
        return eos[0] if eos else min(self._stop, default=0)

    def __iter__(self) -> Iterator[Tensor]:
        # A generator must not leave inference mode on in its caller between two items.
        steps = self._steps()
        while True:
            with torch.inference_mode():
                tokens = next(steps, None)
            if tokens is None:
                return
            with torch.inference_mode(False):
                ids = torch.tensor(tokens, dtype=torch.int64, device="cpu")
            yield ids

    def _steps(self) -> Iterator[list[int]]:
        # Of its own: iterators of one generation may be at different steps.
        sequences = self._sequences()
        core = core_for(self.model, sequences)
        self.finish_reasons[:] = ["length"] * len(sequences)
        self.timings = Timings()
        rows = {sequence: row for row, sequence in enumerate(sequences)}
        known: list[deque[int]] = [deque() for _ in sequences]
        for sequence in sequences:
            core.add(sequence)
        timings, first, before = self.timings, True, core.image_s
        started = time.perf_counter()
        try:
            while not core.idle or any(known):
                while not all(known[row] or s.finish_reason for s, row in rows.items()):
                    for event in core.step():
                        self._note(rows[event.sequence], event, known)
                now = time.perf_counter()
                if first:
                    timings.image_s, first = core.image_s - before, False
                    timings.prefill_s = now - started - timings.image_s
                else:
                    timings.decode_s += now - started
                    timings.decode_steps += 1
                yield [tokens.popleft() if tokens else self.pad_id for tokens in known]
                started = time.perf_counter()
        except GeneratorExit:  # left between two steps
            for sequence in sequences:
                core.cancel(sequence)
            _keep(core)
            raise
        _keep(core)  # but not one that was interrupted in a step, or failed

    def _note(self, row: int, event: Event, known: list[deque[int]]) -> None:
        if isinstance(event.error, ValueError):
            raise ValueError(f"row {row} has {event.error}")
        if event.error is not None:
            raise event.error
        known[row].append(event.token)
        if event.finish_reason is not None:
            self.finish_reasons[row] = event.finish_reason

    def _sequences(self) -> list[Sequence]:
        seed = self.sampling.seed_now()
        return [
            Sequence(
                prompt.ids.copy(),
                Choice(self.sampling, stream_seed(seed, row), self._stop, self.max_new_tokens),
                prompt.images,
            )
            for row, prompt in enumerate(self._prompts)
        ]


def stop_ids_of(
    model: Llama4Model, stop_ids: int | Iterable[int] | Tensor | None
) -> tuple[int, ...]:
    """Those of a caller, checked; None: the end tokens of the checkpoint."""
    config = model.config
    if stop_ids is None:
        return config.eos_token_ids
    return token_ids("stop_ids", stop_ids, config.vocab_size)


def check_biases(model: Llama4Model, sampling: Sampling) -> None:
    token_ids("logit_bias", list(sampling.logit_bias), model.config.vocab_size)


def core_for(model: Llama4Model, sequences: list[Sequence]) -> EngineCore:
    """An engine that has room for these sequences at once, and keeps nothing for others: the same
    call gives the same bits whatever ran before. Its memory and its captured steps serve the next
    call of about the same size."""
    context = _rounded(max(s.prompt_length + s.choice.max_new_tokens for s in sequences))
    context = min(context, model.config.max_position_embeddings)
    kept: EngineCore | None = model.__dict__.pop(_KEPT, _Kept()).core
    size = None if kept is None else (kept.scheduler.slots, kept.context)
    if kept is not None and kept.idle and size == (len(sequences), context):
        return kept
    del kept  # before there is another
    needed = CacheShape.of(model.config, model.kv_dtype).needed(context)
    pages = Pages(*(len(sequences) * count for count in needed))
    return EngineCore(model, slots=len(sequences), context=context, pages=pages, reuse=False)


_KEPT = "_kept_engine"


@dataclass
class _Kept:
    """The engine of the last call. It is for this model alone: a copy, or a file, has none."""

    core: EngineCore | None = None

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return _Kept, ()


def _keep(core: EngineCore) -> None:
    if core.idle:
        core.model.__dict__[_KEPT] = _Kept(core)


def _rounded(tokens: int) -> int:
    """Up by an eighth at the most, beyond 1,024.

    >>> [_rounded(n) for n in (5, 1025, 9000, 100_000)]
    [128, 1152, 9216, 106496]
    """
    step = max(128, (1 << tokens.bit_length()) >> 4)
    return -(-tokens // step) * step
