"""What a step reads and writes, in tensors that are made once: a captured step finds the next
one's values where it looks for them."""

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from l4kernels.engine.kv_cache import CHUNKED, GLOBAL, CacheShape
from l4kernels.engine.sampling import TOP_K_MAX
from l4kernels.engine.sequence import Sequence as EngineSequence
from l4kernels.layers.attention import AttentionMetadata
from l4kernels.model.config import Llama4Config
from l4kernels.ops.step import pack_bits, words

MAX_LOGPROBS = 20
"""The likeliest tokens that a step can report."""

_INT64 = "ids", "positions", "generated", "max_tokens", "min_tokens", "seeds"
_INT32 = "seqlens_k", "top_k", "active", "feature_rows"
_FLOAT = (
    "temperature",
    "top_p",
    "min_p",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
)


@dataclass(frozen=True)
class StepKind:
    """What a step does besides drawing tokens. Greedy rows and drawn ones go through one kernel,
    which asks each row; these cost more, so steps do without where no row wants them."""

    processed: bool = False
    """Logits are changed first: penalties, biases, masks."""
    logprobs: bool = False


class StepState:
    """Of every slot: the token it is at, where its keys lie, how its tokens are chosen.

    A slot that is idle, or whose sequence has ended, has no keys (`seqlens_k` 0) and no place to
    write (`slots` -1).

    Args:
        slots: how many sequences can be at a token at once.
        context: the most tokens of one.
    """

    def __init__(
        self,
        config: Llama4Config,
        shape: CacheShape,
        slots: int,
        context: int,
        *,
        device: torch.device,
        dtype: torch.dtype,
    ):
        self.config, self.shape, self.num_slots, self.device = config, shape, slots, device
        self.words = words(config.vocab_size)

        def zeros(*size: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(size, dtype=dtype, device=device)

        self.int64 = zeros(len(_INT64), slots, dtype=torch.int64)
        self.int32 = zeros(len(_INT32), slots, dtype=torch.int32)
        self.float = zeros(len(_FLOAT), slots, dtype=torch.float32)
        self.slots = zeros(2, slots, dtype=torch.int64).fill_(-1)
        self.tables = zeros(2, slots, shape.pages(context), dtype=torch.int32).fill_(-1)
        self.stop_bits = zeros(slots, self.words, dtype=torch.int32)
        self.results = zeros(2, slots, dtype=torch.int64).fill_(-1)
        self.cu_seqlens = torch.arange(slots + 1, dtype=torch.int32, device=device)
        self._int32("feature_rows").fill_(-1)
        self.features = None
        if config.vision is not None:
            self.features = zeros(slots, config.hidden_size, dtype=dtype)
        self._rows: dict[int, StepRows] = {}
        self._edits: dict[int, int] = {}

    @cached_property
    def processing(self) -> dict[str, Tensor]:
        """What only processed steps read; made when a sequence first asks for one."""
        slots, vocab = self.num_slots, self.config.vocab_size
        zeros: dict[str, Any] = {"dtype": torch.int32, "device": self.device}
        return {
            "tally": torch.zeros(slots, vocab, **zeros),
            "bias": torch.zeros(slots, vocab, dtype=torch.float32, device=self.device),
            "allowed": torch.full((slots, self.words), -1, **zeros),
        }

    @cached_property
    def listed(self) -> tuple[Tensor, Tensor, Tensor]:
        """Where a step reports log-probabilities: of the token, and the likeliest ones and theirs;
        made when a sequence first asks for them."""
        most, rows = min(MAX_LOGPROBS, self.config.vocab_size), self.num_slots
        return (
            torch.zeros(rows, dtype=torch.float32, device=self.device),
            torch.zeros(rows, most, dtype=torch.int64, device=self.device),
            torch.zeros(rows, most, dtype=torch.float32, device=self.device),
        )

    def _int32(self, name: str) -> Tensor:
        return self.int32[_INT32.index(name)]

    def rows(self, count: int) -> "StepRows":
        """The first slots."""
        if count not in self._rows:
            self._rows[count] = StepRows(self, count)
        return self._rows[count]

    def set_pages(self, kind: int, slot: int, first: int, pages: Iterable[int]) -> None:
        """Entries of a block table from its column `first` on, when `flush` is next called."""
        columns = self.tables.shape[2]
        at = (kind * self.num_slots + slot) * columns + first
        self._edits.update(enumerate(pages, at))

    def flush(self) -> None:
        if self._edits:
            edits = torch.tensor([[*self._edits], [*self._edits.values()]], device="cpu")
            places, pages = to_device(edits, self.device)
            self.tables.view(-1)[places] = pages.to(torch.int32)
            self._edits.clear()

    def start(self, slot: int, sequence: EngineSequence) -> None:
        """Puts a sequence, all of whose tokens but the last are computed, into a slot."""
        choice, sampling, last = sequence.choice, sequence.choice.sampling, len(sequence.tokens) - 1
        processes = sampling.processes or choice.token_mask is not None
        size, patch = self.shape.page_size, self._feature_row(slot, sequence)
        page = [pages[last // size] if pages else -1 for pages in sequence.pages]
        self._column(
            self.int64,
            slot,
            (
                sequence.tokens[-1],
                last,
                len(sequence.tokens) - sequence.prompt_length,
                choice.max_new_tokens,
                min(sampling.min_tokens, choice.max_new_tokens),
                choice.seed,
            ),
        )
        self._column(
            self.int32, slot, (last + 1, min(sampling.top_k, TOP_K_MAX), int(processes), patch)
        )
        self._column(
            self.float,
            slot,
            tuple(getattr(sampling, name) for name in _FLOAT),
        )
        self._column(self.slots, slot, [-1 if p < 0 else p * size + last % size for p in page])
        self.stop_bits[slot] = to_device(
            _stop_bits(choice.stop_ids, self.config.vocab_size), self.device
        )
        if processes:
            self._start_processing(slot, sequence)

    def _feature_row(self, slot: int, sequence: EngineSequence) -> int:
        """A prompt that ends in a patch is at one when it starts."""
        images, last = sequence.images, len(sequence.tokens) - 1
        if images is None or last >= sequence.prompt_length or images.rows[last] < 0:
            return -1
        assert self.features is not None and images.features is not None
        self.features[slot] = images.features[images.rows[last]]
        return slot

    def _start_processing(self, slot: int, sequence: EngineSequence) -> None:
        tensors, vocab = self.processing, self.config.vocab_size
        bias = torch.zeros(vocab, dtype=torch.float32, device="cpu")
        given = sequence.choice.sampling.logit_bias
        if given:
            values = torch.tensor([*given.values()], dtype=torch.float32, device="cpu")
            bias[list(given)] = values
        new = torch.tensor(sequence.new_tokens, dtype=torch.int64, device="cpu")
        tally = 2 * torch.bincount(new, minlength=vocab)
        tally[list(set(sequence.tokens[: sequence.prompt_length]))] += 1
        tensors["bias"][slot] = to_device(bias, self.device)
        tensors["tally"][slot] = to_device(tally.to(torch.int32), self.device)
        tensors["allowed"][slot] = -1

    def allow(self, slot: int, mask: Tensor | None) -> None:
        """Which tokens a slot may draw next."""
        self.processing["allowed"][slot] = -1 if mask is None else to_device(mask, self.device)

    def stop(self, slot: int) -> None:
        """The slot is idle from the next step on."""
        self._int32("seqlens_k")[slot] = 0
        self.slots[:, slot] = -1
        self.int64[_INT64.index("positions"), slot] = 0

    def move(self, source: int, target: int, *, processed: bool) -> None:
        """What is in one slot is in another from the next step on; a step has begun it, so that it
        is at no patch any more."""
        self.flush()
        for matrix in (self.int64, self.int32, self.float, self.slots, self.tables):
            matrix[:, target] = matrix[:, source]
        own = [self.stop_bits, *(self.processing.values() if processed else ())]
        for tensor in own:
            tensor[target] = tensor[source]
        self.stop(source)

    def _column(self, matrix: Tensor, slot: int, values: Sequence[float]) -> None:
        matrix[:, slot] = to_device(
            torch.tensor(values, dtype=matrix.dtype, device="cpu"), self.device
        )


class StepRows:
    """The first slots of a state, by name: `rows.ids`, `rows.temperature`, ..."""

    ids: Tensor
    generated: Tensor
    seeds: Tensor
    feature_rows: Tensor

    def __init__(self, state: StepState, count: int):
        self.state, self.count = state, count
        for names, matrix in (
            (_INT64, state.int64),
            (_INT32, state.int32),
            (_FLOAT, state.float),
        ):
            for name, row in zip(names, matrix[:, :count], strict=True):
                setattr(self, name, row)
        self.slots, self.tables = state.slots[:, :count], state.tables[:, :count]
        self.stop_bits, self.results = state.stop_bits[:count], state.results[:, :count]
        kinds = [self._metadata(kind) for kind in (GLOBAL, CHUNKED)]
        self.metadata = [kinds[kind] for kind in state.shape.kinds]

    def _metadata(self, kind: int) -> AttentionMetadata:
        cu_seqlens = self.state.cu_seqlens[: self.count + 1]
        at = self.named("positions", "seqlens_k")
        return AttentionMetadata(
            at["positions"], self.slots[kind], cu_seqlens, at["seqlens_k"], self.tables[kind], 1
        )

    def named(self, *names: str) -> dict[str, Any]:
        """For an op that calls its arguments the same."""
        return {name: getattr(self, name) for name in names}

    @cached_property
    def processing(self) -> dict[str, Tensor]:
        return {name: t[: self.count] for name, t in self.state.processing.items()}

    def listed(self) -> Iterator[Tensor]:
        return (t[: self.count] for t in self.state.listed)


@functools.lru_cache(maxsize=64)
def _stop_bits(ids: frozenset[int], vocab: int) -> Tensor:
    """Most requests have the same end tokens, and a vocabulary is long."""
    return pack_bits(ids, vocab)


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """A copy of host values that the host does not wait for."""
    if device.type == "cuda" and not values.is_cuda:
        return values.pin_memory().to(device, non_blocking=True)
    return values
