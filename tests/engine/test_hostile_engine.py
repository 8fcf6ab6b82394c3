"""What callers do wrong, or all at once: a clear error for the one, and the engine lives on."""

import gc
import itertools
import os
import subprocess
import sys
import threading
import time
import weakref

import pytest
import torch

from l4kernels import Sampling
from l4kernels.engine.engine import Engine, EngineClosed
from l4kernels.engine.graphs import as_it_is
from l4kernels.engine.request import Request
from tests.support.checksums import PATCH, VOCAB, ChecksumModel, answer
from tests.support.deadlines import cheaply, within
from tests.support.traffic import require_empty

CHUNK = 24
WORDS = VOCAB // 32


@pytest.fixture(scope="module")
def model():
    return ChecksumModel(CHUNK)


@pytest.fixture
def engine(model):
    with Engine(model, slots=4, context=256) as made:
        yield made
        works(made)
        require_empty(made)


def works(engine):
    """An engine that is well gives a request what it must get."""
    ids = torch.randint(0, PATCH, (30,)).tolist()
    stream = engine.add(Request(ids, 10, stop_ids=()))
    assert within(20, stream.result) == [answer(ids, 10, CHUNK)]


def endless(**kwargs):
    return Request([1, 2, 3], 200, stop_ids=(), **kwargs)


def ended(stream):
    """The finish reasons of a stream, which ends soon."""
    return within(20, lambda: [o.finish_reason for o in stream if o.finish_reason])


ENGINES = [
    ({"slots": 0}, "slots"), ({"slots": -1}, "slots"), ({"slots": None}, "slots"),
    ({"context": 0}, "context"), ({"context": 513}, "context"), ({"context": 2.0}, "context"),
    ({"kv_tokens": 0}, "kv_tokens"), ({"kv_tokens": -5}, "kv_tokens"),
    ({"prefill_tokens": 0}, "prefill_tokens"), ({"model": None}, "model"),
    ({"tokenizer": "demo"}, "tokenizer"), ({"capture": 3}, "capture"),
    ({"prefix_cache": "no"}, "prefix_cache"),
]  # fmt: skip


@pytest.mark.parametrize("options, name", ENGINES, ids=str)
def test_an_engine_without_room_is_refused_by_name(model, options, name):
    threads = threading.active_count()
    with pytest.raises(ValueError, match=f"expected {name}"):
        Engine(**{"model": model, **options})
    assert threading.active_count() == threads


REQUESTS = {
    "an empty prompt": ({"prompt": []}, "the prompt is empty"),
    "no prompt": ({"prompt": None}, "prompt"),
    "a token of no vocabulary": ({"prompt": [VOCAB]}, f"prompt.*{VOCAB}"),
    "a negative token": ({"prompt": [-1]}, "prompt.*-1"),
    "a batch": ({"prompt": [[1, 2]]}, "prompt"),
    "longer than the context": ({"prompt": [1] * 250}, "context of 256 tokens; shorten"),
    "an answer too long": ({"max_new_tokens": 10**12}, "context of 256 tokens; shorten"),
    "no answer": ({"max_new_tokens": 0}, "max_new_tokens"),
    "no samples": ({"n": 0}, "expected n "),
    "too many samples": ({"n": 10**6}, "expected n "),
    "too many log-probabilities": ({"logprobs": 21}, "logprobs"),
    "no sampling": ({"sampling": {"temperature": 1}}, "sampling"),
    "a bias of no token": ({"sampling": Sampling(logit_bias={VOCAB: 1.0})}, "logit_bias"),
    "stop strings without a tokenizer": ({"stop": ["x"]}, "tokenizer"),
    "stop ids of no vocabulary": ({"stop_ids": [VOCAB]}, "stop_ids"),
    "a salt of bytes": ({"cache_salt": b"x"}, "cache_salt"),
    "a mask": ({"token_mask": [1]}, "token_mask"),
    "no function": ({"on_output": 1}, "on_output"),
    "a priority": ({"priority": "high"}, "priority"),
    "images of another size": ({"pixel_values": torch.zeros(1, 3, 8, 8)}, "pixel_values"),
    "images without patches": ({"pixel_values": torch.zeros(1, 3, 32, 32)}, "patch tokens"),
}


