"""Requests made up from the description of the API: none is a server error."""

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings, strategies
from schemathesis import GenerationMode

from l4kernels import Engine
from tests.support.serving import serving


@pytest.fixture(scope="module")
def one(model, prompter):
    """Answers are short, so that there can be many."""
    with (
        Engine(model, tokenizer=prompter.tokenizer, slots=16) as engine,
        serving(engine, prompter, max_output_tokens=2) as server,
    ):
        yield server


_MODES = [GenerationMode.POSITIVE, GenerationMode.POSITIVE, GenerationMode.NEGATIVE]


def fuzz(one, requests: int) -> None:
    schema = schemathesis.openapi.from_url(f"{one.url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) >= 9
    posts = [op for op in operations if op.method == "post"]
    seen: dict[int, int] = {}

    for operation in operations:
        share = requests * 9 // 10 // len(posts) if operation in posts else requests // 100
        modes = [operation.as_strategy(generation_mode=mode) for mode in _MODES]

        @settings(
            max_examples=max(share, 1),
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=[*HealthCheck],
        )
        @given(strategies.one_of(modes))
        def ask(case) -> None:
            if isinstance(case.body, dict) and case.body.get("model"):
                case.body["model"] = "demo"  # else all there is to see is a 404
            answer = case.call(timeout=60)
            seen[answer.status_code] = seen.get(answer.status_code, 0) + 1
            assert answer.status_code < 500, (case.as_curl_command(), answer.text)
            if answer.status_code != 200:
                assert answer.json()["error"]["message"]

        ask()
    assert seen.get(200, 0) > requests // 50 and seen.get(400, 0) > requests // 50, seen
    assert sum(seen.values()) >= requests * 0.8, seen
    assert one.settled() and one.engine.closed is None
    print(seen)


def test_requests_that_are_made_up(one):
    fuzz(one, 300)


@pytest.mark.soak
def test_six_thousand_requests_that_are_made_up(one):
    fuzz(one, 6500)
