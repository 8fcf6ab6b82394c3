"""The generation loop: prefill, then one token per sequence and step."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from l4kernels import ops
from l4kernels._load import take_device_error
from l4kernels.model.fields import Fields
from l4kernels.model.prompt import Prompt


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn. Temperature 0 takes the most likely one."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None

    def __post_init__(self):
        checks = (
            ("temperature", "a number >= 0", 0 <= self.temperature < math.inf),
            ("top_k", "an integer >= 0 (0: off)", self.top_k >= 0),
            ("top_p", "in (0, 1]", 0 < self.top_p <= 1),
            ("min_p", "in [0, 1]", 0 <= self.min_p <= 1),
            ("seed", "64 bits at most", self.seed is None or -(1 << 63) <= self.seed < 1 << 63),
        )
        for name, wanted, good in checks:
            if not good:
                raise ValueError(f"expected {name} to be {wanted}, got {getattr(self, name)}")

    @classmethod
    def from_pretrained(cls, path: str | Path) -> "Sampling":
        """What a checkpoint's `generation_config.json` asks for; greedy where it asks nothing."""
        file = Path(path) / "generation_config.json"
        f = Fields.of_file(file) if file.exists() else Fields({}, str(file))
        if not f.boolean("do_sample", default=False):
            return cls()
        return cls(
            temperature=f.number("temperature", 0.0, 1e6, default=1.0),
            top_k=f.integer("top_k", 0, 1 << 30, default=0),
            top_p=f.number("top_p", 1e-9, 1.0, default=1.0),
            min_p=f.number("min_p", 0.0, 1.0, default=0.0),
        )


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


@dataclass
class Generation:
    """Iterate over it: each item is the next token of every row, int64 `[B]` on the CPU.

    A row that met an end token gives the pad id from then on; iteration stops when every row has,
    or after `max_new_tokens`. `finish_reasons` ("stop", "length") and `timings` are then complete.
    """

    model: "torch.nn.Module"
    input_ids: Tensor
    max_new_tokens: int = 32
    pixel_values: Tensor | None = None
    sampling: Sampling = field(default_factory=Sampling)
    stop_ids: Sequence[int] | None = None
    """Ends a row; None: the end tokens of the checkpoint."""
    timings: Timings = field(default_factory=Timings)
    finish_reasons: list[str] = field(default_factory=list)

    def __post_init__(self):
        if not isinstance(self.max_new_tokens, int) or self.max_new_tokens < 1:
            raise ValueError(f"expected max_new_tokens >= 1, got {self.max_new_tokens!r}")
        config = self.model.config
        self._stop = set(config.eos_token_ids if self.stop_ids is None else self.stop_ids)
        with torch.inference_mode():
            self._prompt = Prompt(
                self.model, self.input_ids, self.pixel_values, self.max_new_tokens
            )
        self.timings.image_s = self._prompt.image_seconds

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
                ids = next(steps, None)
            if ids is None:
                return
            yield ids.clone()

    def _steps(self) -> Iterator[Tensor]:
        model, prompt = self.model, self._prompt
        batch = prompt.batch
        self.finish_reasons[:] = ["length"] * batch
        running = [True] * batch
        cache = model.new_cache(batch, prompt.length + self.max_new_tokens - 1)
        draw = _Sampler(self.sampling, batch, model.device)
        started = time.perf_counter()
        logits = model.prefill(prompt, cache)
        for step in range(self.max_new_tokens):
            if step:
                logits = model.decode(ids[:, None], cache)  # noqa: F821 (bound by the first step)
            ids = draw(logits, step)
            tokens = ids.tolist()
            if ids.is_cuda:  # the host has just waited for the device anyway
                take_device_error()
            now = time.perf_counter()
            if step:
                self.timings.decode_s += now - started
                self.timings.decode_steps += 1
            else:
                self.timings.prefill_s = now - started
            yield torch.tensor(
                [t if on else self.pad_id for t, on in zip(tokens, running, strict=True)]
            )
            for row, token in enumerate(tokens):
                if running[row] and token in self._stop:
                    running[row], self.finish_reasons[row] = False, "stop"
            if not any(running):
                return
            started = time.perf_counter()


class _Sampler:
    """The `sample` op with one setting for all rows; row i draws from the stream seed + i."""

    def __init__(self, sampling: Sampling, batch: int, device: torch.device):
        seed = sampling.seed
        if seed is None:
            seed = int(torch.randint(1 << 62, ()))

        def rows(value: float, dtype: torch.dtype) -> Tensor:
            return torch.full((batch,), value, dtype=dtype, device=device)

        self._options = (
            rows(sampling.temperature, torch.float32),
            rows(min(sampling.top_k, 1 << 30), torch.int32),
            rows(sampling.top_p, torch.float32),
            rows(sampling.min_p, torch.float32),
            seed + torch.arange(batch, device=device),
        )
        self._counters = torch.zeros(batch, dtype=torch.int64, device=device)

    def __call__(self, logits: Tensor, step: int) -> Tensor:
        return ops.sample(logits, *self._options, self._counters + step).ids