@pytest.mark.parametrize("case", REQUESTS)
def test_a_request_that_cannot_be_met_is_refused_at_once(engine, case):
    options, message = REQUESTS[case]
    with pytest.raises(ValueError, match=message):
        engine.add(Request(**{"prompt": [1, 2, 3], "max_new_tokens": 8, **options}))
    assert engine.stats().waiting == 0


def test_what_is_no_request_and_no_stream(engine):
    for wrong in (None, [1, 2], "text", {"prompt": [1]}):
        with pytest.raises(ValueError, match="expected a Request"):
            engine.add(wrong)
        with pytest.raises(ValueError, match="expected the Stream of a request"):
            engine.cancel(wrong)


@pytest.mark.parametrize(
    "layers, kind, room", [("both", "context", 32), ("chunked", "3 pages of chunked layers", 32)]
)
def test_a_request_that_no_cache_could_hold_is_refused(layers, kind, room):
    with Engine(ChecksumModel(CHUNK, layers), slots=1, kv_tokens=room) as engine:
        with pytest.raises(ValueError, match=kind):
            engine.add(Request([1] * 40, 8))
        stream = engine.add(Request([1] * 20, 8, stop_ids=()))
        assert within(20, stream.result) == [answer([1] * 20, 8, CHUNK, layers)]


def test_ten_thousand_are_served_in_the_order_in_which_they_came(model):
    served, slots, count = [], 16, 10_000
    with Engine(model, slots=slots, context=256) as engine:
        streams = [
            engine.add(Request([i % PATCH], 1, on_output=lambda _, i=i: served.append(i)))
            for i in range(count)
        ]
        for i, stream in enumerate(streams):
            assert stream.result() == [answer([i % PATCH], 1, CHUNK)]
        require_empty(engine)
    assert len(served) == count
    assert all(abs(i - place) < slots for place, i in enumerate(served))


def test_cancelled_before_during_and_after_and_twice(engine):
    running = [engine.add(endless()) for _ in range(4)]
    waiting = [engine.add(endless()) for _ in range(4)]
    for stream in (*waiting, *waiting, *running):
        engine.cancel(stream)
    for stream in (*running, *waiting):
        assert ended(stream) == ["cancelled"]
        engine.cancel(stream)
    done = engine.add(Request([1], 1, stop_ids=()))
    assert ended(done) == ["length"]
    engine.cancel(done)
    assert list(done) == []


def test_cancelled_by_its_own_function(engine):
    streams = []
    started = threading.Event()

    def stop(output):
        started.wait()
        if output.token_id is not None:
            engine.cancel(streams[0])

    streams.append(engine.add(endless(on_output=stop, n=3)))
    started.set()
    assert ended(streams[0]) == ["cancelled"] * 3


def test_a_stream_of_another_engine_is_not_touched(engine, model):
    with Engine(model, slots=1) as other:
        stream = other.add(Request([1, 2, 3], 50, stop_ids=()))
        engine.cancel(stream)
        assert ended(stream) == ["length"]


class OwnBase(BaseException):
    pass


@pytest.mark.parametrize(
    "error", [ValueError, SystemExit, KeyboardInterrupt, OwnBase, StopIteration]
)
@pytest.mark.parametrize("hook", ["on_output", "token_mask"])
def test_what_a_callers_function_raises_is_its_own_affair(engine, hook, error):
    def fail(_):
        raise error("of the caller")

    beside = engine.add(Request([5] * 20, 40, stop_ids=()))
    bad = engine.add(Request([5] * 9, 40, stop_ids=(), n=2, **{hook: fail}))
    # An iterator cannot pass StopIteration on, and says so.
    with pytest.raises((error, RuntimeError) if error is StopIteration else error):
        within(20, bad.result)
    assert within(20, beside.result) == [answer([5] * 20, 40, CHUNK)]


def test_a_function_that_fails_at_the_last_output(engine):
    def fail(output):
        if output.finish_reason:
            raise ValueError("too late")

    with pytest.raises(ValueError, match="too late"):
        within(20, engine.add(Request([1], 3, stop_ids=(), on_output=fail)).result)
    stream = engine.add(endless(on_output=fail))
    engine.cancel(stream)
    with pytest.raises(ValueError, match="too late"):
        within(20, stream.result)


