"""Runs a model over the sequences of an engine: pieces of prompts, and steps of a token each."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from l4kernels import ops
from l4kernels.engine.graphs import Capture, Step
from l4kernels.engine.kv_cache import CacheShape, KVCache, layer_cache, scaled
from l4kernels.engine.prompts import PromptTokens
from l4kernels.engine.sequence import Sequence
from l4kernels.engine.state import StepKind, StepRows, StepState, to_device
from l4kernels.engine.taken import Taken
from l4kernels.layers.attention import AttentionMetadata
from l4kernels.model.llama4 import Llama4Model

_EAGER_USES = 2
"""Times that a step runs before it is captured: a capture costs as much as many steps."""


def bucket_of(slots: int, most: int) -> int:
    """Rows of the captured step that serves so many slots: a power of two, or all there are.

    >>> [bucket_of(n, 48) for n in (0, 1, 2, 3, 33, 48)]
    [0, 1, 2, 4, 48, 48]
    """
    return min(1 << (slots - 1).bit_length(), most) if slots else 0


@dataclass(frozen=True)
class Piece:
    """The next tokens of a prompt: `[start, end)` of a sequence whose table row is `slot`."""

    sequence: Sequence
    slot: int
    start: int
    end: int


class Runner:
    """Runs pieces of prompts eagerly, and steps of one token a slot as captures."""

    def __init__(
        self,
        model: Llama4Model,
        cache: KVCache,
        state: StepState,
        capture: Capture,
        *,
        buckets: bool,
    ):
        self.model, self.cache, self.state = model, cache, state
        self.capture, self.buckets = capture, buckets
        self._uses: dict[tuple[int, StepKind], int] = {}
        self._replays: dict[tuple[int, StepKind], Step] = {}
        self._taken = Taken(model)

    def prefill(self, pieces: list[Piece]) -> None:
        """Computes the keys and values of pieces of prompts."""
        device, size = self.cache.device, self.cache.shape.page_size
        spans = [(piece.start, piece.end) for piece in pieces]
        slots = torch.tensor([piece.slot for piece in pieces], dtype=torch.int64, device="cpu")
        slots, placement = to_device(slots, device), Placement.of(spans, device)
        tables = [table[slots] for table in self.state.tables]
        metadata = placement.metadata(tables, self.cache.shape.kinds, size)
        if any(p.sequence.images and p.sequence.images.shown(p.start, p.end) for p in pieces):
            x = torch.cat([embedded(self.model, p.sequence.prompt, p.start, p.end) for p in pieces])
        else:
            tokens = itertools.chain(*(p.sequence.tokens[p.start : p.end] for p in pieces))
            x = to_device(torch.tensor([*tokens], dtype=torch.int64, device="cpu"), device)
        layers = self.cache.layers
        self.model(x, self.model.plan(metadata, layers), layers)

    @property
    def captured(self) -> tuple[tuple[int, StepKind], ...]:
        """Rows and kind of the steps that are replayed."""
        return tuple(self._replays)

    def rows_for(self, slots: int) -> int:
        """Rows of the step that serves the first `slots` slots."""
        return bucket_of(slots, self.state.num_slots) if self.buckets else slots

    def step(self, slots: int, kind: StepKind) -> int:
        """One token of each of the first `slots` slots; returns the rows it covers.

        A step that hooks of modules look at runs as it is: no capture would call them.
        """
        count = self.rows_for(slots)
        rows, key = self.state.rows(count), (count, kind)
        if not self._taken.is_current():
            self._start_over()
        if self._taken.is_hooked():
            self._step(rows, kind)
            return count
        if key in self._replays:
            self._replays[key]()
            return count
        self._uses[key] = self._uses.get(key, 0) + 1
        if self._uses[key] <= _EAGER_USES:
            self._step(rows, kind)
        else:
            self._replays[key] = self.capture(lambda: self._step(rows, kind))
        return count

    def _start_over(self) -> None:
        """Captures have in them what the model had, which somebody has replaced."""
        if self.cache.device.type == "cuda":  # the last replay may be running
            torch.cuda.current_stream(self.cache.device).synchronize()
        self._replays.clear()
        self._uses.clear()
        self._taken = Taken(self.model)

    def _step(self, rows: StepRows, kind: StepKind) -> None:
        """Reads and writes tensors of the state alone, and takes no number from the host: what
        holds for one step holds for all."""
        state = self.state
        patches = () if state.features is None else (state.features, rows.feature_rows)
        metadata = self.model.plan(rows.metadata, self.cache.layers)
        hidden = self.model(self.model.embed(rows.ids, *patches), metadata, self.cache.layers)
        raw = logits = self.model.compute_logits(hidden)
        tally = None
        if kind.processed:
            tally = rows.processing["tally"]
            wanted = rows.named("stop_bits", "generated", "min_tokens", "active", *_PENALTIES)
            logits = ops.process_logits(raw, **rows.processing, **wanted)
        filters = rows.named("temperature", "top_k", "top_p", "min_p", "seeds")
        sampled = ops.sample(logits, **filters, counters=rows.generated).ids
        if kind.logprobs:
            self._report(raw, sampled, rows)
        ops.advance_step(
            sampled,
            **rows.named("ids", "positions", "seqlens_k", "generated", "max_tokens", "stop_bits"),
            slots=rows.slots,
            block_tables=rows.tables,
            results=rows.results,
            page_size=state.shape.page_size,
            tally=tally,
            feature_rows=rows.feature_rows if patches else None,
        )

    def _report(self, raw: Tensor, sampled: Tensor, rows: StepRows) -> None:
        """Log-probabilities by the model's own logits, whatever was drawn from."""
        chosen, top_ids, top = rows.listed()
        off = rows.named("top_k", "top_p", "min_p", "seeds")
        greedy = torch.zeros_like(rows.named("temperature")["temperature"])
        listed = ops.sample(
            raw, greedy, **off, counters=rows.generated, top_logprobs=top_ids.shape[1]
        )
        top_ids.copy_(listed.top_ids)
        top.copy_(listed.top_logprobs)
        # The likeliest token's logit and log-probability differ by the normaliser.
        first = listed.top_ids[:, :1].clamp(min=0)
        total = raw.gather(1, first) - listed.top_logprobs[:, :1]
        chosen.copy_((raw.gather(1, sampled.clamp(min=0)[:, None]) - total)[:, 0])


