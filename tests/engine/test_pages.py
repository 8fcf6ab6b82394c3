"""Who has which page, and what a page's name says of it: against a naive model of both."""

from collections import Counter

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from l4kernels import Sampling
from l4kernels.engine.kv_cache import CHUNKED, GLOBAL, CacheShape, KVCache, Pages, chunk_pages
from l4kernels.engine.pages import NO_PAGE, PagePool, chain
from l4kernels.engine.sequence import Choice, Sequence
from tests.support.checksums import config

NAMES = [bytes([i]) for i in range(6)]


class PoolMachine(RuleBasedStateMachine):
    """Pages that are nobody's, of how many users, or kept by name in the order of their use."""

    def __init__(self):
        super().__init__()
        self.pool = PagePool(5)
        self.users, self.names, self.cached = Counter(), {}, []

    def free(self):
        return {*range(5)} - {*+self.users} - {*self.cached}

    @precondition(lambda self: self.pool.available)
    @rule()
    def allocate(self):
        free = self.free()
        page = self.pool.allocate()
        if free:
            assert page in free
        else:
            assert page == self.cached.pop(0), "the least recently used goes first"
            del self.names[page]
        self.users[page] += 1

    @precondition(lambda self: +self.users)
    @rule(data=st.data(), name=st.sampled_from(NAMES))
    def name(self, data, name):
        page = data.draw(st.sampled_from(sorted(+self.users)))
        self.pool.name(page, name)
        if page not in self.names and name not in self.names.values():
            self.names[page] = name

    @rule(name=st.sampled_from(NAMES))
    def find_and_take(self, name):
        page = self.pool.find(name)
        assert page == next((p for p, n in self.names.items() if n == name), None)
        if page is not None:
            self.pool.take(page)
            self.users[page] += 1
            self.cached = [p for p in self.cached if p != page]

    @precondition(lambda self: +self.users)
    @rule(data=st.data())
    def release(self, data):
        page = data.draw(st.sampled_from(sorted(+self.users)))
        self.pool.release(page)
        self.users[page] -= 1
        if not self.users[page] and page in self.names:
            self.cached.append(page)

    @rule()
    def forget(self):
        self.pool.forget()
        self.names, self.cached = {}, []

    @invariant()
    def counts(self):
        assert self.pool.in_use == len(+self.users)
        assert self.pool.cached == len(self.cached)
        assert self.pool.available == 5 - len(+self.users)


PoolMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestPool = PoolMachine.TestCase


def sequence(tokens, new=1, salt=b""):
    return Sequence(list(tokens), Choice(Sampling(), 0, frozenset(), new), salt=salt)


def cache(chunk, pages=(12, 12), layers="both"):
    kwargs = {"dtype": torch.float32, "device": torch.device("cpu")}
    return KVCache(config(chunk, layers), Pages(*pages), **kwargs)


def content(tokens, page, size, salt):
    """What a page holds: its tokens and all before them."""
    return salt, *tokens[: (page + 1) * size]


