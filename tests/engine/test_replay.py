"""The engine's steps as graphs: what was recorded once gives the tokens that the step itself gives,
whatever comes, goes, is cancelled or has to wait in between."""

import random
from collections import Counter
from unittest import mock

import pytest
import torch

from l4kernels import Llama4, Llama4Config, Sampling, demo, ops
from l4kernels.engine.core import EngineCore
from l4kernels.engine.graphs import as_it_is
from l4kernels.engine.kv_cache import Pages
from l4kernels.engine.sequence import Choice, Sequence
from l4kernels.testing import Recorder, emulated
from tests.support.checkpoints import ALIGNED, TEXT

CHUNK, CONTEXT, SLOTS = 32, 192, 3
FORMATS = {
    "bf16": {},
    "fp8": {"weights": "fp8", "kv_dtype": "fp8"},
    "int4": {"weights": "int4"},
}


def make(form):
    """A dense layer inside its chunk, and a global one of experts."""
    layers = {"num_hidden_layers": 2, "no_rope_layers": [1, 0], "num_local_experts": 2}
    config = {**TEXT, **ALIGNED, **layers, "attention_chunk_size": CHUNK}
    config = Llama4Config.from_dict(config)
    return Llama4.random(config, dtype=torch.bfloat16, **FORMATS[form])


class Counted:
    """A capture, and how often what it captured was repeated."""

    def __init__(self, capture):
        self.capture, self.captures, self.replays = capture, 0, 0

    def __call__(self, step):
        replay, self.captures = self.capture(step), self.captures + 1

        def again():
            self.replays += 1
            replay()

        return again


SETTINGS = (
    Sampling(),
    Sampling(temperature=1.0),
    Sampling(temperature=0.7, top_k=40, top_p=0.9),
    Sampling(temperature=1.0, repetition_penalty=1.2, presence_penalty=0.5, min_tokens=3),
)


class Crowd:
    """Sequences that arrive, are cancelled and leave, by the dice and by what was said."""

    def __init__(self, core, vocab):
        self.core, self.vocab, self.dice = core, vocab, random.Random(7)
        self.start = [self.dice.randrange(vocab) for _ in range(70)]
        self.live, self.everyone, self.said, self.ends = {}, [], [], Counter()

    def arrive(self):
        dice, number = self.dice, len(self.said)
        shared = dice.choice((0, 40, 70))
        own = [dice.randrange(self.vocab) for _ in range(dice.randint(1, 20))]
        prompt = (self.start[:shared] + own)[: dice.randint(1, 80)]
        stop = frozenset(dice.sample(range(self.vocab), 1)) if dice.random() < 0.2 else frozenset()
        new = dice.choice((1, 10, 60, CONTEXT - len(prompt)))
        logprobs = 3 if dice.random() < 0.1 else None
        sequence = Sequence(prompt, Choice(dice.choice(SETTINGS), number, stop, new, logprobs))
        self.core.add(sequence)
        self.live[sequence] = number
        self.everyone.append(sequence)
        self.said.append([])

    def step(self):
        if len(self.live) < 2 * SLOTS and self.dice.random() < 0.1:
            self.arrive()
        if self.live and self.dice.random() < 0.01:
            sequence = self.dice.choice([*self.live])
            self.core.cancel(sequence)
            self.ends["cancelled"] += 1
            del self.live[sequence]
        for event in self.core.step():
            assert event.error is None
            if event.sequence not in self.live:  # cancelled
                continue
            self.said[self.live[event.sequence]].append((event.token, event.logprob))
            if event.finish_reason:
                self.ends[event.finish_reason] += 1
                del self.live[event.sequence]

    def boundaries(self):
        """The most chunks that one of them left behind while it spoke."""
        return max(
            (len(sequence.tokens) - 1) // CHUNK - sequence.prompt_length // CHUNK
            for sequence in self.everyone
        )


def run(model, capture, replays):
    counted = Counted(capture)
    core = EngineCore(
        model,
        slots=SLOTS,
        context=CONTEXT,
        pages=Pages(11, 5),  # too few for all of them
        prefill_tokens=48,
        capture=counted,
        lag=1,
    )
    crowd = Crowd(core, model.config.vocab_size)
    while counted.replays < replays:
        crowd.step()
    return crowd, counted


@pytest.mark.parametrize("form", FORMATS)
def test_a_thousand_replays_say_what_the_steps_say(form):
    model, recorder = make(form), Recorder()
    wanted, _ = run(model, as_it_is, 1000)
    got, counted = run(model, recorder, 1000)
    assert got.said == wanted.said
    assert recorder.escaped() == []
    assert len(recorder.recordings) == counted.captures >= 6  # sizes and kinds of steps
    # What was to happen in between has happened.
    counts = got.core.scheduler.counts
    assert got.boundaries() >= 4 and counts.preemptions > 3 and counts.reused_tokens > 500
    assert got.ends["length"] > 20 and got.ends["cancelled"] > 1 and got.ends["stop"] > 0


def test_a_number_of_the_host_in_the_step_is_noticed():
    model, cores = make("bf16"), []

    def drawn(*args, counters, **options):
        """By the host's count of steps instead of each sequence's."""
        return sample(*args, counters=torch.full_like(counters, cores[-1].steps), **options)

    def said(capture):
        core = EngineCore(model, slots=1, context=64, pages=Pages(2, 2), capture=capture)
        cores.append(core)
        core.add(Sequence([1, 2, 3], Choice(Sampling(temperature=1.0), 0, frozenset(), 20)))
        with mock.patch.object(ops, "sample", drawn):
            return tokens_of(core)

    sample = ops.sample
    wanted, got = said(as_it_is), said(Recorder())
    assert got[:3] == wanted[:3]  # two steps come before the one that is recorded
    assert len(got) == len(wanted) == 20 and got != wanted


def tokens_of(core):
    tokens = []
    while not core.idle:
        events = core.step()
        assert not any(event.error for event in events)
        tokens += [event.token for event in events]
    return tokens


@pytest.mark.parametrize("form, mode", [("bf16", "late"), ("int4", "random")])
def test_replayed_kernels_say_what_kernels_say(form, mode):
    """Twenty steps of the demo checkpoint in the emulator, across the end of a chunk."""
    model = Llama4.from_pretrained(demo.CHECKPOINT, dtype=torch.bfloat16, weights=form)
    first = model.config.attention_chunk_size - 9

    def said(capture):
        core = EngineCore(model, slots=2, context=128, pages=Pages(4, 4), capture=capture, lag=1)
        choices = [Choice(Sampling(temperature=t), 1, frozenset(), 20) for t in (0.0, 1.0)]
        for prompt, choice in zip((range(100, 100 + first), [7, 8, 9]), choices, strict=True):
            core.add(Sequence([*prompt], choice))
        with emulated(mode=mode):
            return tokens_of(core)

    recorder = Recorder()
    wanted, got = said(as_it_is), said(recorder)
    assert got == wanted and len(got) == 40
    assert recorder.escaped() == []
    assert len(recorder.recordings) == 1
    attended = [n for name, n in recorder.launches.items() if "flash_decode_append" in name]
    assert sum(attended) == model.config.num_hidden_layers
    planned = [n for name, n in recorder.launches.items() if "flash_decode_plan" in name]
    assert sum(planned) == 2  # one for each kind of layer
