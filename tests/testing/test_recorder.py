"""The recorder: a right step replays as it runs, and what a graph would freeze or refuse shows."""

import contextlib
import doctest

import pytest
import torch

from l4kernels import Llama4, Llama4Config, ops
from l4kernels.layers.attention import AttentionMetadata, LayerCache
from l4kernels.testing import CaptureError, Recorder, emulated, recorder
from tests.support.checkpoints import ALIGNED, TEXT

PAGE, CHUNK, LOGICAL = 16, 32, 16
FIRST = [0, 5, 14]  # positions, all in the first page


@pytest.fixture(scope="module")
def model():
    """A dense layer inside its chunk, and a global one of experts."""
    config = {**TEXT, **ALIGNED, "attention_chunk_size": CHUNK}
    config |= {"num_hidden_layers": 2, "no_rope_layers": [1, 0]}
    return Llama4.random(Llama4Config.from_dict(config))


class Decoding:
    """A step that a graph may hold: all that changes from one to the next is in these tensors.

    Between steps the host gives a row its next page, as a scheduler does.
    """

    def __init__(self, model):
        config, rows, ring = model.config, len(FIRST), CHUNK // PAGE
        self.model, self.chunked = model, [config.chunk(i) > 0 for i in range(len(model.layers))]
        self.first = torch.tensor(FIRST)
        self.ids = torch.arange(rows)
        self.positions = self.first.clone()
        self.lengths = self.first.int() + 1
        self.counters = torch.zeros(rows, dtype=torch.int64)
        rings = torch.arange(rows)[:, None] * ring + torch.arange(LOGICAL) % ring
        self.tables = [torch.zeros(rows, LOGICAL, dtype=torch.int32), rings.int()]
        self.slots = [torch.zeros(rows, dtype=torch.int64) for _ in self.tables]
        self.offsets = torch.arange(rows + 1, dtype=torch.int32)
        self.caches = []
        for chunked in self.chunked:
            shape = (rows * (ring if chunked else LOGICAL), PAGE, 1, config.head_dim)
            self.caches.append(LayerCache(torch.zeros(shape), torch.zeros(shape)))
        ones = torch.ones(rows)
        off = torch.zeros(rows, dtype=torch.int32)
        self.sampling = ones, off, ones, torch.zeros(rows), torch.arange(rows)
        self.said, self.done = self.ids.tolist(), 0  # what the host knows
        self.tokens = []

    def begin(self):
        pass

    def find_slots(self):
        page, offset = self.positions[:, None] // PAGE, self.positions % PAGE
        for table, slots in zip(self.tables, self.slots, strict=True):
            torch.add(offset, table.gather(1, page)[:, 0], alpha=PAGE, out=slots)

    def step(self):
        self.begin()
        self.find_slots()
        kinds = [
            AttentionMetadata(self.positions, slots, self.offsets, self.lengths, table, 1)
            for table, slots in zip(self.tables, self.slots, strict=True)
        ]
        hidden = self.model(self.ids, [kinds[chunked] for chunked in self.chunked], self.caches)
        logits = self.model.compute_logits(hidden)
        self.ids.copy_(ops.sample(logits, *self.sampling, self.counters).ids)
        self.advance()

    def advance(self):
        for t in (self.positions, self.lengths, self.counters):
            t.add_(1)

    def new_page(self, row, logical, page):
        self.tables[0][row, logical] = page

    def run(self, steps, capture=lambda step: step):
        """The tokens of every step, of which the first is captured."""
        step = self.step
        for n in range(steps):
            for row, first in enumerate(FIRST):
                if n == 0 or (first + n) % PAGE == 0:
                    logical = (first + n) // PAGE
                    self.new_page(row, logical, LOGICAL * row + (5 * logical + 3) % LOGICAL)
            if n == 0:
                replay = capture(step)
                if replay is step:
                    step()
            else:
                replay()
            self.said, self.done = self.ids.tolist(), self.done + 1
            self.tokens.append(self.said)
        return self.tokens