class CacheMachine(RuleBasedStateMachine):
    """Sequences that begin, grow a piece at a time as an engine lets them, and end. Beside the
    cache stands what was written to every page."""

    chunk, layers, size = 24, "both", 16

    def __init__(self):
        super().__init__()
        pages = (9, 9)
        if self.layers != "both":
            pages = (9, 0) if self.layers == "global" else (0, 9)
        self.cache = cache(self.chunk, pages, self.layers)
        self.size = self.cache.shape.page_size
        self.alive, self.written = [], ({}, {})
        self.kinds = [kind for kind in (GLOBAL, CHUNKED) if kind in self.cache.shape.kinds]

    def write(self, one, start, end):
        """As a piece of a prompt does; what is shared is never written to."""
        for kind in self.kinds:
            for position in range(start, end):
                page = one.pages[kind][position // self.size]
                assert page != NO_PAGE
                assert sum(page in other.pages[kind] for other in self.alive) == 1
                held = content(one.tokens, position // self.size, self.size, one.salt)
                self.written[kind][page] = held

    @precondition(lambda self: len(self.alive) < 4)
    @rule(
        prefix=st.sampled_from([0, 1, 2]),
        length=st.integers(1, 110),
        other=st.integers(1, 110),
        salt=st.sampled_from([b"", b"", b"x"]),
    )
    def begin(self, prefix, length, other, salt):
        one = sequence([prefix] * min(length, other) + [prefix + 1] * (length - other), 40, salt)
        one.computed = self.cache.reuse(one)
        assert one.computed % self.size == 0 and one.computed < max(2, len(one.tokens))
        first = self.cache.shape.first_page(one.computed)
        for kind in self.kinds:
            held = one.pages[kind]
            assert len(held) == one.computed // self.size
            for i, page in enumerate(held):
                if kind == GLOBAL or i >= first:
                    wanted = content(one.tokens, i, self.size, salt)
                    assert self.written[kind][page] == wanted, "a name without its content"
                else:
                    assert page == NO_PAGE
        self.alive.append(one)

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), count=st.integers(1, 40))
    def compute(self, data, count):
        one = data.draw(st.sampled_from(self.alive))
        start, end = one.computed, min(one.computed + count, len(one.tokens) - 1)
        if self.cache.shape.chunk:
            end = min(end, (start // self.chunk + 1) * self.chunk)
        if end <= start:
            return self.decode(one)
        if not self.extend(one, start, end):
            return None
        self.write(one, start, end)
        one.computed = end
        self.cache.remember(one, end)
        return None

    def decode(self, one):
        last = len(one.tokens) - 1
        if last + 2 > one.capacity or not self.extend(one, last, last + 2):
            return
        self.write(one, last, last + 1)
        one.tokens.append(7)
        one.computed = last + 1
        self.cache.remember(one, last + 1)

    def extend(self, one, start, end):
        before = [len(pages) for pages in one.pages]
        missing = [self.cache.shape.pages(end) - n for n in before]
        done = self.cache.extend(one, start, end)
        if done:
            for kind in self.kinds:
                held = [page for page in one.pages[kind] if page != NO_PAGE]
                assert len(one.pages[kind]) == max(before[kind], self.cache.shape.pages(end))
                assert kind == GLOBAL or len(held) <= self.cache.shape.needed(end).of_chunked
        else:
            pools = self.cache.pools
            assert [len(pages) for pages in one.pages] == before
            assert any(missing[kind] > pools[kind].available for kind in self.kinds)
        return done

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def end(self, data):
        one = data.draw(st.sampled_from(self.alive))
        self.cache.release(one)
        self.alive.remove(one)

    @invariant()
    def pages_are_in_the_hands_that_hold_them(self):
        for kind, pool in enumerate(self.cache.pools):
            held = Counter(p for one in self.alive for p in one.pages[kind] if p != NO_PAGE)
            assert pool.in_use == len(held)
            assert held == Counter({page: n for page, n in enumerate(pool._users) if n})

    @invariant()
    def names_say_what_pages_hold(self):
        for one in self.alive:
            for kind in self.kinds:
                for i in range(one.computed // self.size):
                    page = self.cache._find(kind, one, i)
                    if page is not None:
                        wanted = content(one.tokens, i, self.size, one.salt)
                        assert self.written[kind][page] == wanted


def machine(chunk, layers):
    made = type("Machine", (CacheMachine,), {"chunk": chunk, "layers": layers})
    made.TestCase.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)
    return made.TestCase


TestPageOfAChunk = machine(16, "both")
TestPagesThatDoNotDivideTheChunk = machine(24, "both")
TestSeveralPagesOfAChunk = machine(96, "both")
TestGlobalLayersAlone = machine(24, "global")
TestChunkedLayersAlone = machine(40, "chunked")


def grown(one, made):
    """Computes a prompt as the scheduler does: in pieces that cross no chunk."""
    chunk, last = made.shape.chunk, len(one.tokens) - 1
    while one.computed < last:
        end = min(last, (one.computed // chunk + 1) * chunk) if chunk else last
        assert made.extend(one, one.computed, end)
        one.computed = end
        made.remember(one, end)
    return one


def seed(made, tokens):
    """A sequence that was computed and has ended."""
    one = grown(sequence(tokens), made)
    made.release(one)


@pytest.mark.parametrize("chunk", [16, 24, 40, 64, 96])
def test_what_is_reused_before_at_and_after_a_boundary(chunk):
    """All full pages but for the one of the last token; of chunked layers, those of its chunk."""
    tokens = [*range(400)]
    for boundary in (chunk, 2 * chunk):
        for length in range(boundary - 2, boundary + 20):
            made = cache(chunk, (40, 40))
            seed(made, tokens[: length + 1])  # its last token is never computed
            one = sequence([*tokens[:length], 7])
            size = made.shape.page_size
            known = min(length, len(one.tokens) - 1) // size * size
            first = known // chunk * chunk // size
            assert made.reuse(one) == known, (boundary, length)
            assert [p != NO_PAGE for p in one.pages[CHUNKED]] == [
                i >= first for i in range(known // size)
            ]
            assert NO_PAGE not in one.pages[GLOBAL]


@pytest.mark.parametrize("chunk, size", [(96, 32), (24, 16), (128, 64)])
def test_chunked_pages_that_were_evicted_shorten_the_prefix_to_what_is_left(chunk, size):
    """Whichever chunked pages are gone, the longest prefix that needs none of them is found."""
    tokens = [*range(2 * chunk + size + 1)]
    count = (len(tokens) - 1) // size
    for gone in range(1 << count):
        made = cache(chunk, (40, 40))
        seed(made, tokens)
        assert made.shape.page_size == size
        pool, one = made.pools[CHUNKED], sequence(tokens)
        for i in range(count):
            if gone >> i & 1 and (page := made._find(CHUNKED, one, i)) is not None:
                del pool._named[pool._names.pop(page)]
                del pool._cached[page]
                pool._free.append(page)
        there = [made._find(CHUNKED, one, i) is not None for i in range(count)]
        best = max(n for n in range(count + 1) if all(there[n * size // chunk * chunk // size : n]))
        assert made.reuse(one) == best * size
        made.release(one)
        assert pool.in_use == made.pools[GLOBAL].in_use == 0


@pytest.mark.parametrize("taken", range(6))
def test_the_start_of_a_prefix_is_forgotten_last(taken):
    made = cache(64, (5, 5))
    seed(made, range(4 * 64 + 1))  # keeps 4 of the 5 pages
    assert made.extend(sequence([99] * 64), 0, 64 * taken)
    one = sequence(range(4 * 64 + 1))
    found = [made._find(GLOBAL, one, i) is not None for i in range(4)]
    assert found == [i < 5 - taken for i in range(4)]


def test_a_name_depends_on_all_that_came_before():
    names = {chain(parent, [1, 2], image) for parent in (b"", b"a") for image in (b"", b"b")}
    assert len(names) == 4
    assert sequence([1] * 32).page_name(1, 16) != sequence([1] * 32).page_name(0, 16)
    assert sequence([1] * 16, salt=b"x").page_name(0, 16) != sequence([1] * 16).page_name(0, 16)


def test_no_salt_continues_another_prefix():
    """A salt with the bytes of a page's name, or of a token, would else be what comes before."""
    whole, size = sequence([1] * 16 + [2] * 16), 16
    name = whole.page_name(0, size)
    assert sequence([2] * 16, salt=name).page_name(0, size) != whole.page_name(1, size)
    token = (7).to_bytes(8, "little")
    assert sequence([8] * 15, salt=token).page_name(0, 15) != sequence([7] + [8] * 15).page_name(
        0, 16
    )


@pytest.mark.parametrize("chunk", [0, 1, 15, 16, 17, 24, 64, 8192])
def test_no_sequence_holds_more_chunked_pages_than_are_said_to_be_needed(chunk):
    """Growing a token at a time, with a page for the next one."""
    made = cache(chunk, (2000, 2000), "both") if chunk else cache(0, (2000, 0), "global")
    length = min(300, 5 * max(chunk, 20))
    one = sequence([1], length)
    shape: CacheShape = made.shape
    for last in range(length - 1):
        assert made.extend(one, last, min(last + 2, one.capacity))
        held = sum(page != NO_PAGE for page in one.pages[CHUNKED])
        assert held <= shape.needed(one.capacity).of_chunked
    if chunk:
        assert shape.most_chunked == chunk_pages(chunk, shape.page_size) + 1
