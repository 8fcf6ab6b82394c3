"""One server on the demo checkpoint for the tests of the protocol."""

import base64

import openai
import pytest
from PIL import Image

from l4kernels import Engine, Llama4, Prompter
from l4kernels.demo import CHECKPOINT, held_out_digits
from l4kernels.engine.graphs import as_it_is
from l4kernels.engine.request import Request
from tests.support.parrot import Parrot
from tests.support.pictures import saved
from tests.support.serving import serving


@pytest.fixture(scope="session")
def prompter():
    return Prompter(CHECKPOINT)


@pytest.fixture(scope="session")
def model():
    """At its first step PyTorch imports its compiler, which takes seconds, on a busy machine more
    than a client waits. `l4k serve` takes that step before it listens."""
    model = Llama4.from_pretrained(CHECKPOINT)
    with Engine(model, slots=1) as engine:
        engine.add(Request([1], max_new_tokens=2)).result()
    return model


@pytest.fixture(scope="session")
def demo(model, prompter):
    with (
        Engine(model, tokenizer=prompter.tokenizer, slots=16) as engine,
        serving(engine, prompter) as one,
    ):
        yield one


@pytest.fixture(scope="session")
def parrot(prompter):
    """Answers what the user said."""
    with (
        Engine(Parrot(), tokenizer=prompter.tokenizer, slots=16, capture=as_it_is) as engine,
        serving(engine, prompter) as one,
    ):
        yield one


def _client(one):
    return openai.OpenAI(base_url=f"{one.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="session")
def client(demo):
    return _client(demo)


@pytest.fixture(scope="session")
def parrot_client(parrot):
    return _client(parrot)


@pytest.fixture(scope="session")
def digits():
    """Pictures of digits as data URIs, and which they are."""
    sheet = held_out_digits()
    pixels = [image.numpy() for image in sheet.images[:8]]
    files = [saved(Image.fromarray(one)) for one in pixels]
    urls = ["data:image/png;base64," + base64.b64encode(file).decode() for file in files]
    return [*zip(urls, map(str, sheet.labels), strict=False)]