MASKS = [
    7, [1] * WORDS, torch.ones(WORDS), torch.ones(WORDS + 1, dtype=torch.int32),
    torch.ones(1, WORDS, dtype=torch.int32), torch.ones(VOCAB, dtype=torch.bool),
]  # fmt: skip


@pytest.mark.parametrize("mask", MASKS, ids=repr)
def test_a_mask_of_another_kind_ends_its_request(engine, mask):
    stream = engine.add(endless(token_mask=lambda tokens: mask if len(tokens) == 2 else None))
    with pytest.raises(ValueError, match=rf"token_mask to return int32 \[{WORDS}\]"):
        within(20, stream.result)


def test_a_mask_of_no_token_ends_its_request(engine):
    nothing = torch.zeros(WORDS, dtype=torch.int32)
    beside = engine.add(Request([5] * 20, 40, stop_ids=()))
    with pytest.raises(ValueError, match="no next token at step 0"):
        within(20, engine.add(endless(token_mask=lambda tokens: nothing)).result)
    assert within(20, beside.result) == [answer([5] * 20, 40, CHUNK)]


class SickModel(ChecksumModel):
    """Raises, or gives NaN, where `sick` says so."""

    error: BaseException | None = None
    sick_token = -1

    def forward(self, x, metadata, caches):
        if self.error is not None:
            raise self.error
        hidden = super().forward(x, metadata, caches)
        ids = x if x.dim() == 1 else x[:, 0]
        return torch.where(ids[:, None] == self.sick_token, torch.nan, hidden)

    def compute_logits(self, hidden):
        logits = super().compute_logits(hidden.nan_to_num(0))
        return torch.where(hidden[:, :1].isnan(), torch.nan, logits)


def test_logits_that_are_nan_are_one_requests_affair():
    model = SickModel(CHUNK)
    model.sick_token = VOCAB - 1  # is no answer
    prompts = [[i] * 20 for i in range(1, 5)]
    wanted = [answer(ids, 20, CHUNK) for ids in prompts]
    with Engine(model, slots=4) as engine:
        for _ in range(2):
            good = [engine.add(Request(ids, 20, stop_ids=())) for ids in prompts[:3]]
            bad = engine.add(Request([3] * 17 + [VOCAB - 1], 20, stop_ids=(), n=2))
            with pytest.raises(ValueError, match="no next token at step 0: its logits are NaN"):
                within(20, bad.result)
            assert [within(20, s.result)[0] for s in good] == wanted[:3]
        require_empty(engine)


def test_a_step_that_fails_ends_those_at_hand_and_no_others():
    model = SickModel(CHUNK)
    with Engine(model, slots=2, context=256, capture=as_it_is) as engine:
        for error in (RuntimeError("of the device"), MemoryError("too little")):
            streams = [engine.add(endless()) for _ in range(3)]
            assert within(20, lambda: next(streams[0])).token_id is not None  # noqa: B023
            model.error = error
            for stream in streams:
                with pytest.raises(type(error), match=str(error)):
                    within(20, stream.result)
            model.error = None
            works(engine)
            require_empty(engine)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_that_cannot_go_on_ends_all_streams(model):
    """Nothing hangs, whatever is broken."""
    engine = Engine(model, slots=2, context=256)
    stream = engine.add(endless())
    within(20, lambda: next(stream))

    def fail(*_):
        raise RuntimeError("the device is gone")

    engine._core.step = engine._core.fail = fail
    with pytest.raises(EngineClosed, match="the device is gone"):
        within(20, stream.result)
    with pytest.raises(EngineClosed, match="the device is gone"):
        engine.add(endless())
    within(20, engine.close)


def test_closing_ends_what_runs_and_what_waits(model):
    engine = Engine(model, slots=2, context=256)
    streams = [engine.add(endless(n=2)) for _ in range(5)]
    within(20, lambda: next(streams[0]))
    within(20, engine.close)
    for stream in streams:
        with pytest.raises(EngineClosed, match="closed before the request was done"):
            within(20, stream.result)
    with pytest.raises(EngineClosed, match="it takes no more requests"):
        engine.add(endless())
    engine.cancel(streams[0])
    within(20, engine.close)
    assert engine.stats().running == 0 and not engine._thread.is_alive()


