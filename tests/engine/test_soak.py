"""Thousands of requests that come, go, share prefixes and push one another out: nothing is lost."""

import pytest

from l4kernels.engine.engine import Engine
from tests.support.checksums import ChecksumModel
from tests.support.traffic import Traffic, require_empty, run


def soak(requests: int, lag: int) -> None:
    chunk = 24
    with Engine(ChecksumModel(chunk), slots=32, context=128, kv_tokens=800) as engine:
        engine._core.lag = lag
        run(engine, Traffic(lag, chunk, new=14), requests, at_once=80)
        require_empty(engine)
        stats = engine.stats()
        assert stats.finished >= requests and stats.reused_tokens > stats.prompt_tokens / 5
        assert stats.preemptions > requests / 200


@pytest.mark.parametrize("lag", [0, 1])
def test_nothing_leaks(lag):
    soak(5_000, lag)


@pytest.mark.soak
def test_nothing_leaks_for_long():
    soak(50_000, 1)
