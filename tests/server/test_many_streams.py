"""Two hundred clients at once, some of them slow, some gone in the middle: nothing is lost."""

import asyncio
import gc
import json
import random
import time
from dataclasses import dataclass, field

import psutil
import pytest

from l4kernels import Engine
from tests.support.serving import serving
from tests.support.traffic import require_empty

PROMPTS = [
    "And it came to pass", "In the beginning", "And the LORD said", "The sons of", "Blessed is",
    "And God saw", "Now the king", "The word of", "Thus saith", "Then Moses",
]  # fmt: skip


@dataclass
class Clients:
    """What they have seen, of `texts`: what each prompt is answered when it is alone."""

    address: tuple[str, int]
    texts: list[str]
    tokens: int
    seed: int
    seconds: float
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    read: int = 0

    async def run(self, clients: int) -> None:
        end = time.monotonic() + self.seconds
        await asyncio.gather(*(self._one(random.Random(self.seed + i), end)
                               for i in range(clients)))  # fmt: skip

    async def _one(self, draw: random.Random, end: float) -> None:
        while time.monotonic() < end:
            which, kind = draw.randrange(len(PROMPTS)), draw.choices(KINDS, [6, 3, 1])[0]
            text = await asyncio.wait_for(self._ask(draw, which, kind), 60)
            whole = self.texts[which]
            assert text == whole if kind != "leaves" else whole.startswith(text), (kind, text)
            self.counts[kind] += 1

    async def _ask(self, draw: random.Random, which: int, kind: str) -> str:
        reader, writer = await asyncio.open_connection(*self.address, limit=1 << 14)
        said = {"role": "user", "content": PROMPTS[which]}
        settings = {"max_tokens": self.tokens, "temperature": 0, "stream": True}
        content = json.dumps({"messages": [said]} | settings)
        writer.write(
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(content)}\r\n\r\n{content}".encode()
        )
        try:
            return await self._read(reader, draw, kind)
        finally:
            writer.transport.abort() if kind == "leaves" else writer.close()

    async def _read(self, reader: asyncio.StreamReader, draw: random.Random, kind: str) -> str:
        leave = draw.randrange(self.tokens) if kind == "leaves" else self.tokens + 1
        assert (await reader.readline()).startswith(b"HTTP/1.1 200"), "not taken"
        text, seen = "", 0
        while seen < leave:
            line = await reader.readline()
            assert line, "cut off"
            if line == b"data: [DONE]\n":
                break
            if not line.startswith(b"data: "):
                continue
            (choice,) = json.loads(line[6:])["choices"]
            text += choice["delta"].get("content", "")
            seen += bool(choice["delta"].get("content"))
            if kind == "slow":
                await asyncio.sleep(draw.random() * 0.05)
        self.read += seen
        return text


KINDS = ["reads", "leaves", "slow"]


def crowd(model, prompter, clients, tokens, seconds):
    with (
        Engine(model, tokenizer=prompter.tokenizer, slots=64) as engine,
        serving(engine, prompter, max_waiting=clients) as one,
    ):
        alone = [
            "".join(output.text for output in engine.add(request))
            for request in _alone(prompter, tokens)
        ]
        asyncio.run(Clients(one.server.address, alone, tokens, 1, seconds / 4).run(clients))
        gc.collect()
        before = psutil.Process().memory_info().rss
        seen = Clients(one.server.address, alone, tokens, 10_000, seconds)
        asyncio.run(seen.run(clients))
        assert one.settled()
        gc.collect()
        grown = psutil.Process().memory_info().rss - before
        require_empty(engine)
        assert not one.service._samples and not one.service._running
        assert min(seen.counts.values()) > 0 and seen.read > 500, seen
        assert engine.stats().preemptions == 0
        return seen, grown


def _alone(prompter, tokens):
    from l4kernels import Request, Sampling

    for prompt in PROMPTS:
        ids = prompter.chat([{"role": "user", "content": prompt}]).ids
        yield Request(ids, tokens, Sampling())


def test_many_streams(model, prompter):
    _, grown = crowd(model, prompter, 200, 12, 4)
    assert grown < 64 << 20


@pytest.mark.soak
def test_many_streams_for_two_minutes(model, prompter):
    seen, grown = crowd(model, prompter, 200, 40, 120)
    print(seen.counts, seen.read, grown)
    assert grown < 16 << 20
