"""A browser for all tests of a process, and a page that must not complain."""

from collections.abc import Iterator

import pytest

from tests.support.chat_page import ChatPage, chromium
from tests.support.scripted_server import ScriptedServer, scripted_server


@pytest.fixture(scope="session")
def browser() -> Iterator[ChatPage]:
    with chromium() as driver:
        yield ChatPage(driver)


@pytest.fixture
def page(browser: ChatPage) -> Iterator[ChatPage]:
    """After each test the console is empty: no error of a script, no breach of the policy."""
    browser.complaints()
    yield browser
    assert browser.complaints() == []


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted_server() as running:
        yield running


@pytest.fixture
def chat(page: ChatPage, server: ScriptedServer) -> ChatPage:
    """The page at the scripted server, with default settings."""
    page.open(server.url)
    return page
