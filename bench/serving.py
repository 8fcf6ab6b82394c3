"""What users of a server wait for: requests in OpenAI's protocol, streamed, and timed as they come.

    python -m bench.serving --url http://127.0.0.1:8000 --users 8 --requests 64
    python -m bench.serving --url http://127.0.0.1:8000 --rate 2 --requests 200 --json

Closed loop (`--users`): so many users, each of whom sends the next request when the last one is
answered. Open loop (`--rate`): requests arrive as a Poisson process, whether or not the server
keeps up. Prompts are random words, all different, so that no prefix is reused; the same `--seed`
gives the same prompts, lengths and arrivals. It loads what it is pointed at: name no server that
is not yours.
"""

import argparse
import asyncio
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import Any

import httpx

WORDS = """
time year people way day man thing woman life child world school state family student group country
problem hand part place case week company system program question work government number night point
home water room mother area money story fact month lot right study book eye job word business issue
"""
PERCENTILES = (50, 90, 99)
LATE = 0.05
"""Seconds after its arrival at which a request of an open loop is sent late."""
BEHIND = 2.0
"""Times that the last quarter of an open loop may wait longer than the first."""


@dataclass(frozen=True)
class Job:
    """A request, and when it arrives."""

    due: float
    """Seconds after the start; 0 in a closed loop."""
    prompt: str
    new_tokens: int


@dataclass
class Outcome:
    """What became of a request; times are seconds of `time.perf_counter`."""

    sent: float
    late: float = 0.0
    """Seconds between its arrival and `sent`."""
    texts: list[float] = field(default_factory=list)
    """When text came."""
    ended: float = 0.0
    prompt_tokens: int = 0
    new_tokens: int = 0
    error: str | None = None
    """Its kind, such as "429"; None: it was answered whole."""

    @property
    def first(self) -> float:
        """Seconds to the first text, counted from the arrival."""
        return self.texts[0] - self.sent + self.late

    @property
    def total(self) -> float:
        return self.ended - self.sent + self.late

    @property
    def gaps(self) -> list[float]:
        return [b - a for a, b in pairwise(self.texts)]


class StreamError(Exception):
    """A stream of events that is not what it should be; the message is its kind."""


def jobs(options: argparse.Namespace) -> list[Job]:
    """The requests of a run: the same for the same seed."""
    draw, due = random.Random(options.seed), 0.0
    words, made = WORDS.split(), []
    for number in range(options.requests):
        if options.rate:
            due += draw.expovariate(options.rate)
        text = [f"{number}:", *draw.choices(words, k=draw.randint(*options.prompt) - 1)]
        made.append(Job(due, " ".join(text), draw.randint(*options.new)))
    return made