def test_closing_after_what_it_has(model):
    engine = Engine(model, slots=2, context=256)
    streams = [engine.add(Request([i] * 9, 30, stop_ids=())) for i in range(9)]
    within(30, lambda: engine.close(drain=True))
    for i, stream in enumerate(streams):
        assert within(1, stream.result) == [answer([i] * 9, 30, CHUNK)]
    require_empty(engine)


@pytest.mark.parametrize("drain", [False, True])
def test_closing_from_a_function(model, drain):
    with Engine(model, slots=2, context=256) as engine:
        beside = engine.add(Request([2] * 9, 100, stop_ids=()))
        stream = engine.add(endless(on_output=lambda output: engine.close(drain=drain)))
        within(20, engine._thread.join)
    for one, wanted in ((stream, 200), (beside, 100)):
        if drain:
            assert len(within(20, one.result)[0]) == wanted
        else:
            with pytest.raises(EngineClosed):
                within(20, one.result)


def test_many_threads_add_and_cancel(engine):
    failures = []

    def work(seed):
        try:
            for i in range(30):
                ids = [seed, *range(i)]
                stream = engine.add(Request(ids, 8, stop_ids=(), n=1 + i % 2))
                if i % 3 == 0:
                    engine.cancel(stream)
                tokens = stream.result()
                wanted = answer(ids, 8, CHUNK)
                assert all(t == wanted[: len(t)] for t in tokens) and (
                    i % 3 == 0 or wanted in tokens
                )
                assert engine.stats().running <= 4
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,), daemon=True) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures and not any(thread.is_alive() for thread in threads)


def test_a_stream_is_iterated_once_and_its_end_stays(engine):
    stream = engine.add(Request([1, 2], 5, stop_ids=()))
    assert len([*stream]) == 5 and [*stream] == [] and stream.result() == [[]]
    bad = engine.add(Request([1, 2], 5, token_mask=lambda tokens: 7))
    for _ in range(2):
        with pytest.raises(ValueError, match="token_mask"):
            within(20, bad.result)


def test_threads_that_share_a_stream_all_see_its_end(engine):
    stream = engine.add(Request([1, 2], 60, stop_ids=()))
    parts, lock = [], threading.Lock()

    def read():
        for output in stream:
            with lock:
                parts.append(output.token_id)

    threads = [threading.Thread(target=read, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)
    assert sorted(parts) == sorted(answer([1, 2], 60, CHUNK))


def test_an_engine_that_nobody_holds_ends(model):
    engine = Engine(model, slots=2, context=256)
    works(engine)
    thread, core = engine._thread, weakref.ref(engine._core)
    del engine
    for _ in range(100):
        gc.collect()
        if not thread.is_alive() and core() is None:
            break
        time.sleep(0.05)
    assert not thread.is_alive() and core() is None, "its memory stays taken"


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_is_told_to_make_its_own(engine):
    works(engine)
    child = os.fork()
    if not child:  # without a word to pytest
        try:
            engine.add(endless())
        except EngineClosed as error:
            os._exit(7 if "forked" in str(error) else 8)
        finally:
            os._exit(9)
    assert within(20, lambda: os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])) == 7


def test_a_stream_keeps_its_engine(model):
    stream = Engine(model, slots=2, context=256).add(Request([1, 2], 60, stop_ids=()))
    gc.collect()
    assert within(20, stream.result) == [answer([1, 2], 60, CHUNK)]


def test_an_empty_engine_waits_without_work(engine):
    works(engine)
    time.sleep(0.05)
    steps = engine.stats().steps
    cheaply(0.2, lambda: time.sleep(0.3))
    assert engine.stats().steps == steps


def test_outputs_come_in_the_order_of_their_making(engine):
    stream = engine.add(Request([4] * 30, 40, stop_ids=(), n=3))
    seen = [[] for _ in range(3)]
    for output in stream:
        seen[output.sample].append(output.token_id)
    assert seen == [answer([4] * 30, 40, CHUNK)] * 3
    assert not [*itertools.islice(stream, 1)]


LEAVING = """
from l4kernels.engine.engine import Engine
from l4kernels.engine.request import Request
from tests.support.checksums import ChecksumModel
engine = Engine(ChecksumModel(16), slots=2)
next(engine.add(Request([1, 2, 3], 400, stop_ids=())))
print("left")
"""


def test_a_process_ends_while_its_engine_works():
    done = subprocess.run(
        [sys.executable, "-c", LEAVING], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "left\n", "")
