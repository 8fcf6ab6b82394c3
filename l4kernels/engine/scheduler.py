"""Who runs next: sequences that wait, whose prompt is being computed, and that are at a token."""

import heapq
import itertools
from dataclasses import dataclass, field

from l4kernels.engine.kv_cache import KVCache
from l4kernels.engine.runner import Piece
from l4kernels.engine.sequence import Sequence


@dataclass
class Counts:
    """Since the scheduler was made."""

    prompt_tokens: int = 0
    """Of prompts that were begun, also again."""
    reused_tokens: int = 0
    """Of those, found in the cache."""
    preemptions: int = 0


@dataclass(eq=False)
class Scheduler:
    """First come, first served, by `Sequence.order`; a later sequence never keeps an earlier one
    from its pages.

    Args:
        slots: sequences that are begun and not finished.
        prefill_tokens: of prompts, in one step, while other sequences wait for their next token;
            `most_tokens` while none does.
        reuse: whether prefixes are looked for in the cache.
    """

    cache: KVCache
    slots: int
    prefill_tokens: int
    most_tokens: int
    reuse: bool
    counts: Counts = field(default_factory=Counts)
    prefilling: list[Sequence] = field(default_factory=list)
    running: dict[int, Sequence] = field(default_factory=dict)
    """By slot, those that are at a token."""

    def __post_init__(self) -> None:
        self._waiting: list[tuple[tuple[int, int], Sequence]] = []
        self._arrivals = itertools.count()
        self._free = list(range(self.slots))
        self._refused: tuple[Sequence, int] | None = None

    @property
    def waiting(self) -> int:
        return sum(sequence.finish_reason is None for _, sequence in self._waiting)

    @property
    def idle(self) -> bool:
        return not (self.running or self.prefilling or self._waiting)

    @property
    def used_slots(self) -> int:
        """Slots up to the last that is at a token."""
        return max(self.running, default=-1) + 1

    def add(self, sequence: Sequence) -> None:
        sequence.arrival = next(self._arrivals)
        heapq.heappush(self._waiting, (sequence.order, sequence))

    def everyone(self) -> list[Sequence]:
        waiting = [sequence for _, sequence in self._waiting if sequence.finish_reason is None]
        return [*self.running.values(), *self.prefilling, *waiting]

    def admit(self) -> list[Sequence]:
        """Begins sequences that wait, while there are slots and pages for their whole prompts."""
        begun = []
        while self._waiting and self._free:
            _, sequence = self._waiting[0]
            if sequence.finish_reason is not None:  # cancelled
                heapq.heappop(self._waiting)
                continue
            if not self._fits_now(sequence):
                break
            heapq.heappop(self._waiting)
            sequence.slot = heapq.heappop(self._free)
            self.counts.prompt_tokens += len(sequence.tokens) - 1
            self.counts.reused_tokens += sequence.computed
            if not sequence.preemptions:
                sequence.reused = sequence.computed
            self.prefilling.append(sequence)
            begun.append(sequence)
        return begun

    def _fits_now(self, sequence: Sequence) -> bool:
        if sequence.awaits is not None:
            leader, end = sequence.awaits
            if leader in self.prefilling and leader.computed < end:
                return False
        if self._refused == (sequence, self.cache.releases):
            return False  # nothing has changed
        if self.reuse:
            sequence.computed = self.cache.reuse(sequence)
            sequence.awaits = self._who_computes_next_page(sequence)
        # Room for the token after the last, too: a sequence that was preempted for lack of that
        # page would otherwise be begun and preempted for ever. Those whose prompts are being
        # computed come first.
        wanted = (
            self.cache.missing(one, min(len(one.tokens) + 1, one.capacity))
            for one in (*self.prefilling, sequence)
        )
        if sequence.awaits is None and self.cache.has(wanted):
            return True
        self.cache.release(sequence)
        sequence.computed = 0
        if sequence.awaits is None:
            self._refused = sequence, self.cache.releases
        return False

    def _who_computes_next_page(self, sequence: Sequence) -> tuple[Sequence, int] | None:
        """Of prompts that begin alike and come together, one is computed; the others share it."""
        size, start = self.cache.shape.page_size, sequence.computed
        page, end = start // size, start + size
        if end >= len(sequence.tokens):
            return None
        name = sequence.page_name(page, size)
        for one in self.prefilling:
            if one.computed < end < len(one.tokens) and one.page_name(page, size) == name:
                return one, end
        return None

    @property
    def budget(self) -> int:
        """Tokens of prompts in the next step."""
        return self.prefill_tokens if self.running else self.most_tokens

    def pieces(self, left: int) -> list[Piece]:
        """The next tokens of prompts, at most `left`, in the order of sequences, none across a
        chunk; all but the last token, which is a step's. Their pages are still to be made."""
        chunk, pieces = self.cache.shape.chunk, []
        for sequence in sorted(self.prefilling, key=lambda s: s.order):
            start, end = sequence.computed, len(sequence.tokens) - 1
            if chunk:
                end = min(end, (start // chunk + 1) * chunk)
            end = min(end, start + left)
            if end > start:
                assert sequence.slot is not None
                pieces.append(Piece(sequence, sequence.slot, start, end))
                left -= end - start
        return pieces

    def youngest(self) -> Sequence:
        """Of those that hold pages."""
        return max((*self.running.values(), *self.prefilling), key=lambda s: s.order)

    def begin_decoding(self, sequence: Sequence) -> None:
        assert sequence.slot is not None
        self.prefilling.remove(sequence)
        self.running[sequence.slot] = sequence
        sequence.decoding = True

    def preempt(self, sequence: Sequence) -> None:
        """Takes pages and slot from a sequence, which waits to be computed again."""
        self._leave(sequence)
        sequence.preemptions += 1
        self.counts.preemptions += 1
        heapq.heappush(self._waiting, (sequence.order, sequence))

    def finish(self, sequence: Sequence, reason: str) -> None:
        sequence.finish_reason = reason
        self._leave(sequence)

    def _leave(self, sequence: Sequence) -> None:
        self.cache.release(sequence)
        sequence.computed, sequence.decoding = 0, False
        if sequence.slot is None:
            return
        if self.running.get(sequence.slot) is sequence:
            del self.running[sequence.slot]
        else:
            self.prefilling.remove(sequence)
        heapq.heappush(self._free, sequence.slot)
        sequence.slot = None

    def move_to_lower_slot(self) -> tuple[int, int] | None:
        """Moves the last sequence that is at a token to the first free slot, if that is lower."""
        last = self.used_slots - 1
        if last < 0 or not self._free or self._free[0] > last:
            return None
        target = heapq.heapreplace(self._free, last)
        sequence = self.running.pop(last)
        self.running[target], sequence.slot = sequence, target
        return last, target
