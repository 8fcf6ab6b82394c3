"""Streams whose client is gone, or does not read, before anything has been sent."""

import asyncio

import pytest

from l4kernels.server.streams import EventStream


async def one_event():
    yield b"data: 1\n\n"


async def never():
    await asyncio.sleep(60)
    return {"type": "http.disconnect"}


async def gone():
    return {"type": "http.disconnect"}


def stream(send, receive, stall_seconds=0.05):
    ended = []
    response = EventStream(one_event(), lambda: ended.append(1), stall_seconds)
    asyncio.run(asyncio.wait_for(response({"type": "http"}, receive, send), 5))
    return ended


def sending(start, body):
    """A connection on which the head and the body fare as told."""

    async def send(message):
        await (start if message["type"] == "http.response.start" else body)()

    return send


async def good():
    pass


async def broken():
    raise OSError("gone")


async def stuck():
    await asyncio.sleep(60)


@pytest.mark.parametrize(
    "start, body, receive",
    [(good, good, never), (broken, good, never), (stuck, good, gone), (good, broken, never),
     (good, stuck, never), (good, stuck, gone), (stuck, good, never)],
    ids=range(7),
)  # fmt: skip
def test_what_it_stands_for_is_ended_once(start, body, receive):
    assert stream(sending(start, body), receive) == [1]


def test_a_fault_of_ours_is_not_passed_over():
    async def fault():
        raise KeyError("ours")

    with pytest.raises(KeyError):
        stream(sending(good, fault), never)
