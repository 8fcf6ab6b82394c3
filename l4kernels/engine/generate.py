"""The generation loop: prefill, then one token per sequence and step."""

import itertools
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from l4kernels.engine.runner import Runner
from l4kernels.engine.sampler import Sampler, Sampling
from l4kernels.engine.sequence import Sequence, make_sequences
from l4kernels.inputs.arguments import token_ids, whole_number
from l4kernels.inputs.files import shown
from l4kernels.model.llama4 import Llama4Model
from l4kernels.ops.library import take_device_error


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
    """`[B, S]`, all ones: see `make_sequences`."""
    timings: Timings = field(default_factory=Timings)
    finish_reasons: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.max_new_tokens = whole_number("max_new_tokens", self.max_new_tokens, 1, 1 << 62)
        if not isinstance(self.sampling, Sampling):
            raise ValueError(f"expected sampling to be a Sampling, got {shown(self.sampling)}")
        config, stop = self.model.config, self.stop_ids
        known = stop is None
        ids = config.eos_token_ids if known else token_ids("stop_ids", stop, config.vocab_size)
        self._stop = frozenset(ids)
        self._prompts, self.timings.image_s = make_sequences(
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
        model, sequences = self.model, [prompt.from_the_start() for prompt in self._prompts]
        self.finish_reasons[:] = ["length"] * len(sequences)
        self.timings.decode_s, self.timings.decode_steps = 0.0, 0
        runner = Runner(model, sequences, self.max_new_tokens - 1)
        draw = Sampler(self.sampling, [s.ids for s in sequences], model.config.vocab_size)
        started = time.perf_counter()
        logits = runner.prefill()
        for step in itertools.count():
            ids = draw(logits, step)
            tokens = ids.tolist()
            _check(step, logits, ids.is_cuda, tokens)
            now = time.perf_counter()
            if step:
                self.timings.decode_s += now - started
                self.timings.decode_steps += 1
            else:
                self.timings.prefill_s = now - started
            yield self._appended(sequences, tokens)
            if all(sequence.finish_reason for sequence in sequences):
                return
            started = time.perf_counter()
            logits = runner.decode(ids)

    def _appended(self, sequences: list[Sequence], tokens: list[int]) -> list[int]:
        """Gives each sequence its token; finished ones have the pad id."""
        shown = []
        for row, (sequence, token) in enumerate(zip(sequences, tokens, strict=True)):
            if sequence.finish_reason:
                shown.append(self.pad_id)
                continue
            sequence.append(token, self._stop, self.max_new_tokens)
            self.finish_reasons[row] = sequence.finish_reason or "length"
            shown.append(token)
        return shown


def _check(step: int, logits: Tensor, on_gpu: bool, tokens: list[int]) -> None:
    """Raises what a step ran into."""
    cause = None
    try:
        if on_gpu:  # the host has just waited for the device anyway
            take_device_error()
    except IndexError as error:
        cause = error
    if min(tokens) < 0:
        row = tokens.index(-1)
        nan = bool(logits[row].isnan().any())
        why = "its logits are NaN" if nan else "all of its logits are -inf"
        raise ValueError(f"row {row} has no next token at step {step}: {why}") from cause
    if cause:
        raise cause
