"""Who runs next, and who has to wait for whom."""

from l4kernels.engine.engine import Engine
from l4kernels.engine.request import Request
from tests.support.checksums import ChecksumModel, answer
from tests.support.traffic import require_empty

CHUNK = 24


def test_prompts_that_do_not_fit_together_wait_instead_of_pushing_each_other_out():
    """Six out of ten pages each: one after the other, and nothing is computed twice."""
    prompts = [[i] * 960 for i in range(8)]
    with Engine(ChecksumModel(CHUNK, "both", 1024), slots=8, kv_tokens=1600) as engine:
        streams = [engine.add(Request(ids, 40, stop_ids=())) for ids in prompts]
        for ids, stream in zip(prompts, streams, strict=True):
            assert stream.result() == [answer(ids, 40, CHUNK)]
        require_empty(engine)
        stats = engine.stats()
    assert stats.preemptions == 0
    assert stats.prompt_tokens == sum(len(ids) - 1 for ids in prompts)