_PENALTIES = "repetition_penalty", "frequency_penalty", "presence_penalty"


@dataclass(frozen=True, eq=False)
class Placement:
    """Where the tokens of several sequences are: sequence b has the positions of `spans[b]`."""

    positions: Tensor  # int64 [T]
    rows: Tensor  # int64 [T], of the block table
    cu_seqlens_q: Tensor  # int32 [B + 1]
    seqlens_k: Tensor  # int32 [B]
    longest: int

    @classmethod
    def of(cls, spans: list[tuple[int, int]], device: torch.device) -> "Placement":
        counts = [end - start for start, end in spans]
        host: dict[str, Any] = {"dtype": torch.int64, "device": "cpu"}
        positions = torch.cat([torch.arange(*span, **host) for span in spans])
        rows = torch.arange(len(spans), **host).repeat_interleave(torch.tensor(counts, **host))
        bounds = [0, *itertools.accumulate(counts)]
        ends = [end for _, end in spans]

        def int32(values: list[int]) -> Tensor:
            return to_device(torch.tensor(values, dtype=torch.int32, device="cpu"), device)

        return cls(
            to_device(positions, device),
            to_device(rows, device),
            int32(bounds),
            int32(ends),
            max(counts),
        )

    def metadata(
        self, tables: list[Tensor], kinds: Iterable[int], page_size: int
    ) -> list[AttentionMetadata]:
        """Of each layer, from the block tables `[B, pages]` of each kind."""
        offset = self.positions % page_size
        made = []
        for table in tables:
            page = table[self.rows, self.positions // page_size].long()
            made.append(
                AttentionMetadata(
                    self.positions,
                    torch.where(page < 0, -1, page * page_size + offset),
                    self.cu_seqlens_q,
                    self.seqlens_k,
                    table,
                    self.longest,
                )
            )
        return [made[kind] for kind in kinds]


def embedded(model: Llama4Model, prompt: PromptTokens, start: int, end: int) -> Tensor:
    """`[n, hidden_size]` of tokens `[start, end)`, some of which may be patches."""
    ids = torch.tensor(prompt.ids[start:end], dtype=torch.int64, device="cpu")
    ids = to_device(ids, model.device)
    if prompt.images is None or prompt.images.features is None:
        return model.embed(ids)
    rows = prompt.images.rows[start:end]
    rows += [-1] * (len(ids) - len(rows))  # the answer of a prompt that is computed again
    at = to_device(torch.tensor(rows, dtype=torch.int32, device="cpu"), model.device)
    return model.embed(ids, prompt.images.features, at)


def run_whole(model: Llama4Model, prompts: list[PromptTokens]) -> Tensor:
    """`[T, hidden_size]`: the last layer's output for all tokens of prompts, one after the other.

    Nobody reads the keys again, so all layers share one layer's pages, and a prompt goes through in
    one step, whatever chunks it crosses.
    """
    lengths = [len(prompt.ids) for prompt in prompts]
    shape = CacheShape.of(model.config, model.kv_dtype)
    counts = [shape.pages(length) for length in lengths]
    logical = torch.arange(max(counts), dtype=torch.int32, device="cpu")
    first = torch.tensor([0, *itertools.accumulate(counts)][:-1], dtype=torch.int32, device="cpu")
    table = to_device(first[:, None] + logical, model.device)
    pages = layer_cache(model.config, sum(counts), model.kv_dtype, model.device)
    model.rotate_up_to(max(lengths))
    placement = Placement.of([(0, length) for length in lengths], model.device)
    metadata = placement.metadata([table] * 2, shape.kinds, shape.page_size)
    parts = [embedded(model, prompt, 0, len(prompt.ids)) for prompt in prompts]
    caches = [scaled(pages, layer, model.kv_scales) for layer in range(len(shape.kinds))]
    hidden: Tensor = model(torch.cat(parts), model.plan(metadata, caches), caches)
    return hidden
