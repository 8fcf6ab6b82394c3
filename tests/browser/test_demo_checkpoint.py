"""The page and the server together, over the demo checkpoint."""

import json
import time
import urllib.request

import pytest
from PIL import Image

from l4kernels import Engine, Llama4, Prompter
from l4kernels.demo import CHECKPOINT, QUESTION, held_out_digits
from l4kernels.engine.core import EngineCore
from tests.support.chat_picture import GREEDY, attach, converse
from tests.support.serving import serving
from tools.nvcc import ROOT

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def prompter():
    return Prompter(CHECKPOINT)


@pytest.fixture(scope="module")
def engine(prompter):
    with Engine(Llama4.from_pretrained(CHECKPOINT), tokenizer=prompter.tokenizer) as running:
        yield running


@pytest.fixture(scope="module")
def url(engine, prompter):
    with serving(engine, prompter) as server:
        yield server.url


def answer_of_the_api(url: str, messages: list[dict[str, str]]) -> str:
    body = json.dumps({"messages": messages, **GREEDY}).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/chat/completions", body, headers)
    with urllib.request.urlopen(request) as response:
        return json.load(response)["choices"][0]["message"]["content"]


def test_the_page_is_served_with_its_policy(page, url):
    with urllib.request.urlopen(url) as response:
        assert "default-src 'none'" in response.headers["Content-Security-Policy"]
    page.open(url)
    page.wait(lambda: page.find("#model").text == "demo", "the model's name")


def test_a_conversation_is_that_of_the_api(page, url):
    page.open(url, **GREEDY)
    messages = []
    for text in ("And it came to pass, when", "And the LORD said unto Moses,"):
        messages.append({"role": "user", "content": text})
        expected = answer_of_the_api(url, messages)
        assert page.ask(text).split() == expected.split() and expected
        assert "tokens in" in page.notes() and "tokens/s" in page.notes()
        messages.append({"role": "assistant", "content": expected})


def test_stopping_ends_the_request(page, url, engine, monkeypatch):
    step = EngineCore.step

    def slow_step(core):
        time.sleep(0.05)
        return step(core)

    page.open(url, **GREEDY)
    with monkeypatch.context() as patch:
        patch.setattr(EngineCore, "step", slow_step)
        page.send("And it came to pass, when")
        page.wait(lambda: page.answers()[-1], "the first words")
        page.button("Stop").click()
        partial = page.answer()
        page.wait(lambda: not engine.stats().running, "an idle engine")
    assert "stopped" in page.notes()
    assert page.ask("And God saw") and page.answers()[0] == partial


def test_an_image_is_looked_at(page, url):
    page.open(url, **GREEDY)
    attach(page, (0,))
    assert page.ask(QUESTION) == str(held_out_digits().labels[0])


def test_the_picture_of_the_readme_is_what_the_demo_says(page, url, tmp_path):
    text, digits = converse(page, url, 360, 740, "dark")
    assert text.endswith(".") and digits.split() == [str(n) for n in held_out_digits().labels[:2]]
    page.picture(tmp_path / "chat.png")
    assert Image.open(tmp_path / "chat.png").size == (360, 740)
    with Image.open(ROOT / "docs" / "images" / "chat.png") as picture:
        assert picture.size == (2000, 1360)


def test_what_the_server_refuses_is_readable(page, url):
    page.open(url, temperature=9)
    page.ask("Hi")
    assert page.errors() == ["temperature: Input should be less than or equal to 2"]