def test_a_right_step_replays_as_it_runs(model):
    """Across boundaries of chunks and pages, in the memory that the recording made."""
    with torch.inference_mode():
        wanted = Decoding(model).run(201)
        capture = Recorder()
        assert Decoding(model).run(201, capture) == wanted
    assert len({*map(tuple, wanted)}) > 150
    assert capture.escaped() == []
    attends = [n for name, n in capture.launches.items() if "flash_decode" in name]
    assert sum(attends) == len(model.layers)
    assert capture.launches["l4kernels.sample"] == 1
    assert not {"aten.empty", "aten.view", "aten.select"} & {*capture.launches}
    largest = len(FIRST) * model.config.vocab_size * 4
    assert largest < capture.temporary_bytes < 100 * largest


class HostsPosition(Decoding):
    def advance(self):
        super().advance()
        self.positions.copy_(self.first + (self.done + 1))


class HostsSlots(Decoding):
    def find_slots(self):
        for table, slots in zip(self.tables, self.slots, strict=True):
            places = [(row, first + self.done) for row, first in enumerate(FIRST)]
            pages = torch.stack([table[row, at // PAGE] for row, at in places])
            torch.add(torch.tensor([at % PAGE for _, at in places]), pages, alpha=PAGE, out=slots)


class HostsCounter(Decoding):
    def advance(self):
        super().advance()
        self.counters.fill_(self.done + 1)


class HostsTokens(Decoding):
    def begin(self):
        self.ids.copy_(torch.tensor(self.said))


class AnotherTable(Decoding):
    def new_page(self, row, logical, page):
        self.tables[0] = self.tables[0].clone()
        super().new_page(row, logical, page)


class AnotherTableByTheStep(Decoding):
    def begin(self):
        self.tables[0] = self.tables[0] + 0


BUGS = [HostsPosition, HostsSlots, HostsCounter, HostsTokens, AnotherTable, AnotherTableByTheStep]


@pytest.mark.parametrize("bug", BUGS)
def test_a_value_of_the_host_gives_other_tokens(bug, model):
    """None of which shows when the step itself runs."""
    with torch.inference_mode():
        wanted = Decoding(model).run(24)
        assert bug(model).run(24) == wanted
        decoding = bug(model)
        with contextlib.suppress(IndexError):  # slots that are not where the lengths are
            decoding.run(24, Recorder())
    assert decoding.tokens[0] == wanted[0] and decoding.tokens != wanted


def test_what_a_step_leaves_behind_is_named(model):
    with torch.inference_mode():
        decoding, capture = AnotherTableByTheStep(model), Recorder()
        decoding.run(3, capture)
        assert capture.escaped() == [f"aten.add: [3, {LOGICAL}] int32 on cpu"]
        decoding.tables.clear()
        assert capture.escaped() == []


class ReadsBack(Decoding):
    def begin(self):
        if self.positions.max().item() > 4096:
            raise ValueError("too long")


def test_a_value_that_the_host_reads_is_refused(model):
    with torch.inference_mode(), pytest.raises(CaptureError, match="_local_scalar_dense reads"):
        ReadsBack(model).run(1, Recorder())


X, PLACES = torch.arange(6.0).view(2, 3), torch.arange(3)
REFUSED = {
    "item": (lambda: X[0, 0].item(), r"_local_scalar_dense reads \[\] float32 on cpu back"),
    "a condition": (lambda: 1 if X[0, 1] > 0 else 2, "_local_scalar_dense reads"),
    "int as an index": (lambda: X[:, : PLACES[1]], "_local_scalar_dense reads"),
    "equality": (lambda: torch.equal(X, X), "aten.equal reads"),
    "tolist": (lambda: PLACES.tolist(), r"tolist\(\) reads \[3\] int64 on cpu back to the host"),
    "a list of tensors": (lambda: torch.tensor([[X[0, 0]], [2]]), r"tensor reads \[\] float32"),
    "numpy": (lambda: PLACES.numpy(), r"numpy\(\) reads"),
    "print": (lambda: str(X), r"repr\(\) reads"),
    "format": (lambda: f"{X}", r"format\(\) reads"),
    "nonzero": (lambda: X.nonzero(), "aten.nonzero makes sizes of data"),
    "a mask": (lambda: X[X > 2], "aten.index makes sizes of data"),
    "values under a mask": (
        lambda: X.index_put_((X > 2,), torch.ones(3)),
        "aten.index_put_ makes sizes of data",
    ),
    "repeats": (
        lambda: torch.repeat_interleave(PLACES),
        "aten.repeat_interleave makes sizes of data",
    ),
    "random": (lambda: torch.rand(3), "aten.rand draws from a generator"),
    "random in place": (lambda: X.clone().normal_(), "aten.normal_ draws from a generator"),
    "a generator": (
        lambda: torch.rand(3, generator=torch.Generator()),
        "aten.rand draws from a generator",
    ),
    "another device": (lambda: X.to("meta"), "aten._to_copy waits for work between cpu and meta"),
    "from another device": (
        lambda: torch.empty(2, 3, device="meta").copy_(X),
        "aten.copy_ waits for work between cpu and meta",
    ),
    "made on another device": (
        lambda: torch.ops.aten.lift_fresh(torch.empty(2, device="meta")),
        "torch.tensor waits for a copy to meta",
    ),
    "growing": (lambda: torch.zeros(2).resize_(1000), "aten.resize_ moved an argument"),
    "an out that grows": (
        lambda: torch.add(X, X, out=torch.zeros(1)[:0]),
        "aten.add moved an argument",
    ),
    "other memory": (lambda: torch.zeros(2).set_(X), "aten.set_ moved an argument"),
    "data": (lambda: setattr(X.clone(), "data", X), r"tensor.data = ... moves"),
    "unwritten": (lambda: torch.empty(3) + 1, r"aten.add reads \[3\] float32 on cpu that the step"),
    "in place unwritten": (lambda: X.new_empty(3).add_(1), "aten.add_ reads"),
    "written in part": (lambda: partly().sum(), "aten.sum reads"),
    "a copy of unwritten": (lambda: torch.zeros(3).copy_(torch.empty(3)), "aten.copy_ reads"),
    "an op's unwritten argument": (
        lambda: ops.silu_mul(torch.empty(1, 4)),
        "l4kernels.silu_mul reads",
    ),
}


def partly():
    t = torch.empty(4, 3, dtype=torch.float64)
    t[:, 1:] = 0
    t[1:, :1].fill_(0)
    return t


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_capture_refuses(name):
    step, message = REFUSED[name]
    capture = Recorder()
    with pytest.raises(CaptureError, match=message):
        capture(step)
    assert capture.recordings == []


ALLOWED = {
    "one value under a mask": lambda out: out.__setitem__(out > 2, 9.0),
    "indices": lambda out: out.copy_(out[:, [2, 0, 1]]),
    "written in parts": lambda out: torch.add(torch.cat([*partly()[1:, 1:]])[:3], 1, out=out[0]),
    "an allocation filled by an op": lambda out: out.copy_(
        torch.add(out, 1, out=torch.empty_like(out))
    ),
    "an allocation viewed first": lambda out: out.add_(torch.empty(6).view(2, 3).fill_(2)),
    "a constant that is written to": lambda out: out.add_(torch.tensor([1.0]).add_(out[0, 0])),
    "an allocation turned first": lambda out: out.add_(torch.empty(3, 2).t_().fill_(2)),
    "two results in one piece": lambda out: [out.copy_(t.view(2, 3)) for t in halves(out)],
}


def halves(t):
    """An operator that gives two views of one allocation."""
    return torch.ops.l4k_test_recorder.halves(t)


@pytest.fixture(scope="module", autouse=True)
def operators():
    """That this package does not have."""
    with torch.library._scoped_library("l4k_test_recorder", "DEF") as library:
        library.define("halves(Tensor x) -> (Tensor, Tensor)")
        library.define("positive(Tensor x) -> Tensor")
        both = torch.arange(2.0)[:, None]
        library.impl("halves", lambda x: (both + x.flatten()).unbind(), "CPU")
        library.impl("positive", lambda x: x[x > 0], "CPU")
        yield


@pytest.mark.parametrize("name", ALLOWED)
def test_what_a_capture_takes(name):
    wanted, got, capture = X.clone(), X.clone(), Recorder()
    for _ in range(4):
        ALLOWED[name](wanted)
    replay = capture(lambda: ALLOWED[name](got))
    for _ in range(3):
        replay()
    assert torch.equal(got, wanted) and not torch.equal(got, X)
    assert capture.escaped() == []


def test_launches_are_what_a_graph_holds():
    """Neither views nor allocations nor constants; of an operator in several, those."""

    def step():
        halves(X)
        torch._assert_async(torch.nn.functional.linear(X, X.t_().t_()).sum() > torch.tensor(-1.0))

    replay = Recorder()(step)
    names = "l4k_test_recorder.halves", "aten.mm", "aten.sum", "aten.gt", "aten._assert_async"
    assert replay.launches == dict.fromkeys(names, 1)
    assert [call.name for call in replay.calls if call.name not in names] == ["constant"]
    assert replay.temporary_bytes == 4 * (2 * 6 + 4 + 1 + 1) + 1


def test_what_only_a_circle_holds_has_not_escaped():
    def step():
        circle = [X * 2]
        circle.append(circle)

    assert Recorder()(step).escaped() == []


def test_results_go_where_the_recorded_ones_are():
    """What was read from outside stays valid, as a graph's results do."""
    x, kept = torch.ones(2), []
    replay = Recorder()(lambda: kept.append(x * 2))
    x.fill_(5)
    replay()
    assert kept[0].tolist() == [10, 10]
    assert replay.escaped() == ["aten.mul: [2] float32 on cpu"]


def test_memory_of_another_step_is_refused():
    capture, kept, out = Recorder(), [], torch.zeros(6)
    capture(lambda: kept.append(X.flatten() * 2))
    with pytest.raises(
        CaptureError, match=r"copy_ uses \[6\] float32 on cpu that another recorded"
    ):
        capture(lambda: out.copy_(kept[0]))


def test_recorded_memory_that_moves_is_noticed():
    state = torch.zeros(4)
    replay = Recorder()(lambda: state.add_(1))
    replay()
    state.untyped_storage().resize_(1 << 20)
    with pytest.raises(CaptureError, match=r"\[4\] float32 on cpu\) was moved to other memory"):
        replay()


def test_a_result_of_another_size_is_noticed():
    """Of an operator that does not say that its sizes depend on data."""
    state, out = torch.ones(3), torch.zeros(3)
    replay = Recorder()(lambda: out.add_(torch.ops.l4k_test_recorder.positive(state)))
    replay()
    state[0] = -1
    with pytest.raises(CaptureError, match=r"positive gave \[3\].* recorded and \[2\]"):
        replay()


def test_a_step_that_fails_leaves_no_recording():
    capture = Recorder()
    with pytest.raises(ZeroDivisionError):
        capture(lambda: X.add(1 // 0))
    assert capture.recordings == [] and capture.launches == {}
    capture(lambda: X.add(1))
    assert capture.launches == {"aten.add": 1}


def test_kernels_in_the_emulator_are_recorded():
    x, out = torch.randn(2, 16).bfloat16(), torch.zeros(2, 8).bfloat16()
    with emulated(), torch.inference_mode():
        replay = Recorder()(lambda: out.copy_(ops.silu_mul(x)))
        x.copy_(torch.randn(2, 16))
        replay()
        wanted = ops.silu_mul(x)
    assert replay.launches == {"l4kernels_emulated.silu_mul": 1, "aten.copy_": 1}
    assert torch.equal(out, wanted)


def test_examples():
    result = doctest.testmod(recorder)
    assert result.attempted and not result.failed
