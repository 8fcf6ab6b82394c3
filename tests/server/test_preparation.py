"""Prompts that take long to make: whom they hold up, and how they end."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import httpx
import pytest

from l4kernels import Engine
from l4kernels.prompt.image_processor import ImageProcessor
from tests.support.serving import serving

HTTP = httpx.Client(timeout=60)
TEXT = {"role": "user", "content": "And it came to pass"}


@pytest.fixture
def one(model, prompter):
    with (
        Engine(model, tokenizer=prompter.tokenizer, slots=2) as engine,
        serving(engine, prompter, drain_seconds=0) as serving_one,
    ):
        yield serving_one


class Slow:
    """Images are prepared once they may go on."""

    def __init__(self):
        self.begun, self.go_on = threading.Semaphore(0), threading.Event()
        self.prepared = 0
        self._prepare = ImageProcessor._prepare

    def prepare(self, processor, source, name):
        self.prepared += 1
        self.begun.release()
        assert self.go_on.wait(30)
        return self._prepare(processor, source, name)


@pytest.fixture
def slow():
    slow = Slow()
    with mock.patch.object(ImageProcessor, "_prepare", lambda *given: slow.prepare(*given)):
        yield slow
        slow.go_on.set()


def pictures(digits, count):
    parts = [{"type": "image_url", "image_url": {"url": digits[0][0]}}] * count
    return {"messages": [{"role": "user", "content": parts}]}


def until(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.005)


@pytest.mark.parametrize("route", ["/v1/chat/completions", "/tokenize"])
def test_texts_do_not_wait_for_images(one, slow, digits, route):
    with ThreadPoolExecutor(8) as pool:
        waiting = [
            pool.submit(httpx.post, f"{one.url}{route}", json=pictures(digits, 1), timeout=60)
            for _ in range(8)
        ]
        assert slow.begun.acquire(timeout=10)
        for body in ({"max_tokens": 1}, {"max_tokens": 2}):
            answer = HTTP.post(f"{one.url}/v1/chat/completions", json=body | {"messages": [TEXT]})
            assert answer.status_code == 200
        assert not any(future.done() for future in waiting)
        slow.go_on.set()
        assert {future.result().status_code for future in waiting} == {200}


@pytest.mark.parametrize("route", ["/v1/chat/completions", "/tokenize"])
def test_images_of_a_client_who_left_are_not_prepared(one, slow, digits, route):
    tasks = one.server.server_state.tasks
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{one.url}{route}", json=pictures(digits, 8), timeout=0.3)
    assert slow.begun.acquire(timeout=10)
    until(lambda: not tasks)
    slow.go_on.set()
    assert HTTP.post(f"{one.url}{route}", json=pictures(digits, 1)).status_code == 200
    assert slow.prepared == 2


def test_images_at_the_end_of_the_server_are_not_prepared(one, slow, digits):
    with ThreadPoolExecutor(1) as pool:
        url = f"{one.url}/v1/chat/completions"
        waiting = pool.submit(httpx.post, url, json=pictures(digits, 8), timeout=60)
        assert slow.begun.acquire(timeout=10)
        (generation,) = one.service._running
        one.server.should_exit = True
        until(lambda: generation._failure)
        slow.go_on.set()
        answer = waiting.result()
    assert answer.status_code == 503 and answer.json()["error"]["code"] == "shutting_down"
    assert slow.prepared == 1
