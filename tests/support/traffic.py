"""Random requests for an engine on `ChecksumModel`, and what must come of them."""

import random
from dataclasses import dataclass, field

import torch

from l4kernels import Sampling
from l4kernels.engine.engine import Engine, Stream
from l4kernels.engine.request import Output, Request
from tests.support.checksums import PATCH, TILE_TOKENS, answer, contents

PICTURES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
SETTINGS = [Sampling()] * 6 + [
    Sampling(1.0, seed=5),
    Sampling(presence_penalty=0.5, repetition_penalty=1.1, logit_bias={3: 1.0}),
    Sampling(0.7, top_k=5, min_p=0.1),
]  # the model is so sure of every token that none of these changes one


@dataclass
class Job:
    """A request, and what has come of it."""

    request: Request
    wanted: list[int]
    cancel_after: int | None
    """Tokens after which it is cancelled; None: never."""
    tokens: list[list[int]] = field(init=False)
    reasons: list[list[str]] = field(init=False)

    def __post_init__(self) -> None:
        self.tokens, self.reasons = ([[] for _ in range(self.request.n)] for _ in range(2))

    def take(self, output: Output) -> None:
        assert not self.reasons[output.sample], "an output after the last"
        if output.token_id is not None:
            self.tokens[output.sample].append(output.token_id)
        if output.finish_reason is not None:
            self.reasons[output.sample].append(output.finish_reason)

    def check(self) -> None:
        stop = self.request.stop_ids
        for tokens, reasons in zip(self.tokens, self.reasons, strict=True):
            assert len(reasons) == 1, reasons
            if reasons == ["cancelled"]:
                assert self.cancel_after is not None and tokens == self.wanted[: len(tokens)]
            else:
                assert tokens == self.wanted
                assert reasons == ["stop" if tokens[-1] in stop else "length"]


class Traffic:
    """Prompts of a few conversations that share their beginnings; some end in a picture, some
    are asked for several samples, and some are given up."""

    def __init__(self, seed: int, chunk: int, *, longest: int = 96, new: int = 12):
        self.random, self.chunk, self.longest, self.new = random.Random(seed), chunk, longest, new
        self._prompts = [[self.random.randrange(PATCH) for _ in range(n)] for n in (17, 40, 64)]

    def job(self) -> Job:
        draw, tiles = self.random, None
        ids = list(draw.choice(self._prompts)) if draw.random() < 0.8 else []
        ids += [draw.randrange(PATCH) for _ in range(draw.randrange(1, 24))]
        if draw.random() < 0.1:
            tiles = PICTURES[draw.randrange(4)][None]
            ids[-1:] = [PATCH] * TILE_TOKENS + draw.choice([[], ids[-1:]])
        ids, new = ids[-self.longest :], draw.randrange(1, self.new + 1)
        stop = draw.sample(range(PATCH), 2)
        wanted = answer(contents(ids, tiles), new, self.chunk, stop=stop)
        if tiles is None and len(ids) < self.longest:
            self._prompts[draw.randrange(3)] = ids + wanted[:-1]
        request = Request(
            ids, new, draw.choice(SETTINGS), tiles, stop, n=draw.choice([1] * 8 + [2, 3]),
            priority=draw.choice([0, 0, 0, 1]), cache_salt=draw.choice(["", "", "another"]),
            logprobs=draw.choice([None] * 9 + [2]),
        )  # fmt: skip
        return Job(request, wanted, draw.randrange(4) if draw.random() < 0.1 else None)


def run(engine: Engine, traffic: Traffic, jobs: int, at_once: int) -> None:
    """Hands in jobs, so many at a time, and checks every one."""
    open_jobs: list[tuple[Job, Stream]] = []
    for number in range(jobs):
        job = traffic.job()
        stream = engine.add(job.request)
        if job.cancel_after == 0:
            engine.cancel(stream)
        open_jobs.append((job, stream))
        if len(open_jobs) == at_once or number == jobs - 1:
            kept = traffic.random.randrange(at_once // 2) if number < jobs - 1 else 0
            while len(open_jobs) > kept:
                finish(engine, *open_jobs.pop(0))


def finish(engine: Engine, job: Job, stream: Stream) -> None:
    for count, output in enumerate(stream):
        job.take(output)
        if count + 1 == job.cancel_after:
            engine.cancel(stream)
            engine.cancel(stream)
    job.check()


def require_empty(engine: Engine) -> None:
    """Nothing is left of what an engine has done."""
    core, stats = engine._core, engine.stats()
    assert (stats.running, stats.waiting, stats.kv_tokens_in_use) == (0, 0, 0)
    assert core.idle and not engine._streams
    assert sorted(core.scheduler._free) == [*range(stats.slots)]
    assert not (core._processed or core._listed or core._masked)
    assert not core.state.int32[0].any() and bool((core.state.slots == -1).all())
    for pool in core.cache.pools:
        assert pool.available == pool.num_pages and not any(pool._users)