class Client:
    """Sends requests to one server."""

    def __init__(self, http: httpx.AsyncClient, options: argparse.Namespace, model: str):
        self._http, self._options, self._model = http, options, model

    async def send(self, job: Job, late: float = 0.0) -> Outcome:
        outcome = Outcome(time.perf_counter(), late)
        try:
            await self._stream(self._body(job), outcome)
        except StreamError as error:
            outcome.error = str(error)
        except (AttributeError, LookupError, TypeError):
            outcome.error = "not the protocol"
        except httpx.TimeoutException:
            outcome.error = "timeout"
        except httpx.HTTPError as error:
            outcome.error = type(error).__name__
        outcome.ended = time.perf_counter()
        return outcome

    def _body(self, job: Job) -> dict[str, Any]:
        chat = self._options.api == "chat"
        asked = [{"role": "user", "content": job.prompt}] if chat else job.prompt
        body: dict[str, Any] = {
            "model": self._model,
            "messages" if chat else "prompt": asked,
            "max_tokens": job.new_tokens,
            "temperature": self._options.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        return body | ({"ignore_eos": True} if self._options.ignore_eos else {})

    async def _stream(self, body: dict[str, Any], outcome: Outcome) -> None:
        path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
        async with self._http.stream("POST", path, json=body) as response:
            if response.status_code != 200:
                raise StreamError(str(response.status_code))
            async for event in events(response.aiter_lines()):
                usage = event.get("usage")
                if usage:
                    outcome.prompt_tokens = usage["prompt_tokens"]
                    outcome.new_tokens = usage["completion_tokens"]
                if any(map(_text, event.get("choices") or ())):
                    outcome.texts.append(time.perf_counter())
        if not outcome.texts:
            raise StreamError("no text")


async def events(lines: AsyncIterator[str]) -> AsyncIterator[dict[str, Any]]:
    """The objects of a stream of server-sent events, up to its `[DONE]`."""
    async for line in lines:
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return
        try:
            event = json.loads(data)
        except ValueError:
            raise StreamError("no JSON") from None
        if not isinstance(event, dict):
            raise StreamError("not the protocol")
        if event.get("error"):
            raise StreamError("error in the stream")
        yield event
    raise StreamError("stream cut off")


def _text(choice: dict[str, Any]) -> str:
    return choice.get("text") or (choice.get("delta") or {}).get("content") or ""


async def closed_loop(client: Client, work: Iterable[Job], users: int) -> list[Outcome]:
    outcomes: list[Outcome] = []
    waiting = iter(work)

    async def user() -> None:
        for job in waiting:
            outcomes.append(await client.send(job))

    await asyncio.gather(*(user() for _ in range(users)))
    return outcomes


async def open_loop(client: Client, work: Iterable[Job]) -> list[Outcome]:
    started = time.perf_counter()

    async def arrive(job: Job) -> Outcome:
        await asyncio.sleep(max(0.0, started + job.due - time.perf_counter()))
        return await client.send(job, late=max(0.0, time.perf_counter() - started - job.due))

    return await asyncio.gather(*map(arrive, work))


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Runs the load; the figures."""
    key = {"Authorization": f"Bearer {options.api_key}"} if options.api_key else {}
    async with httpx.AsyncClient(
        base_url=options.url,
        headers=key,
        timeout=options.timeout,
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
        trust_env=False,  # a proxy would be measured, too
    ) as http:
        model = options.model or await only_model(http)
        client, work = Client(http, options, model), jobs(options)
        for job in work[: options.warmup]:
            await client.send(Job(0, f"warm {job.prompt}", job.new_tokens))
        started = time.perf_counter()
        if options.rate:
            outcomes = await open_loop(client, work)
        else:
            outcomes = await closed_loop(client, work, options.users)
        seconds = time.perf_counter() - started
    return {"url": options.url, "model": model, **summary(outcomes, seconds, options)}


async def only_model(http: httpx.AsyncClient) -> str:
    try:
        answer = await http.get("/v1/models")
        answer.raise_for_status()
        return str(answer.json()["data"][0]["id"])
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, LookupError, TypeError) as error:
        shown = str(error) or type(error).__name__
        raise SystemExit(
            f"bench.serving: {http.base_url}v1/models names no model: {shown}"
        ) from None


def summary(outcomes: list[Outcome], seconds: float, options: argparse.Namespace) -> dict[str, Any]:
    """The figures of a run that took so many seconds."""
    done = [outcome for outcome in outcomes if outcome.error is None]
    tokens = sum(outcome.new_tokens for outcome in done)
    good = [outcome for outcome in done if meets(outcome, options)]
    load = {"rate": options.rate} if options.rate else {"users": options.users}
    return {
        **load,
        "requests": len(outcomes),
        "answered": len(done),
        "errors": dict(Counter(outcome.error for outcome in outcomes if outcome.error)),
        "seconds": seconds,
        "requests_per_second": len(done) / seconds,
        "prompt_tokens": sum(outcome.prompt_tokens for outcome in done),
        "new_tokens": tokens,
        "new_tokens_per_second": tokens / seconds,
        "goodput": len(good) / seconds,
        "first_token_ms": spread(outcome.first for outcome in done),
        "inter_token_ms": spread(gap for outcome in done for gap in outcome.gaps),
        "end_to_end_ms": spread(outcome.total for outcome in done),
        "warnings": warnings(outcomes) if options.rate else [],
    }


def meets(outcome: Outcome, options: argparse.Namespace) -> bool:
    """Whether an answer came as fast as `--goal-first` and `--goal-inter` ask (milliseconds)."""
    gaps = outcome.gaps
    mean = sum(gaps) / len(gaps) if gaps else 0.0
    return outcome.first * 1e3 <= options.goal_first and mean * 1e3 <= options.goal_inter


def warnings(outcomes: list[Outcome]) -> list[str]:
    """Why the figures of an open loop may not be what they look like."""
    found = []
    late = sum(outcome.late > LATE for outcome in outcomes)
    if late > 0.01 * len(outcomes):
        found.append(
            f"this client fell behind: it sent {late} of {len(outcomes)} requests more than "
            f"{LATE * 1e3:.0f} ms late; measure from a faster machine, or at a lower rate"
        )
    done = [outcome.total for outcome in outcomes if outcome.error is None]  # by arrival
    quarter = len(done) // 4
    if quarter >= 5:
        first, last = median(done[:quarter]), median(done[-quarter:])
        if last > BEHIND * first:
            found.append(
                f"the server fell behind: the last quarter of the requests took {last:.2f} s, the "
                f"first {first:.2f} s; more of them would wait longer still"
            )
    return found


def spread(seconds: Iterable[float]) -> dict[str, float] | None:
    """Mean and percentiles, by nearest rank, in milliseconds; None of nothing.

    >>> spread([0.001, 0.003])
    {'mean': 2.0, 'p50': 1.0, 'p90': 3.0, 'p99': 3.0}
    """
    values = sorted(second * 1e3 for second in seconds)
    if not values:
        return None
    ranks = {f"p{p}": values[max(0, -(-len(values) * p // 100) - 1)] for p in PERCENTILES}
    return {"mean": sum(values) / len(values), **ranks}


def show(figures: dict[str, Any]) -> None:
    load = f"rate {figures['rate']:g}/s" if "rate" in figures else f"{figures['users']} users"
    print(f"{figures['model']} at {figures['url']}, {load}")
    print(f"{figures['answered']} of {figures['requests']} requests in {figures['seconds']:.1f} s")
    for kind, count in sorted(figures["errors"].items()):
        print(f"    {count} ended with: {kind}")
    print(
        f"{figures['requests_per_second']:.2f} requests/s, "
        f"{figures['new_tokens_per_second']:.1f} tokens/s, goodput {figures['goodput']:.2f}/s"
    )
    print(f"{'ms':16}" + "".join(f"{name:>10}" for name in ("mean", *_NAMES)))
    for name in ("first_token_ms", "inter_token_ms", "end_to_end_ms"):
        row = figures[name] or {}
        cells = "".join(f"{row[key]:10.1f}" if row else f"{'-':>10}" for key in ("mean", *_NAMES))
        print(f"{name.removesuffix('_ms').replace('_', ' '):16}{cells}")


_NAMES = tuple(f"p{p}" for p in PERCENTILES)


def _span(text: str) -> tuple[int, int]:
    """`128`, or `64:512` for lengths between the two."""
    low, _, high = text.partition(":")
    span = int(low), int(high or low)
    if not 1 <= span[0] <= span[1]:
        raise argparse.ArgumentTypeError(f"expected N or LOW:HIGH, at least 1, got {text!r}")
    return span


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench.serving",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", help="its name there; without it the first of /v1/models")
    parser.add_argument("--api", choices=("chat", "completions"), default="chat")
    parser.add_argument("--api-key", default=os.environ.get("L4K_API_KEY"))
    load = parser.add_mutually_exclusive_group()
    load.add_argument("--users", type=int, default=8, help="closed loop: requests at once")
    load.add_argument("--rate", type=_positive, help="open loop: requests a second")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--prompt", type=_span, default=(128, 128), help="words: N or LOW:HIGH")
    parser.add_argument("--new", type=_span, default=(64, 64), help="tokens: N or LOW:HIGH")
    parser.add_argument(
        "--ignore-eos",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="answers of just so many tokens; a server may not know it",
    )
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--goal-first", type=_positive, default=1000.0, help="ms, for goodput")
    parser.add_argument("--goal-inter", type=_positive, default=100.0, help="ms, for goodput")
    parser.add_argument("--warmup", type=int, default=2, help="requests that are not counted")
    parser.add_argument("--timeout", type=_positive, default=300.0, help="seconds without a byte")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    if not options.url.startswith(("http://", "https://")):
        parser.error(f"expected --url to begin with http:// or https://, got {options.url!r}")
    if min(options.users, options.requests) < 1 or options.warmup < 0:
        parser.error("expected --users and --requests of at least 1, --warmup of at least 0")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    figures = asyncio.run(measure(options))
    if options.json:
        print(json.dumps(figures))
    else:
        show(figures)
    for warning in figures["warnings"]:
        print(f"bench.serving: {warning}", file=sys.stderr)
    return 0 if figures["answered"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
